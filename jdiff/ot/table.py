"""A stored table of pairs: one int32 a pair, and what it must be used with.

The noise of pair `i` is not stored: it is drawn again from `(seed, i)`. That is
right only under the same data, in the same order and scale, and the same random
bits, all of which the fingerprint covers.
"""

import hashlib
import os
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from jdiff.core import checks, files
from jdiff.core import keys as keys_lib
from jdiff.ot import laguerre, marginals, pairing
from jdiff.ot.iteration import Source
from jdiff.ot.semidiscrete import Solution, standard_normal


class Table(NamedTuple):
  """Stored pairs.

  Attributes:
    index: `[P]` int32, the point of pair `i`.
    seed: The noise of pair `i` is that of `noise(seed, i, dim)`.
    fingerprint: Of the points and the random bits.
    num_moved: Pairs that rebalancing moved, 0 if there was none.
  """

  index: np.ndarray  # type: ignore[assignment]  # hides tuple.index
  seed: int
  fingerprint: str
  num_moved: int


def make(
  solution: Solution,
  *,
  seed: int,
  num_pairs: int,
  batch_size: int = 1024,
  rebalanced: bool = True,
  source: Source = standard_normal,
  chunk_size: int | None = None,
) -> Table:
  """Draws and matches all pairs, and mends their marginal.

  Args:
    solution: From `solve` or `solve_classes`, concrete.
    seed: Of the noise.
    num_pairs: `P`; a multiple of the number of points uses each equally often.
    batch_size: Pairs at a time.
    rebalanced: Whether every point is used exactly as often as its weight says
      (in its class): those pairs move whose point was the least clear choice.
      Without it there is a warning if the solution has not converged.
    source: The noise that was solved for.
    chunk_size: See `laguerre.assign`.
  """
  checks.check_int("seed", seed, 0)
  checks.check_int("num_pairs", num_pairs)
  checks.check_int("batch_size", batch_size)
  weights = np.asarray(solution.weights)
  dim = solution.points.shape[1]
  group, quota, members = None, None, None
  jobs = [(np.arange(num_pairs), None)]
  if solution.classes is not None:
    members = np.asarray(solution.classes)
    group = _labels(solution)
    # Classes have exact shares too, in an order that tells nothing.
    none = np.zeros(len(weights), np.int64)
    quota = marginals.quotas(weights, num_pairs, none)
    share = np.bincount(group, weights=quota, minlength=len(members))
    labels = np.repeat(np.arange(len(members)), share.astype(np.int64))
    labels = np.random.default_rng(seed).permutation(labels)
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.cumsum(share.astype(np.int64))[:-1])
    jobs = list(zip(parts, members, strict=True))
  if not rebalanced:
    pairing.warn_if_rough(solution)

  @jax.jit
  def match(solution, pair_id, member):
    keys = _keys(seed, pair_id)
    drawn = pairing.draw_noise(keys, dim, source)
    if member is None:
      index, gap = laguerre.assign_with_gap(
        drawn, solution.points, solution.bias, chunk_size=chunk_size
      )
    else:
      index, gap = pairing.assign_class(drawn, solution, member, chunk_size)
    return pairing.split_twins(keys, solution, index), gap

  index, gap = np.empty(num_pairs, np.int32), np.empty(num_pairs, np.float32)
  for ids, member in jobs:
    for start in range(0, len(ids), batch_size):
      some = ids[start : start + batch_size]
      # Always of one size, or the last batch would compile anew.
      padded = np.resize(some, batch_size).astype(np.uint32)
      found = match(solution, padded, member)
      index[some], gap[some] = (np.asarray(x)[: len(some)] for x in found)
  num_moved = 0
  if rebalanced:
    if quota is None:
      count = np.bincount(index, minlength=len(weights))
      quota = marginals.quotas(weights, num_pairs, count)
    done = marginals.rebalance(index, quota, gap=gap, group=group)
    index, num_moved = np.asarray(done.index), int(done.num_moved)
  mark = fingerprint(solution.points, seed, labels=group, weights=weights)
  return Table(index, seed, mark, num_moved)


