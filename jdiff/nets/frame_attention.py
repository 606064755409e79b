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

from jdiff.core.frames import Context, KeyValues, Seen, WorldNetwork
from jdiff.core.types import Sites
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
      mlp_width=2 * width if mlp_width is None else mlp_width,
      num_given=num_given,
    ),
  )
  module = _FrameAttention(
    **sizes,
    dtype=embed.float_dtype(compute_dtype),
  )
  return frames.as_world_network(module, len(sizes["allowed"]), len(offsets))


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
