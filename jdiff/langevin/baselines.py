"""Samplers to compare with, in the same frame, for the same surface measure.

Unconstrained ULA and MALA; constrained Langevin with a Newton projection
(Lelievre, Rousset, Stoltz, "Langevin dynamics with constraints", Math. Comp.
2012; Ciccotti, Lelievre, Vanden-Eijnden, CPAM 2008); constrained generalised
HMC with the reversibility check (Zappa, Holmes-Cerfon, Goodman, CPAM 2018;
Lelievre, Rousset, Stoltz, Numer. Math. 2019). Inequalities are met by
rejection, or by the slack variables of `slack`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from jdiff.core import carries, checks
from jdiff.core.types import Kernel
from jdiff.langevin import constraints as constraints_lib
from jdiff.langevin import kernel as kernel_lib
from jdiff.langevin.kernel import State

Potential = Callable[[Any], jax.Array]


class Info(NamedTuple):
  """Diagnostics of a baseline's step.

  Attributes:
    accept_prob: Scalar; 0 or 1 where there is no Metropolis test.
    eq_residual: `[m]` values of `h` at the state reached.
    ineq_value: `[l]` values of `g` there.
    num_iters: Scalar int32, Newton iterations.
    status: Scalar int32, a `Status`.
  """

  accept_prob: jax.Array
  eq_residual: jax.Array
  ineq_value: jax.Array
  num_iters: jax.Array
  status: jax.Array


class MomentumState(NamedTuple):
  """A chain with a momentum, a flat `[d]` vector tangent to the set."""

  position: Any
  momentum: jax.Array
  step: jax.Array


def ula(potential_fn: Potential, *, step_size: float) -> Kernel:
  """Unadjusted Langevin: `x - dt grad f + sqrt(2 dt) xi`; bias O(dt)."""
  step_size = checks.check_finite("step_size", step_size, positive=True)

  def step(key, state):
    checks.check_key(key)
    x, potential, unravel = _flat(potential_fn, state.position)
    noise = jax.random.normal(key, x.shape, x.dtype)
    new = x - step_size * jax.grad(potential)(x) + _scale(step_size) * noise
    is_finite = jnp.isfinite(new).all()
    new = jnp.where(is_finite, new, x)
    info = _info(x, None, kernel_lib.status(is_finite=is_finite), is_finite)
    return State(unravel(new), state.step + 1), info

  return Kernel(_init, step)


def mala(potential_fn: Potential, *, step_size: float) -> Kernel:
  """Metropolis-adjusted Langevin: ULA's proposal, exact in the limit."""
  step_size = checks.check_finite("step_size", step_size, positive=True)

  def step(key, state):
    checks.check_key(key)
    key_noise, key_accept = jax.random.split(key)
    x, potential, unravel = _flat(potential_fn, state.position)
    energy, grad = jax.value_and_grad(potential)(x)
    noise = jax.random.normal(key_noise, x.shape, x.dtype)
    new = x - step_size * grad + _scale(step_size) * noise
    new_energy, new_grad = jax.value_and_grad(potential)(new)
    back = (x - new + step_size * new_grad) / _scale(step_size)
    log_ratio = (
      energy - new_energy + 0.5 * (jnp.sum(noise**2) - jnp.sum(back**2))
    )
    is_finite = jnp.isfinite(energy) & jnp.isfinite(grad).all()
    new, prob, _ = _accept(key_accept, log_ratio, new, x)
    info = _info(x, None, kernel_lib.status(is_finite=is_finite), prob)
    return State(unravel(new), state.step + 1), info

  return Kernel(_init, step)