def noise(
  seed: int | jax.Array,
  pair_id: jax.Array,
  dim: int,
  *,
  source: Source = standard_normal,
) -> jax.Array:
  """The noise of pairs, `[B, D]` float32, as `make` drew it.

  Args:
    seed: The table's.
    pair_id: `[B]` integers.
    dim: `D`.
    source: The noise that was solved for.
  """
  checks.check_integers("pair_id", pair_id)
  checks.check_shape("pair_id", pair_id, (None,))
  checks.check_int("dim", dim)
  return pairing.draw_noise(_keys(seed, pair_id), dim, source)


def fingerprint(
  points,
  seed: int,
  *,
  labels: np.ndarray | None = None,
  weights: np.ndarray | None = None,
) -> str:
  """A hash of what was solved for, and of the bits that the noise is made of.

  Args:
    points: `[M, D]`, in the order and scale of the solution's.
    seed: Of the noise.
    labels: `[M]` integers of a class-conditional solution, else None.
    weights: `[M]`; uniform by default.
  """
  checks.check_int("seed", seed, 0)
  checks.check_numbers("points", points)
  checks.check_shape("points", points, (None, None))
  if labels is not None:
    checks.check_integers("labels", labels)
    checks.check_shape("labels", labels, np.shape(points)[:1])
  if weights is not None:
    checks.check_numbers("weights", weights)
    checks.check_shape("weights", weights, np.shape(points)[:1])
  points = np.ascontiguousarray(points, np.float32)
  if weights is None:
    weights = np.full(len(points), np.float32(1 / len(points)))
  digest = hashlib.sha256()
  digest.update(f"{points.shape} float32 seed {seed}".encode())
  digest.update(points.tobytes())
  digest.update(np.asarray(weights, np.float32).tobytes())
  if labels is not None:
    digest.update(np.asarray(labels, np.int32).tobytes())
  # Bits, not floats: normals differ in the last digit from chip to chip.
  keys = keys_lib.per_example(jax.random.key(seed), 4)
  bits = jax.vmap(lambda k: jax.random.bits(k, (8,)))(keys)
  digest.update(np.asarray(bits).tobytes())
  return digest.hexdigest()


def save(path: str | os.PathLike, table: Table) -> None:
  """Writes a table as NumPy's `.npz`, whole or not at all."""
  path = pathlib.Path(path)
  partial = path.with_name(f"{path.name}.partial")
  with partial.open("wb") as file:
    np.savez(
      file,
      index=table.index,
      seed=table.seed,
      fingerprint=table.fingerprint,
      num_moved=table.num_moved,
    )
  partial.replace(path)


def load(
  path: str | os.PathLike,
  points,
  *,
  labels: np.ndarray | None = None,
  weights: np.ndarray | None = None,
) -> Table:
  """Reads a table that was made for these points.

  Args:
    path: A file of `save`.
    points: As for `fingerprint`; so are `labels` and `weights`.
    labels: `[M]`, if each class was a problem of its own.
    weights: `[M]`, if they were not uniform.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If the table was made for other points, another order or scale,
      other classes or weights, or another random number generator.
  """
  stored = files.load_arrays(path)
  lost = [name for name in Table._fields if name not in stored]
  if lost:
    raise ValueError(f"{path} must be a file of `save`, and lacks {lost[0]!r}.")
  table = Table(
    stored["index"],
    int(stored["seed"]),
    str(stored["fingerprint"]),
    int(stored["num_moved"]),
  )
  mark = fingerprint(points, table.seed, labels=labels, weights=weights)
  if mark != table.fingerprint:
    raise ValueError(
      f"the pairs in {path} were made for other data: points, their order or "
      "scale, classes, weights, or JAX's random bits differ; make the table "
      "again."
    )
  return table


def _keys(seed, pair_id):
  key = jax.random.key(seed)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, pair_id)


def _labels(solution):
  """`[M]` int32 class of each point."""
  labels = np.zeros(len(solution.weights), np.int32)
  for label, member in enumerate(np.asarray(solution.classes)):
    labels[member[member >= 0]] = label
  return labels
