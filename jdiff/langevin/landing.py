"""OLLA: overdamped Langevin with landing (arXiv:2510.22044).

Samples `exp(-f) dsigma` on `{h(x) = 0, g(x) <= 0}`, where `dsigma` is the
surface measure (Lebesgue without equalities; see `constraints.conditioned` for
the co-area law). One step is one linearisation and one solve of size `m + l`,

  x+ = x + P (sqrt(2 dt) xi - dt grad f) - J^T G^{-1} (landing r + dt t),

with no inner projection and no slack variables: `r` lands the constraints,
`t = tr(P Hess c)` is the Ito (mean curvature) drift. There is no accept/reject
step: with equalities alone expectations are off by O(dt).

Differs from the released code: the landing rate is `landing = alpha * dt`,
which must lie in (0, 2); the boundary repulsion scales with the step, without
which inequalities cost O(sqrt(dt)); probes are shared over constraints and
never absent; masked rows replace a pseudo-inverse.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jdiff.core import checks
from jdiff.core.types import Kernel
from jdiff.langevin import constraints as constraints_lib
from jdiff.langevin import kernel as kernel_lib
from jdiff.langevin.kernel import State

# Roots of the excess mass of the boundary layer, by landing: see `repulsion`.
_LANDING = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 1.9, 2.0)
_REPULSION = (
  *(1.740, 1.7217, 1.7029, 1.6432, 1.529, 1.4001),
  *(1.260, 1.1085, 0.9442, 0.7657, 0.6511, 0.572),
)


class OLLAInfo(NamedTuple):
  """What a step saw at the state that it left.

  Attributes:
    eq_residual: `[m]` values of `h`.
    ineq_value: `[l]` values of `g`.
    active: `[l]` bool.
    distance: Scalar, the Gauss-Newton distance `|J^T G^{-1} c|` to the set,
      inequalities counted where active.
    pivot: Scalar in `[0, 1]`; see `Linearised`.
    status: Scalar int32, a `Status`.
  """

  eq_residual: jax.Array
  ineq_value: jax.Array
  active: jax.Array
  distance: jax.Array
  pivot: jax.Array
  status: jax.Array


def olla(
  potential_fn: Callable[[Any], jax.Array],
  eq_fn: constraints_lib.ConstraintFn | None = None,
  ineq_fn: constraints_lib.ConstraintFn | None = None,
  *,
  step_size: float,
  landing: float = 0.5,
  epsilon: Any = "auto",
  num_probes: int | None = 1,
  without_curvature: bool = False,
) -> Kernel:
  """Builds the OLLA kernel.

  Args:
    potential_fn: `f(position)`, scalar: minus an unnormalised log-density with
      respect to the surface measure. Mind the sign.
    eq_fn: `h(position) -> [m]`, or None.
    ineq_fn: `g(position) -> [l]`, feasible where `<= 0`, or None.
    step_size: `dt > 0`.
    landing: `alpha * dt` in `(0, 2)`: the share of a linear residual that one
      step removes. 1 is a Gauss-Newton step.
    epsilon: How far inside an active inequality aims, in units of `g`, scalar
      or `[l]`; `"auto"` is `auto_epsilon`, which removes the O(sqrt(dt)) error
      of the mass near a boundary.
    num_probes: Hutchinson probes of the curvature, unbiased from 1 on; None
      sums the trace over all `d` directions.
    without_curvature: Needed to pass `num_probes=0`, which drops the curvature
      drift: the chain then lives on a shifted level set, at `h` of about
      `tr(P Hess h) dt / landing`. For constraints that are piecewise linear.

  Returns:
    A `Kernel`; `step` answers an `OLLAInfo`. A step that meets numbers that
    are not finite says so in its status and leaves the position as it was,
    unless only the potential is undefined, outside an inequality: then it
    lands without it.

  Raises:
    ValueError: If an option is out of range, no constraint is given, or, at
      trace time, if a constraint does not return a vector.
  """
  step_size = checks.check_finite("step_size", step_size, positive=True)
  landing = check_landing(landing)
  if without_curvature and num_probes != 0:
    raise ValueError(
      "without_curvature=True drops the drift that num_probes="
      f"{num_probes} estimates; pass num_probes=0 with it."
    )
  if num_probes == 0 and not without_curvature:
    raise ValueError(
      "num_probes=0 drops the curvature drift and samples a shifted set; pass "
      "num_probes=1, None for the exact trace, or without_curvature=True too."
    )
  if num_probes is not None:
    checks.check_int("num_probes", num_probes, 0)
  _check_epsilon(epsilon)
  if eq_fn is None and ineq_fn is None:
    raise ValueError("pass eq_fn, ineq_fn or both; without them use ula.")

  def init(position):
    kernel_lib.check_position(position)
    constraints_lib.stack(eq_fn, ineq_fn, position)
    return State(position, jnp.int32(0))

  def step(key, state):
    checks.check_key(key)
    key_noise, key_probes = jax.random.split(key)
    x, unravel = ravel_pytree(state.position)
    constraints = constraints_lib.stack(eq_fn, ineq_fn, state.position)
    num_eq, num_ineq = constraints.num_eq, constraints.num_ineq
    if not isinstance(epsilon, str) and jnp.shape(epsilon) not in (
      (),
      (num_ineq,),
    ):
      raise ValueError(
        f"epsilon must be a scalar or [{num_ineq}], one an inequality, got "
        f"shape {list(jnp.shape(epsilon))}."
      )
    lin = constraints_lib.linearise(constraints, x)
    value, grad = jax.value_and_grad(lambda y: potential_fn(unravel(y)))(x)
    has_potential = jnp.isfinite(value) & jnp.isfinite(grad).all()
    is_outside = lin.active[num_eq:].any()
    grad = jnp.where(is_outside & ~has_potential, 0, grad)
    noise = jax.random.normal(key_noise, x.shape, x.dtype)
    inside = epsilon
    if isinstance(epsilon, str):
      inside = auto_epsilon(
        constraints, lin, step_size=step_size, landing=landing
      )
    residual = landing * constraints_lib.landing_residual(
      constraints, lin, inside
    )
    if num_probes != 0:
      residual = residual + step_size * constraints_lib.curvature_trace(
        constraints, x, lin, key=key_probes, num_probes=num_probes
      )
    move = (2 * step_size) ** 0.5 * noise - step_size * grad
    new = x + constraints_lib.tangent_and_normal(lin, move, residual)
    distance = constraints_lib.distance(lin)
    may_move = jnp.isfinite(new).all() & (has_potential | is_outside)
    status = kernel_lib.status(
      is_finite=may_move & has_potential,
      is_independent=lin.pivot > kernel_lib.min_pivot(x.dtype),
      is_near=distance <= (2 * step_size * x.size) ** 0.5,
    )
    position = unravel(jnp.where(may_move, new, x))
    info = OLLAInfo(
      eq_residual=lin.values[:num_eq],
      ineq_value=lin.values[num_eq:],
      active=lin.active[num_eq:],
      distance=distance,
      pivot=lin.pivot,
      status=status,
    )
    return State(position, state.step + 1), info

  return Kernel(init, step)


def _check_epsilon(epsilon: Any) -> None:
  if isinstance(epsilon, str):
    if epsilon != "auto":
      raise ValueError(f"epsilon must be 'auto' or numbers, got {epsilon!r}.")
  elif epsilon is None:
    raise TypeError("epsilon must be 'auto' or numbers, got None.")
  elif checks.is_concrete(epsilon):
    values = np.asarray(epsilon, np.float64)
    if not (np.isfinite(values) & (values >= 0)).all():
      raise ValueError(f"epsilon must be finite and >= 0, got {epsilon}.")


def check_landing(landing: float) -> float:
  """`landing`, if `0 < landing < 2`, where linear residuals shrink."""
  landing = checks.check_finite("landing", landing, positive=True)
  if checks.is_concrete(landing) and landing >= 2:
    raise ValueError(
      "landing (alpha * step_size) must lie in (0, 2), where residuals "
      f"shrink, got {landing}."
    )
  return landing


def auto_epsilon(
  constraints: constraints_lib.Constraints,
  lin: constraints_lib.Linearised,
  *,
  step_size: float,
  landing: float,
) -> jax.Array:
  """The boundary repulsion `[l]` without O(sqrt(dt)) error of the mass.

  `B(landing) sqrt(2 dt) |P_h grad g_j| / landing` with `P_h` the tangent
  projector of the equalities. `B` makes the mass that lingers outside equal to
  the mass that is missing inside, for a flat boundary met by one constraint
  (one-dimensional chain, solved numerically; `tests/langevin` solves it again).
  Errors of O(dt) remain; where several constraints meet, at right angles or
  not, they were measured to be of that order too (`benchmarks/langevin.py`).
  """
  checks.check_finite("step_size", step_size, positive=True)
  check_landing(landing)
  num_eq = constraints.num_eq
  # Rows of the Cholesky factor are components along the gradients before.
  along = jnp.sum(lin.cholesky[num_eq:, :num_eq] ** 2, axis=1)
  slope = lin.norms[num_eq:] * jnp.sqrt(jnp.clip(1 - along, 0, 1))
  scale = repulsion(landing) * (2 * step_size) ** 0.5 / landing
  return jnp.where(lin.active[num_eq:], scale * slope, 0).astype(slope.dtype)


def repulsion(landing) -> jax.Array:
  """`B(landing)` of `auto_epsilon`, in steps of noise, by interpolation."""
  return jnp.interp(
    jnp.asarray(landing, jnp.result_type(float)),
    jnp.asarray(_LANDING),
    jnp.asarray(_REPULSION),
  )
