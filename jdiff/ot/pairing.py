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
      by default drawn by the classes' weights. Every row is scored against
      the points of all classes; `table.make` scores each against its own.
    start: Index of the first pair, under one key.
    source: The noise that was solved for.
    chunk_size: See `laguerre.assign`.

  Raises:
    ValueError: If labels are given to a solution without classes, or of
      another number of rows.
  """
  checks.check_int("batch_size", batch_size)
  warn_if_rough(solution)
  _check_label(label, solution, batch_size)
  keys = keys_lib.per_example(key, batch_size, start)
  noise = draw_noise(keys, solution.points.shape[1], source)
  if solution.classes is None:
    index = laguerre.assign(
      noise, solution.points, solution.bias, chunk_size=chunk_size
    )
  else:
    if label is None:
      label = _draw_labels(keys, solution)
    index = _assign_classes(noise, solution, label, chunk_size)
  return Pairing(noise, split_twins(keys, solution, index))


def transport(
  noise: jax.Array,
  solution: Solution,
  *,
  label: jax.Array | None = None,
  chunk_size: int | None = None,
) -> jax.Array:
  """The point of each given noise vector, `[B]` int32; twins are not split.

  The transport map is `points[transport(noise, solution)]`.

  Args:
    noise: `[B, D]`.
    solution: From `solve` or `solve_classes`.
    label: `[B]` int32, for a class-conditional solution.
    chunk_size: See `laguerre.assign`.

  Raises:
    ValueError: If a class-conditional solution comes without labels, or
      another with them.
  """
  checks.check_numbers("noise", noise)
  checks.check_shape("noise", noise, (None, solution.points.shape[1]))
  _check_label(label, solution, noise.shape[0])
  if solution.classes is None:
    return laguerre.assign(
      noise, solution.points, solution.bias, chunk_size=chunk_size
    )
  if label is None:
    raise ValueError("a class-conditional solution needs label, [B] int32.")
  return _assign_classes(noise, solution, label, chunk_size)


def minibatch(noise: np.ndarray, data: np.ndarray) -> np.ndarray:
  """Exact optimal transport inside a batch, `[B]` int32: row `i`'s data row.

  The coupling of OT-CFM (arXiv:2302.00482), on the host, `O(B^3)`. Its bias
  vanishes only as the batch grows.

  Args:
    noise: `[B, ...]`.
    data: `[B, ...]`.
  """
  for name, rows in (("noise", noise), ("data", data)):
    checks.check_numbers(name, rows)
  checks.check_shape("data", data, np.shape(noise))
  noise, data = (np.asarray(x).reshape(len(x), -1) for x in (noise, data))
  cost = spatial.distance.cdist(noise, data, "sqeuclidean")
  return optimize.linear_sum_assignment(cost)[1].astype(np.int32)


def warn_if_rough(solution: Solution) -> None:
  """Warns, where values are known, that a solution has not converged."""
  if checks.is_concrete(solution) and not np.asarray(solution.converged).all():
    worst = np.asarray(solution.tv).max()
    warnings.warn(
      "pairing with a bias that has not converged: the data's law is off by "
      f"{worst:.3f} in total variation; solve with more samples, or rebalance "
      "a stored table.",
      stacklevel=3,
    )


def draw_noise(keys: jax.Array, dim: int, source: Source) -> jax.Array:
  """`[B, D]`: row `i` from key `i` alone."""
  return jax.vmap(lambda k: source(k, (1, dim))[0])(keys)


def split_twins(
  keys: jax.Array, solution: Solution, index: jax.Array
) -> jax.Array:
  """One of each point's equals, by the rows' keys."""
  if solution.twins is None:
    return index
  uniform = jax.vmap(jax.random.uniform)(keys_lib.fold(keys, 1))
  return duplicates.split(solution.twins, index, uniform)


def assign_class(
  noise: jax.Array,
  solution: Solution,
  member: jax.Array,
  chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """`(index [B], gap [B])` among the points of one row of `classes`."""
  bias = jnp.where(member >= 0, solution.bias[member], -jnp.inf)
  found, gap = laguerre.assign_with_gap(
    noise, solution.points[member], bias, chunk_size=chunk_size
  )
  return member[found], gap


def _check_label(label, solution, batch_size):
  if label is None:
    return
  if solution.classes is None:
    raise ValueError(
      "label needs a class-conditional solution; pass one of solve_classes."
    )
  checks.check_integers("label", label)
  checks.check_shape("label", label, (batch_size,))


def _draw_labels(keys, solution):
  members = solution.classes
  share = jnp.where(members >= 0, solution.weights[members], 0).sum(axis=1)
  draw = jax.vmap(lambda k: jax.random.categorical(k, jnp.log(share)))
  return draw(keys_lib.fold(keys, 2)).astype(jnp.int32)


def _assign_classes(noise, solution, label, chunk_size):
  """Streams the classes: every row keeps what it found in its own."""

  def body(carry, member):
    index, number = carry
    found, _ = assign_class(noise, solution, member, chunk_size)
    return (jnp.where(label == number, found, index), number + 1), None

  carry = jnp.zeros(noise.shape[0], jnp.int32), jnp.int32(0)
  (index, _), _ = lax.scan(body, carry, solution.classes)
  return index
