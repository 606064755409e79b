"""A denoiser of clips with words before them: neighbours in space and time.

What moves from frame to frame is found one cell further: in each block a cell
attends to itself and to its neighbours in the frames before and after, then all
sites, words among them, attend to each other.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jdiff.core import checks
from jdiff.core.types import Sites
from jdiff.nets import embed, frames
from jdiff.nets.network import Network

TOLD_WIDTH = 32
"""Features of the words as a whole, of which each site has its own map."""

STEPS = ((0, 0), (-1, 0), (0, -1), (0, 1), (1, 0))
"""From a cell to those that it attends to, one frame before and one after."""


def clips(
  allowed: np.ndarray,
  *,
  shape: tuple[int, int],
  num_frames: int,
  width: int,
  num_layers: int,
  num_heads: int,
  mlp_width: int | None = None,
  remat: bool = False,
  compute_dtype: DTypeLike = jnp.float32,
) -> Network:
  """Builds the network of canvases `[words | frame 1 | ... | frame T]`.

  Args:
    allowed: `[L, V]` bool: the tokens that each site may hold; the mask is `V`.
      What comes before the frames' cells are words.
    shape: `(rows, cols)` of a frame.
    num_frames: Frames `T`.
    width: Features of a site.
    num_layers: Blocks.
    num_heads: Attention heads; a divisor of the width.
    mlp_width: Width of the feed-forward layers; twice the width by default.
    remat: Recomputes each block's activations in the backward pass.
    compute_dtype: Dtype of the blocks; parameters and logits are float32.

  Returns:
    A `Network` with `apply(params, tokens [B, L], t [B], sites=None)`, which
    answers `[B, m, V]`, `-inf` where a site may not hold a token.

  Raises:
    ValueError: If a size is not positive or does not fit the others.
    TypeError: If a size is no integer or `compute_dtype` no float dtype.
  """
  sizes: dict[str, Any] = dict(
    num_frames=num_frames,
    width=width,
    num_layers=num_layers,
    num_heads=num_heads,
    mlp_width=2 * width if mlp_width is None else mlp_width,
  )
  for name, size in sizes.items():
    checks.check_int(name, size)
  checks.check_sizes("shape", shape, parts="(rows, cols)")
  allowed = np.asarray(allowed, bool)
  num_cells = num_frames * math.prod(shape)
  if allowed.ndim != 2 or len(allowed) <= num_cells:
    raise ValueError(
      f"allowed must be [L, V] with L above the {num_cells} cells, got shape "
      f"{list(allowed.shape)}."
    )
  if width % num_heads:
    raise ValueError(f"num_heads must divide width={width}, got {num_heads}.")
  module = _Clips(
    allowed=tuple(tuple(bool(x) for x in row) for row in allowed),
    shape=tuple(shape),
    num_words=len(allowed) - num_cells,
    remat=remat,
    dtype=embed.float_dtype(compute_dtype),
    **sizes,
  )
  return embed.as_network(module, len(allowed))


class _Clips(nn.Module):
  allowed: tuple[tuple[bool, ...], ...]
  shape: tuple[int, ...]
  num_words: int
  num_frames: int
  width: int
  num_layers: int
  num_heads: int
  mlp_width: int
  remat: bool
  dtype: Any

  @nn.compact
  def __call__(
    self, tokens: jax.Array, t: jax.Array, sites: Sites | None = None
  ) -> jax.Array:
    del t  # The masks can be counted.
    ends = frames.Ends(
      self.allowed, self.num_words, self.width, self.dtype, name="ends"
    )
    x = ends.block(tokens[:, None], None)[:, 0]
    # What words mean to a site is its own affair: that the walker stands on
    # grass to one cell of a frame, that it is green.
    words = ends.tokenwise(tokens[:, : self.num_words])
    words = nn.Dense(TOLD_WIDTH, dtype=self.dtype, name="words")(
      words.reshape(words.shape[0], -1)
    )
    told = self.param(
      "told",
      nn.initializers.normal(self.width**-0.5),
      (len(self.allowed), TOLD_WIDTH, self.width),
    )
    x = x + jnp.einsum("bw,lwd->bld", words, told.astype(self.dtype))
    block = nn.remat(_Block) if self.remat else _Block
    for layer in range(self.num_layers):
      x = block(
        self.num_words,
        (self.num_frames, *self.shape),
        self.num_heads,
        self.mlp_width,
        self.dtype,
        name=f"block_{layer}",
      )(x)
    return ends.logits(x[:, None], sites)[:, 0]


class _Block(nn.Module):
  num_words: int
  clip: tuple[int, ...]
  num_heads: int
  mlp_width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    words, cells = x[:, : self.num_words], x[:, self.num_words :]
    near = Neighbours(self.clip, self.num_heads, self.dtype)
    x = jnp.concatenate([words, cells + near(cells)], axis=1)
    return frames.Within(self.num_heads, self.mlp_width, self.dtype)(x)


class Neighbours(nn.Module):
  """Attention of each cell to its neighbours in a clip, and how they match.

  Which neighbour to look at may depend on what the cell holds, words that it
  was told of among it. The logits are features too: how well the neighbours on
  one side match, all over a frame, says which way it moved.

  Attributes:
    clip: `(T, rows, cols)`.
    num_heads: Heads `H`, a divisor of the width.
    dtype: Of the computation; logits are float32.
  """

  clip: tuple[int, ...]
  num_heads: int
  dtype: Any

  @nn.compact
  def __call__(self, cells: jax.Array) -> jax.Array:
    """`[B, T * N, D]` to the same."""
    batch, num_cells, width = cells.shape
    steps = [(0, 0, 0), *((dt, *step) for dt in (-1, 1) for step in STEPS)]
    head_size = width // self.num_heads

    def linear(name, y):
      y = nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)(y)
      return y.reshape(batch, *self.clip, self.num_heads, head_size)

    def from_side(y, step):
      """`[B, T, rows, cols, ...]` of the cells one step away, or zeros."""
      pads = [(max(-by, 0), max(by, 0)) for by in step]
      y = jnp.pad(y, ((0, 0), *pads, *[(0, 0)] * (y.ndim - 4)))
      begin = [max(by, 0) for by in step]
      end = [b + n for b, n in zip(begin, self.clip, strict=True)]
      return y[:, *map(slice, begin, end)]

    y = nn.RMSNorm(dtype=self.dtype, name="norm")(cells)
    query = linear("query", y) * head_size**-0.5
    key, value = linear("key", y), linear("value", y)
    sides = self.param(
      "sides",
      nn.initializers.normal(1.0),
      (len(steps), self.num_heads, head_size),
    ).astype(self.dtype)
    matches = [
      jnp.sum(query * from_side(key, step), axis=-1, dtype=jnp.float32)
      for step in steps
    ]
    logits = jnp.stack(matches, axis=-1) + jnp.einsum(
      "btrchd,shd->btrchs", query, sides, preferred_element_type=jnp.float32
    )
    # At the edges there is no neighbour.
    at = (
      np.indices(self.clip)[..., None]
      + np.transpose(steps)[:, None, None, None]
    )
    size = np.reshape(self.clip, (3, 1, 1, 1, 1))
    is_cell = ((at >= 0) & (at < size)).all(0)[None, :, :, :, None]
    share = jax.nn.softmax(jnp.where(is_cell, logits, -1e9), axis=-1)
    share = share.astype(self.dtype)
    seen = [
      share[..., i, None] * from_side(value, step)
      for i, step in enumerate(steps)
    ]
    logits = jnp.where(is_cell, logits, 0.0).astype(self.dtype)
    y = jnp.concatenate(
      [
        sum(seen).reshape(batch, num_cells, width),
        logits.reshape(batch, num_cells, -1),
      ],
      axis=-1,
    )
    return nn.Dense(width, dtype=self.dtype, name="out")(y)
