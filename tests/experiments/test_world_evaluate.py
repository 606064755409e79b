"""What a world model is asked, of worlds that are known to the cell."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.world import envs, evaluate, parts, tile_world, tiles
from jdiff import world
from tests.world import worlds

NUM_CELLS = 25
EAST, WEST = 3, 2


def known_system():
  """A model without fault of a world without walls, or patches.

  Cells that it has seen are what they were; new ones are uniform.
  """
  env = tile_world.env(size=12, view=5, salt=0.99, walls=0.0)
  # A walk that turns often comes back often.
  env = env._replace(
    policy=lambda key, state, last: jax.random.randint(key, (), 0, 5)
  )
  config = tiles.get_config("smoke")
  config.memory.num_frames = 4
  system = parts.system(config, env)
  layout = system.parts.layout

  def move(params, tokens, action):
    # It may believe that it stays.
    del tokens
    return 9.0 * jax.nn.one_hot(params["goes"] * action, layout.num_moves)

  network = worlds.copying(layout, env.view, move_of=None)._replace(move=move)
  exact = system.parts._replace(network=network)
  model = world.world(*exact[:4], window=exact.window, num_steps=1)
  return system._replace(parts=exact, world=model)


PARAMS = {"goes": jnp.int32(1)}


@pytest.fixture(scope="module")
def known():
  """`(system, clips [8, 14])` of a model without fault."""
  system = known_system()
  clips = envs.whole(envs.record(system.env, jax.random.key(3), 8, 14))
  return system, clips


def classes(view, poses, now, window=2):
  """`[3, N]` of the cells of a frame: seen lately, seen before, new."""
  cells = worlds.cells_of(view, poses[now])
  lately = [worlds.shows(view, p, cells) for p in poses[now - window : now]]
  before = [worlds.shows(view, p, cells) for p in poses[:now]]
  lately, before = np.any(lately, axis=0), np.any(before, axis=0)
  return np.stack([lately, before & ~lately, ~before])


def counts(tally):
  return np.asarray(tally.hits), np.asarray(tally.trials)


def test_one_step_of_a_model_without_fault(known):
  system, clips = known
  found = jax.jit(functools.partial(evaluate.one_step, system, first=7))(
    PARAMS, clip=clips
  )
  of = np.stack(
    [
      [classes(system.env.view, poses, t) for t in range(7, 14)]
      for poses in clips.pose
    ]
  )
  # Cells that it knows nothing of are the first kind, the first among equals.
  zeros = of & (clips.tokens[:, 7:, None] == 0)
  number, chance = (x.sum(axis=(0, 1, 3)) for x in (of, zeros))
  assert (number > 20).all() and (chance < number).all()
  hits, trials = counts(found.on)
  np.testing.assert_array_equal(trials, number)
  np.testing.assert_array_equal(hits, [number[0], number[1], chance[2]])
  # The control: with its memory off it knows what the window shows.
  hits, trials = counts(found.off)
  np.testing.assert_array_equal(trials, number)
  np.testing.assert_array_equal(hits, [number[0], chance[1], chance[2]])
  # Right frames are those without a new cell that is not of the first kind.
  right = ~(of[:, :, 2] & (clips.tokens[:, 7:] != 0)).any(-1)
  assert counts(found.frames) == (right.sum(), right.size)


@pytest.fixture(scope="module")
def rollouts(known):
  return jax.jit(functools.partial(evaluate.rollouts, known[0], prefix=8))


def test_rollouts_of_a_model_without_fault(known, rollouts):
  system, clips = known
  on, off = (
    rollouts(PARAMS, jax.random.key(0), clips, is_on=is_on)
    for is_on in (True, False)
  )
  view = system.env.view
  shown = np.zeros((8, 6, NUM_CELLS), bool)
  for e, poses in enumerate(clips.pose):
    for t in range(6):
      cells = worlds.cells_of(view, poses[8 + t])
      shown[e, t] = np.any(
        [worlds.shows(view, p, cells) for p in poses[:8]], axis=0
      )
  for found in (on, off):
    np.testing.assert_array_equal(found.known.trials, shown.sum(axis=(0, 2)))
    np.testing.assert_array_equal(found.pose.hits, 8)
    np.testing.assert_array_equal(found.every.trials, 8 * NUM_CELLS)
    right = found.tokens == clips.tokens[:, 8:]
    np.testing.assert_array_equal(found.every.hits, right.sum(axis=(0, 2)))
    wrong = (~right & shown).any(-1)
    first = np.where(wrong.any(1), wrong.argmax(1), 6)
    np.testing.assert_array_equal(found.horizon, first)
  np.testing.assert_array_equal(on.known.hits, on.known.trials)
  np.testing.assert_array_equal(on.horizon, 6)
  assert off.known.hits.sum() < 0.98 * off.known.trials.sum()
  # New cells are drawn, one in six right.
  assert on.every.hits.sum() < on.every.trials.sum()


def test_rollouts_do_not_count_where_the_pose_is_wrong(known, rollouts):
  _, clips = known
  found = rollouts({"goes": jnp.int32(0)}, jax.random.key(0), clips, is_on=True)
  stays = (clips.pose[:, 8:] == clips.pose[:, 7:8]).all(-1)
  np.testing.assert_array_equal(found.pose.hits, stays.sum(0))
  np.testing.assert_array_equal(found.known.trials, NUM_CELLS * stays.sum(0))
  np.testing.assert_array_equal(found.known.hits, found.known.trials)


def test_loops_of_a_model_without_fault(known):
  system, clips = known
  starts = jax.tree.map(lambda x: x[:, :1], clips)
  run = jax.jit(functools.partial(evaluate.loops, system))

  def loops(actions, is_on):
    actions = jnp.broadcast_to(jnp.asarray(actions, jnp.int32), (8, 4))
    return run(PARAMS, jax.random.key(0), starts, actions, is_on=is_on)

  ways = 1 + np.arange(8)[:, None] % 4
  on, off = (loops(ways, is_on) for is_on in (True, False))
  for found in (on, off):
    assert counts(found.closed) == (8, 8)
    # Out, and the same way back.
    np.testing.assert_array_equal(found.pose[:, 4:7], found.pose[:, 2::-1])
    np.testing.assert_array_equal(found.pose[:, -1], starts.pose[:, 0])
    assert (found.pose[:, 3] != starts.pose[:, 0]).any(-1).all()
  assert counts(on.cells) == (8 * NUM_CELLS, 8 * NUM_CELLS)
  assert counts(on.exact) == (8, 8)
  np.testing.assert_array_equal(on.tokens[:, 4:7], on.tokens[:, 2::-1])
  # Two of five lines it turns back to before the window has lost them; of the
  # other 120 cells one in six is right, up to five deviations.
  hits, trials = counts(off.cells)
  assert trials == 8 * NUM_CELLS
  assert 80 <= hits < 80 + 120 * (1 / 6 + 5 * (5 / 36 / 120) ** 0.5)
  assert off.exact.hits == 0
  # To stay, or to turn back in sight of the start, is no loop.
  for actions in ([0, 0, 0, 0], [EAST, EAST, WEST, EAST]):
    found = loops(actions, True)
    assert counts(found.closed) == (0, 8)
    assert counts(found.cells) == (0, 0)


def test_other_actions_lead_elsewhere(known):
  system, clips = known
  found = jax.jit(functools.partial(evaluate.swap, system, prefix=8))(
    PARAMS, jax.random.key(0), clips
  )
  moved = clips.move[:, 8] != 0
  assert 0 < moved.sum() < 8 or moved.all()
  hits, trials = counts(found)
  np.testing.assert_array_equal(trials, NUM_CELLS * moved.sum())
  # A line of five is new at most; elsewhere kinds agree one time in five.
  assert hits[0] >= 0.8 * trials[0]
  assert hits[1] < 0.4 * trials[1]


def test_observers_meet_in_one_memory_alone(known):
  system, clips = known
  found = jax.jit(functools.partial(evaluate.meetings, system, steps=3))(
    PARAMS, jax.random.key(0), clips
  )
  # A line of five a step, kept in view by the next steps.
  num = 8 * 5 * (1 + 2 + 3)
  assert counts(found.shared) == (num, num)
  hits, trials = counts(found.apart)
  # One in six; five deviations, lines counted up to three times.
  assert trials == num and hits < num * (1 / 6 + 5 * (5 / 36 / 100) ** 0.5)
  np.testing.assert_array_equal(found.left[0], found.seen[0])
  # Only the second one's draws differ: what the first left is the same.
  np.testing.assert_array_equal(found.left[0], found.left[1])
  assert (found.seen[0] != found.seen[1]).any()
