"""A multilayer perceptron as a velocity field on vectors."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jdiff.core import checks
from jdiff.core.types import Params
from jdiff.nets import embed
from jdiff.nets.network import Network


def velocity_mlp(
  dim: int,
  *,
  hidden: Sequence[int] = (128, 128, 128),
  num_classes: int = 0,
  two_times: bool = False,
  max_frequency: float = embed.SMOOTH_FREQUENCY,
  activation: Callable[[jax.Array], jax.Array] = nn.silu,
  zero_init_head: bool = True,
  skip: bool = False,
  compute_dtype: DTypeLike = jnp.float32,
) -> Network:
  """Builds a velocity field, or an average velocity, on `R^dim`.

  Args:
    dim: Dimension `D`.
    hidden: Widths of the hidden layers, at least one.
    num_classes: Classes; one more, of index `num_classes`, means none and is
      what a call without labels gets. 0 builds a network without labels.
    two_times: Whether the network also takes an earlier time `s`, for average
      velocities.
    max_frequency: Fastest angle of the time embedding over the unit of time.
    activation: Elementwise, differentiable twice where `d/dt` is trained on.
    zero_init_head: Starts from the zero velocity instead of a random one.
    skip: Adds `x` times a factor for each entry that depends on the condition
      alone, zero at first: all that a Gaussian law would need.
    compute_dtype: Dtype of the hidden layers. Parameters, conditioning and the
      answer are float32 whatever it is.

  Returns:
    A `Network`; `apply(params, x [B, D], t [B], s=None, *, label=None)`
    answers `[B, D]`. It is a `VelocityFn`, and with `two_times` a `FlowMapFn`
    too, where leaving `s` out means `s = t`.

  Raises:
    ValueError: If a size is not positive, or `hidden` is empty.
    TypeError: If a size is no integer or `compute_dtype` no float dtype.
  """
  checks.check_int("dim", dim)
  if not checks.check_sizes("hidden", hidden):
    raise ValueError("hidden must name at least one layer's width, got ().")
  checks.check_int("num_classes", num_classes, minimum=0)
  checks.check_finite("max_frequency", max_frequency, positive=True)
  module = _VelocityMLP(
    hidden=tuple(hidden),
    num_classes=num_classes,
    two_times=two_times,
    max_frequency=max_frequency,
    activation=activation,
    zero_init_head=zero_init_head,
    skip=skip,
    dtype=embed.float_dtype(compute_dtype),
  )
  init, call = embed.as_velocity(module, (dim,), num_classes, two_times)

  def apply(
    params: Params,
    x: jax.Array,
    t: jax.Array,
    s: jax.Array | None = None,
    *,
    label: jax.Array | None = None,
  ) -> jax.Array:
    return call(params, x, t, s, label)

  return Network(init, apply)


class _VelocityMLP(nn.Module):
  hidden: tuple[int, ...]
  num_classes: int
  two_times: bool
  max_frequency: float
  activation: Callable[[jax.Array], jax.Array]
  zero_init_head: bool
  skip: bool
  dtype: Any

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    t: jax.Array,
    s: jax.Array | None,
    label: jax.Array | None,
  ) -> jax.Array:
    wide = jnp.promote_types(self.dtype, jnp.float32)
    condition = embed.Conditioning(
      self.hidden[0],
      self.num_classes,
      self.two_times,
      self.max_frequency,
      wide,
      name="condition",
    )(t, s, label)
    dim, linear = x.shape[-1], jnp.zeros((), wide)
    if self.skip:
      factor = nn.Dense(
        dim, kernel_init=nn.initializers.zeros, dtype=wide, name="skip"
      )
      linear = factor(nn.silu(condition)) * x
    for i, width in enumerate(self.hidden):
      x = nn.Dense(width, dtype=self.dtype, name=f"dense_{i}")(x)
      if i == 0:
        x = x + condition.astype(self.dtype)
      x = self.activation(x)
    zeros = nn.initializers.zeros
    kernel = self.param(
      "head_kernel",
      zeros if self.zero_init_head else nn.initializers.lecun_normal(),
      (self.hidden[-1], dim),
    )
    bias = self.param("head_bias", zeros, (dim,))
    y = jnp.einsum(
      "bh,hd->bd", x, kernel.astype(self.dtype), preferred_element_type=wide
    )
    return y + bias[None] + linear
