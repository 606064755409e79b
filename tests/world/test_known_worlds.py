"""The loop in worlds that are known: actions, poses, what lasts, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import world
from jdiff.world import memory as memory_lib
from tests.world import worlds

KINDS = 5
VIEW = world.View(3, 3, (1, 1), worlds.COMPASS, (6, 7))
SIMPLE = world.Layout(9, KINDS, 5, 5)
BANK = world.memory.switched(world.memory.bank(VIEW, capacity=8))
ACTIONS = jnp.array([1, 3, 4, 2], jnp.int32)


def recording(length):
  return worlds.recording(SIMPLE, VIEW, 0, length)


def as_table(network, memory=None, view=VIEW, **options):
  memory = world.memory.none() if memory is None else memory
  options = {"window": 2, "num_steps": 2} | options
  return world.world(network, SIMPLE, view, memory, **options)


def added(tokens, actions):
  """The frames of a world whose cells grow by each action, in turn."""
  total = np.cumsum(np.asarray(actions))[:, None]
  return (np.asarray(tokens) + total) % KINDS


def test_an_action_leads_to_the_frame_of_its_index():
  """A world whose every frame is the one before plus its own action."""
  model = as_table(worlds.adding(SIMPLE, move_of=lambda action: action))
  clip = recording(3)
  actions = jnp.array([1, 3, 0, 4, 4, 2, 1], jnp.int32)

  @jax.jit
  def imagine(actions):
    state = worlds.absorbed(model, {}, clip)
    return model.imagine({}, jax.random.key(0), state, actions)[1]

  frames, last = imagine(actions), clip.tokens[-1]
  np.testing.assert_array_equal(frames.tokens, added(last, actions))
  np.testing.assert_allclose(frames.log_prob, 0, atol=1e-5)
  # The observer goes where the same action says.
  pose = clip.pose[-1]
  for t, action in enumerate(actions):
    pose = VIEW.move(pose, action)
    np.testing.assert_array_equal(frames.pose[t], pose)
  np.testing.assert_array_equal(frames.move, actions)
  np.testing.assert_array_equal(frames.reward, 0)
  np.testing.assert_array_equal(frames.alive, 1)
  # The check would notice actions that are off by one.
  late = jnp.roll(actions, 1)
  assert (frames.tokens != added(last, late)).any()
  assert (imagine(late).tokens != added(last, actions)).any()


def test_poses_that_are_given_and_poses_that_are_predicted():
  model = as_table(worlds.adding(SIMPLE, move_of=lambda action: action))
  clip = recording(5)
  # From nowhere, by its actions; the first of which leads to no move.
  pose = [jnp.zeros(3, jnp.int32)]
  for action in clip.action[1:]:
    pose.append(VIEW.move(pose[-1], action))
  clip = clip._replace(pose=jnp.stack(pose))
  run = jax.jit(
    lambda clip, with_pose: worlds.absorbed(model, {}, clip, None, with_pose),
    static_argnums=1,
  )
  worlds.same(run(clip, True), run(clip, False))
  np.testing.assert_array_equal(run(clip, False).pose, pose[-1])
  np.testing.assert_array_equal(run(clip, False).tokens, clip.tokens[-1])
  # Elsewhere: what is given counts.
  far = clip._replace(pose=clip.pose.at[-1].set(jnp.array([5, 1, 0])))
  np.testing.assert_array_equal(run(far, True).pose, [5, 1, 0])


def test_actions_and_moves_of_real_frames_stand_in_their_blocks():
  """And a leap out of reach as a stay."""

  def encode(params, blocks, seen):
    return worlds.kept(blocks[..., :9])

  network = worlds.adding(SIMPLE)._replace(encode=encode)
  model = as_table(network, window=5)
  poses = [[2, 2, 0], [2, 3, 0], [2, 3, 0], [0, 0, 0], [5, 0, 0]]
  clip = recording(5)
  clip = clip._replace(action=jnp.arange(5), pose=jnp.array(poses))
  state = jax.jit(functools.partial(worlds.absorbed, model, {}))(clip)
  blocks = state.kv.key[0, ..., 0, 0]
  np.testing.assert_array_equal(blocks[:, 0] - SIMPLE.starts[1], range(5))
  np.testing.assert_array_equal(
    blocks[:, 1] - SIMPLE.starts[2], [0, 3, 0, 0, 1]
  )
  np.testing.assert_array_equal(blocks[:, 2:], clip.tokens[:, :7])
  np.testing.assert_array_equal(state.window.time, range(5))


def test_a_world_without_moves():
  view, layout = world.View(3, 3, (0, 0)), world.Layout(9, KINDS, 5)
  model = world.world(
    worlds.adding(layout), layout, view, world.memory.none(), window=1
  )
  clip = recording(2)

  @jax.jit
  def imagine(clip):
    state = worlds.absorbed(model, {}, clip, with_pose=False)
    return model.imagine({}, jax.random.key(0), state, ACTIONS)[1]

  frames = imagine(clip)
  np.testing.assert_array_equal(frames.pose, 0)
  np.testing.assert_array_equal(frames.move, 0)
  np.testing.assert_array_equal(frames.tokens, added(clip.tokens[1], ACTIONS))


# Observers on a plane, wide apart.
OPEN = world.View(3, 3, (1, 1), worlds.COMPASS)
EAST, WEST = 3, 2


def copying_world(memory):
  network = worlds.copying(SIMPLE, OPEN, move_of=lambda action: action)
  # One step: cells of which nothing is known are drawn at once.
  return as_table(network, memory, OPEN, window=1, num_steps=1)


@pytest.mark.slow
def test_a_world_that_copies_is_persistent():
  """Out and back every cell is what it was; without its memory it is not."""
  memory = world.memory.switched(
    world.memory.bank(OPEN, capacity=16, num_frames=4)
  )
  model = copying_world(memory)
  actions = jnp.array([EAST] * 4 + [WEST] * 4)

  @jax.jit
  def run(keys, is_on):
    def one(key):
      state = worlds.switch(model.init({}), is_on)
      tokens = jax.random.randint(key, (9,), 0, KINDS)
      state = model.observe({}, state, tokens, jnp.int32(0), jnp.zeros(3, int))
      return tokens, model.imagine({}, key, state, actions)[1]

    return jax.vmap(one)(keys)

  shares = []
  for is_on in (True, False):
    first, frames = run(jax.random.split(jax.random.key(0), 8), is_on)
    np.testing.assert_array_equal(frames.pose[:, -1], 0)
    shares.append(np.mean(frames.tokens[:, -1] == first))
    # The path out, mirrored.
    back = frames.tokens[:, 4:7] == frames.tokens[:, 2::-1]
    assert back.all() == is_on
    # A step east shows three cells of which nothing is known.
    np.testing.assert_allclose(
      frames.log_prob[:, :4], -3 * np.log(KINDS), rtol=1e-4
    )
  # By chance 1 / 5; four standard deviations of 72 cells above that.
  assert shares[0] == 1 and shares[1] < 0.4


@pytest.mark.slow
def test_observers_in_one_world_see_what_others_left():
  memory = world.memory.bank(OPEN, capacity=40, num_frames=4)
  model, num, out, after = copying_world(memory), 3, 4, 10
  step = world.together(model, memory)
  places = jnp.array([[0, 0, 0], [0, -5, 0], [0, 40, 0]], jnp.int32)
  # The first goes east and stays; then the second follows it; the third is far
  # away.
  paths = np.zeros((out + after, num), np.int32)
  paths[:out, 0] = paths[out:, 1] = EAST

  def begin(tokens, pose):
    return model.observe({}, model.init({}), tokens, jnp.int32(0), pose)

  def run(key, shared):
    tokens = jax.random.randint(key, (num, 9), 0, KINDS)
    states = jax.vmap(begin)(tokens, places)
    if not shared:
      keys = jax.random.split(key, num)

      def apart(states, actions):
        return jax.vmap(model.step, (None, 0, 0, 0))({}, keys, states, actions)

      return jax.lax.scan(apart, states, jnp.asarray(paths))
    # One memory, in which the first frames of all are.
    firsts = memory_lib.Frames(
      tokens, places, jnp.zeros(num, jnp.int32), jnp.ones(num, bool)
    )
    one, _ = jax.lax.scan(
      lambda state, frame: (memory.write(state, frame), None),
      memory.init(),
      firsts,
    )
    return jax.lax.scan(
      lambda states, actions: step({}, key, states, actions),
      states._replace(memory=one),
      jnp.asarray(paths),
    )

  run = jax.jit(jax.vmap(run, (0, None)), static_argnums=1)
  keys = jax.random.split(jax.random.key(1), 4)
  shares = []
  for is_shared in (True, False):
    states, frames = run(keys, is_shared)
    col = np.asarray(frames.pose[0, :, :, 1])
    # What the first left on its way, and what the second finds there.
    hits = [
      frames.tokens[:, i, 0] == frames.tokens[:, j, 1]
      for i in range(out)
      for j in range(out, out + after)
      if col[i, 0] == col[j, 1]
    ]
    assert len(hits) == out
    shares.append(np.mean(hits))
    if is_shared:
      written, made_frames = states.memory, frames
  # Chance is 1 / 5; four standard deviations of 144 cells above that.
  assert shares[0] == 1 and shares[1] < 0.35
  # One memory, written in the order of observers at every time.
  assert (written.num_written == num * (1 + out + after)).all()
  slots = np.arange(num, num * (1 + out + after)).reshape(-1, num) % 40
  last = slots[-12:]
  for i in range(num):
    np.testing.assert_array_equal(
      written.frames.tokens[:, last[:, i]], made_frames.tokens[:, -12:, i]
    )
    np.testing.assert_array_equal(
      written.frames.time[:, last[:, i]],
      np.broadcast_to(np.arange(3, 15), (4, 12)),
    )
  # Each draws by itself, though their worlds are alike.
  assert (made_frames.tokens[:, :, 0] != made_frames.tokens[:, :, 2]).any()


@functools.cache
def begun():
  model = as_table(worlds.adding(SIMPLE))
  return model, model.init({})


def observe(**changes):
  model, state = begun()
  frame = dict(tokens=np.zeros(9, np.int32), action=np.int32(0), pose=None)
  return model.observe({}, state, **frame | changes)


def imagine(actions, key=None):
  model, state = begun()
  key = jax.random.key(0) if key is None else key
  return model.imagine({}, key, state, actions)


def join(**changes):
  parts = dict(
    network=worlds.adding(SIMPLE),
    layout=SIMPLE,
    view=VIEW,
    memory=BANK,
    window=2,
  )
  return world.world(**parts | changes)


def first_step(**options):
  model = join(memory=world.memory.none(), **options)
  model.step({}, jax.random.key(0), begun()[1], jnp.int32(0))


SMALL = world.View(2, 2, (0, 0), worlds.COMPASS)


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (
      lambda: observe(tokens=jnp.zeros(8, jnp.int32)),
      ValueError,
      r"tokens must have shape \[9\], got \[8\]",
    ),
    (
      lambda: observe(tokens=jnp.full(9, KINDS)),
      ValueError,
      r"tokens must lie in \[0, 5\), got values from 5 to 5",
    ),
    (
      lambda: observe(tokens=jnp.zeros(9)),
      TypeError,
      "tokens must be integers, got dtype float32",
    ),
    (
      lambda: observe(action=5),
      ValueError,
      r"action must lie in \[0, 5\), got values from 5 to 5",
    ),
    (lambda: observe(action=-1), ValueError, r"action must lie in \[0, 5\)"),
    (lambda: observe(action=0.0), TypeError, "action must be integers"),
    (
      lambda: observe(action=jnp.zeros(2, jnp.int32)),
      ValueError,
      r"action must have shape \[\], got \[2\]",
    ),
    (
      lambda: observe(pose=jnp.zeros(2, jnp.int32)),
      ValueError,
      r"pose must have shape \[3\], got \[2\]",
    ),
    (
      lambda: imagine(jnp.array([0, 5])),
      ValueError,
      r"actions must lie in \[0, 5\), got values from 0 to 5",
    ),
    (
      lambda: imagine(jnp.int32(0)),
      ValueError,
      r"actions must have shape \[\*\], got \[\]",
    ),
    (lambda: imagine(jnp.zeros(2)), TypeError, "actions must be integers"),
    (
      lambda: imagine(jnp.zeros(2, int), jax.random.PRNGKey(0)),
      TypeError,
      "key must be a typed PRNG key",
    ),
    (lambda: join(window=0), ValueError, "window must be >= 1, got 0"),
    (
      lambda: join(window=9),
      ValueError,
      "memory's capacity must be at least the window of 9 frames, got 8",
    ),
    (lambda: join(window=2.0), TypeError, "window must be an integer"),
    (
      lambda: join(view=SMALL),
      ValueError,
      "layout.num_cells must be the view's 4, got 9",
    ),
    (
      lambda: join(layout=world.Layout(9, KINDS, 5, 4)),
      ValueError,
      "layout.num_moves must be the view's 5, got 4",
    ),
    (
      lambda: join(memory=world.memory.bank(SMALL, capacity=4)),
      ValueError,
      "memory.num_cells must be the layout's 9, got 4",
    ),
    (lambda: join(num_steps=0), ValueError, "num_steps must be >= 1, got 0"),
    (
      lambda: join(num_steps=10),
      ValueError,
      "num_steps must be at most the 9 open sites of a block, got 10",
    ),
    (lambda: first_step(order="best"), ValueError, "order must be"),
    (lambda: first_step(min_p=1.0), ValueError, r"min_p must lie in \[0, 1\)"),
    (
      lambda: first_step(temperature=-1.0),
      ValueError,
      "temperature must lie in",
    ),
  ],
)
def test_bad_input(call, error, message):
  with pytest.raises(error, match=message):
    call()
