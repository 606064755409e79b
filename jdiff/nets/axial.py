"""An axial transformer of frames in two streams: along time, then in the block.

Along time a cell looks at the same place of the world in finished frames, where
they show it. Cells are sorted by their places modulo a tile as large as the
view: no two of a frame share a slot, and one place has the same slot in all
frames, so that each is sorted once, not for each that looks at it. What a
memory recalls is looked at in the same softmax, by the kinds of its cells.

The clean stream is made of finished frames, each after a window of those before
it; its keys and values are what play caches. The noisy stream looks at them.

Source:
  Axial attention after Ho et al. (arXiv:1912.12180), as in Genie
  (arXiv:2402.15391); two streams after block diffusion (arXiv:2503.09573).
  Differs: cells are matched by their places in the world.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jdiff.core import checks
from jdiff.core.frames import Context, KeyValues, Seen, WorldNetwork
from jdiff.core.types import Sites
from jdiff.nets import embed, frame_attention, frames

AGES = tuple(
  int(age) for age in (*range(1, 16), *np.round(16 * 2 ** np.arange(0, 8, 0.5)))
)
"""Ages, in frames, from which on the bias of an age is another one."""


def axial(
  allowed: np.ndarray,
  offsets: np.ndarray,
  *,
  num_tokens: int,
  num_actions: int,
  num_moves: int,
  width: int = 64,
  num_layers: int = 2,
  num_heads: int = 2,
  mlp_width: int | None = None,
  num_given: int = 2,
  period: tuple[int, int] | None = None,
  turns: bool = True,
  compute_dtype: DTypeLike = jnp.float32,
  remat: bool = False,
) -> WorldNetwork:
  """Builds the network of many frames.

  Args:
    allowed: `[G, V]` bool: the tokens that each site of a block may hold
      (`world.Layout.allowed`); the mask is `V`. What a memory recalls costs
      memory in proportion to the kinds of cells.
    offsets: `[N, 2]` places of the cells, seen by the observer
      (`world.View.offsets`), row by row.
    num_tokens: Kinds of cells, the first tokens.
    num_actions: Actions `A`.
    num_moves: Ways to move.
    width: Features.
    num_layers: Layers `D`, each a look along time, attention within the block
      and a feed-forward layer.
    num_heads: Heads; a divisor of the width.
    mlp_width: Width of the feed-forward layers; four times the width by
      default.
    num_given: Sites at the block's front that are given. Those between them and
      the cells, the world's answers, are made and not kept: finished frames are
      encoded without.
    period: Of a world that is a torus (`world.View.period`). Without it places
      that are known the other way round would be missed.
    turns: Whether the observer turns. If it never does, a view that is no
      square is sorted into fewer slots.
    compute_dtype: Dtype of the layers; parameters, softmaxes and logits are
      float32.
    remat: Whether the backward pass recomputes each layer.

  Returns:
    A `WorldNetwork`. Its `encode` needs what each frame saw, `Q` of `seen`, and
    keeps `[D, B, F, N, width]`, the heads side by side. Its `recall` keeps the
    tokens themselves: their keys and values are by kind.

  Raises:
    ValueError: If a size is not positive or does not fit the others.
    TypeError: If a size is no integer or `compute_dtype` no float dtype.
  """
  sizes = frame_attention.checked_sizes(
    allowed,
    offsets,
    dict(
      num_tokens=num_tokens,
      num_actions=num_actions,
      num_moves=num_moves,
      width=width,
      num_layers=num_layers,
      num_heads=num_heads,
    ),
  )
  if period is not None:
    for name, size in zip(("rows", "cols"), period, strict=True):
      checks.check_int(f"period's {name}", size)
    period = (int(period[0]), int(period[1]))
  module = _Axial(
    **sizes,
    mlp_width=4 * width if mlp_width is None else mlp_width,
    num_given=checks.check_int("num_given", num_given),
    sorter=_sorter(np.asarray(offsets), period, turns),
    dtype=embed.float_dtype(compute_dtype),
    remat=remat,
  )
  return frame_attention.as_world_network(
    module, len(sizes["allowed"]), len(offsets)
  )


class _Sorter(NamedTuple):
  """What is needed to sort a view's cells into slots.

  Attributes:
    offsets: `[N][2]` of the cells.
    cols: Columns of the view; if there is but one, neighbours are below.
    tile: Rows and columns of slots; their product is `S`.
    period: Of a torus, or None.
  """

  offsets: tuple[tuple[int, int], ...]
  cols: int
  tile: tuple[int, int]
  period: tuple[int, int] | None


def _sorter(offsets, period, turns):
  rows, cols = (int(n) for n in np.ptp(offsets, axis=0) + 1)
  grid = np.indices((rows, cols)).reshape(2, -1).T + offsets[:1]
  if len(offsets) != rows * cols or np.any(offsets != grid):
    raise ValueError(
      "offsets must be those of a rectangle of cells, row by row; got "
      f"{len(offsets)} cells within {rows} x {cols}."
    )
  if rows * cols < 2:
    raise ValueError("offsets must be of at least 2 cells, got 1.")
  tile = (max(rows, cols),) * 2 if turns else (rows, cols)
  if period is not None:
    if period[0] < max(rows, 3) or period[1] < max(cols, 3):
      raise ValueError(
        f"period must be at least 3 and the view's {(rows, cols)}, got "
        f"{period}."
      )
    if turns and period[0] != period[1]:
      raise ValueError(
        "turns must be False on a torus whose sides differ, got period="
        f"{period}."
      )
    # Places on a torus have one remainder where the tile divides it, only.
    down, across = (
      next(n for n in range(min(size, around), around + 1) if around % n == 0)
      for size, around in zip(tile, period, strict=True)
    )
    tile = (down, across)
  return _Sorter(
    tuple((int(row), int(col)) for row, col in offsets),
    cols,
    tile,
    period,
  )


class _Window(NamedTuple):
  """Finished frames, sorted, and what each query may look at.

  Attributes:
    query: `[B, Q, S, N]`, 1 where a slot holds a cell of the query.
    key: `[B, F, S, N]`, of the frames.
    same: `[B, Q, F, S]` bool: both show the slot's place, and it is seen.
    age: `[B, Q, F, E]`, which of `AGES` have passed.
  """

  query: jax.Array
  key: jax.Array
  same: jax.Array
  age: jax.Array


class _Recalled(NamedTuple):
  """What a memory answers, at the slots of the queries.

  Attributes:
    kinds: `[B, Q, S, F, V]`, the token or its probabilities.
    valid: `[B, Q, S, F]` bool.
    age: `[B, Q, S, F, E]`.
  """

  kinds: jax.Array
  valid: jax.Array
  age: jax.Array


def _sort(sorter: _Sorter, seen: Seen, dtype: Any):
  """A `_Window`, and `[B, Q, S, 2]` the queries' own places in slots.

  Slots are named after places as the observer of the first frame sees them,
  whichever that is in a ring: all that matters is that it is one for all.
  """
  cells = jnp.round(seen.cells).astype(jnp.int32)
  offsets = jnp.asarray(sorter.offsets, jnp.int32)
  own = jnp.broadcast_to(offsets, (*cells.shape[:2], *offsets.shape))
  turn, start = _first_frame(sorter, cells[:, :, 0])
  query_places = _as_first(own, turn, start)
  # One query tells where all frames lie, and any does.
  key_places = _as_first(cells[:, 0], turn[:, :1], start[:, :1])
  query, key = _slots(sorter, query_places), _slots(sorter, key_places)
  holds = query.any(axis=-1)
  gap = _shortest(
    _in_slots(query, query_places)[:, :, None]
    - _in_slots(key, key_places)[:, None],
    sorter.period,
  )
  valid = jnp.einsum(
    "bqfn,bfsn->bqfs", seen.valid.astype(dtype), key.astype(dtype)
  )
  same = (gap[..., 0] == 0) & (gap[..., 1] == 0) & (valid > 0.5)
  window = _Window(
    query.astype(dtype),
    key.astype(dtype),
    same & holds[:, :, None],
    _ages(seen.age[..., 0], dtype),
  )
  # An empty slot is far from all cells.
  return window, jnp.where(holds[..., None], _in_slots(query, own), 2**20)


def _first_frame(sorter, cells):
  """How the first frame lies, of which `[B, Q, N, 2]` are the cells.

  Returns:
    `(sin, cos) [B, Q, 2]` of its turn, and `[B, Q, 2]` where its observer is.
  """
  # Turned by h, a step right is (sin h, cos h), and one down (cos h, -sin h).
  step = _shortest(cells[:, :, 1] - cells[:, :, 0], sorter.period)
  sin, cos = step[..., 0], step[..., 1]
  if sorter.cols == 1:
    sin, cos = -cos, sin
  row, col = sorter.offsets[0]
  turned = jnp.stack([cos * row + sin * col, cos * col - sin * row], axis=-1)
  return jnp.stack([sin, cos], axis=-1), cells[:, :, 0] - turned


def _as_first(places, turn, start):
  """Where the first frame's observer sees `places [B, X, N, 2]`."""
  away = places - start[:, :, None]
  row, col = away[..., 0], away[..., 1]
  sin, cos = turn[:, :, None, 0], turn[:, :, None, 1]
  return jnp.stack([cos * row - sin * col, cos * col + sin * row], axis=-1)


