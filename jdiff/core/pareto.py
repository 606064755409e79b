"""Pareto fronts and the volume they dominate; every objective is maximised."""

import jax
import jax.numpy as jnp
from jax import lax

from jdiff.core import checks

_ROWS_AT_ONCE = 256

MAX_OBJECTIVES = 4
"""Of which `hypervolume` makes volumes."""


def non_dominated(
  values: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
  """Which rows no other row dominates.

  A row dominates another if it is at least as large in every objective and
  larger in one: equal rows are all kept. Takes `O(N^2 K)` time, and memory for
  a block of rows at once instead of all pairs.

  Args:
    values: `[N, K]`.
    valid: `[N]` bool, or None for all. The others, and rows with a NaN, are
      neither in the front nor dominate a row.

  Returns:
    `[N]` bool.
  """
  valid = _valid(values, valid)

  def is_dominated(row):
    at_least = jnp.all(values >= row[None], axis=1)
    above = jnp.any(values > row[None], axis=1)
    return jnp.any(at_least & above & valid)

  return valid & ~lax.map(is_dominated, values, batch_size=_ROWS_AT_ONCE)


def hypervolume(
  values: jax.Array, reference: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
  """Volume of the points that some row dominates, above a reference.

  Exact, by slicing: between two neighbouring values of the last objective the
  others' volume is constant. Takes `O(N log N)` time for two objectives and a
  factor of `N` more for each further one; dominated rows may be left in.

  Args:
    values: `[N, K]`, finite where valid; `K` at most 4.
    reference: `[K]`. Rows that are not above it in every objective add nothing.
    valid: `[N]` bool, or None for all. Rows with a NaN add nothing either.

  Returns:
    A scalar, float32 at least, in the product of the objectives' units.

  Raises:
    ValueError: If `K` exceeds 4, or the shapes do not fit.
  """
  valid = _valid(values, valid)
  num_objectives = values.shape[1]
  checks.check_numbers("reference", reference)
  checks.check_shape("reference", reference, (num_objectives,))
  if num_objectives > MAX_OBJECTIVES:
    raise ValueError(
      f"values must have at most {MAX_OBJECTIVES} objectives for the exact "
      f"volume, got {num_objectives}."
    )
  dtype = jnp.promote_types(jnp.result_type(values, reference), jnp.float32)
  # Other rows move to the reference, where they are points without volume.
  heights = values.astype(dtype) - jnp.asarray(reference, dtype)[None]
  counts = valid & jnp.all(heights > 0, axis=1)
  heights = jnp.where(counts[:, None], heights, 0)
  heights = heights[jnp.argsort(-heights[:, 0])]
  levels = -jnp.sort(-heights, axis=0)
  below = jnp.concatenate([levels[1:], jnp.zeros_like(levels[:1])])
  thickness = levels - below

  def volume(num, inside):
    """Of the first `num` objectives, by the rows `inside` alone."""
    if num == 1:
      return jnp.max(jnp.where(inside, heights[:, 0], 0))
    if num == 2:
      # Rows are sorted by the first objective: the best so far in the second.
      best = lax.cummax(jnp.where(inside, heights[:, 1], 0))
      return jnp.sum(thickness[:, 0] * best)
    column = heights[:, num - 1]
    slices = lax.map(
      lambda level: volume(num - 1, inside & (column >= level)),
      levels[:, num - 1],
      batch_size=_ROWS_AT_ONCE if num == 3 else None,
    )
    return jnp.sum(thickness[:, num - 1] * slices)

  return volume(num_objectives, jnp.ones(counts.shape, bool))


def _valid(values: jax.Array, valid: jax.Array | None) -> jax.Array:
  """`valid` without the rows that hold a NaN."""
  checks.check_numbers("values", values)
  checks.check_shape("values", values, (None, None))
  known = ~jnp.any(jnp.isnan(values), axis=1)
  if valid is None:
    return known
  checks.check_shape("valid", valid, (values.shape[0],))
  return known & valid
