"""Pieces that the denoisers share: time embedding, sites, the outer shell."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jdiff.core import checks
from jdiff.core.types import Params, Sites
from jdiff.nets.network import Network


class TimeEmbedding(nn.Module):
  """Sinusoids of `t` in `[0, 1]` through two dense layers, `[B, width]`."""

  width: int
  dtype: Any = jnp.float32
  num_frequencies: int = 32

  @nn.compact
  def __call__(self, t: jax.Array) -> jax.Array:
    """Embeds times `[B]`."""
    # Angles stay float32: bfloat16 cannot tell neighbouring times apart.
    octaves = jnp.linspace(0.0, math.log(1e3), self.num_frequencies)
    angle = t.astype(jnp.float32)[:, None] * jnp.exp(octaves)[None]
    x = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    x = nn.Dense(self.width, dtype=self.dtype)(x)
    return nn.Dense(self.width, dtype=self.dtype)(nn.silu(x))


def gather_sites(x: jax.Array, sites: Sites | None) -> jax.Array:
  """Rows of `x [B, L, D]` at `sites` (`[m]` or `[B, m]`): `[B, m, D]`."""
  if sites is None:
    return x
  sites = jnp.asarray(sites)
  if sites.ndim == 1:
    return x[:, sites]
  return jnp.take_along_axis(x, sites[..., None], axis=1)


def float_dtype(compute_dtype: DTypeLike) -> jnp.dtype:
  """`compute_dtype` as a dtype, or a TypeError if it is no float."""
  dtype = jnp.dtype(compute_dtype)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise TypeError(
      f"compute_dtype must be a floating dtype such as bfloat16, got {dtype}."
    )
  return dtype


def as_network(module: nn.Module, length: int) -> Network:
  """Wraps a module called as `(tokens, t, sites)` and checks its arguments."""

  def init(key: jax.Array) -> Params:
    tokens = jnp.zeros((1, length), jnp.int32)
    return module.init(key, tokens, jnp.ones(1))["params"]

  def apply(
    params: Params,
    tokens: jax.Array,
    t: jax.Array,
    sites: Sites | None = None,
  ) -> Any:
    checks.check_tokens("tokens", tokens)
    batch = tokens.shape[0]
    checks.check_shape("tokens", tokens, (batch, length))
    checks.check_shape("t", t, (batch,))
    if sites is not None:
      _check_sites(sites, batch, length)
    return module.apply({"params": params}, tokens, t, sites)

  return Network(init, apply)


def _check_sites(sites: Sites, batch: int, length: int) -> None:
  if sites.ndim not in (1, 2) or sites.shape[:-1] not in ((), (batch,)):
    raise ValueError(
      f"sites must have shape [m] or [{batch}, m], got {list(sites.shape)}."
    )
  if not jnp.issubdtype(sites.dtype, jnp.integer):
    raise TypeError(f"sites must be integers, got dtype {sites.dtype}.")
  # Gathers clamp out-of-range indices, so a wrong site would answer silently.
  if checks.is_concrete(sites) and sites.size:
    if sites.min() < 0 or sites.max() >= length:
      raise ValueError(
        f"sites must lie in [0, length = {length}), got values from "
        f"{sites.min()} to {sites.max()}."
      )
