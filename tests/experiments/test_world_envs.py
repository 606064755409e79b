"""The adapters of other packages' worlds, where these are installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.world import (
  craftax_world,
  envs,
  minatar_world,
  navix_world,
  optional,
)

WORLDS = {
  "craftax": craftax_world.env,
  "gymnax": minatar_world.env,
  "navix": navix_world.env,
}


def recorded(env, num_episodes, num_frames, seed=0, observe=lambda s: s):
  """A clip and the packages' own states, as NumPy arrays."""
  clip, seen = envs.record(
    env, jax.random.key(seed), num_episodes, num_frames, observe=observe
  )
  return jax.tree.map(np.asarray, (clip, seen))


@pytest.fixture(scope="module")
def craftax():
  pytest.importorskip("craftax.craftax_env", exc_type=ImportError)
  env = craftax_world.env()

  def observe(state):
    game = state.game
    mobs = [getattr(game, name) for name in craftax_world.MOBS]
    places = [(kind.position, kind.mask) for kind in mobs]
    return game.map, game.player_direction, places

  return env, *recorded(env, 8, 40, observe=observe)


@pytest.fixture(scope="module")
def craftax_step(craftax):
  env = craftax[0]
  return jax.jit(env.reset)(jax.random.key(1)), jax.jit(env.step)


@pytest.fixture(scope="module")
def rooms():
  navix = pytest.importorskip("navix", exc_type=ImportError)
  env = navix_world.env()
  observe = lambda state: navix.observations.symbolic(state.game)  # noqa: E731
  return env, *recorded(env, 8, 40, observe=observe)


@pytest.mark.parametrize("package", WORLDS)
def test_a_missing_package_says_what_to_install(package, monkeypatch):
  def absent(name):
    raise ImportError(name)

  monkeypatch.setattr(optional.importlib, "import_module", absent)
  extra = "navix" if package == "navix" else "worlds"
  message = rf'package {package}: pip install "jdiff-research\[{extra}\]"'
  with pytest.raises(ImportError, match=message):
    WORLDS[package]()


def test_other_errors_of_a_package_pass_through(monkeypatch):
  def broken(name):
    raise RuntimeError(name)

  monkeypatch.setattr(optional.importlib, "import_module", broken)
  with pytest.raises(RuntimeError):
    optional.load("craftax")


