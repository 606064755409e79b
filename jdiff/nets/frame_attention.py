"""A small denoiser of frames: each block looks at finished frames, then itself.

What is kept of a finished frame depends on its cells alone, by a table of the
vocabulary a layer: a memory's frames cost a lookup.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jdiff.core import checks
from jdiff.core.frames import Context, KeyValues, Seen, WorldNetwork
from jdiff.core.types import Params, Sites
from jdiff.nets import embed, frames


def frame_attention(
  allowed: np.ndarray,
  offsets: np.ndarray,
  *,
  num_tokens: int,
  num_actions: int,
  num_moves: int,
  width: int = 48,
  num_layers: int = 2,
  num_heads: int = 2,
  mlp_width: int | None = None,
  num_given: int = 2,
  compute_dtype: DTypeLike = jnp.float32,
) -> WorldNetwork:
  """Builds the network of frames of up to about a hundred cells.

  Args:
    allowed: `[G, V]` bool: the tokens that each site of a block may hold
      (`world.Layout.allowed`); the mask is `V`.
    offsets: `[N, 2]` places of the cells, seen by the observer
      (`world.View.offsets`).
    num_tokens: Kinds of cells, the first tokens.
    num_actions: Actions `A`.
    num_moves: Ways to move.
    width: Features.
    num_layers: Layers `D`, each a look at finished frames, attention within
      the block and a feed-forward layer.
    num_heads: Heads; a divisor of the width.
    mlp_width: Width of the feed-forward layers; twice the width by default.
    num_given: Sites at the block's front that are given.
    compute_dtype: Dtype of the layers; parameters and logits are float32.

  Returns:
    A `WorldNetwork`.

  Raises:
    ValueError: If a size is not positive or does not fit the others.
    TypeError: If a size is no integer or `compute_dtype` no float dtype.
  """
  sizes = checked_sizes(
    allowed,
    offsets,
    dict(
      num_tokens=num_tokens,
      num_actions=num_actions,
      num_moves=num_moves,
      width=width,
      num_layers=num_layers,
      num_heads=num_heads,
      mlp_width=2 * width if mlp_width is None else mlp_width,
      num_given=num_given,
    ),
  )
  module = _FrameAttention(
    **sizes,
    dtype=embed.float_dtype(compute_dtype),
  )
  return as_world_network(module, len(sizes["allowed"]), len(offsets))


def checked_sizes(
  allowed: np.ndarray, offsets: np.ndarray, sizes: dict[str, int]
) -> dict[str, Any]:
  """Fields of a module, hashable, after checks that networks share."""
  for name, value in sizes.items():
    checks.check_int(name, value)
  allowed, offsets = np.asarray(allowed, bool), np.asarray(offsets)
  checks.check_shape("offsets", offsets, (None, 2))
  if allowed.ndim != 2 or len(allowed) < len(offsets):
    raise ValueError(
      f"allowed must be [G, V] with G at least the {len(offsets)} cells, got "
      f"shape {list(allowed.shape)}."
    )
  if sizes["width"] % sizes["num_heads"]:
    raise ValueError(
      f"num_heads must divide width={sizes['width']}, got {sizes['num_heads']}."
    )
  return sizes | {
    "allowed": tuple(tuple(bool(x) for x in row) for row in allowed),
    "places": frames.block_places(offsets, len(allowed)),
    "num_cells": len(offsets),
  }


def as_world_network(
  module: nn.Module, length: int, num_cells: int
) -> WorldNetwork:
  """Wraps a module's `everything`, `encode`, `recall`, `logits` and `move`."""

  def init(key: jax.Array) -> Params:
    blocks = jnp.zeros((1, 1, length), jnp.int32)
    return module.init(key, blocks, method="everything")["params"]

  def call(name):
    def method(params: Params, *args: Any) -> Any:
      _check_vocabulary(params, len(module.allowed[0]))
      return module.apply({"params": params}, *args, method=name)

    return method

  def logits(params, blocks, context, sites=None):
    frames.check_block(blocks, length)
    return call("logits")(params, blocks, context, sites)

  def encode(params, blocks, seen):
    frames.check_block(blocks, length)
    return call("encode")(params, blocks, seen)

  def recall(params, tokens):
    if jnp.issubdtype(tokens.dtype, jnp.integer):
      checks.check_shape("tokens", tokens, (None,) * 4)
    else:
      checks.check_shape("tokens", tokens, (None,) * 5)
    return call("recall")(params, tokens)

  def move(params, tokens, action):
    checks.check_shape("tokens", tokens, (None, num_cells))
    checks.check_shape("action", action, (tokens.shape[0],))
    return call("move")(params, tokens, action)

  return WorldNetwork(init, encode, recall, logits, move)


def _check_vocabulary(params: Params, num_tokens: int) -> None:
  """Raises unless parameters are of a network of `num_tokens` and the mask."""
  given = params["ends"]["tokens"].shape[0] - 1
  if given != num_tokens:
    raise ValueError(
      f"params must be of a vocabulary of {num_tokens} tokens, got those of "
      f"{given}; load a checkpoint of the same environment and layout."
    )


class _FrameAttention(nn.Module):
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
  dtype: Any

  def setup(self):
    self.ends = frames.Ends(
      self.allowed, self.num_given, self.width, self.dtype
    )
    layers = range(self.num_layers)
    self.norms = [nn.RMSNorm(dtype=self.dtype) for _ in layers]
    self.looks = [
      frames.Look(self.num_heads, self.width, self.places, self.dtype)
      for _ in layers
    ]
    self.withins = [
      frames.Within(self.num_heads, self.mlp_width, self.dtype) for _ in layers
    ]
    self.mover = frames.MoveHead(
      self.num_tokens,
      self.num_actions,
      self.num_moves,
      self.num_cells,
      self.width,
    )

  def encode(self, blocks: jax.Array, seen: Seen) -> KeyValues:
    del seen
    return self.recall(blocks[..., -self.num_cells :])

  def recall(self, tokens: jax.Array) -> KeyValues:
    # Every token goes through the maps once, however many cells hold it.
    table = self.ends.tokens.astype(self.dtype)
    kept = [look.keep(table) for look in self.looks]
    return jax.tree.map(
      lambda *rows: jnp.stack([frames.look_up(r, tokens) for r in rows]), *kept
    )

  def logits(
    self, blocks: jax.Array, context: Context, sites: Sites | None = None
  ) -> jax.Array:
    x = self.ends.block(blocks, context.noise)
    seen = frames.both(context)
    for layer in range(self.num_layers):
      of_layer = frames.of_layer(seen, layer)
      x = x + self.looks[layer](self.norms[layer](x), of_layer)
      x = self.withins[layer](x)
    return self.ends.logits(x, sites)

  def move(self, tokens: jax.Array, action: jax.Array) -> jax.Array:
    return self.mover(tokens, action)

  def everything(self, blocks: jax.Array) -> None:
    """Calls every part once, to initialise it."""
    cells = blocks[..., -self.num_cells :]
    shape = (1, 1, *cells.shape[1:])
    seen = Seen(
      jnp.zeros((*shape, 2)),
      jnp.zeros(shape),
      jnp.ones(shape, bool),
      self.recall(cells),
    )
    self.logits(blocks, Context(seen, None, jnp.zeros(1)))
    self.move(cells[:, 0], jnp.zeros(1, jnp.int32))
