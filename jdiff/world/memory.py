"""What a world remembers: bounded pytrees with a write and a read.

One world's; `jax.vmap` them for many. A frame is written once it is final, and
then never sampled again: that is what keeps a world coherent.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.world.geometry import View


class Frames(NamedTuple):
  """Finished frames in slots.

  Attributes:
    tokens: `[F, N]` int32; one frame has no `F`.
    pose: `[F, 3]` int32.
    time: `[F]` int32.
    valid: `[F]` bool.
  """

  tokens: jax.Array
  pose: jax.Array
  time: jax.Array
  valid: jax.Array


class Recalled(NamedTuple):
  """What a memory answers.

  Attributes:
    tokens: `[K, N]` int32, or probabilities `[K, N, V]`.
    cells: `[K, N, 2]` int32 world coordinates.
    time: `[K, N]` int32, when each cell was seen.
    valid: `[K, N]` bool.
  """

  tokens: jax.Array
  cells: jax.Array
  time: jax.Array
  valid: jax.Array


class Query(NamedTuple):
  """Who asks: the pose of the frame in the making, and the last frames."""

  pose: jax.Array
  window: Frames


class Memory(NamedTuple):
  """A memory as pure functions of one world's state.

  Attributes:
    init: `() -> state`.
    write: `(state, frame: Frames without F) -> state`; an invalid frame
      changes nothing.
    read: `(state, query) -> Recalled`.
    num_frames: `K` of what `read` answers; 0 if it answers nothing.
    num_cells: Cells of the frames that are written; None takes any.
    num_tokens: Kinds of cells; None takes any.
    capacity: Frames that are held, or None where that has no meaning.
  """

  init: Callable[[], Any]
  write: Callable[..., Any]
  read: Callable[..., Recalled]
  num_frames: int
  num_cells: int | None = None
  num_tokens: int | None = None
  capacity: int | None = None


def empty_frames(num_frames: int, num_cells: int) -> Frames:
  """Slots without a frame."""
  checks.check_int("num_frames", num_frames)
  checks.check_int("num_cells", num_cells)
  return Frames(
    tokens=jnp.zeros((num_frames, num_cells), jnp.int32),
    pose=jnp.zeros((num_frames, 3), jnp.int32),
    time=jnp.full(num_frames, -1, jnp.int32),
    valid=jnp.zeros(num_frames, bool),
  )


def put(frames: Frames, frame: Frames, slot: jax.Array) -> Frames:
  """Writes a frame, if it is valid, to a slot."""
  return jax.tree.map(
    lambda old, new: old.at[slot].set(
      jnp.where(frame.valid, new.astype(old.dtype), old[slot])
    ),
    frames,
    frame,
  )


def as_recalled(view: View, frames: Frames) -> Recalled:
  """Frames `[F]` with the coordinates of their cells."""
  shape = frames.tokens.shape
  checks.check_shape(
    "frames.tokens", frames.tokens, (*shape[:-1], view.num_cells)
  )
  checks.check_shape("frames.pose", frames.pose, (*shape[:-1], 3))
  return Recalled(
    tokens=frames.tokens,
    cells=view.cells(frames.pose),
    time=jnp.broadcast_to(frames.time[:, None], shape),
    valid=jnp.broadcast_to(frames.valid[:, None], shape),
  )


def none() -> Memory:
  """Remembers nothing: the window alone."""

  def read(state, query):
    raise ValueError("a memory of no frames has nothing to read.")

  return Memory(lambda: (), lambda state, frame: state, read, 0)


class Bank(NamedTuple):
  """Slots, and how many frames were admitted."""

  frames: Frames
  num_written: jax.Array


def bank(
  view: View,
  *,
  capacity: int,
  num_frames: int = 2,
  rank: str = "cover",
  min_gain: float = 0.0,
) -> Memory:
  """Keeps whole frames, the oldest overwritten first.

  Args:
    view: The observer's.
    capacity: Slots `C`.
    num_frames: Frames `K` that a read answers.
    rank: How they are chosen. `"cover"` greedily covers what the view to come
      shows and neither the window nor a frame chosen before does, so that none
      is wasted on a near-duplicate; `"overlap"` takes those that share most
      cells with it, `"near"` those of the nearest poses, `"content"` those
      whose cells are made up most like the last frame, for worlds without
      poses. The later frame wins among equals.
    min_gain: Least share of a frame's cells that no slot shows, for it to be
      kept; 0 keeps all. Key frames: the slots then span a larger world.

  Returns:
    A `Memory`. A read costs `O(K C N)` comparisons under `"cover"`.

  Raises:
    ValueError: If a size, the rank or the share is out of range.

  Source:
    Retrieval by overlap of views: WorldMem (arXiv:2504.12369).
  """
  checks.check_int("capacity", capacity)
  checks.check_int("num_frames", num_frames)
  if num_frames > capacity:
    raise ValueError(
      f"num_frames must be at most the capacity {capacity}, got {num_frames}."
    )
  if rank not in _RANKINGS:
    raise ValueError(
      f"rank must be one of {', '.join(_RANKINGS)}, got {rank!r}."
    )
  checks.check_range("min_gain", min_gain, 0, 1, ends="[)")

  def init():
    return Bank(empty_frames(capacity, view.num_cells), jnp.int32(0))

  def write(state, frame):
    if min_gain:
      cells = view.cells(frame.pose)
      shown = _shown(view, state.frames, cells).any(axis=0)
      is_new = jnp.mean(~shown) >= min_gain
      frame = frame._replace(valid=frame.valid & is_new)
    slot = state.num_written % capacity
    return Bank(
      put(state.frames, frame, slot),
      state.num_written + frame.valid.astype(jnp.int32),
    )

  def read(state, query):
    frames = state.frames
    chosen, useful = _RANKINGS[rank](view, frames, query, num_frames)
    found = jax.tree.map(lambda x: x[chosen], frames)
    found = found._replace(valid=found.valid & useful)
    return as_recalled(view, found)

  return Memory(
    init, write, read, num_frames, view.num_cells, capacity=capacity
  )


def _shown(view, frames, cells):
  """Which of world cells `[N, 2]` each frame shows: `[F, N]` bool."""
  seen = jax.vmap(view.visible, in_axes=(0, None))(frames.pose, cells)
  return seen & frames.valid[:, None]


def _later(frames):
  """A tie-break in `[0, 1)`, the later the higher."""
  time = frames.time.astype(jnp.float32)
  return time / (1.0 + jnp.maximum(time.max(), 1.0))


def _cover(view, frames, query, num_frames):
  cells = view.cells(query.pose)
  shown = _shown(view, frames, cells)
  covered = _shown(view, query.window, cells).any(axis=0)
  later = _later(frames)

  def pick(covered, _):
    gain = jnp.sum(shown & ~covered[None], axis=1)
    best = jnp.argmax(gain + later)
    return covered | shown[best], (best, gain[best] >= 1)

  _, (chosen, useful) = jax.lax.scan(
    pick, covered, length=num_frames, unroll=True
  )
  return chosen, useful


def _top(score, valid, num_frames):
  score, chosen = jax.lax.top_k(jnp.where(valid, score, -jnp.inf), num_frames)
  return chosen, jnp.isfinite(score)


def _overlap(view, frames, query, num_frames):
  shown = _shown(view, frames, view.cells(query.pose))
  count = jnp.sum(shown, axis=1)
  return _top(count + _later(frames), count > 0, num_frames)


def _near(view, frames, query, num_frames):
  place = jnp.broadcast_to(query.pose[None, :2], frames.pose[:, :2].shape)
  step = view.nearest(frames.pose[:, :2] - place)
  score = -jnp.sum(step**2, axis=1) + _later(frames)
  return _top(score, frames.valid, num_frames)


def _content(view, frames, query, num_frames):
  del view
  last = jnp.sort(query.window.tokens[jnp.argmax(query.window.time)])

  def common(tokens):
    # Of each kind the lesser count, without a table of kinds.
    tokens = jnp.sort(tokens)
    first = jnp.searchsorted(last, tokens)
    there = jnp.searchsorted(last, tokens, side="right") - first
    nth = jnp.arange(tokens.size) - jnp.searchsorted(tokens, tokens)
    return jnp.sum(nth < there)

  count = jax.vmap(common)(frames.tokens)
  # Frames in the window are shown already.
  start = jnp.min(jnp.where(query.window.valid, query.window.time, 2**30))
  outside = frames.valid & (frames.time < start)
  return _top(count + _later(frames), outside, num_frames)


_RANKINGS = {
  "cover": _cover,
  "overlap": _overlap,
  "near": _near,
  "content": _content,
}


class Map(NamedTuple):
  """A world's cells: tokens and times `[R, C]`, -1 where not seen."""

  tokens: jax.Array
  time: jax.Array


