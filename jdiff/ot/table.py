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
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.core import keys as keys_lib
from jdiff.ot import marginals, pairing
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
      Without it `pair` warns if the solution has not converged.
    source: The noise that was solved for.
    chunk_size: See `laguerre.assign`.
  """
  checks.check_int("num_pairs", num_pairs)
  checks.check_int("batch_size", batch_size)
  weights = np.asarray(solution.weights)
  group, labels = None, None
  if solution.classes is not None:
    members = np.asarray(solution.classes)
    group = np.zeros(len(weights), np.int32)
    for label, member in enumerate(members):
      group[member[member >= 0]] = label
    # Classes have exact shares too, in an order that tells nothing.
    none = np.zeros(len(weights), np.int64)
    quota = marginals.quotas(weights, num_pairs, none)
    share = np.bincount(group, weights=quota, minlength=len(members))
    labels = np.repeat(np.arange(len(members)), share.astype(np.int64))
    labels = np.random.default_rng(seed).permutation(labels).astype(np.int32)

  key = jax.random.key(seed)
  # Tracing hides whether it converged; rebalancing makes that harmless.
  hidden = solution
  if rebalanced:
    hidden = solution._replace(converged=jnp.ones_like(solution.converged))

  @jax.jit
  def match(solution, label, start):
    drawn, gap = pairing.pair_with_gap(
      key,
      solution,
      batch_size,
      label=label,
      start=start,
      source=source,
      chunk_size=chunk_size,
    )
    return drawn.index, gap

  if not rebalanced:
    _warn_once(hidden, source)
  index, gap = np.empty(num_pairs, np.int32), np.empty(num_pairs, np.float32)
  for start in range(0, num_pairs, batch_size):
    stop = min(start + batch_size, num_pairs)
    some = None
    if labels is not None:
      some = np.resize(labels[start:stop], batch_size)
    found = match(solution, some, np.uint32(start))
    index[start:stop], gap[start:stop] = (
      np.asarray(x)[: stop - start] for x in found
    )
  num_moved = 0
  if rebalanced:
    if group is None:
      count = np.bincount(index, minlength=len(weights))
      quota = marginals.quotas(weights, num_pairs, count)
    done = marginals.rebalance(index, quota, gap=gap, group=group)
    index, num_moved = np.asarray(done.index), int(done.num_moved)
  return Table(index, seed, fingerprint(solution.points, seed), num_moved)


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
  key = jax.random.key(seed)
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, pair_id)
  return jax.vmap(lambda k: source(k, (1, dim))[0])(keys)


def fingerprint(points, seed: int) -> str:
  """A hash of the points, and of the random bits that the noise comes from."""
  points = np.ascontiguousarray(points, np.float32)
  digest = hashlib.sha256()
  digest.update(f"{points.shape} float32 seed {seed}".encode())
  digest.update(points.tobytes())
  # Bits, not floats: normals differ in the last digit from chip to chip.
  keys = keys_lib.per_example(jax.random.key(seed), 4)
  bits = jax.vmap(lambda k: jax.random.bits(k, (8,)))(keys)
  digest.update(np.asarray(bits).tobytes())
  return digest.hexdigest()


def save(path: str | os.PathLike, table: Table) -> None:
  """Writes a table as `.npz`."""
  np.savez(
    pathlib.Path(path),
    index=table.index,
    seed=table.seed,
    fingerprint=table.fingerprint,
    num_moved=table.num_moved,
  )


def load(path: str | os.PathLike, points) -> Table:
  """Reads a table that was made for these points.

  Args:
    path: A file of `save`.
    points: `[M, D]`, in the order and scale of the solution's.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If the table was made for other points, another order or scale,
      or another random number generator.
  """
  with np.load(pathlib.Path(path), allow_pickle=False) as stored:
    table = Table(
      stored["index"],
      int(stored["seed"]),
      str(stored["fingerprint"]),
      int(stored["num_moved"]),
    )
  if fingerprint(points, table.seed) != table.fingerprint:
    raise ValueError(
      f"the pairs in {path} were made for other data: points, their order or "
      "scale, or JAX's random bits differ; make the table again."
    )
  return table


def _warn_once(solution, source):
  """The warning of `pair`, which a trace would hide."""
  pairing.pair(jax.random.key(0), solution, 1, source=source)
