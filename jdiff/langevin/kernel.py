"""What all samplers here share: kernels, states, status, and how to run them.

The shape is blackjax's: `init(position) -> state`, `step(key, state) -> (state,
info)`, for one chain; the caller vmaps. Only the sign differs: a potential is
minus a log-density.
"""

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jdiff.core import carries, checks
from jdiff.core import keys as keys_lib
from jdiff.core.types import Kernel


class State(NamedTuple):
  """A chain without momentum.

  Attributes:
    position: Pytree of float arrays.
    step: Scalar int32, steps made.
  """

  position: Any
  step: jax.Array


class Status(enum.IntEnum):
  """How a chain stands; the largest that applies is reported.

  Attributes:
    OK: On the set, up to the noise of a step.
    LANDING: Further from the set than the noise of a step, `sqrt(2 dt d)`: a
      far start, or a step size too large for the curvature. Samplers that
      reject what breaks an inequality report a point that breaks one.
    DEPENDENT: The active constraints are dependent (LICQ fails); the step was
      made with a damped Gram matrix.
    NOT_CONVERGED: An inner projection did not converge; the chain stayed.
    NOT_FINITE: The potential, a constraint or a gradient is not finite; the
      chain stayed. OLLA steps outside inequalities, where a potential may be
      undefined: it then lands without it, and reports this all the same.
  """

  OK = 0
  LANDING = 1
  DEPENDENT = 2
  NOT_CONVERGED = 3
  NOT_FINITE = 4


class Summary(NamedTuple):
  """Infos of many steps, reduced per chain.

  Attributes:
    mean: The info's numbers averaged over the steps, `[C, ...]`.
    max: Their largest sizes `max |.|` over the steps, `[C, ...]`.
    status: `[C, len(Status)]` share of the steps at each status.
  """

  mean: Any
  max: Any
  status: jax.Array


def run_chains(
  key: jax.Array,
  kernel: Kernel,
  positions: Any,
  *,
  num_samples: int,
  thinning: int = 1,
  num_burn_in: int = 0,
) -> tuple[Any, Summary]:
  """Runs `C` chains side by side and keeps every `thinning`-th position.

  Args:
    key: One PRNG key, or `[C]` keys; consumed. Chain `c` depends on `key` and
      `c` alone.
    kernel: A kernel of one chain.
    positions: Start, `[C, ...]` arrays.
    num_samples: Kept positions `K` a chain.
    thinning: Steps a kept position.
    num_burn_in: Steps before the first of them, left out of the summary too.

  Returns:
    `(samples [K, C, ...], summary)`; infos are reduced as they come, never
    stored.
  """
  checks.check_int("num_samples", num_samples)
  checks.check_int("thinning", thinning)
  checks.check_int("num_burn_in", num_burn_in, 0)
  num_chains = jax.tree.leaves(positions)[0].shape[0]
  keys = keys_lib.per_example(key, num_chains)
  states = jax.vmap(kernel.init)(positions)
  states = carries.anchor(states, (keys, positions))

  def advance(states, index):
    return jax.vmap(kernel.step)(keys_lib.fold(keys, index), states)

  def burn(states, index):
    return advance(states, index)[0], None

  def inner(carry, index):
    states, total, peak = carry
    states, info = advance(states, index)
    numbers = _numbers(info)
    total = jax.tree.map(jnp.add, total, numbers)
    peak = jax.tree.map(lambda a, b: jnp.maximum(a, jnp.abs(b)), peak, numbers)
    return (states, total, peak), None

  def outer(carry, start):
    carry, _ = lax.scan(inner, carry, start + jnp.arange(thinning))
    return carry, carry[0].position

  states, _ = lax.scan(burn, states, jnp.arange(num_burn_in))
  shapes = jax.eval_shape(lambda s: _numbers(advance(s, 0)[1]), states)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  zeros = carries.anchor(zeros, (keys, positions))
  starts = num_burn_in + thinning * jnp.arange(num_samples)
  (_, total, peak), samples = lax.scan(outer, (states, zeros, zeros), starts)
  mean = jax.tree.map(lambda x: x / (num_samples * thinning), total)
  return samples, Summary(mean, peak, mean["status"])


def check_position(position: Any) -> None:
  """Raises unless a position is a pytree of float32 or float64 arrays."""
  dtypes = [str(jnp.result_type(leaf)) for leaf in jax.tree.leaves(position)]
  if not dtypes or set(dtypes) - {"float32", "float64"}:
    raise TypeError(
      "position must hold float arrays, float32 or float64, got "
      f"{dtypes or 'nothing'}."
    )


def min_pivot(dtype) -> float:
  """Pivots below this count as dependence; safely above rounding."""
  return float(jnp.finfo(dtype).eps) ** 0.5


def status(*, is_finite, is_independent=True, is_near=True, converged=True):
  """The largest `Status` that applies, scalar int32."""
  value = jnp.where(is_near, Status.OK, Status.LANDING)
  value = jnp.where(is_independent, value, Status.DEPENDENT)
  value = jnp.where(converged, value, Status.NOT_CONVERGED)
  return jnp.where(is_finite, value, Status.NOT_FINITE).astype(jnp.int32)


def _numbers(info: Any) -> dict[str, jax.Array]:
  """An info's fields as floats, its status as shares of the statuses."""
  fields = info._asdict()
  shares = jax.nn.one_hot(fields.pop("status"), len(Status))
  wide = {
    name: jnp.asarray(value, jnp.promote_types(jnp.result_type(value), "f4"))
    for name, value in fields.items()
  }
  return wide | {"status": shares}
