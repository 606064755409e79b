"""Pairs of noise and data from a dual solution, as training asks for them.

Pair `i` depends on the key and `i` alone: its noise is drawn from the key's
`i`-th fold, and the solution says which point it goes to. A stored table is
therefore one int32 a pair; the noise is drawn again where it is used.
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import optimize, spatial

from jdiff.core import checks
from jdiff.core import keys as keys_lib
from jdiff.ot import duplicates, laguerre
from jdiff.ot.iteration import Source
from jdiff.ot.semidiscrete import Solution, standard_normal


class Pairing(NamedTuple):
  """Noise, and the point that each row is matched to.

  Attributes:
    noise: `[B, D]` float32.
    index: `[B]` int32.
  """

  noise: jax.Array
  index: jax.Array  # type: ignore[assignment]  # hides tuple.index


def pair(
  key: jax.Array,
  solution: Solution,
  batch_size: int,
  *,
  label: jax.Array | None = None,
  start=0,
  source: Source = standard_normal,
  chunk_size: int | None = None,
) -> Pairing:
  """Draws noise and matches it.

  Warns, where the solution is concrete, if it has not converged: some points
  are then used more often than their weight, others less. `rebalance` mends a
  stored table; online, solve with more samples.

  Args:
    key: One PRNG key, or `[B]` keys; consumed.
    solution: From `solve` or `solve_classes`.
    batch_size: `B`.
    label: `[B]` int32 classes to draw from, for a class-conditional solution;
      by default drawn by the classes' weights.
    start: Index of the first pair, under one key.
    source: The noise that was solved for.
    chunk_size: See `laguerre.assign`.

  Raises:
    ValueError: If labels are given to a solution without classes, or of
      another number of rows.
  """
  drawn, _ = pair_with_gap(
    key,
    solution,
    batch_size,
    label=label,
    start=start,
    source=source,
    chunk_size=chunk_size,
  )
  return drawn


def pair_with_gap(
  key: jax.Array,
  solution: Solution,
  batch_size: int,
  *,
  label: jax.Array | None = None,
  start=0,
  source: Source = standard_normal,
  chunk_size: int | None = None,
) -> tuple[Pairing, jax.Array]:
  """`pair`, and by how much each point beat the next of its class, `[B]`."""
  checks.check_int("batch_size", batch_size)
  if checks.is_concrete(solution) and not np.asarray(solution.converged).all():
    worst = np.asarray(solution.tv).max()
    warnings.warn(
      "pairing with a bias that has not converged: the data's law is off by "
      f"{worst:.3f} in total variation; solve with more samples, or rebalance "
      "a stored table.",
      stacklevel=2,
    )
  if label is not None:
    if solution.classes is None:
      raise ValueError(
        "label needs a class-conditional solution; pass one of solve_classes."
      )
    checks.check_shape("label", label, (batch_size,))
  keys = keys_lib.per_example(key, batch_size, start)
  dim = solution.points.shape[1]
  noise = jax.vmap(lambda k: source(k, (1, dim))[0])(keys)
  if solution.classes is None:
    index, gap = laguerre.assign_with_gap(
      noise, solution.points, solution.bias, chunk_size=chunk_size
    )
  else:
    if label is None:
      label = _draw_labels(keys, solution)
    index, gap = _assign_classes(noise, solution, label, chunk_size)
  if solution.twins is not None:
    uniform = jax.vmap(jax.random.uniform)(keys_lib.fold(keys, 1))
    index = duplicates.split(solution.twins, index, uniform)
  return Pairing(noise, index), gap


def transport(
  noise: jax.Array, solution: Solution, *, chunk_size: int | None = None
) -> jax.Array:
  """The point of each given noise vector, `[B]` int32; twins are not split.

  The transport map is `points[transport(noise, solution)]`.
  """
  return laguerre.assign(
    noise, solution.points, solution.bias, chunk_size=chunk_size
  )


def minibatch(noise: np.ndarray, data: np.ndarray) -> np.ndarray:
  """Exact optimal transport inside a batch, `[B]` int32: row `i`'s data row.

  The coupling of OT-CFM (arXiv:2302.00482), on the host, `O(B^3)`. Its bias
  vanishes only as the batch grows.

  Args:
    noise: `[B, ...]`.
    data: `[B, ...]`.
  """
  checks.check_shape("data", data, np.shape(noise))
  noise, data = (np.asarray(x).reshape(len(x), -1) for x in (noise, data))
  cost = spatial.distance.cdist(noise, data, "sqeuclidean")
  return optimize.linear_sum_assignment(cost)[1].astype(np.int32)


def _draw_labels(keys, solution):
  members = solution.classes
  share = jnp.where(members >= 0, solution.weights[members], 0).sum(axis=1)
  draw = jax.vmap(lambda k: jax.random.categorical(k, jnp.log(share)))
  return draw(keys_lib.fold(keys, 2)).astype(jnp.int32)


def _assign_classes(noise, solution, label, chunk_size):
  """Streams the classes: every row sees one of them, all are read once."""

  def body(carry, member):
    index, gap, number = carry
    bias = jnp.where(member >= 0, solution.bias[member], -jnp.inf)
    found, margin = laguerre.assign_with_gap(
      noise, solution.points[member], bias, chunk_size=chunk_size
    )
    mine = label == number
    index = jnp.where(mine, member[found], index)
    return (index, jnp.where(mine, margin, gap), number + 1), None

  empty = jnp.zeros_like(label), jnp.zeros(label.shape, jnp.float32)
  carry = (empty[0].astype(jnp.int32), empty[1], jnp.int32(0))
  (index, gap, _), _ = lax.scan(body, carry, solution.classes)
  return index, gap
