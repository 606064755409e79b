"""Exact marginals for stored pairs, by moving as few of them as possible.

Cells of an imperfect bias, and even perfect ones under chance, are hit more or
less often than their weight says. Every noise vector is kept, so that the noise
stays exactly Gaussian; surplus pairs are moved to points that lack some.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jdiff.core import checks


class Rebalanced(NamedTuple):
  """Pairs with exact quotas.

  Attributes:
    index: `[P]` int32, the new indices.
    num_moved: Scalar int32, entries that changed: the least possible,
      `sum_j max(count_j - quota_j, 0)`.
  """

  index: jax.Array  # type: ignore[assignment]  # hides tuple.index
  num_moved: jax.Array


def rebalance(
  index: ArrayLike,
  quota: ArrayLike,
  *,
  gap: ArrayLike | None = None,
  group: ArrayLike | None = None,
) -> Rebalanced:
  """Moves surplus entries so that point `j` is used `quota[j]` times.

  Args:
    index: `[P]` integers in `[0, M)`.
    quota: `[M]` integers summing to `P`; see `quotas`.
    gap: `[P]`, by how much a pair's point beat the next one: those with the
      least move first. By default the last ones of a point do.
    group: `[M]` integers; entries move inside their point's group alone, whose
      quotas must sum to its entries.

  Raises:
    ValueError: If shapes do not fit or, where values are known, the quotas do
      not sum to `P` (in every group).
  """
  for name, array in (("index", index), ("quota", quota)):
    checks.check_integers(name, array)
  checks.check_shape("index", index, (None,))
  checks.check_shape("quota", quota, (None,))
  num_pairs, num_points = np.shape(index)[0], np.shape(quota)[0]
  if gap is not None:
    checks.check_shape("gap", gap, (num_pairs,))
    gap = jnp.asarray(gap)
  if group is None:
    group = np.zeros(num_points, np.int32)
  checks.check_integers("group", group)
  checks.check_shape("group", group, (num_points,))
  _check_totals(index, quota, group)
  index, quota, group = (
    jnp.asarray(x, jnp.int32) for x in (index, quota, group)
  )
  count = jnp.bincount(index, length=num_points)

  # Sorted by point, the most clearly assigned first; stable.
  order = jnp.argsort(index) if gap is None else jnp.lexsort((-gap, index))
  ranked = index[order]
  rank = jnp.arange(num_pairs) - (jnp.cumsum(count) - count)[ranked]
  moves = jnp.zeros(num_pairs, bool).at[order].set(rank >= quota[ranked])
  num_moved = moves.sum()

  # Movers and empty places, both group by group.
  last = jnp.iinfo(jnp.int32).max
  movers = jnp.argsort(jnp.where(moves, group[index], last), stable=True)
  by_group = jnp.argsort(group, stable=True)
  lack = jnp.maximum(quota - count, 0)[by_group]
  places = jnp.repeat(by_group, lack, total_repeat_length=num_pairs)
  filled = jnp.where(jnp.arange(num_pairs) < num_moved, places, index[movers])
  return Rebalanced(
    index.at[movers].set(filled.astype(jnp.int32)), num_moved.astype(jnp.int32)
  )


def quotas(
  weights: np.ndarray | None,
  num_pairs: int,
  count: np.ndarray,
) -> np.ndarray:
  """`[M]` int64 closest to `num_pairs * weights`, summing to `num_pairs`.

  Largest remainders get the left-over places, and among equal ones the fullest
  points do, so that fewer entries move.

  Args:
    weights: `[M]` summing to one, concrete, or None for uniform.
    num_pairs: `P`.
    count: `[M]`, how often each point is used now.
  """
  checks.check_int("num_pairs", num_pairs)
  count = np.asarray(count)
  if weights is None:
    weights = np.full(len(count), 1 / len(count))
  weights = np.asarray(weights, np.float64)
  wanted = num_pairs * weights / weights.sum()
  # Uniform weights must tie, whatever rounding says.
  quota = np.floor(wanted + 1e-9).astype(np.int64)
  remainder = np.round(wanted - quota, 9)
  left = num_pairs - quota.sum()
  order = np.lexsort((-(count - quota), -remainder))
  quota[order[:left]] += 1
  return quota


def _check_totals(index, quota, group):
  if not checks.is_concrete(index, quota, group):
    return
  group, quota, index = (np.asarray(x) for x in (group, quota, index))
  for name, array, end in (
    ("index", index, len(quota)),
    ("group", group, np.inf),
  ):
    if array.size and (array.min() < 0 or array.max() >= end):
      raise ValueError(
        f"{name} must lie in [0, {end}), got {array.min()} to {array.max()}."
      )
  size = int(group.max(initial=0)) + 1
  wanted = np.bincount(group, weights=quota, minlength=size)
  held = np.bincount(group[index], minlength=size)
  if (wanted != held).any():
    worst = int(np.abs(wanted - held).argmax())
    raise ValueError(
      f"quota must sum to the number of entries, got {int(wanted[worst])} for "
      f"{int(held[worst])} entries"
      + (f" of group {worst}." if size > 1 else ".")
    )