@pytest.mark.parametrize(
  "make, options, message",
  [
    (minatar_world.env, {"game": "Pong"}, "game must be one of .*, got 'Pong'"),
    (minatar_world.env, {"cell_size": 0}, "cell_size must be >= 1, got 0"),
    (minatar_world.env, {"skill": 1.5}, r"skill must lie in \[0, 1\], got 1.5"),
    (navix_world.env, {"name": "Maze"}, "name must be one of .*, got 'Maze'"),
  ],
)
def test_bad_options_are_named(make, options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_every_action_is_the_opposite_of_its_opposite():
  games = [game.opposite for game in minatar_world.GAMES.values()]
  for table in (craftax_world.OPPOSITE, navix_world.OPPOSITE, *games):
    assert [table[i] for i in table] == list(range(len(table)))


def test_kinds_of_cells_differ_in_colour():
  tables = [
    (craftax_world.PALETTE, len(craftax_world.KINDS)),
    (navix_world.PALETTE, len(navix_world.KINDS)),
  ]
  for game in minatar_world.GAMES:
    planes = minatar_world.planes(game)
    assert len(np.unique(planes, axis=0)) == len(planes)
    tables.append((minatar_world.palette(game), len(planes)))
  assert [size for _, size in tables] == [25, 3, 12, 14, 8, 24]
  for palette, size in tables:
    assert palette.shape == (size, 3) and palette.dtype == np.uint8
    assert len(np.unique(palette, axis=0)) == size


@pytest.mark.slow
def test_craftax_names_are_the_package_s_own(craftax):
  constants = optional.load("craftax.craftax_classic.constants")
  blocks = [block.name.lower() for block in constants.BlockType]
  actions = [action.name.lower() for action in constants.Action]
  assert list(craftax_world.BLOCKS) == blocks
  assert list(craftax_world.ACTIONS) == actions[:6]
  assert constants.OBS_DIM == craftax_world.SHAPE


@pytest.mark.slow
def test_craftax_tokens_are_the_map_under_mobs_and_player(craftax):
  env, clip, (maps, facing, mobs) = craftax
  rows, cols = env.view.shape
  for episode, frame in np.ndindex(clip.action.shape):
    # Room for a view at any place, and one cell more.
    wide = np.pad(maps[episode, frame], 8, constant_values=1)
    row, col, _ = clip.pose[episode, frame] + np.array([8, 8, 0])
    want = wide[row - 3 : row + 4, col - 4 : col + 5].copy()
    for kind, (position, mask) in enumerate(mobs):
      for place in position[episode, frame][mask[episode, frame]]:
        i, j = place - clip.pose[episode, frame, :2] + np.array([3, 4])
        if 0 <= i < rows and 0 <= j < cols:
          want[i, j] = craftax_world.FIRST_MOB + kind
    want[3, 4] = craftax_world.FIRST_PLAYER + facing[episode, frame] - 1
    np.testing.assert_array_equal(clip.tokens[episode, frame], want.ravel())
  assert (clip.tokens == craftax_world.FIRST_MOB + 1).any()


@pytest.mark.slow
def test_craftax_views_shift_by_the_difference_of_poses(craftax):
  env, clip, (maps, _, _) = craftax

  def agreement(pose):
    cells = np.asarray(env.view.cells(jnp.asarray(pose)))
    still = clip.tokens < craftax_world.FIRST_MOB
    inside = ((cells >= 0) & (cells < maps.shape[-1])).all(-1)
    same = []
    for episode, frame in np.ndindex(len(maps), maps.shape[1] - 1):
      # What the first frame shows at each place, looked for in the second.
      old, new = (episode, frame), (episode, frame + 1)
      known = still & inside
      places = map(tuple, cells[old][known[old]])
      seen = dict(zip(places, clip.tokens[old][known[old]], strict=True))
      changed = maps[old] != maps[new]
      found = map(tuple, cells[new][known[new]])
      for place, token in zip(found, clip.tokens[new][known[new]], strict=True):
        if place in seen and not changed[place]:
          same.append(seen[place] == token)
    return np.mean(same)

  assert agreement(clip.pose) == 1
  # A control: rows and columns exchanged.
  assert agreement(clip.pose[..., [1, 0, 2]]) < 0.95


@pytest.mark.slow
def test_craftax_players_move_by_one_cell_at_most(craftax):
  env, clip, _ = craftax
  move = env.view.move_between(clip.pose[:, :-1], clip.pose[:, 1:])
  np.testing.assert_array_equal(move, clip.move[:, 1:])
  assert set(np.unique(clip.move)) == set(range(5))
  # A way to go leads there or nowhere: up, left, right, down.
  way = np.array([0, 2, 3, 1, 4, 0])[clip.action[:, 1:]]
  assert np.all((move == way) | (move == 0))


@pytest.mark.slow
@pytest.mark.thorough
def test_craftax_rewards_an_achievement_and_changes_the_map(
  craftax, craftax_step
):
  env = craftax[0]
  state, step = craftax_step
  tree, grass = (craftax_world.BLOCKS.index(x) for x in ("tree", "grass"))
  game = state.game.replace(map=jnp.full_like(state.game.map, tree))
  after = step(jax.random.key(2), state._replace(game=game), jnp.int32(5))
  assert float(after.reward) == 1.0 and not after.done
  # The player begins by facing up.
  tokens = np.asarray(env.tokens(after)).reshape(env.view.shape)
  assert tokens[2, 4] == grass
  assert tokens[3, 4] == craftax_world.KINDS.index("player_up")
  assert (np.delete(tokens.ravel(), [2 * 9 + 4, 3 * 9 + 4]) == tree).all()


@pytest.mark.slow
def test_craftax_death_lasts(craftax, craftax_step):
  state, step = craftax_step
  lava = jnp.full_like(state.game.map, craftax_world.LAVA)
  north = jnp.int32(craftax_world.ACTIONS.index("up"))
  dead = step(
    jax.random.key(3), state._replace(game=state.game.replace(map=lava)), north
  )
  assert dead.done
  grass = dead.game.replace(map=state.game.map)
  assert step(jax.random.key(4), dead._replace(game=grass), north).done


@pytest.mark.slow
def test_rooms_show_a_cell_alike_from_every_pose(rooms):
  env, clip, maps = rooms
  kinds = {kind: i for i, kind in enumerate(navix_world.KINDS.values())}

  def agreement(pose):
    cells = np.asarray(env.view.cells(jnp.asarray(pose)))
    same = []
    for episode, frame in np.ndindex(clip.action.shape):
      want = []
      for row, col in cells[episode, frame]:
        inside = 0 <= row < maps.shape[2] and 0 <= col < maps.shape[3]
        symbol = maps[episode, frame, row, col] if inside else (2, 5, 0)
        # The observer's own symbol is left out of its view.
        here = (row, col) == tuple(clip.pose[episode, frame, :2])
        want.append(0 if here else kinds.get(tuple(map(int, symbol)), -1))
      same.append(want == clip.tokens[episode, frame])
    return np.mean(same)

  assert agreement(clip.pose) == 1
  assert set(np.unique(clip.pose[..., 2])) == {0, 1, 2, 3}
  # A control: the way it faces left out.
  assert agreement(clip.pose * np.array([1, 1, 0])) < 0.95


@pytest.mark.slow
def test_rooms_actions_are_the_moves_of_the_view(rooms):
  env, clip, _ = rooms
  before, after = clip.pose[:, :-1], clip.pose[:, 1:]
  going = clip.alive[:, :-1] == 1
  meant = np.asarray(env.view.move(jnp.asarray(before), clip.action[:, 1:]))
  made = (meant == after).all(-1)
  blocked = (before == after).all(-1) & (clip.action[:, 1:] == 1)
  assert (made | blocked)[going].all() and blocked.any()
  np.testing.assert_array_equal(
    clip.move[:, 1:][going], np.where(made, clip.action[:, 1:], 0)[going]
  )
  assert set(np.unique(clip.move)) == set(range(4))


@pytest.mark.slow
def test_rooms_end_at_the_goal(rooms):
  env = rooms[0]
  state = jax.jit(env.reset)(jax.random.key(5))
  goal = state.game.get_goals().position[0]
  player = state.game.get_player()
  # Left of the goal, facing right.
  player = player.replace(
    position=goal - jnp.array([0, 1]),
    direction=jnp.zeros_like(player.direction),
  )
  state = state._replace(game=state.game.set_player(player))
  ahead = env.tokens(state).reshape(env.view.shape)[5, 3]
  assert ahead == list(navix_world.KINDS).index("goal")
  step = jax.jit(env.step)
  stayed = step(jax.random.key(6), state, jnp.int32(0))
  assert not stayed.done and float(stayed.reward) == 0
  reached = step(jax.random.key(6), state, jnp.int32(1))
  assert reached.done and float(reached.reward) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
  "game",
  [
    pytest.param(game, marks=() if "Breakout" in game else pytest.mark.thorough)
    for game in minatar_world.GAMES
  ],
)
def test_minatar_tokens_say_what_the_planes_say(game):
  gymnax = pytest.importorskip("gymnax", exc_type=ImportError)
  env = minatar_world.env(game)
  gym, params = gymnax.make(game)
  clip, planes = recorded(
    env, 16, 64, observe=lambda state: gym.get_obs(state.game)
  )
  assert gym.num_actions == env.num_actions
  assert clip.tokens.min() >= 0
  np.testing.assert_array_equal(
    minatar_world.planes(game)[clip.tokens],
    planes.reshape(*clip.tokens.shape, -1),
  )
  assert clip.move.max() == 0 and clip.reward.any()


