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

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jdiff.core import checks
from jdiff.core.frames import Context, KeyValues, Seen, WorldNetwork
from jdiff.core.types import Sites
from jdiff.nets import embed, frames, slots


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
  sizes = frames.checked_sizes(
    allowed,
    offsets,
    dict(
      num_tokens=num_tokens,
      num_actions=num_actions,
      num_moves=num_moves,
      width=width,
      num_layers=num_layers,
      num_heads=num_heads,
      mlp_width=4 * width if mlp_width is None else mlp_width,
      num_given=num_given,
    ),
  )
  if period is not None:
    rows, cols = checks.check_sizes("period", period, parts="(rows, cols)")
    period = (rows, cols)
  module = _Axial(
    **sizes,
    sorter=slots.make_sorter(np.asarray(offsets), period, turns),
    dtype=embed.float_dtype(compute_dtype),
    remat=remat,
  )
  return frames.as_world_network(module, len(sizes["allowed"]), len(offsets))


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
    window: slots.Window | None,
    recalled: slots.Recalled | None,
  ) -> tuple[jax.Array, KeyValues]:
    """`x [B, Q, G, D]` and what is kept of frames, its own cells if None."""
    width = x.shape[-1]
    shape = (self.num_heads, width // self.num_heads)

    def linear(name, features, y, axis=-1):
      return embed.linear(features, self.dtype, axis=axis, name=name)(y)

    y = nn.RMSNorm(dtype=self.dtype, name="time_norm")(x)
    y = y[..., -self.num_cells :, :]
    # Heads stay side by side in what is kept: of its own a small axis of them
    # would be padded.
    own = KeyValues(
      linear("time_key", width, y), linear("time_value", width, y)
    )
    query = linear("time_query", shape, y) * shape[1] ** -0.5
    bias = self.param("age_bias", _fall, (len(slots.AGES), self.num_heads))
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
  fall = np.diff(np.log1p(np.array((0, *slots.AGES)))).astype(np.float32)
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
  sorter: slots.Sorter
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
    window, _ = slots.sort(self.sorter, seen, self.dtype)
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
      window, _ = slots.sort(self.sorter, seen, self.dtype)
    # Otherwise there is nothing yet to look at.
    _, own = self._run(x, seen.kv, window, None, keep=True)
    return own

  def recall(self, tokens: jax.Array) -> KeyValues:
    return KeyValues(tokens, tokens)

  def logits(
    self, blocks: jax.Array, context: Context, sites: Sites | None = None
  ) -> jax.Array:
    window, places = slots.sort(self.sorter, context.window, self.dtype)
    recalled = None
    if context.recalled is not None:
      recalled = slots.at_slots(
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
