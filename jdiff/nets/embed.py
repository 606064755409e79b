"""Pieces that networks share: embeddings, positions, sites, outer shells."""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jdiff.core import checks
from jdiff.core.types import Params, Sites
from jdiff.nets.network import Network

SMOOTH_FREQUENCY = 5.0
"""Fastest angle, in radians over the unit of time, of velocity networks.

MeanFlow's target holds `(t - s) du/dt`, which the fastest sinusoid dominates.
On a 2-D checkerboard (MLP 3 x 128, 3,000 steps, three seeds) the energy
distance after one MeanFlow step was 0.006 to 0.009 at 5, 0.05 to 0.06 at 10
(two seeds), 0.08 to 0.23 at 20 and 0.4 to 0.5 at the 1e3 of the discrete
denoisers, while plain flow matching did equally well at all of them.
"""


def dot_general(
  lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any, **options: Any
) -> jax.Array:
  """`jax.lax.dot_general` of a linear map, as a product of two matrices.

  With several axes of rows or features, a kernel's gradient contracts over
  several axes, and XLA's CPU backend first transposes activations in the loops
  that compute them: a transformer's training step took 161 ms instead of 83
  (width 64, two layers, 128 x 32 tokens, two cores).

  Args:
    lhs: `[..., *contracted]`.
    rhs: `[*contracted, ...]`.
    dimension_numbers: As in `jax.lax.dot_general`; not of this form, it is left
      to that.
    **options: The others of `jax.lax.dot_general`.
  """
  (contracted, of_rhs), batch = dimension_numbers
  num_rows, num = lhs.ndim - len(contracted), len(contracted)
  if (
    tuple(contracted) != tuple(range(num_rows, lhs.ndim))
    or tuple(of_rhs) != tuple(range(num))
    or any(map(len, batch))
  ):
    return jax.lax.dot_general(lhs, rhs, dimension_numbers, **options)
  rows, size, features = (
    lhs.shape[:num_rows],
    math.prod(rhs.shape[:num]),
    rhs.shape[num:],
  )
  product = jax.lax.dot_general(
    lhs.reshape(math.prod(rows), size),
    rhs.reshape(size, math.prod(features)),
    (((1,), (0,)), ((), ())),
    **options,
  )
  return product.reshape(*rows, *features)


def matmul(x: jax.Array, kernel: jax.Array, **options: Any) -> jax.Array:
  """`x [..., in]` times `kernel [in, ...]`, by `dot_general`."""
  numbers = (((x.ndim - 1,), (0,)), ((), ()))
  return dot_general(x, kernel, numbers, **options)


def linear(
  features: int | tuple[int, ...],
  dtype: Any,
  *,
  axis: int | tuple[int, ...] = -1,
  name: str | None = None,
) -> nn.DenseGeneral:
  """A linear map without a bias, as a product of two matrices."""
  return nn.DenseGeneral(
    features,
    axis=axis,
    use_bias=False,
    dtype=dtype,
    dot_general=dot_general,
    name=name,
  )


class TimeEmbedding(nn.Module):
  """Sinusoids of `t` in `[0, 1]` through two dense layers, `[B, width]`."""

  width: int
  dtype: Any = jnp.float32
  num_frequencies: int = 32
  max_frequency: float = 1e3

  @nn.compact
  def __call__(self, t: jax.Array) -> jax.Array:
    """Embeds times `[B]`."""
    # Angles stay float32: bfloat16 cannot tell neighbouring times apart.
    t = t.astype(jnp.promote_types(t.dtype, jnp.float32))
    octaves = jnp.linspace(
      0.0, math.log(self.max_frequency), self.num_frequencies, dtype=t.dtype
    )
    angle = t[:, None] * jnp.exp(octaves)[None]
    x = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    x = nn.Dense(self.width, dtype=self.dtype)(x)
    return nn.Dense(self.width, dtype=self.dtype)(nn.silu(x))


class Conditioning(nn.Module):
  """What a velocity network is told beside `x`: `[B, width]`, a sum.

  The second time enters as the span `t - s`, Shortcut's step: it is the same at
  every `t` where the two coincide, so that the instantaneous velocity, most of
  the training data, is learnt at one value of it.
  """

  width: int
  num_classes: int
  two_times: bool
  max_frequency: float
  dtype: Any

  @nn.compact
  def __call__(
    self, t: jax.Array, s: jax.Array | None, label: jax.Array | None
  ) -> jax.Array:
    def time(name, value):
      return TimeEmbedding(
        self.width, self.dtype, max_frequency=self.max_frequency, name=name
      )(value)

    x = time("time", t)
    if self.two_times:
      x = x + time("span", jnp.zeros_like(t) if s is None else t - s)
    if self.num_classes:
      if label is None:
        label = jnp.full(t.shape, self.num_classes, jnp.int32)
      # On the scale of the untrained time embedding, so that neither drowns.
      x = x + nn.Embed(
        self.num_classes + 1,
        self.width,
        dtype=self.dtype,
        embedding_init=nn.initializers.normal(0.5),
        name="label",
      )(label)
    return x


