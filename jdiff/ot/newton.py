"""Averaged Newton steps, for low dimension and few points.

In two or three dimensions cells have few neighbours, and the masses' derivative
by the bias is an ill-conditioned graph Laplacian that a diagonal cannot invert:

  H_jk = -(density of the gap s_j - s_k at zero, j and k being the best two).

Noise vectors whose two best scores are close estimate it at no extra cost. It
is damped where it is poorly known, factorised, and used as the preconditioner
of the averaged iteration, phase after phase with less damping. A phase whose
error grew is undone and damped more.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import linalg

from jdiff.ot import iteration, laguerre

MAX_POINTS = 8192
"""The Laplacian is dense: 256 MiB at this size."""

SHARES = (*[1 / 64] * 4, *[1 / 32] * 2, *[1 / 16] * 2, 1 / 4, 1 / 2)
"""Of the steps, for each phase: many short ones while the cells still move."""

CHECK_SAMPLES = 4
"""A point, to tell whether a phase made the error worse."""

BURN_IN = 0.2
FIRST_DAMPING, LEAST_DAMPING = 0.3, 3e-3

AVERAGED_SHARE = (1 - BURN_IN) * SHARES[-1]
"""Share of the samples in the last phase's average."""


class _State(NamedTuple):
  bias: jax.Array
  weight: jax.Array  # [M, M], densities of close pairs
  gap: jax.Array
  damping: jax.Array
  error: jax.Array


def solve(
  key: jax.Array,
  problem: iteration.Cells,
  bias: jax.Array,
  *,
  num_samples: int,
  batch_size: int,
) -> tuple[jax.Array, int]:
  """`(bias [M], samples drawn)` after all phases.

  Beside `num_samples`, those that check the phases are drawn.

  Args:
    key: PRNG key; consumed.
    problem: From `iteration.cells`; not split over devices.
    bias: Start.
    num_samples: Budget of noise vectors, over the phases' steps.
    batch_size: Noise vectors a step.

  Raises:
    ValueError: If there are more than `MAX_POINTS` points, or they are split.
  """
  num_points = problem.num_points()
  if num_points > MAX_POINTS:
    raise ValueError(
      f"method='newton' takes at most {MAX_POINTS} points, got {num_points}; "
      "pass method='averaged'."
    )
  if problem.axis_name is not None or problem.rows_axis_name is not None:
    raise ValueError(
      "method='newton' runs on one device; pass method='averaged' inside "
      "shard_map."
    )
  batch_size = min(batch_size, max(num_points, 64))
  batch_size += batch_size % 2  # mirrored noise comes in twos
  shares = np.array(SHARES) * (num_samples // batch_size)
  num_steps = np.maximum(shares, 1).astype(np.int32)
  num_check = -(-CHECK_SAMPLES * num_points // batch_size)
  key_check, key_first, key_phases = jax.random.split(key, 3)

  def error(bias):
    def body(mass, index):
      key = jax.random.fold_in(key_check, index)
      return mass + problem.mass(key, bias, batch_size), None

    mass, _ = lax.scan(body, jnp.zeros_like(bias), jnp.arange(num_check))
    return problem.chi2(mass / num_check, num_check * batch_size)

  def steps(key, bias, bandwidth, num_steps, precondition):
    """`(average, W, mean gap)` of a phase."""
    num_burn_in = (BURN_IN * num_steps).astype(jnp.int32)

    def body(index, carry):
      state, weight, gap = carry
      noise = problem.noise(jax.random.fold_in(key, index), batch_size)
      top = laguerre.top_two(
        noise,
        problem.points,
        problem.drop_empty(state.bias),
        chunk_size=problem.chunk_size,
      )
      # A triangular kernel at zero, one-sided.
      gaps = jnp.where(jnp.isfinite(top.gap), top.gap, 0)  # one point alone
      width = jnp.maximum(bandwidth, 1e-12)
      near = jnp.maximum(1 - top.gap / width, 0) / width
      weight = weight.at[top.index, top.second].add(near)
      mass = jnp.zeros(num_points).at[top.index].add(1 / batch_size)
      state = iteration.advance(
        problem,
        state,
        mass,
        precondition,
        batch_size=batch_size,
        num_burn_in=num_burn_in,
      )
      return state, weight, gap + gaps.mean()

    carry = (
      iteration.init(bias),
      jnp.zeros((num_points, num_points)),
      jnp.float32(0),
    )
    state, weight, gap = lax.fori_loop(0, num_steps, body, carry)
    weight = (weight + weight.T) / (num_steps * batch_size)
    return state.average, weight, gap / num_steps

  def phase(state, arguments):
    key, num_steps = arguments
    new, weight, gap = steps(
      key,
      state.bias,
      0.5 * state.gap,
      num_steps,
      _inverse(state.weight, state.damping, problem),
    )
    after = error(new)
    # Three standard deviations of a perfect bias's error.
    noise = 3 * (2 * num_points) ** 0.5 / (num_check * batch_size)
    worse = ~(after <= 1.1 * state.error + noise)
    damping = jnp.where(
      worse,
      10 * state.damping,
      jnp.maximum(state.damping / 2, LEAST_DAMPING),
    )
    bias, error_now = jax.tree.map(
      lambda old, new: jnp.where(worse, old, new),
      (state.bias, state.error),
      (new, after),
    )
    # Old estimates fade as the cells move.
    weight = 0.5 * (state.weight + weight)
    gap = jnp.where(worse, state.gap, gap)
    return _State(bias, weight, gap, damping, error_now), None

  def stay(residual):
    return jnp.zeros_like(residual)

  num_first = int(max(num_check, num_steps[0]))
  _, _, gap = steps(key_first, bias, jnp.inf, jnp.int32(1), stay)
  _, weight, gap = steps(key_first, bias, 0.5 * gap, jnp.int32(num_first), stay)
  state = _State(bias, weight, gap, jnp.float32(FIRST_DAMPING), error(bias))
  keys = jax.random.split(key_phases, len(SHARES))
  state, _ = lax.scan(phase, state, (keys, jnp.asarray(num_steps)))
  drawn = num_steps.sum() + 1 + num_first + (len(SHARES) + 1) * num_check
  return state.bias, int(drawn) * batch_size


def _inverse(weight, damping, problem):
  """Solves with the damped Laplacian of `W`."""
  degree = weight.sum(axis=1)
  # Points that were never among the best two still need a finite step.
  floor = jnp.maximum(degree, 0.3 * degree.mean()) + 1e-12
  matrix = jnp.diag(degree + damping * floor) - weight
  factor = linalg.cho_factor(matrix)
  kept = problem.weights > 0

  def precondition(residual):
    return jnp.where(kept, linalg.cho_solve(factor, residual), 0)

  return precondition
