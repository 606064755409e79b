"""A bidirectional transformer with rotary positions, in one or two dimensions.

Pre-norm blocks with RMSNorm (arXiv:1910.07467) and GELU, rotary positions
(arXiv:2104.09864), axial on a grid: half of each head's rotations follow the
row and half the column. Layers run under a scan over stacked parameters, so
compile time does not grow with depth. Left out: dropout, biases, causal masks
and cached decoding.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jdiff.core import checks
from jdiff.core.types import Sites
from jdiff.nets import embed
from jdiff.nets.network import Network


def transformer(
  length: int,
  num_tokens: int,
  *,
  width: int,
  num_layers: int,
  num_heads: int,
  mlp_ratio: int = 4,
  grid: tuple[int, int] | None = None,
  time_conditioned: bool = False,
  zero_init_head: bool = True,
  remat: bool = False,
  compute_dtype: DTypeLike = jnp.float32,
) -> Network:
  """Builds a denoiser in which every site attends to every other.

  Args:
    length: Canvas length `L`.
    num_tokens: Tokens `V` that can be revealed; the mask id is `V`, which is
      embedded and never predicted.
    width: Features `D` of the residual stream.
    num_layers: Blocks.
    num_heads: Attention heads; divides `width` into heads of even size (a
      multiple of four on a grid).
    mlp_ratio: Hidden width of the feed-forward layers over `width`.
    grid: `(rows, cols)` with `rows * cols == length`, for sites that lie on a
      grid, row by row. None is a sequence.
    time_conditioned: Whether `t` enters, added to every embedding. A masked
      denoiser can count the masks, so it need not.
    zero_init_head: Starts from uniform logits, and so from the uniform
      reference process, instead of from random ones.
    remat: Recomputes each block's activations in the backward pass, trading
      about a third more time for memory that does not grow with depth.
    compute_dtype: Dtype of the blocks. Parameters, softmaxes, norms' moments
      and logits are float32 whatever it is.

  Returns:
    A `Network`; `apply(params, tokens [B, L], t [B], sites=None)` answers
    `[B, L, V]`, or `[B, m, V]` with the head run on those sites alone.

  Raises:
    ValueError: If a size is not positive or the sizes do not divide.
    TypeError: If a size is no integer or `compute_dtype` no float dtype.
  """
  sizes = dict(
    length=length,
    num_tokens=num_tokens,
    width=width,
    num_layers=num_layers,
    num_heads=num_heads,
    mlp_ratio=mlp_ratio,
  )
  for name, size in sizes.items():
    checks.check_int(name, size)
  if width % num_heads:
    raise ValueError(
      f"width must be a multiple of num_heads, got width={width} and "
      f"num_heads={num_heads}."
    )
  head_size, multiple = width // num_heads, 2 if grid is None else 4
  if head_size % multiple:
    raise ValueError(
      f"width / num_heads must be a multiple of {multiple} for rotary "
      f"positions{'' if grid is None else ' on a grid'}, got {head_size}."
    )
  if grid is not None and (
    len(grid) != 2 or min(grid) < 1 or math.prod(grid) != length
  ):
    raise ValueError(
      "grid must be (rows, cols) with rows * cols == length, got "
      f"grid={tuple(grid)} and length={length}."
    )
  module = _Transformer(
    num_tokens=num_tokens,
    width=width,
    num_layers=num_layers,
    num_heads=num_heads,
    mlp_width=mlp_ratio * width,
    grid=(length,) if grid is None else tuple(grid),
    time_conditioned=time_conditioned,
    zero_init_head=zero_init_head,
    remat=remat,
    dtype=embed.float_dtype(compute_dtype),
  )
  return embed.as_network(module, length)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
  """Turns the pairs `(i, i + d/2)` of `x [B, L, H, d]` by `angles [L, d/2]`.

  Products of rotated queries and keys then depend on differences of position
  alone.
  """
  cos = jnp.cos(angles)[None, :, None]
  sin = jnp.sin(angles)[None, :, None]
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate(
    [first * cos - second * sin, first * sin + second * cos], axis=-1
  )
  return turned.astype(x.dtype)


class _Block(nn.Module):
  num_heads: int
  mlp_width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, angles: jax.Array) -> tuple[jax.Array, None]:
    width = x.shape[-1]
    heads = (self.num_heads, width // self.num_heads)

    def project(name, y):
      return nn.DenseGeneral(
        heads, use_bias=False, dtype=self.dtype, name=name
      )(y)

    y = nn.RMSNorm(dtype=self.dtype, name="attention_norm")(x)
    query = rotate(project("query", y), angles)
    key = rotate(project("key", y), angles)
    value = project("value", y)
    y = jax.nn.dot_product_attention(query, key, value)
    x = x + nn.DenseGeneral(
      width, axis=(-2, -1), use_bias=False, dtype=self.dtype, name="out"
    )(y)
    y = nn.RMSNorm(dtype=self.dtype, name="mlp_norm")(x)
    y = nn.Dense(self.mlp_width, use_bias=False, dtype=self.dtype, name="up")(y)
    y = nn.Dense(width, use_bias=False, dtype=self.dtype, name="down")(
      nn.gelu(y)
    )
    return x + y, None


class _Transformer(nn.Module):
  num_tokens: int
  width: int
  num_layers: int
  num_heads: int
  mlp_width: int
  grid: tuple[int, ...]
  time_conditioned: bool
  zero_init_head: bool
  remat: bool
  dtype: Any

  @nn.compact
  def __call__(
    self, tokens: jax.Array, t: jax.Array, sites: Sites | None = None
  ) -> jax.Array:
    x = nn.Embed(
      self.num_tokens + 1,
      self.width,
      dtype=self.dtype,
      embedding_init=nn.initializers.normal(1.0),
      name="embed",
    )(tokens)
    if self.time_conditioned:
      time = embed.TimeEmbedding(self.width, self.dtype, name="time")(t)
      x = x + time[:, None]
    block = _Block
    if self.remat:
      # Inside a scan there is no common subexpression to guard against.
      block = nn.remat(_Block, prevent_cse=False)
    angles = embed.rotary_angles(self.grid, self.width // self.num_heads)
    x, _ = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=self.num_layers,
    )(
      self.num_heads, self.mlp_width, self.dtype, name="blocks"
    )(x, jnp.asarray(angles))
    # Gathered before the head, which then is paid for at those sites only.
    x = embed.gather_sites(x, sites)
    x = nn.RMSNorm(dtype=self.dtype, name="norm")(x)
    initializer = (
      nn.initializers.zeros
      if self.zero_init_head
      else nn.initializers.lecun_normal()
    )
    kernel = self.param(
      "head_kernel", initializer, (self.width, self.num_tokens)
    )
    bias = self.param("head_bias", nn.initializers.zeros, (self.num_tokens,))
    logits = jnp.einsum(
      "bld,dv->blv",
      x,
      kernel.astype(self.dtype),
      preferred_element_type=jnp.float32,
    )
    return logits + bias[None, None]
