"""Memories against their definitions in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import world
from jdiff.world import memory as memory_lib
from tests import helpers
from tests.world import worlds

WINDOW, KINDS, LENGTH = 2, 5, 30
VIEWS = {
  "plane": world.View(3, 3, (1, 1), worlds.COMPASS),
  "torus": world.View(3, 5, (2, 2), worlds.TANK, (9, 10)),
}
RANKS = ("cover", "overlap", "near", "content")


@pytest.fixture(params=VIEWS)
def view(request):
  return VIEWS[request.param]


def episode(view, seed=0, length=LENGTH, kinds=KINDS):
  """Random frames along a random walk."""
  rng = np.random.default_rng(1000 + seed)
  poses, _ = worlds.walk(view, seed, length)
  # Few kinds in some frames, more in others: contents differ.
  tokens = rng.integers(
    rng.integers(1, kinds + 1, size=(length, 1)), size=(length, view.num_cells)
  )
  return memory_lib.Frames(
    jnp.asarray(tokens, jnp.int32),
    jnp.asarray(poses),
    jnp.arange(length),
    jnp.ones(length, bool),
  )


def write_all(memory, frames, state=None):
  """`(state, states after each frame)`, one compiled scan."""

  def write(state, frame):
    state = memory.write(state, frame)
    return state, state

  state = memory.init() if state is None else state
  return jax.lax.scan(write, state, frames)


def windows(frames, length=LENGTH):
  """The query of each frame from 1 on: its pose, the frames before."""
  now = np.arange(1, length)[:, None]
  before = now - WINDOW + np.arange(WINDOW)
  window = jax.tree.map(lambda x: x[np.maximum(before, 0)], frames)
  window = window._replace(valid=jnp.asarray(before >= 0))
  return world.Query(frames.pose[1:], window)


def somewhere(frames):
  """Poses about those of frames: not only a step away from the window."""
  rng, pose = np.random.default_rng(5), np.asarray(frames.pose)
  draw = rng.integers(pose.min(axis=0), pose.max(axis=0) + 1, pose.shape)
  return draw.astype(np.int32)


def play(memory, frames, poses=None, state=None):
  """Reads from every frame from 1 on, of what was written before it.

  With poses, from there: somewhere else than a step away from the window.
  """
  length = len(frames.time)
  queries = windows(frames, length)
  if poses is not None:
    queries = queries._replace(pose=poses[1:])

  def step(state, xs):
    frame, query = xs
    state = memory.write(state, frame)
    return state, memory.read(state, query)

  before = jax.tree.map(lambda x: x[:-1], frames)
  state = memory.init() if state is None else state
  return jax.lax.scan(step, state, (before, queries))


def slots_of(frames, num_written, capacity):
  """Times in the slots after so many writes, -1 where empty."""
  slots = np.full(capacity, -1)
  for time in range(num_written):
    slots[time % capacity] = time
  return slots


def test_a_bank_is_a_ring(view):
  frames, capacity = episode(view), 7
  memory = world.memory.bank(view, capacity=capacity)
  _, states = jax.jit(functools.partial(write_all, memory))(frames)
  for num in (1, 6, 7, 8, 20, 30):
    state = jax.tree.map(lambda x, i=num - 1: x[i], states)
    slots = slots_of(frames, num, capacity)
    assert state.num_written == num
    np.testing.assert_array_equal(state.frames.time, slots)
    np.testing.assert_array_equal(state.frames.valid, slots >= 0)
    held = slots >= 0
    for name in ("tokens", "pose"):
      np.testing.assert_array_equal(
        getattr(state.frames, name)[held], getattr(frames, name)[slots[held]]
      )


def chosen(view, frames, pose, now, slots, rank, num_frames):
  """Times of the frames that a read answers, by the definitions; best first."""
  poses = np.asarray(frames.pose)
  cells = worlds.cells_of(view, pose)
  held = [t for t in slots if t >= 0]
  shown = {t: worlds.shows(view, poses[t], cells) for t in held}
  recent = range(max(now - WINDOW, 0), now)
  if rank == "cover":
    covered = np.zeros(len(cells), bool)
    for t in recent:
      covered |= worlds.shows(view, poses[t], cells)
    best = []
    for _ in range(num_frames):
      gain, t = max((np.sum(shown[t] & ~covered), t) for t in held)
      if not gain:
        break
      best.append(t)
      covered |= shown[t]
    return best

  def score(t):
    if rank == "overlap":
      return shown[t].sum()
    if rank == "near":
      gap = poses[t, :2] - pose[:2]
      if view.period is not None:
        size = np.array(view.period)
        gap = (gap + size // 2) % size - size // 2
      return -np.sum(gap**2)
    # Cells of the last frame that the other's cells can be paired with.
    last, other = np.asarray(frames.tokens)[[now - 1, t]]
    counts = [np.bincount(x, minlength=KINDS) for x in (last, other)]
    return np.minimum(*counts).sum()

  if rank == "overlap":
    held = [t for t in held if shown[t].any()]
  if rank == "content":
    held = [t for t in held if t < min(recent)]
  return sorted(held, key=lambda t: (score(t), t))[::-1][:num_frames]


@pytest.mark.parametrize("rank", RANKS)
def test_a_read_answers_the_frames_of_the_definition(view, rank):
  frames, capacity, num_frames = episode(view), 20, 2
  memory = world.memory.bank(
    view, capacity=capacity, num_frames=num_frames, rank=rank
  )
  assert memory.num_frames == num_frames
  asked = somewhere(frames)
  _, found = jax.jit(functools.partial(play, memory))(frames, asked)
  numbers = []
  for now in range(1, LENGTH):
    slots = slots_of(frames, now, capacity)
    expected = chosen(view, frames, asked[now], now, slots, rank, num_frames)
    numbers.append(len(expected))
    read = jax.tree.map(lambda x, i=now - 1: np.asarray(x[i]), found)
    valid = np.arange(num_frames) < len(expected)
    np.testing.assert_array_equal(
      read.valid, np.broadcast_to(valid[:, None], read.valid.shape)
    )
    for k, t in enumerate(expected):
      np.testing.assert_array_equal(read.time[k], t)
      np.testing.assert_array_equal(read.tokens[k], frames.tokens[t])
      np.testing.assert_array_equal(
        worlds.wrapped(view, read.cells[k]),
        worlds.cells_of(view, frames.pose[t]),
      )
  # There was something to choose, and sometimes nothing to answer.
  assert max(numbers) == num_frames and min(numbers) < num_frames


@pytest.mark.parametrize("min_gain", [0.1, 0.5])
def test_key_frames(view, min_gain):
  frames, capacity = episode(view), 5
  memory = world.memory.bank(view, capacity=capacity, min_gain=min_gain)
  state, states = jax.jit(functools.partial(write_all, memory))(frames)
  slots, kept = [-1] * capacity, 0
  for now in range(LENGTH):
    cells = worlds.cells_of(view, frames.pose[now])
    shown = np.zeros(len(cells), bool)
    for t in slots:
      if t >= 0:
        shown |= worlds.shows(view, frames.pose[t], cells)
    if np.mean(~shown) >= min_gain:
      slots[kept % capacity] = now
      kept += 1
    np.testing.assert_array_equal(states.frames.time[now], slots)
    assert states.num_written[now] == kept
  assert 2 < kept < LENGTH


MEMORIES = {
  **{
    rank: functools.partial(world.memory.bank, capacity=7, rank=rank)
    for rank in RANKS
  },
  "key_frames": functools.partial(
    world.memory.bank, capacity=7, num_frames=1, min_gain=0.3
  ),
  "map": functools.partial(world.memory.world_map, shape=(9, 10)),
  "gated": functools.partial(
    world.memory.gated, num_tokens=KINDS, num_features=32, decay=0.9
  ),
}
MEMORY = helpers.thorough(
  MEMORIES, first=["cover", "key_frames", "map", "gated"]
)


@functools.cache
def played(name):
  """A memory with a switch, its program, and how often that was traced."""
  memory = world.memory.switched(MEMORIES[name](VIEWS["torus"]))
  traces = []

  @jax.jit
  def run(frames, state):
    traces.append(1)
    return play(memory, frames, None, state)

  return memory, run, traces


@pytest.mark.parametrize("name", MEMORY)
def test_invalid_frames_change_nothing_and_nothing_written_is_no_answer(name):
  memory, run, _ = played(name)
  frames = episode(VIEWS["torus"], length=14)
  state, found = run(frames, memory.init())
  assert found.valid.any() and found.tokens.shape[1] == memory.num_frames
  other = episode(VIEWS["torus"], seed=1, length=14)
  other = other._replace(valid=jnp.zeros(14, bool), time=100 + other.time)
  for before in (memory.init(), state):
    after, found = run(other, before)
    jax.tree.map(np.testing.assert_array_equal, after, before)
  after, found = run(other, memory.init())
  assert not found.valid.any()
  assert all(np.isfinite(x).all() for x in found)
  # As valid ones would.
  more, _ = run(other._replace(valid=~other.valid), state)
  assert any(
    (np.asarray(a) != b).any()
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(more), strict=True)
  )


@pytest.mark.parametrize("name", MEMORY)
def test_switched_off_a_memory_answers_nothing_and_still_learns(name):
  memory, run, traces = played(name)
  frames = episode(VIEWS["torus"], length=14)
  on, found = run(frames, memory.init())
  off, nothing = run(frames, memory.init()._replace(is_on=jnp.array(False)))
  assert found.valid.any() and not nothing.valid.any()
  jax.tree.map(np.testing.assert_array_equal, on.state, off.state)
  jax.tree.map(
    np.testing.assert_array_equal,
    found._replace(valid=nothing.valid),
    nothing,
  )
  # One program, on or off, young or old.
  run(frames, on)
  assert len(traces) == 1


@pytest.mark.parametrize("name", MEMORY)
def test_many_worlds_are_one_each(name):
  memory, run, _ = played(name)
  frames = [episode(VIEWS["torus"], seed, length=14) for seed in range(3)]
  ones = [run(f, memory.init()) for f in frames]
  stacked, ones = (
    jax.tree.map(lambda *x: jnp.stack(x), *trees) for trees in (frames, ones)
  )
  many = jax.jit(jax.vmap(run, (0, None)))(stacked, memory.init())

  def same(a, b):
    if jnp.issubdtype(a.dtype, jnp.floating):
      # A solve of many systems at once rounds in another order, which their
      # condition of about 1e3 enlarges.
      np.testing.assert_allclose(a, b, atol=2e-3)
    elif name != "gated":
      np.testing.assert_array_equal(a, b)

  jax.tree.map(same, many, ones)


def test_a_map_is_a_map(view):
  shape = view.period or (8, 10)
  start = (4, 5, 0)
  poses, _ = worlds.walk(view, 3, LENGTH, start)
  frames = episode(view)._replace(pose=jnp.asarray(poses))
  memory = world.memory.world_map(view, shape=shape)
  state, found = jax.jit(functools.partial(play, memory))(frames)
  tokens, time = np.zeros(shape, int), np.full(shape, -1)
  for now in range(1, LENGTH):
    at = tuple((worlds.cells_of(view, poses[now - 1]) % shape).T)
    tokens[at], time[at] = frames.tokens[now - 1], now - 1
    at = tuple((worlds.cells_of(view, poses[now]) % shape).T)
    read = jax.tree.map(lambda x, i=now - 1: np.asarray(x[i, 0]), found)
    np.testing.assert_array_equal(read.valid, time[at] >= 0)
    np.testing.assert_array_equal(read.time, time[at])
    np.testing.assert_array_equal(
      read.tokens[read.valid], tokens[at][read.valid]
    )
    np.testing.assert_array_equal(
      read.cells % np.array([shape]), np.stack(at, axis=1)
    )
  np.testing.assert_array_equal(state.time, time)
  np.testing.assert_array_equal(state.tokens[time >= 0], tokens[time >= 0])
  assert (time >= 0).any() and memory.num_frames == 1


def terrain(view, seed=0):
  """A torus, and frames of it along a walk."""
  rng = np.random.default_rng(seed)
  truth = rng.integers(KINDS, size=view.period)
  frames = episode(view, seed)
  at = np.stack([worlds.cells_of(view, pose) for pose in frames.pose])
  tokens = truth[at[..., 0], at[..., 1]]
  return truth, frames._replace(tokens=jnp.asarray(tokens, jnp.int32))


def recall(view, num_features, **options):
  """Shares of the last frames' cells that were seen that are right; valid."""
  truth, frames = terrain(view)
  memory = world.memory.gated(
    view, num_tokens=KINDS, num_features=num_features, **options
  )
  _, found = jax.jit(functools.partial(play, memory))(frames)
  right, valid, seen = [], [], set()
  for now in range(1, LENGTH):
    shown = worlds.cells_of(view, frames.pose[now - 1])
    seen |= set(map(tuple, shown.tolist()))
    cells = worlds.cells_of(view, frames.pose[now])
    is_seen = np.array([tuple(c) in seen for c in cells.tolist()])
    tokens = np.asarray(found.tokens[now - 1, 0]).argmax(axis=1)
    right += list((tokens == truth[tuple(cells.T)])[is_seen])
    valid.append((np.asarray(found.valid[now - 1, 0]), is_seen))
  valid, is_seen = (np.concatenate(x) for x in zip(*valid, strict=True))
  assert 40 < len(seen) <= truth.size
  return np.mean(right), np.mean(valid == is_seen)