def world_map(view: View, *, shape: tuple[int, int]) -> Memory:
  """Keeps the last token of every cell of a bounded world.

  Exact and of constant cost: what a bank is measured against.

  Args:
    view: The observer's.
    shape: `(rows, cols)` of the world; positions are taken modulo it, and on a
      torus it is the period.

  Raises:
    ValueError: If the shape is no torus' period or smaller than the view.
  """
  checks.check_sizes("shape", shape, parts="(rows, cols)")
  if view.period is not None and tuple(shape) != tuple(view.period):
    raise ValueError(
      f"shape must be the world's period {view.period}, got {shape}."
    )
  if max(view.shape) > min(shape):
    raise ValueError(
      f"shape must be at least the view's {view.shape}, got {shape}."
    )

  def index(cells):
    return tuple(cells[..., i] % shape[i] for i in range(2))

  def init():
    return Map(jnp.zeros(shape, jnp.int32), jnp.full(shape, -1, jnp.int32))

  def write(state, frame):
    at = index(view.cells(frame.pose))
    tokens = jnp.where(frame.valid, frame.tokens, state.tokens[at])
    time = jnp.where(frame.valid, frame.time, state.time[at])
    return Map(state.tokens.at[at].set(tokens), state.time.at[at].set(time))

  def read(state, query):
    cells = view.cells(query.pose)
    at = index(cells)
    time = state.time[at]
    return jax.tree.map(
      lambda x: x[None], Recalled(state.tokens[at], cells, time, time >= 0)
    )

  return Memory(init, write, read, 1, view.num_cells)