@pytest.fixture(scope="module")
def breakout():
  pytest.importorskip("gymnax", exc_type=ImportError)
  env = minatar_world.env(cell_size=2)
  return env, *recorded(env, 64, 64, observe=env.pixels)


@pytest.mark.slow
def test_breakout_s_player_lives_where_a_random_one_dies(breakout):
  env, clip, _ = breakout
  assert clip.alive.all()
  # Its ball takes many ways, and no action is left out.
  assert len(np.unique(clip.tokens[:, -1], axis=0)) > 16
  assert np.bincount(clip.action[:, 1:].ravel(), minlength=3).min() > 500
  unskilled = env._replace(
    policy=lambda key, state, last: jax.random.randint(key, (), 0, 3)
  )
  other = envs.record(unskilled, jax.random.key(0), 64, 64)
  assert other.alive.all(axis=1).mean() < 0.2


@pytest.mark.slow
def test_breakout_s_opposite_actions_part_the_paddle(breakout):
  env, clip, _ = breakout
  # Tokens whose plane of the paddle is set, in the last row.
  is_paddle = minatar_world.planes("Breakout-MinAtar")[:, 0] == 1
  column = is_paddle[clip.tokens[..., 90:]].argmax(-1)
  way = np.array([0, -1, 1])[clip.action[:, 1:]]
  np.testing.assert_array_equal(
    column[:, 1:], (column[:, :-1] + way).clip(0, 9)
  )


@pytest.mark.slow
def test_breakout_s_pixels_are_its_tokens(breakout):
  env, clip, pixels = breakout
  assert pixels.shape[2:] == (20, 20, 3) and pixels.dtype == np.float32
  want = envs.render(env.palette, env.view.shape, clip.tokens, 2)
  np.testing.assert_array_equal(np.rint(pixels * 255), want)


@pytest.mark.slow
@pytest.mark.parametrize("package", WORLDS)
def test_a_step_keeps_the_types_of_the_state(package):
  pytest.importorskip(package, exc_type=ImportError)
  env = WORLDS[package]()
  key = jax.random.key(0)
  state = jax.eval_shape(env.reset, key)
  after = jax.eval_shape(env.step, key, state, jnp.int32(0))
  jax.tree.map(
    lambda a, b: np.testing.assert_equal(
      (a.shape, a.dtype, a.weak_type), (b.shape, b.dtype, b.weak_type)
    ),
    state,
    after,
  )
  # What a clip is made of, and what a model must expect.
  assert jax.eval_shape(env.tokens, state).shape == (env.view.num_cells,)
  assert jax.eval_shape(env.pose, state).dtype == jnp.int32
  assert jax.eval_shape(env.reward, state).dtype == jnp.float32
  assert jax.eval_shape(env.done, state).dtype == bool
  policy = jax.eval_shape(env.policy, key, state, jnp.int32(0))
  assert policy.shape == () and policy.dtype == jnp.int32
  assert len(env.opposite) == len(env.action_names) == env.num_actions
  assert env.palette.shape == (env.num_tokens, 3)