def test_a_gated_memory_with_room_is_exact_and_without_loses():
  view = VIEWS["torus"]
  # 90 cells; with six features a cell, other places hardly interfere.
  right, valid = recall(view, 540)
  assert right == 1 and valid > 0.95
  right, _ = recall(view, 16)
  assert 1 / KINDS < right < 0.9


def test_the_last_frame_is_recalled_exactly():
  view = VIEWS["torus"]
  _, frames = terrain(view)
  memory = world.memory.gated(view, num_tokens=KINDS, num_features=200)
  state, _ = write_all(memory, frames)
  query = world.Query(frames.pose[-1], None)
  found = memory.read(state, query)
  # What the ridge of 1e-3 takes from a Gram matrix of ones on its diagonal.
  np.testing.assert_allclose(
    found.tokens[0], jax.nn.one_hot(frames.tokens[-1], KINDS), atol=0.02
  )
  np.testing.assert_allclose(np.sum(found.tokens[0], axis=1), 1, atol=1e-5)
  assert found.valid.all() and (found.time == LENGTH - 1).all()


def test_half_a_rate_corrects_half_and_decay_forgets():
  view = world.View(1, 1, (0, 0), worlds.COMPASS, (5, 5))
  frame = memory_lib.Frames(
    jnp.array([2]), jnp.array([1, 1, 0]), jnp.int32(0), jnp.array(True)
  )
  query = world.Query(frame.pose, None)

  def seen(num_writes, **options):
    memory = world.memory.gated(
      view, num_tokens=3, num_features=64, threshold=0.6, **options
    )
    state, write = memory.init(), jax.jit(memory.write)
    for _ in range(num_writes):
      state = write(state, frame)
    found = memory.read(state, query)
    # A place's features have length one, up to the ridge.
    return float(jnp.linalg.norm(state.seen)), bool(found.valid[0, 0])

  assert seen(1, rate=0.5) == (pytest.approx(0.5, abs=1e-3), False)
  assert seen(2, rate=0.5) == (pytest.approx(0.75, abs=1e-3), True)
  # m <- 0.5 m + (1 - m): 1, then 0.5 + 0.
  assert seen(2, decay=0.5) == (pytest.approx(0.5, abs=2e-3), False)


