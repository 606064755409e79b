"""A residual stack of dilated convolutions along a sequence.

The denoiser of regulatory DNA in DRAKES (arXiv:2410.13643) and TR2-D2
(arXiv:2509.25171), first that of Dirichlet flow matching (arXiv:2402.05841):
one-hot symbols, kernels of nine sites, LayerNorm before each convolution and
ReLU after it. Positions enter through the zeros beyond the two ends alone.
Differs: the list of dilations is repeated, where the released code repeats each
dilation in turn (`dilations=(1,) * 8 + (4,) * 4 + (16,) * 4 + (64,) * 4,
num_stacks=1`), and times go through `embed.TimeEmbedding` instead of random
frequencies. Left out: dropout.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jdiff.core import checks
from jdiff.core.types import Sites
from jdiff.nets import embed
from jdiff.nets.network import Network


def dilated(
  length: int | None,
  num_tokens: int,
  *,
  width: int = 128,
  kernel_size: int = 9,
  dilations: Sequence[int] = (1, 1, 4, 16, 64),
  num_stacks: int = 4,
  time_conditioned: bool = False,
  zero_init_head: bool = True,
  compute_dtype: DTypeLike = jnp.float32,
) -> Network:
  """Builds a denoiser of a sequence whose sites see their surroundings.

  A site sees `(kernel_size - 1) / 2 * (1 + num_stacks * sum(dilations))` sites
  to each side, 1380 by default.

  Args:
    length: Canvas length `L`. None is any: no parameter depends on it.
    num_tokens: Tokens `V` that can be revealed; the mask id is `V`.
    width: Features of the residual stream.
    kernel_size: Sites that a convolution reads, odd.
    dilations: Distances between those sites, one for each layer of a stack.
    num_stacks: Stacks of layers, run under a scan.
    time_conditioned: Whether `t` enters, added before every norm. A masked
      denoiser can count the masks, so it need not.
    zero_init_head: Starts from uniform logits, and so from the uniform
      reference process, instead of from random ones.
    compute_dtype: Dtype of the layers. Parameters, norms' moments and logits
      are float32 whatever it is.

  Returns:
    A `Network`; `apply(params, tokens [B, L], t [B], sites=None)` answers
    `[B, L, V]`, or `[B, m, V]` with the head, two layers, run on those sites
    alone.

  Raises:
    ValueError: If a size is not positive, `kernel_size` is even, or
      `dilations` is empty.
    TypeError: If a size is no integer or `compute_dtype` no float dtype.
  """
  sizes = dict(
    num_tokens=num_tokens,
    width=width,
    kernel_size=kernel_size,
    num_stacks=num_stacks,
  )
  if length is not None:
    sizes["length"] = length
  for name, size in sizes.items():
    checks.check_int(name, size)
  if kernel_size % 2 == 0:
    raise ValueError(
      f"kernel_size must be odd, for a site to be at its middle, got "
      f"{kernel_size}."
    )
  if not dilations:
    raise ValueError("dilations must name at least one layer's, got ().")
  for dilation in dilations:
    checks.check_int("every dilation in dilations", dilation)
  module = _Dilated(
    num_tokens=num_tokens,
    width=width,
    kernel_size=kernel_size,
    dilations=tuple(dilations),
    num_stacks=num_stacks,
    time_conditioned=time_conditioned,
    zero_init_head=zero_init_head,
    dtype=embed.float_dtype(compute_dtype),
  )
  return embed.as_network(module, length)


def _convolve(
  x: jax.Array,
  kernel: jax.Array,
  strides: Any,
  padding: Any,
  *,
  rhs_dilation: Any,
  **options: Any,
) -> jax.Array:
  """`lax.conv_general_dilated` as `nn.Conv` calls it; on CPUs, a product.

  XLA's CPU backend has no fast gradient of a convolution inside a loop, where
  scans over stacks and over training steps put it: four steps of five layers
  took 7.8 s under a scan and 0.17 s as products (width 64, 64 x 32 tokens, two
  cores). Outside of loops a step takes about 40 ms either way, and with 200
  sites 0.25 and 0.4 s.

  Args:
    x: `[B, L, in]`.
    kernel: `[K, in, out]`, `K` odd.
    strides: One, in a sequence.
    padding: Such that the answer is `[B, L, out]`.
    rhs_dilation: The dilation, in a sequence of one.
    **options: The others of `jax.lax.conv_general_dilated`.
  """

  def convolution(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, strides, padding, rhs_dilation=rhs_dilation, **options
    )

  def product(x, kernel):
    (dilation,), (batch, length, _) = rhs_dilation, x.shape
    # Taps that lie beyond the ends for every site are left out.
    middle = kernel.shape[0] // 2
    half = min(middle, (length - 1) // dilation)
    used = kernel[middle - half : middle + half + 1]
    reach = half * dilation
    padded = jnp.pad(x, ((0, 0), (reach, reach), (0, 0)))
    sites = np.arange(length)[:, None] + dilation * np.arange(2 * half + 1)
    seen = padded[:, sites].reshape(batch, length, -1)
    return embed.matmul(seen, used.reshape(-1, kernel.shape[-1]))

  # Without the checkpoint the copies would be kept for the backward pass.
  return jax.lax.platform_dependent(
    x, kernel, cpu=jax.checkpoint(product), default=convolution
  )


class _Stack(nn.Module):
  """One layer for each dilation, called as a scan calls."""

  kernel_size: int
  dilations: tuple[int, ...]
  dtype: Any

  @nn.compact
  def __call__(
    self, x: jax.Array, time: jax.Array | None
  ) -> tuple[jax.Array, None]:
    width = x.shape[-1]
    for i, dilation in enumerate(self.dilations):
      y = x
      if time is not None:
        dense = nn.Dense(width, dtype=self.dtype, name=f"time_{i}")
        y = y + dense(time)[:, None]
      y = nn.LayerNorm(dtype=self.dtype, name=f"norm_{i}")(y)
      y = nn.Conv(
        width,
        self.kernel_size,
        kernel_dilation=dilation,
        dtype=self.dtype,
        conv_general_dilated=_convolve,
        name=f"conv_{i}",
      )(y)
      x = x + nn.relu(y)
    return x, None


class _Dilated(nn.Module):
  num_tokens: int
  width: int
  kernel_size: int
  dilations: tuple[int, ...]
  num_stacks: int
  time_conditioned: bool
  zero_init_head: bool
  dtype: Any

  @nn.compact
  def __call__(
    self, tokens: jax.Array, t: jax.Array, sites: Sites | None = None
  ) -> jax.Array:
    time = None
    if self.time_conditioned:
      time = nn.silu(
        embed.TimeEmbedding(self.width, self.dtype, name="time")(t)
      )
    x = jax.nn.one_hot(tokens, self.num_tokens + 1, dtype=self.dtype)
    x = nn.Conv(
      self.width,
      self.kernel_size,
      dtype=self.dtype,
      conv_general_dilated=_convolve,
      name="embed",
    )(x)
    stacks = nn.scan(
      _Stack,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=self.num_stacks,
    )(self.kernel_size, self.dilations, self.dtype, name="stacks")
    x, _ = stacks(nn.relu(x), time)
    # Gathered before the head, which then is paid for at those sites only.
    x = embed.gather_sites(x, sites)
    dense = nn.Dense(
      self.width,
      dtype=self.dtype,
      dot_general=embed.dot_general,
      name="head_hidden",
    )
    initializer = (
      nn.initializers.zeros
      if self.zero_init_head
      else nn.initializers.lecun_normal()
    )
    kernel = self.param(
      "head_kernel", initializer, (self.width, self.num_tokens)
    )
    bias = self.param("head_bias", nn.initializers.zeros, (self.num_tokens,))
    logits = embed.matmul(
      nn.relu(dense(x)),
      kernel.astype(self.dtype),
      preferred_element_type=jnp.float32,
    )
    return logits + bias[None, None]