def projected_langevin(
  potential_fn: Potential,
  eq_fn: constraints_lib.ConstraintFn,
  ineq_fn: constraints_lib.ConstraintFn | None = None,
  *,
  step_size: float,
  max_iters: int = 20,
  tolerance: float = 1e-6,
  frozen: bool = False,
) -> Kernel:
  """An Euler step, then Newton back onto `h = 0` along the old gradients.

  Args:
    potential_fn: `f`, minus a log-density on the surface.
    eq_fn: `h(position) -> [m]`.
    ineq_fn: `g(position) -> [l]`; moves that break it are rejected.
    step_size: `dt > 0`; expectations are off by O(dt).
    max_iters: Newton iterations before a chain gives up and stays.
    tolerance: On `max |h|`, in its units.
    frozen: Whether iterations reuse the start's Gram matrix instead of a fresh
      Jacobian: cheaper ones, more of them.
  """
  step_size = checks.check_finite("step_size", step_size, positive=True)
  project = _projector(max_iters, tolerance, frozen)

  def init(position):
    state = _init(position)
    constraints_lib.stack(eq_fn, ineq_fn, position)
    return state

  def step(key, state):
    checks.check_key(key)
    x, potential, unravel = _flat(potential_fn, state.position)
    eq = constraints_lib.stack(eq_fn, None, state.position)
    lin = constraints_lib.linearise(eq, x)
    noise = jax.random.normal(key, x.shape, x.dtype)
    move = _scale(step_size) * noise - step_size * jax.grad(potential)(x)
    new, converged, num_iters = project(eq, lin, x + move)
    both = constraints_lib.stack(eq_fn, ineq_fn, state.position)
    values = both.fn(x)
    is_finite = jnp.isfinite(move).all() & jnp.isfinite(values).all()
    ok = is_finite & converged & _feasible(ineq_fn, unravel, new)
    new = jnp.where(ok, new, x)
    status = kernel_lib.status(
      is_finite=is_finite,
      converged=converged,
      is_near=~jnp.any(values[both.num_eq :] > 0),
      is_independent=lin.pivot > kernel_lib.min_pivot(x.dtype),
    )
    info = _info(new, both, status, ok, num_iters)
    return State(unravel(new), state.step + 1), info

  return Kernel(init, step)


def constrained_hmc(
  potential_fn: Potential,
  eq_fn: constraints_lib.ConstraintFn | None = None,
  ineq_fn: constraints_lib.ConstraintFn | None = None,
  *,
  step_size: float,
  num_steps: int = 1,
  persistence: float = 0.0,
  max_iters: int = 20,
  tolerance: float | None = None,
) -> Kernel:
  """Constrained generalised HMC: RATTLE, checked for reversibility, adjusted.

  Exact for every step size: whatever fails (projection, its reversal, an
  inequality, the Metropolis test) is a rejection, with the momentum flipped.

  Args:
    potential_fn: `f`, minus a log-density on the surface.
    eq_fn: `h(position) -> [m]`, or None.
    ineq_fn: `g(position) -> [l]`; proposals that break it are rejected.
    step_size: Leapfrog step `> 0`: a time, so that one step moves like a
      Langevin step of `step_size ** 2 / 2`.
    num_steps: RATTLE steps a proposal.
    persistence: Share of the momentum kept by the refresh, in `[0, 1)`; the
      rest is unit-temperature noise, `p = a p + sqrt(1 - a^2) P xi`.
    max_iters: Newton iterations of each projection.
    tolerance: On `max |h|`; by default near rounding.
  """
  step_size = checks.check_finite("step_size", step_size, positive=True)
  checks.check_int("num_steps", num_steps)
  checks.check_int("max_iters", max_iters)
  checks.check_range("persistence", persistence, 0, 1, ends="[)")
  if eq_fn is None and ineq_fn is None:
    raise ValueError("pass eq_fn, ineq_fn or both; without them use mala.")

  def init(position):
    kernel_lib.check_position(position)
    constraints_lib.stack(eq_fn, ineq_fn, position)
    flat, _ = ravel_pytree(position)
    return MomentumState(position, jnp.zeros_like(flat), jnp.int32(0))

  def step(key, state):
    checks.check_key(key)
    key_noise, key_accept = jax.random.split(key)
    x, potential, unravel = _flat(potential_fn, state.position)
    both = constraints_lib.stack(eq_fn, ineq_fn, state.position)
    limit = 100 * float(jnp.finfo(x.dtype).eps)
    limit = limit if tolerance is None else tolerance
    rattle = _rattle(
      potential, eq_fn, state.position, step_size, max_iters, limit
    )
    noise = rattle.tangent(x, jax.random.normal(key_noise, x.shape, x.dtype))
    momentum = (
      persistence * state.momentum + (1 - persistence**2) ** 0.5 * noise
    )
    start = potential(x) + 0.5 * jnp.sum(momentum**2)

    def body(carry, _):
      q, p, ok, count = carry
      q, p, good, num_iters = rattle.step(q, p)
      return (q, p, ok & good, count + num_iters), None

    carry = (x, momentum, jnp.bool_(True), jnp.int32(0))
    carry = carries.anchor(carry, (x, momentum))
    (q, p, converged, num_iters), _ = lax.scan(
      body, carry, None, length=num_steps
    )
    end = potential(q) + 0.5 * jnp.sum(p**2)
    ok = converged & _feasible(ineq_fn, unravel, q)
    log_ratio = jnp.where(ok, start - end, -jnp.inf)
    new, prob, accepted = _accept(key_accept, log_ratio, q, x)
    momentum = jnp.where(accepted, p, -momentum)
    grad = jax.grad(potential)(x)
    values = both.fn(x)
    is_finite = (
      jnp.isfinite(start)
      & jnp.isfinite(grad).all()
      & jnp.isfinite(values).all()
    )
    status = kernel_lib.status(
      is_finite=is_finite,
      converged=converged,
      is_near=~jnp.any(values[both.num_eq :] > 0),
    )
    info = _info(new, both, status, prob, num_iters)
    return MomentumState(unravel(new), momentum, state.step + 1), info

  return Kernel(init, step)