def rotary_angles(
  grid: tuple[int, ...], head_size: int, base: float | None = None
) -> np.ndarray:
  """Angles `[L, head_size / 2]`, the pairs split evenly over the grid's axes.

  Args:
    grid: Sizes of the axes, row-major; `(L,)` for a sequence.
    head_size: Features a head, a multiple of `2 * len(grid)`.
    base: Ratio of the fastest to the slowest frequency, nearly. None is 1e4 on
      a sequence and 1e2 on a grid.
  """
  num_pairs = head_size // 2 // len(grid)
  # The slowest pair turns once in about 60,000 sites on a sequence; an axis of
  # a grid is short, and a base of 100 keeps its slow pairs telling.
  if base is None:
    base = 1e4 if len(grid) == 1 else 1e2
  frequency = base ** (-np.arange(num_pairs) / num_pairs)
  sites = np.indices(grid).reshape(len(grid), -1)
  angles = sites[:, :, None] * frequency
  return np.concatenate(list(angles), axis=-1).astype(np.float32)


def sincos_positions(grid: tuple[int, int], width: int) -> np.ndarray:
  """Fixed embedding `[L, width]` of a grid's sites, `width` in fours.

  Sines and cosines of the rotary angles of one head of the whole width, whose
  base suits short axes: with the 1e4 of sequences most would be constants.
  """
  angles = rotary_angles(grid, width)
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


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


def as_network(module: nn.Module, length: int | None) -> Network:
  """Wraps a module called as `(tokens, t, sites)` and checks its arguments.

  A length of None is any: no parameter may depend on it.
  """

  def init(key: jax.Array) -> Params:
    tokens = jnp.zeros((1, length or 1), jnp.int32)
    return module.init(key, tokens, jnp.ones(1))["params"]

  def apply(
    params: Params,
    tokens: jax.Array,
    t: jax.Array,
    sites: Sites | None = None,
  ) -> Any:
    check_call(tokens, t, sites, length)
    return module.apply({"params": params}, tokens, t, sites)

  return Network(init, apply)


def check_call(
  tokens: jax.Array, t: jax.Array, sites: Sites | None, length: int | None
) -> None:
  """Checks a denoiser's arguments; None is any length."""
  checks.check_tokens("tokens", tokens)
  batch = tokens.shape[0]
  checks.check_shape("tokens", tokens, (batch, length))
  checks.check_shape("t", t, (batch,))
  if sites is not None:
    _check_sites(sites, batch, tokens.shape[1])


def as_velocity(
  module: nn.Module, shape: tuple[int, ...], num_classes: int, two_times: bool
) -> tuple[Callable[..., Params], Callable[..., jax.Array]]:
  """`init` and `apply` of a module called as `(x, t, s, label, *more)`.

  Args:
    module: Answers as `x`; `s` and `label` may be None.
    shape: Shape of one example.
    num_classes: Classes, or 0 for a network without labels.
    two_times: Whether `s` may be given.
  """

  def init(key: jax.Array) -> Params:
    x = jnp.zeros((1, *shape))
    return module.init(key, x, jnp.ones(1), None, None)["params"]

  def apply(
    params: Params,
    x: jax.Array,
    t: jax.Array,
    s: jax.Array | None = None,
    label: jax.Array | None = None,
    *more: Any,
  ) -> jax.Array:
    batch = x.shape[0] if jnp.ndim(x) else 0
    checks.check_shape("x", x, (batch, *shape))
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise TypeError(f"x must be floating, got dtype {x.dtype}.")
    checks.check_shape("t", t, (batch,))
    if s is not None:
      if not two_times:
        raise ValueError(
          "s must be left out of a network built with two_times=False."
        )
      checks.check_shape("s", s, (batch,))
    if label is not None:
      _check_label(label, batch, num_classes)
    answer = module.apply({"params": params}, x, t, s, label, *more)
    return cast(jax.Array, answer)

  return init, apply


def _check_label(label: jax.Array, batch: int, num_classes: int) -> None:
  if not num_classes:
    raise ValueError(
      "label must be left out of a network built with num_classes=0."
    )
  checks.check_shape("label", label, (batch,))
  if not jnp.issubdtype(label.dtype, jnp.integer):
    raise TypeError(f"label must be integers, got dtype {label.dtype}.")
  # An embedding's lookup clamps or fills, and would answer silently.
  if checks.is_concrete(label) and label.size:
    values = np.asarray(label)  # looked at by JAX it would join a trace
    if values.min() < 0 or values.max() > num_classes:
      raise ValueError(
        f"label must lie in [0, num_classes = {num_classes}], the last being "
        f"the null class, got values from {values.min()} to {values.max()}."
      )


def _check_sites(sites: Sites, batch: int, length: int) -> None:
  if sites.ndim not in (1, 2) or sites.shape[:-1] not in ((), (batch,)):
    raise ValueError(
      f"sites must have shape [m] or [{batch}, m], got {list(sites.shape)}."
    )
  if not jnp.issubdtype(sites.dtype, jnp.integer):
    raise TypeError(f"sites must be integers, got dtype {sites.dtype}.")
  # Gathers clamp out-of-range indices, so a wrong site would answer silently.
  if checks.is_concrete(sites) and sites.size:
    sites = np.asarray(sites)  # looked at by JAX it would join a trace
    if sites.min() < 0 or sites.max() >= length:
      raise ValueError(
        f"sites must lie in [0, length = {length}), got values from "
        f"{sites.min()} to {sites.max()}."
      )
