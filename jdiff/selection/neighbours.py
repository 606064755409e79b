"""Exact nearest neighbours on the device, without a distance matrix.

Rows are taken in blocks and points in chunks. A chunk's squared distances are
one matrix product, `|x|^2 - 2 <x, y> + |y|^2` about the points' mean, of which
a few more than `k` candidates are kept; those are measured again by their
difference. The product loses the digits of distances that are small beside the
norms, which are the ones of interest: copies and near copies. So candidates
are kept by a lower bound on their distance, and if the k-th measured distance
does not lie below every bound that was thrown away, the block is searched again
by differences alone, at a higher cost. The answer is so that of the differences
always, ties (as duplicates are) included.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jdiff.core import carries, checks
from jdiff.core.weights import AxisName

CHUNK_SIZE = 2048
"""Points a chunk."""

ROW_SIZE = 1024
"""Most rows a block."""

SPARE = 8
"""Candidates that are measured beyond the `k` asked for."""


class Neighbours(NamedTuple):
  """The nearest points of each row.

  Attributes:
    distance: `[B, k]` float, Euclidean, ascending.
    index: `[B, k]` int32, which points; the lowest index wins ties. -1, with
      distance `inf`, where fewer than `k` points are valid.
  """

  distance: jax.Array
  index: jax.Array  # type: ignore[assignment]  # hides tuple.index


def nearest(
  queries: jax.Array,
  points: jax.Array,
  k: int,
  *,
  chunk_size: int | None = None,
  exclude_self: bool | jax.Array = False,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> Neighbours:
  """The `k` nearest points of each query by Euclidean distance.

  Distances are differentiable; those of zero have the gradient zero. The work
  is that of one `[B, D] x [D, N]` product, and up to a few times more where
  distances are equal, or nearly, beyond what the spare candidates cover. Memory
  beyond the arguments does not grow with `N`.

  Args:
    queries: `[B, ...]`, numbers; computed in float32 or wider.
    points: `[N, ...]`, rows of the same size.
    k: Neighbours wanted, from 1 to the number of points to choose from.
    chunk_size: Most points a chunk; the answer does not depend on it.
    exclude_self: Whether the queries are the points, none of which is to be its
      own neighbour; a duplicate still is. If they are some of the points, or in
      another order, `[B]` integers: the index of each query among the points.
    valid: `[N]` bool, the points that may be chosen; None for all.
    axis_name: Mesh axis that the points are split over, inside `shard_map`.
      Indices are then global, counted over the axis in order, and every shard
      gets the answer for its queries.

  Raises:
    ValueError: If `k` is too large, shapes do not fit, or a known value is not
      finite.
    TypeError: If `k` is no integer or an array holds no numbers.
  """
  squared, index = search(
    as_rows("queries", queries),
    as_rows("points", points),
    k,
    chunk_size=chunk_size,
    exclude_self=exclude_self,
    offset=None if valid is None else jnp.where(valid, 0.0, jnp.inf),
    axis_name=axis_name,
  )
  return Neighbours(root(squared), index)


def search(
  queries: jax.Array,
  points: jax.Array,
  k: int,
  *,
  chunk_size: int | None = None,
  exclude_self: bool | jax.Array = False,
  offset: jax.Array | None = None,
  differ_from: jax.Array | None = None,
  axis_name: AxisName = None,
) -> tuple[jax.Array, jax.Array]:
  """The search behind `nearest`: the lowest `|x - y|^2 + offset(y)`.

  Args:
    queries: `[B, D]`, from `as_rows`.
    points: `[N, D]`, from `as_rows`.
    k: See `nearest`; so are `chunk_size`, `exclude_self` and `axis_name`.
    chunk_size: Most points a chunk.
    exclude_self: Whether, or where, the queries are among the points.
    offset: `[N]`, or None for zeros; `inf` for points not to be chosen.
    differ_from: `[B, D]`, or None: points equal to this row are not chosen.
    axis_name: Mesh axis that the points are split over.

  Returns:
    `(value, index)`, `[B, k]` each, as in `Neighbours`.
  """
  num_rows, num_points = queries.shape[0], points.shape[0]
  check_sizes("queries", queries, "points", points)
  shards = 1 if axis_name is None else lax.axis_size(axis_name)
  total = num_points * shards
  own = _own_index(exclude_self, num_rows, total)
  choice = total - (own is not None)
  if checks.check_int("k", k) > choice:
    raise ValueError(
      f"k must be at most {choice}, the number of points to choose from, "
      f"got {k}; pass more points or a smaller k."
    )
  if offset is None:
    offset = jnp.zeros(num_points)
  checks.check_shape("valid", offset, (num_points,))
  dtype = jnp.result_type(queries, points, jnp.float32)
  start = jnp.int32(0)
  if axis_name is not None:
    start = lax.axis_index(axis_name) * num_points
  if own is not None:
    own = own - start
  # Any common origin will do; far from the points, products lose digits.
  centre = lax.stop_gradient(points).mean(axis=0, dtype=dtype)

  size = _chunk_size(num_points, chunk_size)

  def block(rows):
    queries, own, differ_from = rows
    return _search_block(
      queries, own, differ_from, points, offset, centre, k, size
    )

  rows = (queries.astype(dtype), own, differ_from)
  if num_rows <= ROW_SIZE:
    value, index = block(rows)
  else:
    value, index = jax.tree.map(
      lambda x: x.reshape(-1, x.shape[-1])[:num_rows],
      lax.map(block, _blocks(rows, num_rows)),
    )
  if axis_name is None:
    return value, index
  index = jnp.where(index < 0, index, index + start)
  value, index = (
    lax.all_gather(x, axis_name, axis=1, tiled=True, to="invarying")
    for x in (value, index)
  )
  return _lowest(value, index, k)


def as_rows(name: str, array: jax.Array) -> jax.Array:
  """`[N, ...]` numbers as `[N, D]`, or says what is wrong with them."""
  checks.check_numbers(name, array)
  array = jnp.asarray(array)
  if array.ndim < 1 or not array.size:
    raise ValueError(
      f"{name} must have shape [N, ...] and not be empty, got "
      f"{list(array.shape)}."
    )
  if checks.is_concrete(array):
    with jax.ensure_compile_time_eval():
      bad = int(jnp.sum(~jnp.isfinite(array)))
    if bad:
      raise ValueError(
        f"{name} must be finite, got {bad} of {array.size} NaN or infinite."
      )
  return array.reshape(array.shape[0], -1)


def check_sizes(
  name: str, rows: jax.Array, other_name: str, others: jax.Array
) -> None:
  """Raises unless `[N, D]` and `[M, D]` rows are of one size."""
  if rows.shape[1] != others.shape[1]:
    raise ValueError(
      f"{name} and {other_name} must have rows of one size, got "
      f"{rows.shape[1]} and {others.shape[1]} numbers a row."
    )


def take(
  points: jax.Array, index: jax.Array, axis_name: AxisName = None
) -> jax.Array:
  """Rows `[B, D]` of points, which may be split over a mesh axis, widened."""
  if axis_name is None:
    return widen(points[index])
  num_points = points.shape[0]
  place = index - lax.axis_index(axis_name) * num_points
  here = (place >= 0) & (place < num_points)
  rows = widen(points[jnp.clip(place, 0, num_points - 1)])
  return lax.psum(jnp.where(here[:, None], rows, 0), axis_name)


def widen(array: jax.Array) -> jax.Array:
  """In float32 or wider."""
  return array.astype(jnp.result_type(array, jnp.float32))


def root(squared: jax.Array) -> jax.Array:
  """The square root, with the derivative zero at zero."""
  positive = squared > 0
  value = jnp.sqrt(jnp.where(positive, squared, 1))
  # Not zero where it is NaN.
  return jnp.where(positive, value, squared)


def _own_index(exclude_self, num_rows, total):
  """`[B]` int32, which point each query is; None if that does not matter."""
  if exclude_self is False:
    return None
  if exclude_self is True:
    if num_rows != total:
      raise ValueError(
        "exclude_self=True says that the queries are the points, got "
        f"{num_rows} queries and {total} points; pass the index of each query "
        "among the points."
      )
    return jnp.arange(num_rows, dtype=jnp.int32)
  own = jnp.asarray(exclude_self)
  if not jnp.issubdtype(own.dtype, jnp.integer):
    raise TypeError(
      "exclude_self must be a bool or [B] integers, the index of each query "
      f"among the points, got dtype {own.dtype}."
    )
  checks.check_shape("exclude_self", own, (num_rows,))
  return own.astype(jnp.int32)


def _search_block(queries, own, differ_from, points, offset, centre, k, size):
  """The answer for one block of rows among the local points."""
  num_points, dtype = points.shape[0], queries.dtype
  keep = min(k + SPARE, num_points)
  # Where an index is sought there is nothing to differentiate.
  x, y, shift, other = jax.tree.map(
    lax.stop_gradient, (queries, points, offset.astype(dtype), differ_from)
  )
  # The rounding of a sum of D products grows like sqrt(D).
  slack = (8 + 2 * x.shape[1] ** 0.5) * jnp.finfo(dtype).eps
  centred = x - centre[None]
  x_norm = (1 - slack) * jnp.sum(centred**2, axis=1)

  def lower_bounds(chunk):
    chunk = chunk - centre[None]
    products = jnp.einsum(
      "bd,md->bm", centred, chunk, precision=lax.Precision.HIGHEST
    )
    y_norm = (1 - slack) * jnp.sum(chunk**2, axis=1)
    return x_norm[:, None] - 2 * products + y_norm[None]

  def differences(chunk):
    values = jnp.sum((x[:, None] - chunk[None]) ** 2, axis=2)
    if other is not None:
      copy = (chunk[None] == other[:, None]).all(axis=2)
      values = jnp.where(copy, jnp.inf, values)
    return values

  def candidates(measure):
    """`keep` candidates, and what every other point is not below."""

    def body(carry, start):
      # The last chunk reaches back instead of over the end, since padding
      # would copy all points.
      first = jnp.minimum(start, num_points - size)
      chunk = lax.dynamic_slice_in_dim(y, first, size).astype(dtype)
      values = measure(chunk)
      values += lax.dynamic_slice_in_dim(shift, first, size)[None]
      which = (first + jnp.arange(size, dtype=jnp.int32))[None]
      out = which < start
      if own is not None:
        out = out | (which == own[:, None])
      values = jnp.where(out, jnp.inf, _nan_lowest(values))
      lead, place = lax.top_k(-values, min(keep, size))
      best, index = (
        jnp.concatenate(pair, axis=1)
        for pair in zip(carry, (-lead, first + place), strict=True)
      )
      best, place = lax.top_k(-best, keep)
      return (-best, jnp.take_along_axis(index, place, axis=1)), None

    shape = (x.shape[0], keep)
    carry = jnp.full(shape, jnp.inf, dtype), jnp.full(shape, -1, jnp.int32)
    carry = carries.anchor(carry, (x, y, shift, own, other))
    starts = jnp.arange(0, num_points, size, dtype=jnp.int32)
    (best, index), _ = lax.scan(body, carry, starts)
    return index, best[:, -1]

  def measured(queries, points, offset, index):
    rows = points[jnp.maximum(index, 0)].astype(dtype)
    value = jnp.sum((queries[:, None] - rows) ** 2, axis=2)
    value += offset[jnp.maximum(index, 0)].astype(dtype)
    gone = index < 0
    if other is not None:
      gone = gone | (rows == other[:, None]).all(axis=2)
    value = jnp.where(gone, jnp.inf, value)
    index = jnp.where(value == jnp.inf, -1, index)
    return _lowest(value, index, min(k, keep))

  index, bound = candidates(lower_bounds)
  if keep < num_points:
    worst = measured(x, y, shift, index)[0][:, -1]
    # Where the bound is infinite, every point that may be chosen was kept.
    certain = (worst < bound) | (bound == jnp.inf)
    # A loop of no or one step: under vmap a cond would compute both branches.
    index = lax.fori_loop(
      0,
      jnp.where(certain.all(), 0, 1),
      lambda _, index: candidates(differences)[0],
      index,
    )
  return measured(queries, points, offset, index)


def _lowest(value, index, k):
  """The `k` lowest values of each row, ties by index; NaN counts as lowest."""
  order = jnp.argsort(index, axis=1)
  value, index = (jnp.take_along_axis(x, order, axis=1) for x in (value, index))
  _, place = lax.top_k(-_nan_lowest(value), k)
  return tuple(jnp.take_along_axis(x, place, axis=1) for x in (value, index))


def _nan_lowest(value):
  """For ranking: what is not known to be far is kept, so that it shows."""
  return jnp.where(jnp.isnan(value), -jnp.inf, value)


def _chunk_size(num_points, chunk_size):
  """Points a chunk, the same in all: the last would repeat up to a chunk."""
  size = CHUNK_SIZE if chunk_size is None else chunk_size
  num = -(-num_points // checks.check_int("chunk_size", size))
  return -(-num_points // num)


def _blocks(rows, num_rows):
  """`[B, ...]` leaves as `[blocks, rows, ...]`, the last row repeated."""
  num = -(-num_rows // ROW_SIZE)
  size = -(-num_rows // num)

  def split(x):
    pad = [(0, num * size - num_rows)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, pad, "edge").reshape(num, size, *x.shape[1:])

  return jax.tree.map(split, rows)
