"""A multilayer perceptron over the one-hot encoding of a whole canvas."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jdiff.core import checks
from jdiff.core.types import Sites
from jdiff.nets import embed
from jdiff.nets.network import Network


def mlp(
  length: int,
  num_tokens: int,
  *,
  hidden: Sequence[int] = (128, 128),
  time_conditioned: bool = False,
  zero_init_head: bool = True,
  compute_dtype: DTypeLike = jnp.float32,
) -> Network:
  """Builds a denoiser that sees all sites at once through dense layers.

  Args:
    length: Canvas length `L`.
    num_tokens: Tokens `V` that can be revealed; the mask id is `V`.
    hidden: Widths of the hidden layers, at least one.
    time_conditioned: Whether `t` enters. A masked denoiser can count the
      masks, so it need not.
    zero_init_head: Starts from uniform logits, and so from the uniform
      reference process, instead of from random ones.
    compute_dtype: Dtype of the hidden layers. Parameters and logits are
      float32 whatever it is.

  Returns:
    A `Network`; `apply(params, tokens [B, L], t [B], sites=None)` answers
    `[B, L, V]`, or `[B, m, V]`. Sites shared by the batch (`[m]`) pay for
    their columns of the head alone; `[B, m]` sites pay for the whole head.

  Raises:
    ValueError: If a size is not positive, or `hidden` is empty.
    TypeError: If a size is no integer or `compute_dtype` no float dtype.
  """
  checks.check_int("length", length)
  checks.check_int("num_tokens", num_tokens)
  if not checks.check_sizes("hidden", hidden):
    raise ValueError("hidden must name at least one layer's width, got ().")
  module = _MLP(
    length=length,
    num_tokens=num_tokens,
    hidden=tuple(hidden),
    time_conditioned=time_conditioned,
    zero_init_head=zero_init_head,
    dtype=embed.float_dtype(compute_dtype),
  )
  return embed.as_network(module, length)


class _MLP(nn.Module):
  length: int
  num_tokens: int
  hidden: tuple[int, ...]
  time_conditioned: bool
  zero_init_head: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, tokens: jax.Array, t: jax.Array, sites: Sites | None = None
  ) -> jax.Array:
    x = jax.nn.one_hot(tokens, self.num_tokens + 1, dtype=self.dtype)
    x = x.reshape(tokens.shape[0], -1)
    for i, width in enumerate(self.hidden):
      x = nn.Dense(width, dtype=self.dtype, name=f"dense_{i}")(x)
      if i == 0 and self.time_conditioned:
        x = x + embed.TimeEmbedding(width, self.dtype, name="time")(t)
      x = nn.silu(x)
    # The head is [width, L, V] so that single sites can be cut out of it.
    initializer = (
      nn.initializers.zeros
      if self.zero_init_head
      else nn.initializers.variance_scaling(
        1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2)
      )
    )
    shape = (self.length, self.num_tokens)
    kernel = self.param("head_kernel", initializer, (x.shape[-1], *shape))
    bias = self.param("head_bias", nn.initializers.zeros, shape)
    kernel = kernel.astype(self.dtype)
    dot = {"preferred_element_type": jnp.float32}
    if sites is None:
      return jnp.einsum("bh,hlv->blv", x, kernel, **dot) + bias[None]
    sites = jnp.asarray(sites)
    if sites.ndim == 1:
      logits = jnp.einsum("bh,hmv->bmv", x, kernel[:, sites], **dot)
      return logits + bias[None, sites]
    # A kernel gathered for each example would be [B, h, m, V]; the whole head
    # is cheaper wherever m is not tiny.
    logits = jnp.einsum("bh,hlv->blv", x, kernel, **dot) + bias[None]
    return jnp.take_along_axis(logits, sites[..., None], axis=1)
