"""The player, the recorded clips, and tasks for planners."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.world import envs, parts, planning, play, tile_world, tiles
from jdiff import training

pytestmark = pytest.mark.usefixtures("compile_cache")
ENV = tile_world.env(size=12, view=5)


def config():
  config = tiles.get_config("smoke")
  config.env.size, config.env.view = 12, 5
  config.sampler.num_steps = 1
  return config


@pytest.fixture(scope="module")
def params():
  network = parts.system(config()).parts.network
  return jax.jit(network.init)(jax.random.key(0))


def test_keys_move_both_worlds(params):
  player = play.Player(config(), params, seed=1)
  first = player.frames[0]
  np.testing.assert_array_equal(*first)
  text = []
  # East by letter, west by arrow, memory, an unknown key, quit, never north.
  stream = io.StringIO("e\x1b[D m ?q\x1b[A")
  play.run(player, play.typed(stream), text.append)
  assert len(player.frames) == 3
  assert not player.has_memory
  assert not bool(player.state.memory.is_on)
  assert "memory off" in text[-1]
  assert "e: east" in text[0]
  assert int(player.state.time) == 3
  # The right panel is the environment's own, wherever the left one went.
  real = ENV.reset(jax.random.split(jax.random.key(1))[0])
  for action in ("east", "west"):
    real = ENV.step(None, real, ENV.action_names.index(action))
  np.testing.assert_array_equal(player.frames[-1][1], ENV.tokens(real))
  height, width, _ = player.picture(4).shape
  assert (height, width) == (20, 44)


def test_again_is_another_world(params):
  player = play.Player(config(), params, seed=1)
  first = player.frames[0][1]
  play.run(player, iter("er"), lambda text: None)
  assert len(player.frames) == 1
  assert player.seed == 2
  assert (player.frames[0][1] != first).any()


def test_unknown_actions_are_refused(params):
  player = play.Player(config(), params)
  with pytest.raises(ValueError, match="action must be one of stay, north"):
    player.press("up")
  with pytest.raises(ValueError, match=r"action must lie in \[0, 5\), got"):
    player.press(7)


def test_every_action_has_a_letter_of_its_own():
  letters = play.keys(("noop", "left", "right", "up", "down", "do", "nod"))
  assert sorted(letters.values()) == sorted(
    ("noop", "left", "right", "up", "down", "do", "nod")
  )
  assert not set(letters) & set("mrq")


def test_recorded_clips_obey_their_world():
  clip = jax.tree.map(np.asarray, envs.record(ENV, jax.random.key(0), 6, 20))
  assert clip.tokens.shape == (6, 20, 25)
  assert (clip.alive == 1).all()
  assert (clip.move[:, 0] == 0).all()
  # a_t leads to frame t: the pose follows by the move, which is the action
  # or none.
  for t in range(1, 20):
    pose = ENV.view.move(
      jnp.asarray(clip.pose[:, t - 1]), jnp.asarray(clip.move[:, t])
    )
    np.testing.assert_array_equal(pose, clip.pose[:, t])
  moved = clip.move[:, 1:] != 0
  np.testing.assert_array_equal(
    clip.move[:, 1:][moved], clip.action[:, 1:][moved]
  )
  assert 0.4 < moved.mean() < 0.95
  # Blocked where a wall stands in the way, and there alone.
  ahead = {1: (-1, 0), 2: (0, -1), 3: (0, 1), 4: (1, 0)}
  frames = clip.tokens.reshape(6, 20, 5, 5)
  for e in range(6):
    for t in range(1, 20):
      row, col = ahead.get(int(clip.action[e, t]), (0, 0))
      wall = frames[e, t - 1, 2 + row, 2 + col] == tile_world.WALL
      stays = clip.move[e, t] == 0
      assert stays == (wall or clip.action[e, t] == 0)
  # Episodes are their own, whatever the number.
  fewer = envs.record(ENV, jax.random.key(0), 2, 20)
  np.testing.assert_array_equal(fewer.tokens, clip.tokens[:2])


def test_an_episode_that_ends_is_known_by_it():
  def counted(state):
    return state.pose[0] * 0 + state.cells[0, 0]

  # Dies on its third step, counted in a cell of the map.
  env = ENV._replace(
    reset=lambda key: ENV.reset(key)._replace(
      cells=jnp.zeros((12, 12), jnp.int32)
    ),
    step=lambda key, state, action: state._replace(
      cells=state.cells.at[0, 0].add(1)
    ),
    done=lambda state: counted(state) >= 3,
    tokens=lambda state: jnp.full(25, counted(state)),
  )
  clip = envs.record(env, jax.random.key(0), 2, 6)
  np.testing.assert_array_equal(clip.alive[0], [1, 1, 1, 0, 0, 0])
  np.testing.assert_array_equal(clip.tokens[0, :, 0], [0, 1, 2, 3, 3, 3])
  with pytest.raises(ValueError, match="all 2 episodes ended within 6 frames"):
    envs.whole(clip)
  assert envs.whole(jax.tree.map(lambda x: x[:, :3], clip)).alive.all()


def test_pictures_have_the_palette():
  tokens = np.arange(6).reshape(1, 6)
  image = envs.render(tile_world.PALETTE, (2, 3), tokens, 2)
  assert image.shape == (1, 4, 6, 3)
  np.testing.assert_array_equal(image[0, 3, 5], tile_world.PALETTE[5])


def test_tasks_are_as_far_as_they_say():
  tasks = planning.draw(ENV, jax.random.key(0), 16, detour=2)
  cells, pose = np.asarray(tasks.state.cells), np.asarray(tasks.state.pose)
  for i in range(16):
    # Breadth first, by hand.
    seen, front = {tuple(pose[i, :2])}, [tuple(pose[i, :2])]
    steps = 0
    while tuple(np.asarray(tasks.target[i])) not in seen:
      ahead = {
        ((r + a) % 12, (c + b) % 12)
        for r, c in front
        for a, b in ((0, 1), (0, -1), (1, 0), (-1, 0))
      }
      front = [p for p in ahead - seen if cells[i][p] != tile_world.WALL]
      seen |= set(front)
      steps += 1
    assert steps == tasks.distance[i]
    assert 3 <= steps <= 6
    straight = planning.gap(ENV.view, tasks.target[i], tasks.state.pose[i])
    assert steps - straight == tasks.detour[i] >= 2


def test_players_arrive_or_do_not(params):
  system = parts.system(config())
  tasks = planning.draw(ENV, jax.random.key(1), 16)

  def solved(act):
    run = jax.jit(
      lambda tasks: planning.play(
        ENV, system.world, params, jax.random.key(2), tasks, act, num_steps=8
      )
    )
    return np.asarray(run(tasks))

  greedy = solved(planning.greedy_player(ENV))
  still = solved(lambda *args: jnp.int32(0))
  assert (still == -1).all()
  assert (greedy >= 0).sum() >= 4
  arrived = greedy >= 0
  assert (greedy[arrived] >= np.asarray(tasks.distance)[arrived]).all()


@pytest.mark.thorough
def test_a_finished_run_is_loaded_and_played(tmp_path, monkeypatch):
  small = config()
  small.num_steps = 1
  small.eval.num_loops = 2
  from experiments.world import experiment

  built = experiment.build(small)._replace(
    evaluate=lambda params, key, final: {"nothing": 0.0}, figures=None
  )
  training.run(built, small, tmp_path, progress=False)
  player = play.Player.load(tmp_path, seed=3)
  player.press("north")
  assert len(player.frames) == 2
