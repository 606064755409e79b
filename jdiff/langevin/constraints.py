"""Equality and inequality constraints, linearised once at a point.

`eq_fn(x) -> [m]` stands for `h(x) = 0` and `ineq_fn(x) -> [l]` for `g(x) <= 0`.
Both are stacked, equalities first, into `p = m + l` rows; inequalities count
where `g_j(x) >= 0`, and the rows of the others are masked: shapes never depend
on the active set. Rows are scaled to unit length, so that nothing depends on
the units of a constraint and the Gram matrix has a unit diagonal, and inactive
rows are the identity's (arXiv:2510.22044; formulas re-derived).

Positions are flat `[d]` vectors here; kernels ravel pytrees.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from jdiff.core import carries, checks

ConstraintFn = Callable[[Any], jax.Array]
"""Of one position: an equality's `[m]` residuals or an inequality's `[l]`."""


class Constraints(NamedTuple):
  """Stacked constraints of a flat position.

  Attributes:
    parts: Functions of `x [d]`, the equalities' and then the inequalities',
      those that there are. Kept apart, because a row of one Jacobian need not
      pay for the other function.
    num_eq: `m`.
    num_ineq: `l`.
  """

  parts: tuple[Callable[[jax.Array], jax.Array], ...]
  num_eq: int
  num_ineq: int

  @property
  def num(self) -> int:
    """`p = m + l`."""
    return self.num_eq + self.num_ineq

  def fn(self, x: jax.Array) -> jax.Array:
    """All values `[p]` at `x [d]`, the equalities first."""
    return jnp.concatenate([part(x) for part in self.parts])


class Linearised(NamedTuple):
  """Constraints and their gradients at one point.

  Attributes:
    values: `[p]`.
    active: `[p]` bool: equalities, and inequalities with `g_j >= 0`.
    rows: `[p, d]` unit gradients; zero where inactive.
    norms: `[p]` lengths of the gradients; one where inactive.
    cholesky: `[p, p]`, lower, of the rows' Gram matrix with identity rows for
      inactive constraints.
    pivot: Scalar in `[0, 1]`: the smallest squared pivot, that is the squared
      sine of the angle between a gradient and the span of those before it.
      Near zero the active constraints are dependent (LICQ fails).
  """

  values: jax.Array
  active: jax.Array
  rows: jax.Array
  norms: jax.Array
  cholesky: jax.Array
  pivot: jax.Array


def stack(
  eq_fn: ConstraintFn | None, ineq_fn: ConstraintFn | None, position: Any
) -> Constraints:
  """Joins the constraint functions of a pytree position into one of `[d]`.

  Raises:
    ValueError: If neither is given, or if one does not return a vector.
    TypeError: If one returns integers.
  """
  if eq_fn is None and ineq_fn is None:
    raise ValueError("pass eq_fn, ineq_fn or both; without them use ula.")
  flat, unravel = ravel_pytree(position)
  sizes = [
    _size(name, fn, position)
    for name, fn in (("eq_fn", eq_fn), ("ineq_fn", ineq_fn))
  ]

  def flat_part(fn):
    return lambda x: jnp.asarray(fn(unravel(x)), x.dtype)

  given = [fn for fn in (eq_fn, ineq_fn) if fn is not None]
  return Constraints(tuple(map(flat_part, given)), *sizes)


def linearise(constraints: Constraints, x: jax.Array) -> Linearised:
  """Values, unit gradients and the factored Gram matrix at `x [d]`."""
  num = constraints.num
  values, jacobian = jacobian_of(constraints, x)
  is_eq = jnp.arange(num) < constraints.num_eq
  # A NaN counts as active, so that it reaches the step and is reported.
  active = is_eq | ~(values < 0)
  # A gradient that vanishes keeps a row of zeros: a dependence, by its pivot.
  # The inner where keeps derivatives of the norm finite there.
  squares = jnp.sum(jacobian**2, axis=1)
  norms = jnp.sqrt(jnp.where(active & (squares != 0), squares, 1))
  rows = jnp.where(active[:, None], jacobian / norms[:, None], 0)
  gram = dot(rows, rows.T) + jnp.diag(jnp.where(active, 0, 1).astype(x.dtype))
  # Rounding must not make a pivot of dependent rows negative.
  damping = 16 * jnp.finfo(x.dtype).eps * (num + x.size**0.5)
  cholesky = jnp.linalg.cholesky(gram + damping * jnp.eye(num, dtype=x.dtype))
  pivot = jnp.min(jnp.diagonal(cholesky) ** 2)
  return Linearised(values, active, rows, norms, cholesky, pivot)


def tangent_project(lin: Linearised, vector: jax.Array) -> jax.Array:
  """`P v`: `v [d]` without its components along the active gradients."""
  return vector - dot(lin.rows.T, _solve(lin, dot(lin.rows, vector)))


def normal_step(lin: Linearised, residual: jax.Array) -> jax.Array:
  """`J^T G^{-1} r [d]`: the shortest step that changes the constraints by `r`.

  Args:
    lin: The linearisation.
    residual: `[p]` in the units of the constraints; ignored where inactive.
  """
  scaled = jnp.where(lin.active, residual / lin.norms, 0)
  return dot(lin.rows.T, _solve(lin, scaled))


def tangent_and_normal(
  lin: Linearised, vector: jax.Array, residual: jax.Array
) -> jax.Array:
  """`P v - J^T G^{-1} r`, by one solve."""
  scaled = jnp.where(lin.active, residual / lin.norms, 0)
  rhs = dot(lin.rows, vector) + scaled
  return vector - dot(lin.rows.T, _solve(lin, rhs))


def landing_residual(
  constraints: Constraints, lin: Linearised, epsilon: jax.Array | float
) -> jax.Array:
  """`[p]`: `h_i`, and `g_j + epsilon_j` where `g_j >= 0`, else 0.

  Args:
    constraints: The constraints.
    lin: Their linearisation.
    epsilon: Scalar or `[l]`, how far inside inequalities aim, in units of `g`.
  """
  epsilon = jnp.asarray(epsilon, lin.values.dtype)
  values = lin.values.at[constraints.num_eq :].add(epsilon)
  return jnp.where(lin.active, values, 0)


def landing_direction(
  constraints: Constraints, lin: Linearised, epsilon: jax.Array | float
) -> jax.Array:
  """`-J^T G^{-1} r [d]`: the Gauss-Newton step onto the set."""
  return -normal_step(lin, landing_residual(constraints, lin, epsilon))


def distance(lin: Linearised) -> jax.Array:
  """`|J^T G^{-1} c|`, the Gauss-Newton distance to the set; scalar."""
  scaled = jnp.where(lin.active, lin.values / lin.norms, 0)
  # |R^T y|^2 = y^T (R R^T) y with R R^T y = scaled.
  return jnp.sqrt(jnp.maximum(jnp.sum(scaled * _solve(lin, scaled)), 0))


def curvature_trace(
  constraints: Constraints,
  x: jax.Array,
  lin: Linearised,
  *,
  key: jax.Array | None = None,
  num_probes: int | None = None,
) -> jax.Array:
  """`t_i = tr(P Hess c_i)`, `[p]`, the source of the Ito drift.

  `d^2/ds^2 c(x + s v)` at `v = P u` is one nested jvp for all constraints, and
  its mean over Rademacher `u` is the trace, since `P^2 = P`.

  Args:
    constraints: The constraints.
    x: `[d]`.
    lin: Their linearisation at `x`.
    key: Needed with `num_probes`; consumed.
    num_probes: Hutchinson probes; None sums over all `d` directions, exactly.
  """

  def second(probe):
    v = tangent_project(lin, probe)

    def along(y):
      return jax.jvp(constraints.fn, (y,), (v,))[1]

    return jax.jvp(along, (x,), (v,))[1]

  if num_probes is None:
    # One direction after another: memory must not grow as d^2.
    def body(i, total):
      return total + second(jnp.zeros_like(x).at[i].set(1))

    zeros = carries.anchor(jnp.zeros_like(lin.values), x)
    total = lax.fori_loop(0, x.size, body, zeros)
    return jnp.where(lin.active, total, 0)
  if key is None:
    raise ValueError("num_probes needs a key, got key=None.")
  probes = jax.random.rademacher(key, (num_probes, x.size), x.dtype)
  trace = jax.vmap(second)(probes).mean(axis=0)
  return jnp.where(lin.active, trace, 0)


def curvature_drift(
  constraints: Constraints,
  x: jax.Array,
  lin: Linearised,
  *,
  key: jax.Array | None = None,
  num_probes: int | None = None,
) -> jax.Array:
  """`H(x) = -J^T G^{-1} t [d]`, the mean-curvature drift; see above."""
  trace = curvature_trace(constraints, x, lin, key=key, num_probes=num_probes)
  return -normal_step(lin, trace)


def newton_retract(
  constraints: Constraints, x: jax.Array, *, num_iters: int = 8
) -> jax.Array:
  """Moves `x [d]` onto the set by Gauss-Newton steps, to clean up samples.

  Violated inequalities are moved to their boundary, satisfied ones ignored.
  The number of steps is fixed, so that it can be differentiated and batched.
  """
  checks.check_int("num_iters", num_iters)
  checks.check_numbers("x", x)
  checks.check_shape("x", x, (None,))

  def body(y, _):
    lin = linearise(constraints, y)
    return y + landing_direction(constraints, lin, 0.0), None

  return lax.scan(body, x, None, length=num_iters)[0]


def conditioned(
  potential_fn: Callable[[Any], jax.Array], eq_fn: ConstraintFn
) -> Callable[[Any], jax.Array]:
  """`f + 0.5 log det(Dh Dh^T)`: for the law of `exp(-f) dx` given `h = 0`.

  Kernels here sample `exp(-f)` with respect to the surface measure. The
  conditional law has the co-area factor `det(Dh Dh^T)^(-1/2)` too, which this
  Fixman term supplies; it depends on how the set is written.
  """

  def potential(position):
    return potential_fn(position) + 0.5 * log_det_gram(eq_fn, position)

  return potential


def log_det_gram(eq_fn: ConstraintFn, position: Any) -> jax.Array:
  """`log det(Dh Dh^T)`, scalar."""
  x, _ = ravel_pytree(position)
  constraints = stack(eq_fn, None, position)
  _, jacobian = jacobian_of(constraints, x)
  return jnp.linalg.slogdet(dot(jacobian, jacobian.T))[1]


def jacobian_of(
  constraints: Constraints, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Values `[p]` and gradients `[p, d]`, each part by its cheaper mode."""
  values, rows = [], []
  for part in constraints.parts:
    value, pullback = jax.vjp(part, x)
    if value.size < x.size:
      basis = carries.anchor(jnp.eye(value.size, dtype=x.dtype), value)
      rows.append(jax.vmap(lambda row, f=pullback: f(row)[0])(basis))
    else:
      rows.append(jax.jacfwd(part)(x))
    values.append(value)
  return jnp.concatenate(values), jnp.concatenate(rows)


def _solve(lin: Linearised, rhs: jax.Array) -> jax.Array:
  return jax.scipy.linalg.cho_solve((lin.cholesky, True), rhs)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
  """`a @ b` at full precision."""
  # The default precision of accelerators would leave projections at 1e-2.
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _size(name: str, fn: ConstraintFn | None, position: Any) -> int:
  if fn is None:
    return 0
  out = jax.eval_shape(fn, position)
  shape = getattr(out, "shape", None)
  if shape is None or len(shape) != 1 or not shape[0]:
    given = "no array" if shape is None else f"shape {list(shape)}"
    raise ValueError(
      f"{name} must return a vector of one or more values, got {given}; "
      "wrap a single constraint in jnp.array([...])."
    )
  if not jnp.issubdtype(out.dtype, jnp.floating):
    raise TypeError(f"{name} must return floats, got {out.dtype}.")
  return shape[0]
