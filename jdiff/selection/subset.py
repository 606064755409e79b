"""Subsets that are spread out: farthest points and the threshold decay filter.

Both select from a pool by distances in a feature space (arXiv:2509.16499, sec.
4), and answer with indices into the pool, so that what was kept can be traced
to where it came from. Neither holds a matrix of distances: the pool's distances
to the nearest selected row are kept, and lowered as a row is added.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jdiff.core import carries, checks
from jdiff.core.weights import AxisName
from jdiff.selection import neighbours


class Selection(NamedTuple):
  """Rows in the order in which they were selected.

  Attributes:
    index: `[M]` int32, into the pool.
    distance: `[M]` float, of each row to the nearest one before it; `inf` for
      the first. Never increases; the last is the smallest distance within the
      selection, and at least half of what any `M` rows can have.
  """

  index: jax.Array  # type: ignore[assignment]  # hides tuple.index
  distance: jax.Array


class Filtered(NamedTuple):
  """Rows in the order in which they passed.

  Attributes:
    index: `[M]` int32, into the pool; -1 for those that are missing.
    num_passes: Scalar int32, passes begun.
    threshold: Scalar float, that of the last pass.
    ok: Scalar bool, whether `M` rows passed.
  """

  index: jax.Array  # type: ignore[assignment]  # hides tuple.index
  num_passes: jax.Array
  threshold: jax.Array
  ok: jax.Array


def greedy(
  features: jax.Array,
  num: int,
  *,
  first: int | jax.Array | None = None,
  key: jax.Array | None = None,
  axis_name: AxisName = None,
) -> Selection:
  """Farthest-point sampling: always the row farthest from all selected ones.

  Time `O(num S F)`, memory `O(S)`. The lowest index wins ties.

  Args:
    features: `[S, ...]`, the pool, flattened to `[S, F]`.
    num: Rows to select, from 1 to `S`.
    first: Index of the first row; or
    key: PRNG key to draw it uniformly with; consumed. Exactly one of the two.
    axis_name: Mesh axis that the pool is split over, inside `shard_map`.
      Indices are global; `first` or `key` is the same on every shard, and so is
      the answer.

  Raises:
    ValueError: If `num` exceeds the rows, or the distinct ones where values are
      known (under `jit`, `distance` then ends in zeros); if a known value is
      not finite; unless exactly one of `first` and `key` is given.
    TypeError: If `num` is no integer, or `features` holds no numbers.

  Source:
    Shi et al., arXiv:2509.16499, algorithm 1; Gonzalez, Theor. Comput. Sci. 38
    (1985), for the factor of two.
  """
  features = neighbours.as_rows("features", features)
  local = features.shape[0]
  size = local * (1 if axis_name is None else lax.axis_size(axis_name))
  _check_num(num, size)
  if (first is None) == (key is None):
    raise ValueError("Pass exactly one of first and key.")
  if key is not None:
    checks.check_key(key)
    first = jax.random.randint(key, (), 0, size)
  checks.check_shape("first", first, ())
  if checks.is_concrete(first):
    if checks.check_int("first", np.asarray(first).item(), 0) >= size:
      raise ValueError(f"first must be below {size}, the rows, got {first}.")
  first = jnp.asarray(first, jnp.int32)
  where = jnp.arange(local, dtype=jnp.int32)
  if axis_name is not None:
    where += lax.axis_index(axis_name) * local

  def row(index):
    return neighbours.take(features, index[None], axis_name)[0]

  def farthest(nearest):
    """The largest of the distances, and where it stands."""
    place = jnp.argmax(nearest)
    value, index = nearest[place], where[place]
    if axis_name is not None:
      peak = lax.pmax(value, axis_name)
      # Asked this way round, some shard answers even if distances are NaN.
      beaten = value < peak
      beyond = jnp.iinfo(jnp.int32).max
      value = peak
      index = lax.pmin(jnp.where(beaten, beyond, index), axis_name)
    return value, index

  def body(i, carry):
    nearest, last, chosen, index, distance = carry
    nearest = jnp.minimum(nearest, _squared_distances(features, last))
    # Selected rows stay out, their duplicates do not.
    nearest = jnp.where(where == chosen, -jnp.inf, nearest)
    value, chosen = farthest(nearest)
    index = index.at[i].set(chosen)
    distance = distance.at[i].set(neighbours.root(value))
    return nearest, row(chosen), chosen, index, distance

  last = row(first)
  everywhere = (
    first,
    jnp.zeros(num, jnp.int32).at[0].set(first),
    jnp.full(num, jnp.inf, last.dtype),
  )
  carry = (
    carries.anchor(jnp.full(local, jnp.inf, last.dtype), (features, last)),
    last,
    *carries.anchor(everywhere, (last, first)),
  )
  *_, index, distance = lax.fori_loop(1, num, body, carry)
  if checks.is_concrete(distance) and num > 1 and not distance[-1] > 0:
    _too_few_distinct(num, int((distance > 0).sum()))
  return Selection(index, distance)


def threshold_decay(
  features: jax.Array,
  num: int,
  *,
  threshold: float | jax.Array,
  decay: float | jax.Array,
  key: jax.Array | None = None,
  max_passes: int = 10_000,
) -> Filtered:
  """Passes over the pool for rows far from all selected ones, ever less far.

  In each pass, rows are taken in order and selected if they are farther than
  the threshold from every selected row; then the threshold is multiplied by
  `decay`. A `decay` near one comes close to `greedy`. With `decay=0` a second
  pass takes whatever rows differ, in order: no selection at all if `threshold`
  exceeds the pool's diameter, but for its first row.

  Rows between two that are selected need not be visited one by one, as nothing
  changes there: a step finds the next row that passes. There are `num` plus
  `num_passes` steps, each of `O(S)`, and `O(S F)` where a row is added. Under
  `vmap` all are.

  Args:
    features: `[S, ...]`, the pool, flattened to `[S, F]`.
    num: Rows to select, from 1 to `S`.
    threshold: Distance of the first pass, `>= 0`.
    decay: In `[0, 1)`.
    key: PRNG key, consumed, to take the pool in random order; None for the
      order that it has.
    max_passes: Passes after which to give up.

  Returns:
    A `Filtered`. It is not `ok` if rows ran out, as duplicates of selected rows
    never pass, or passes did.

  Raises:
    ValueError: If an argument is out of its range; if a known value is not
      finite; if known features have fewer than `num` distinct rows, or passes
      ran out on them.
    TypeError: If an integer is none, or `features` holds no numbers.

  Source:
    Shi et al., arXiv:2509.16499, algorithm 2, row for row. Their loop never
    ends on a pool with fewer than `num` distinct rows.
  """
  features = neighbours.as_rows("features", features)
  size = features.shape[0]
  _check_num(num, size)
  checks.check_int("max_passes", max_passes)
  threshold = checks.check_finite("threshold", threshold)
  decay = checks.check_finite("decay", decay)
  if checks.is_concrete(threshold) and threshold < 0:
    raise ValueError(f"threshold must be >= 0, got {threshold}.")
  checks.check_range("decay", decay, 0, 1, ends="[)")
  order = jnp.arange(size, dtype=jnp.int32)
  if key is not None:
    checks.check_key(key)
    order = jax.random.permutation(key, order)
    features = features[order]
  features = neighbours.widen(features)
  dtype = features.dtype

  def unfinished(carry):
    nearest, count, _, passes, _ = carry
    # Once all rows that differ are selected, the largest distance is zero.
    return (count < num) & (nearest.max() > 0) & (passes <= max_passes)

  def step(carry):
    nearest, count, index, passes, threshold = carry
    # Rows that this pass has rejected cannot pass: distances only fall.
    passing = neighbours.root(nearest) > threshold
    place = jnp.argmax(passing)
    found = passing[place]

    def select(nearest, index):
      squared = _squared_distances(features, features[place])
      return jnp.minimum(nearest, squared), index.at[count].set(order[place])

    nearest, index = lax.cond(found, select, lambda *same: same, nearest, index)
    again = ~found & (passes < max_passes)
    threshold = jnp.where(again, threshold * decay, threshold)
    return nearest, count + found, index, passes + ~found, threshold

  decay = jnp.asarray(decay, dtype)
  carry = (
    jnp.full(size, jnp.inf, dtype),
    jnp.int32(0),
    jnp.full(num, -1, jnp.int32),
    jnp.int32(1),
    jnp.asarray(threshold, dtype),
  )
  carry = carries.anchor(carry, (features, order, carry[-1], decay))
  nearest, count, index, passes, last = lax.while_loop(unfinished, step, carry)
  ok = count == num
  if checks.is_concrete(ok) and not ok:
    if nearest.max() > 0:
      raise ValueError(
        f"threshold and decay must let num={num} rows pass within "
        f"max_passes={max_passes}, got {count}, the last threshold being "
        f"{last}; lower threshold or decay, or allow more passes."
      )
    _too_few_distinct(num, count)
  return Filtered(index, jnp.minimum(passes, max_passes), last, ok)


def _squared_distances(features, row):
  return jnp.sum((features.astype(row.dtype) - row[None]) ** 2, axis=1)


def _check_num(num, size):
  if checks.check_int("num", num) > size:
    raise ValueError(
      f"num must be at most the number of rows, {size}, got {num}; ask for "
      "fewer, or pass a larger pool."
    )


def _too_few_distinct(num, distinct):
  raise ValueError(
    f"features must have num={num} distinct rows, got {distinct}; ask for "
    "fewer, or pass a larger pool."
  )