class Gated(NamedTuple):
  """A linear associative memory: `[R, V]` values, `[R]` how much was seen."""

  values: jax.Array
  seen: jax.Array
  time: jax.Array


def gated(
  view: View,
  *,
  num_tokens: int,
  num_features: int = 256,
  decay: float = 1.0,
  rate: float = 1.0,
  threshold: float = 0.5,
  key: jax.Array | None = None,
) -> Memory:
  """Compresses the world into a state of constant size, with loss.

  A linear map from features of a place to its token, corrected by the delta
  rule, `m <- decay m + rate phi (x - m^T phi)`, for all cells of a frame at
  once. Features are random Fourier features of the coordinates, periodic on a
  torus.

  Args:
    view: The observer's.
    num_tokens: Kinds of cells `V`.
    num_features: Rows of the state; half as many frequencies.
    decay: Share that stays at each write, in `(0, 1]`.
    rate: Share of the error that a write corrects, in `(0, 1]`.
    threshold: Cells are answered where the memory of having seen them is at
      least this.
    key: Draws the frequencies; a fixed one by default.

  Returns:
    A `Memory` whose reads answer probabilities `[1, N, V]`.

  Raises:
    ValueError: If a size or share is out of range.

  Source:
    Delta rule: Schlag et al. (arXiv:2102.11174); gates: Yang et al.
    (arXiv:2412.06464). Differs: the features are of places.
  """
  checks.check_int("num_tokens", num_tokens)
  checks.check_int("num_features", num_features, 2)
  for name, value in (("decay", decay), ("rate", rate)):
    checks.check_range(name, value, 0, 1, ends="(]")
  checks.check_finite("threshold", threshold)
  key = jax.random.key(0) if key is None else key
  checks.check_key(key)
  shape = (num_features // 2, 2)
  if view.period is None:
    frequency = jax.random.normal(key, shape)
  else:
    # Whole turns a period. A modest band: neighbours must be told apart, not
    # more.
    band = np.array(view.period) // 2
    turns = jnp.stack(
      [
        jax.random.randint(k, shape[:1], -int(n), int(n) + 1)
        for k, n in zip(jax.random.split(key), band, strict=True)
      ],
      axis=-1,
    )
    frequency = jnp.stack(
      [2 * jnp.pi * turns[:, i] / view.period[i] for i in range(2)], axis=-1
    )

  def features(cells):
    angle = cells.astype(jnp.float32) @ frequency.T
    scale = (2.0 / num_features) ** 0.5
    return scale * jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)

  def init():
    width = 2 * (num_features // 2)
    return Gated(
      jnp.zeros((width, num_tokens)), jnp.zeros(width), jnp.int32(-1)
    )

  def write(state, frame):
    phi = features(view.cells(frame.pose))
    # One solve for all cells of the frame: cell by cell they would overwrite
    # each other's answers.
    gram = phi @ phi.T + 1e-3 * jnp.eye(view.num_cells)
    values = jax.nn.one_hot(frame.tokens, num_tokens)

    def corrected(old, new):
      fix = jnp.linalg.solve(gram, new - phi @ old)
      return decay * old + rate * phi.T @ fix

    new = Gated(
      corrected(state.values, values),
      corrected(state.seen[:, None], jnp.ones((view.num_cells, 1)))[:, 0],
      frame.time.astype(jnp.int32),
    )
    return jax.tree.map(lambda a, b: jnp.where(frame.valid, a, b), new, state)

  def read(state, query):
    cells = view.cells(query.pose)
    phi = features(cells)
    values = jnp.maximum(phi @ state.values, 0.0)
    tokens = values / jnp.maximum(values.sum(-1, keepdims=True), 1e-6)
    valid = phi @ state.seen >= threshold
    time = jnp.full(cells.shape[:1], state.time)
    return jax.tree.map(lambda x: x[None], Recalled(tokens, cells, time, valid))

  return Memory(init, write, read, 1, view.num_cells, num_tokens)


class Switched(NamedTuple):
  """A memory's state, and whether reads answer at all."""

  state: Any
  is_on: jax.Array


def switched(memory: Memory) -> Memory:
  """A memory that can be turned off by its state.

  So a world with memory and its control without are one compiled program:
  `state._replace(is_on=False)`.
  """

  def init():
    return Switched(memory.init(), jnp.array(True))

  def write(state, frame):
    return state._replace(state=memory.write(state.state, frame))

  def read(state, query):
    found = memory.read(state.state, query)
    return found._replace(valid=found.valid & state.is_on)

  return memory._replace(init=init, write=write, read=read)