def test_features_of_a_gated_memory_are_periodic():
  view = VIEWS["torus"]
  _, frames = terrain(view)
  memory = world.memory.gated(view, num_tokens=KINDS, num_features=64)
  state, _ = write_all(memory, frames)
  around = frames.pose[9] + jnp.array([-2 * 9, 10, 0])
  reads = [
    memory.read(state, world.Query(pose, None)).tokens
    for pose in (frames.pose[9], around)
  ]
  np.testing.assert_allclose(*reads, atol=1e-3)
  # Another key draws other features.
  other = world.memory.gated(
    view, num_tokens=KINDS, num_features=64, key=jax.random.key(1)
  )
  assert (write_all(other, frames)[0].seen != state.seen).any()


def test_no_memory():
  memory = world.memory.none()
  assert memory.num_frames == 0 and memory.init() == ()
  assert memory.write((), None) == ()
  with pytest.raises(ValueError, match="nothing to read"):
    memory.read((), None)


PLANE, TORUS = VIEWS["plane"], VIEWS["torus"]


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (
      lambda: world.memory.bank(PLANE, capacity=0),
      ValueError,
      "capacity must be >= 1, got 0",
    ),
    (
      lambda: world.memory.bank(PLANE, capacity=3, num_frames=4),
      ValueError,
      "num_frames must be at most the capacity 3, got 4",
    ),
    (
      lambda: world.memory.bank(PLANE, capacity=3, rank="best"),
      ValueError,
      "rank must be one of cover, overlap, near, content, got 'best'",
    ),
    (
      lambda: world.memory.bank(PLANE, capacity=3, min_gain=1.0),
      ValueError,
      r"min_gain must lie in \[0, 1\), got 1.0",
    ),
    (
      lambda: world.memory.world_map(TORUS, shape=(10, 9)),
      ValueError,
      r"shape must be the world's period \(9, 10\), got \(10, 9\)",
    ),
    (
      lambda: world.memory.world_map(PLANE, shape=(2, 9)),
      ValueError,
      r"shape must be at least the view's \(3, 3\), got \(2, 9\)",
    ),
    (
      lambda: world.memory.gated(PLANE, num_tokens=0),
      ValueError,
      "num_tokens must be >= 1",
    ),
    (
      lambda: world.memory.gated(PLANE, num_tokens=3, num_features=1),
      ValueError,
      "num_features must be >= 2, got 1",
    ),
    (
      lambda: world.memory.gated(PLANE, num_tokens=3, decay=0.0),
      ValueError,
      r"decay must lie in \(0, 1\], got 0.0",
    ),
    (
      lambda: world.memory.gated(PLANE, num_tokens=3, rate=1.5),
      ValueError,
      r"rate must lie in \(0, 1\], got 1.5",
    ),
  ],
)
def test_bad_memories(call, error, message):
  with pytest.raises(error, match=message):
    call()