def slack(
  potential_fn: Potential,
  eq_fn: constraints_lib.ConstraintFn | None,
  ineq_fn: constraints_lib.ConstraintFn,
) -> tuple[Potential, constraints_lib.ConstraintFn, Callable[[Any], Any]]:
  """Turns `g <= 0` into equalities `g_j + s_j^2 = 0` without changing the law.

  The surface measure of the lifted set is not that of the original one: left
  uncorrected, an interval is sampled by the arcsine law. The potential returned
  has the missing factor,
  `prod 2 |s_j| sqrt(det G_h / det G_lifted)`.

  Args:
    potential_fn: `f(position)`.
    eq_fn: `h(position)`, or None.
    ineq_fn: `g(position) -> [l]`.

  Returns:
    `(potential_fn, eq_fn, lift)` over lifted positions `(position, s [l])`;
    `lift(position)` makes one, `lifted[0]` undoes it. `-log |s|` keeps chains
    away from the boundary and makes unadjusted steps near it unstable: meant
    for `constrained_hmc`.
  """

  def lifted_eq(lifted):
    position, s = lifted
    inequality = ineq_fn(position) + s**2
    if eq_fn is None:
      return inequality
    return jnp.concatenate([eq_fn(position), inequality])

  def potential(lifted):
    position, s = lifted
    value = potential_fn(position) - jnp.sum(jnp.log(2 * jnp.abs(s)))
    value = value + 0.5 * constraints_lib.log_det_gram(lifted_eq, lifted)
    if eq_fn is None:
      return value
    return value - 0.5 * constraints_lib.log_det_gram(eq_fn, position)

  def lift(position):
    return position, jnp.sqrt(jnp.maximum(-ineq_fn(position), 0))

  return potential, lifted_eq, lift


class _Rattle(NamedTuple):
  step: Callable[..., Any]
  tangent: Callable[[jax.Array, jax.Array], jax.Array]


