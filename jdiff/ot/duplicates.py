"""Points that are equal: only the sum of their masses is determined.

Were each solved for, the first would take all ties, its bias would fall, the
next one would take them, for ever. Equal points are one point of the summed
weight, and share its noise by chance, in proportion to their weights.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Twins(NamedTuple):
  """Groups of equal points.

  Attributes:
    merged: `[M]` float32, the group's weight at its first point, else zero.
    first: `[M]` int32, the lowest index of a point's group.
    order: `[M]` int32, points group by group.
    start: `[M]` int32, where a point's group starts in `order`.
    size: `[M]` int32, how many points it has.
    share: `[M]` float32, cumulative share of the group's weight, in `order`.
  """

  merged: jax.Array
  first: jax.Array
  order: jax.Array
  start: jax.Array
  size: jax.Array
  share: jax.Array


def find(
  points: np.ndarray, weights: np.ndarray, labels: np.ndarray | None = None
) -> Twins | None:
  """The groups of equal rows (of equal label), or None if all differ.

  Args:
    points: `[M, D]`.
    weights: `[M]`.
    labels: `[M]` integers, or None.
  """
  # Equal rows have equal bytes, once -0 is 0.
  rows = np.ascontiguousarray(points + 0.0)
  if labels is not None:
    rows = np.concatenate([rows, labels[:, None].astype(rows.dtype)], axis=1)
  packed = np.ascontiguousarray(rows).view(
    np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))
  )
  _, first, group = np.unique(
    packed.ravel(), return_index=True, return_inverse=True
  )
  if len(first) == len(points):
    return None
  representative = first[group.ravel()]
  size = np.bincount(representative, minlength=len(points))
  # Groups one after another, each in ascending order.
  order = np.argsort(representative, kind="stable")
  start = (np.cumsum(size) - size)[representative]
  mass = np.concatenate([[0.0], np.cumsum(weights.astype(np.float64)[order])])
  begin = mass[start[order]]
  whole = mass[start[order] + size[representative[order]]] - begin
  share = (mass[1:] - begin) / np.where(whole > 0, whole, 1)
  merged = np.zeros(len(points))
  np.add.at(merged, representative, weights.astype(np.float64))
  return Twins(
    jnp.asarray(merged, jnp.float32),
    jnp.asarray(representative, jnp.int32),
    jnp.asarray(order, jnp.int32),
    jnp.asarray(start, jnp.int32),
    jnp.asarray(size[representative], jnp.int32),
    jnp.asarray(share, jnp.float32),
  )


def split(twins: Twins, index: jax.Array, uniform: jax.Array) -> jax.Array:
  """One of each point's group, `[B]` int32, by weight.

  Args:
    twins: The groups.
    index: `[B]` int32.
    uniform: `[B]` in `[0, 1)`.
  """
  low = twins.start[index]
  high = low + twins.size[index] - 1

  def body(_, bounds):
    low, high = bounds
    middle = (low + high) // 2
    after = twins.share[middle] <= uniform
    low = jnp.where(after & (low < high), middle + 1, low)
    return low, jnp.where(after, high, middle)

  # A group has fewer than 2^31 points.
  low, _ = lax.fori_loop(0, 31, body, (low, high))
  return twins.order[low]