def _slots(sorter, places):
  """`[B, X, S, N]` bool, which cell of `places [B, X, N, 2]` a slot holds."""
  rows, cols = sorter.tile
  slot = (places[..., 0] % rows) * cols + places[..., 1] % cols
  return slot[:, :, None] == jnp.arange(rows * cols)[None, None, :, None]


def _in_slots(held, places):
  """`places [B, X, N, 2]` by slot, 0 where there is no cell: `[B, X, S, 2]`."""
  return jnp.sum(jnp.where(held[..., None], places[:, :, None], 0), axis=3)


def _shortest(step, period):
  """Displacements `[..., 2]`, the short way round a torus."""
  if period is None:
    return step
  parts = [
    (step[..., i] + size // 2) % size - size // 2
    for i, size in enumerate(period)
  ]
  return jnp.stack(parts, axis=-1)


def _ages(age, dtype):
  """Which of `AGES` have passed, `[..., E]`."""
  edges = jnp.asarray(AGES, age.dtype)
  edges = edges.reshape(*(1,) * age.ndim, -1)
  return (age[..., None] >= edges).astype(dtype)


def _at_slots(seen: Seen, places: jax.Array, vocab: int, dtype: Any):
  """What a memory recalls, at `places [B, Q, S, 2]`."""
  cells = jnp.round(seen.cells).astype(jnp.int32)[:, :, None]
  places = places[:, :, :, None, None]
  found = (cells[..., 0] == places[..., 0]) & (cells[..., 1] == places[..., 1])
  found = (found & seen.valid[:, :, None]).astype(dtype)
  assert seen.kv is not None
  kinds = seen.kv.key
  if jnp.issubdtype(kinds.dtype, jnp.integer):
    kinds = jax.nn.one_hot(kinds, vocab, dtype=dtype)
  # Ages must not be rounded: their bias is what is gathered.
  age = jnp.max(jnp.where(found > 0, seen.age[:, :, None], 0.0), axis=-1)
  return _Recalled(
    jnp.einsum("bqsfn,bqfnv->bqsfv", found, kinds.astype(dtype)),
    found.max(axis=-1) > 0,
    _ages(age, dtype),
  )


class _Layer(nn.Module):
  """A look along time, attention within the block, a feed-forward layer."""

  num_cells: int
  num_kinds: int
  num_heads: int
  mlp_width: int
  dtype: Any

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    kept: KeyValues | None,
    window: _Window | None,
    recalled: _Recalled | None,
  ) -> tuple[jax.Array, KeyValues]:
    """`x [B, Q, G, D]` and what is kept of frames, its own cells if None."""
    width = x.shape[-1]
    shape = (self.num_heads, width // self.num_heads)

    def linear(name, features, y, axis=-1):
      return nn.DenseGeneral(
        features,
        axis=axis,
        use_bias=False,
        dtype=self.dtype,
        dot_general=embed.dot_general,
        name=name,
      )(y)

    y = nn.RMSNorm(dtype=self.dtype, name="time_norm")(x)
    y = y[..., -self.num_cells :, :]
    # Heads stay side by side in what is kept: of its own a small axis of them
    # would be padded.
    own = KeyValues(
      linear("time_key", width, y), linear("time_value", width, y)
    )
    query = linear("time_query", shape, y) * shape[1] ** -0.5
    bias = self.param("age_bias", _fall, (len(AGES), self.num_heads))
    nothing = self.param("nothing", nn.initializers.zeros, (self.num_heads,))
    kinds = self.param(
      "kinds",
      nn.initializers.normal(1.0),
      (2, self.num_kinds, *shape),
    ).astype(self.dtype)
    if window is not None:
      answer = self._look(
        query,
        own if kept is None else kept,
        window,
        recalled,
        bias,
        nothing,
        kinds,
      )
      answer = linear("time_out", width, answer, axis=(-2, -1))
      others = x.shape[-2] - self.num_cells
      x = x + jnp.pad(answer, ((0, 0), (0, 0), (others, 0), (0, 0)))
    x = frames.Within(self.num_heads, self.mlp_width, self.dtype)(x)
    return x, own

  def _look(self, query, kept, window, recalled, bias, nothing, kinds):
    """`[B, Q, N, H, d]` to the same."""
    dtype = self.dtype
    query = jnp.einsum("bqsn,bqnhd->bqshd", window.query, query)
    key, value = (
      jnp.einsum("bfsn,bfnd->bfsd", window.key, x.astype(dtype)) for x in kept
    )
    key, value = (
      x.reshape(*x.shape[:-1], *query.shape[-2:]) for x in (key, value)
    )

    def dot(spec, *operands):
      return jnp.einsum(spec, *operands, preferred_element_type=jnp.float32)

    def old(spec, frames):
      return jnp.einsum(spec, frames.age.astype(jnp.float32), bias)

    logits = dot("bqshd,bfshd->bshqf", query, key)
    logits = logits + old("bqfe,eh->bhqf", window)[:, None]
    same = jnp.transpose(window.same, (0, 3, 1, 2))[:, :, None]
    logits = [jnp.where(same, logits, -1e9)]
    if recalled is not None:
      each = dot("bqshd,vhd->bqshv", query, kinds[0]).astype(dtype)
      found = dot("bqskv,bqshv->bshqk", recalled.kinds, each)
      found = found + old("bqske,eh->bshqk", recalled)
      valid = jnp.transpose(recalled.valid, (0, 2, 1, 3))[:, :, None]
      logits.append(jnp.where(valid, found, -1e9))
    shape = (*logits[0].shape[:-1], 1)
    nothing = nothing[None, None, :, None, None]
    logits.append(jnp.broadcast_to(nothing, shape))
    share = jax.nn.softmax(jnp.concatenate(logits, axis=-1), axis=-1)
    share = share.astype(dtype)
    num = key.shape[1]
    answer = jnp.einsum("bshqf,bfshd->bqshd", share[..., :num], value)
    if recalled is not None:
      share = share[..., num:-1]
      each = jnp.einsum("bshqk,bqskv->bqshv", share, recalled.kinds)
      answer = answer + jnp.einsum("bqshv,vhd->bqshd", each, kinds[1])
    return jnp.einsum("bqsn,bqshd->bqnhd", window.query, answer)


def _fall(key, shape):
  """Biases, which add up, that fall with the logarithm of the age."""
  del key
  fall = np.diff(np.log1p(np.array((0, *AGES)))).astype(np.float32)
  return jnp.broadcast_to(-0.7 * jnp.asarray(fall)[:, None], shape)


class _Axial(nn.Module):
  allowed: tuple[tuple[bool, ...], ...]
  places: tuple[tuple[float, float], ...]
  num_cells: int
  num_tokens: int
  num_actions: int
  num_moves: int
  num_given: int
  width: int
  num_layers: int
  num_heads: int
  mlp_width: int
  sorter: _Sorter
  dtype: Any
  remat: bool

  def setup(self):
    self.ends = frames.Ends(
      self.allowed, self.num_given, self.width, self.dtype
    )
    self.layers = self.param("layers", self._init_layers)
    self.mover = frames.MoveHead(
      self.num_tokens,
      self.num_actions,
      self.num_moves,
      self.num_cells,
      self.width,
    )

  def _layer(self):
    # Not bound to this module: its parameters are stacked.
    return _Layer(
      self.num_cells,
      self.num_tokens,
      self.num_heads,
      self.mlp_width,
      self.dtype,
      parent=None,
    )

  def _init_layers(self, key):
    shape = (1, 1, self.num_cells, 2)
    cells = jnp.broadcast_to(jnp.asarray(self.sorter.offsets), (1, *shape))
    seen = Seen(
      cells.astype(jnp.float32),
      jnp.ones(shape[:-1])[None],
      jnp.ones((1, *shape[:-1]), bool),
    )
    window, _ = _sort(self.sorter, seen, self.dtype)
    x = jnp.zeros((1, 1, len(self.allowed), self.width), self.dtype)

    def init(key):
      return self._layer().init(key, x, None, window, None)["params"]

    return jax.vmap(init)(jax.random.split(key, self.num_layers))

  def _run(self, x, kept, window, recalled, *, keep):
    """All layers; `kept` and the answer have an axis of them in front."""
    layer = self._layer()

    def body(x, layer_of):
      params, kept = layer_of
      x, own = layer.apply({"params": params}, x, kept, window, recalled)
      return x, own if keep else None

    if self.remat:
      # Inside a scan there is no common subexpression to guard against.
      body = jax.checkpoint(body, prevent_cse=False)
    return jax.lax.scan(body, x, (self.layers, kept))

  def encode(self, blocks: jax.Array, seen: Seen) -> KeyValues:
    num_frames = blocks.shape[1]
    checks.check_shape(
      "seen.cells",
      seen.cells,
      (blocks.shape[0], num_frames, None, None, 2),
      "Each frame needs what it saw itself.",
    )
    x = self.ends.block(blocks, None)
    # What the world answered is not known of frames that were observed.
    x = jnp.concatenate(
      [x[:, :, : self.num_given], x[:, :, -self.num_cells :]], axis=2
    )
    window = None
    if seen.kv is not None or seen.cells.shape[2] == num_frames:
      window, _ = _sort(self.sorter, seen, self.dtype)
    # Otherwise there is nothing yet to look at.
    _, own = self._run(x, seen.kv, window, None, keep=True)
    return own

  def recall(self, tokens: jax.Array) -> KeyValues:
    return KeyValues(tokens, tokens)

  def logits(
    self, blocks: jax.Array, context: Context, sites: Sites | None = None
  ) -> jax.Array:
    window, places = _sort(self.sorter, context.window, self.dtype)
    recalled = None
    if context.recalled is not None:
      recalled = _at_slots(
        context.recalled, places, self.num_tokens, self.dtype
      )
    x = self.ends.block(blocks, context.noise)
    x, _ = self._run(x, context.window.kv, window, recalled, keep=False)
    return self.ends.logits(x, sites)

  def move(self, tokens: jax.Array, action: jax.Array) -> jax.Array:
    return self.mover(tokens, action)

  def everything(self, blocks: jax.Array) -> None:
    """Calls every part once, to initialise it."""
    self.ends.logits(self.ends.block(blocks, jnp.zeros(1)), None)
    cells = blocks[..., -self.num_cells :]
    self.move(cells[:, 0], jnp.zeros(1, jnp.int32))