def _rattle(potential, eq_fn, position, step_size, max_iters, tolerance):
  grad = jax.grad(potential)
  if eq_fn is None:

    def free(q, p):
      p = p - 0.5 * step_size * grad(q)
      q = q + step_size * p
      return q, p - 0.5 * step_size * grad(q), jnp.bool_(True), jnp.int32(0)

    return _Rattle(free, lambda q, v: v)
  eq = constraints_lib.stack(eq_fn, None, position)
  project = _projector(max_iters, tolerance, frozen=False)

  def tangent(q, v):
    return constraints_lib.tangent_project(constraints_lib.linearise(eq, q), v)

  def one(q, p):
    lin = constraints_lib.linearise(eq, q)
    p = p - 0.5 * step_size * grad(q)
    new, converged, num_iters = project(eq, lin, q + step_size * p)
    p = (new - q) / step_size - 0.5 * step_size * grad(new)
    return new, tangent(new, p), converged, num_iters

  def step(q, p):
    new, new_p, converged, num_iters = one(q, p)
    back, _, returned, num_back = one(new, -new_p)
    # A projection that finds another point on the way back breaks detailed
    # balance; the distance to compare with is the step's own.
    gap = jnp.linalg.norm(back - q)
    near = gap <= 1e-3 * jnp.maximum(jnp.linalg.norm(new - q), tolerance)
    return new, new_p, converged & returned & near, num_iters + num_back

  return _Rattle(step, tangent)


def _projector(max_iters: int, tolerance: float, frozen: bool):
  """`(eq, lin at the start, y) -> (y on h = 0, converged, iterations)`."""
  checks.check_int("max_iters", max_iters)
  checks.check_finite("tolerance", tolerance, positive=True)

  def project(eq, lin, y):
    def fresh(y):
      values, jacobian = constraints_lib.jacobian_of(eq, y)
      # Rows of `lin` are unit vectors; any basis of the old normals will do.
      multipliers = jnp.linalg.solve(
        constraints_lib.dot(jacobian, lin.rows.T), values
      )
      return y - constraints_lib.dot(lin.rows.T, multipliers)

    def again(y):
      return y - constraints_lib.normal_step(lin, eq.fn(y))

    def body(carry):
      y, count, _ = carry
      y = (again if frozen else fresh)(y)
      return y, count + 1, jnp.max(jnp.abs(eq.fn(y)))

    def unfinished(carry):
      _, count, error = carry
      return (count < max_iters) & ~(error <= tolerance)

    error = jnp.max(jnp.abs(eq.fn(y)))
    y, count, error = lax.while_loop(unfinished, body, (y, jnp.int32(0), error))
    return y, error <= tolerance, count

  return project


def _init(position):
  kernel_lib.check_position(position)
  return State(position, jnp.int32(0))


def _flat(potential_fn, position):
  x, unravel = ravel_pytree(position)
  return x, lambda y: potential_fn(unravel(y)), unravel


def _scale(step_size):
  return (2 * step_size) ** 0.5


def _feasible(ineq_fn, unravel, x):
  if ineq_fn is None:
    return jnp.bool_(True)
  return jnp.all(ineq_fn(unravel(x)) <= 0)


def _accept(key, log_ratio, new, old):
  """Metropolis; a NaN is a rejection."""
  prob = jnp.exp(jnp.minimum(jnp.nan_to_num(log_ratio, nan=-jnp.inf), 0))
  accepted = jax.random.uniform(key, dtype=prob.dtype) < prob
  return jnp.where(accepted, new, old), prob, accepted


def _info(x, constraints, status, accept_prob, num_iters=0):
  num_eq = 0
  values = jnp.zeros(0, x.dtype)
  if constraints is not None:
    values, num_eq = constraints.fn(x), constraints.num_eq
  return Info(
    accept_prob=jnp.asarray(accept_prob, x.dtype),
    eq_residual=values[:num_eq],
    ineq_value=values[num_eq:],
    num_iters=jnp.asarray(num_iters, jnp.int32),
    status=status,
  )
