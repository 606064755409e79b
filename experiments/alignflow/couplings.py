"""Couplings: how the noise and the data of a batch are matched.

A coupling is up to three functions, of the loop's three places for work:
`batches(step)` reads rows on the host, `host(pairs)` rematches them there, and
`draw(keys, batch)`, inside the jitted step, makes the `Pairs`.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import data as data_lib
from jdiff import ot
from jdiff.core import keys as keys_lib
from jdiff.core.types import Pairs

ONLINE_BYTES = 2**26
"""Largest set that is kept on every device to be paired online."""


class Coupling(NamedTuple):
  """See the module.

  Attributes:
    draw: `draw(keys [B], batch) -> Pairs`, jitted by the caller.
    batches: `batches(step) -> batch`, or None if `draw` needs none.
    host: `host(pairs) -> order [B]`: data row `order[i]` goes with noise `i`;
      or None.
    solution: The dual, for metrics and figures, or None.
  """

  draw: Callable[..., Pairs]
  batches: Callable[[int], Any] | None = None
  host: Callable[[Any], np.ndarray] | None = None
  solution: ot.Solution | None = None


def make(
  config, dataset: data_lib.Dataset, table: ot.table.Table | None = None
) -> Coupling:
  """The coupling that `config.coupling` names.

  Args:
    config: A config of `experiments/alignflow/`.
    dataset: Its rows.
    table: Stored pairs, by default those of `coupling.table`, if it has one.

  Raises:
    ValueError: If its name is unknown or it does not fit the data.
  """
  kind = config.coupling.kind
  if kind == "sdot":
    if not config.coupling.get("table"):
      return _online(config, dataset)
    return _paired(config, dataset, table or _stored(config, dataset))
  if kind == "independent":
    return Coupling(_independent(dataset), _rows(config, dataset))
  if kind == "minibatch":
    size = config.coupling.minibatch_size
    if config.conditional:
      raise ValueError(
        "config.coupling.kind='minibatch' matches across labels, which skews "
        "the noise of each; pass conditional=False, or kind='sdot'."
      )
    if config.batch_size % size:
      raise ValueError(
        f"config.batch_size must be a multiple of coupling.minibatch_size, got "
        f"{config.batch_size} and {size}."
      )

    def host(pairs):
      """Inside groups of `size`, so that cost stays linear in the batch."""
      noise, data = np.asarray(pairs.noise), np.asarray(pairs.data)
      starts = range(0, len(noise), size)
      groups = [slice(start, start + size) for start in starts]
      return np.concatenate(
        [g.start + ot.minibatch(noise[g], data[g]) for g in groups]
      )

    return Coupling(_independent(dataset), _rows(config, dataset), host)
  raise ValueError(
    "config.coupling.kind must be 'independent', 'minibatch' or 'sdot', got "
    f"{kind!r}."
  )


def solve(config, points: np.ndarray, labels: np.ndarray | None) -> ot.Solution:
  """The dual of all points, or of each class alone."""
  key = jax.random.key(config.coupling.seed)
  per_point = config.coupling.samples_per_point
  points = jnp.asarray(points.reshape(len(points), -1), jnp.float32)
  if labels is None:
    return ot.solve(key, points, num_samples=per_point * len(points))
  largest = int(np.bincount(labels).max())
  return ot.solve_classes(
    key, points, np.asarray(labels), num_samples=per_point * largest
  )


def _rows(config, dataset):
  """Rows in the order of training, with the labels that the network sees."""
  order = data_lib.batches(
    len(dataset.train), batch_size=config.batch_size, seed=config.seed
  )

  def batches(step):
    return _read(dataset, order(step), config.conditional)

  return batches


def _read(dataset, rows, conditional):
  batch = {"data": np.asarray(dataset.train[rows], np.float32)}
  if dataset.train_std is not None:
    batch["std"] = np.asarray(dataset.train_std[rows], np.float32)
  if conditional:
    batch["label"] = np.asarray(dataset.train_labels[rows], np.int32)
  return batch


def _independent(dataset):
  shape = dataset.train.shape[1:]

  def draw(keys, batch):
    noise = jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
    return Pairs(noise, _data(keys, batch), batch.get("label"))

  return draw


def _data(keys, batch):
  """Rows, or draws around them where they are means (a VAE's posterior)."""
  data = batch["data"]
  if "std" not in batch:
    return data
  keys = keys_lib.fold(keys, 1)
  extra = jax.vmap(lambda k: jax.random.normal(k, data.shape[1:]))(keys)
  return data + batch["std"] * extra


def _online(config, dataset):
  """The set and its dual live on the device; pairs are made in the step."""
  size = 4 * int(np.prod(dataset.train.shape))
  if size > ONLINE_BYTES or dataset.train_std is not None:
    raise ValueError(
      f"data set {dataset.name!r} of {size / 2**20:.0f} MiB is paired from a "
      "table: set config.coupling.table to a file, which is made if missing."
    )
  labels = dataset.train_labels if config.conditional else None
  train = np.asarray(dataset.train, np.float32)
  solution = solve(config, train, labels)
  train = jnp.asarray(train)
  classes = None if labels is None else jnp.asarray(labels, jnp.int32)

  def draw(keys, batch):
    del batch
    drawn = ot.pair(keys, solution, keys.shape[0])
    return Pairs(
      drawn.noise.reshape(-1, *train.shape[1:]),
      train[drawn.index],
      None if classes is None else classes[drawn.index],
    )

  return Coupling(draw, solution=solution)


def _stored(config, dataset):
  """The table of a file, which is made if it is missing."""
  path = pathlib.Path(config.coupling.table)
  labels = dataset.train_labels if config.conditional else None
  seed, size = config.coupling.seed, len(dataset.train)
  wanted = config.coupling.pairs_per_point * size
  flat = np.asarray(dataset.train[:], np.float32).reshape(size, -1)
  if not path.exists() and not jax.process_index():
    path.parent.mkdir(parents=True, exist_ok=True)
    solution = solve(config, flat, labels)
    made = ot.table.make(solution, seed=seed, num_pairs=wanted)
    ot.table.save(path, made)
  if jax.process_count() > 1:
    # The others wait for the first; heavy and needed by pods alone.
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("the table of pairs")
  table = ot.table.load(path, flat, labels=labels)
  if (table.seed, len(table.index)) != (seed, wanted):
    raise ValueError(
      f"{path} holds {len(table.index)} pairs of seed {table.seed}, and the "
      f"config asks for {wanted} of seed {seed}; name another file."
    )
  return table


def _paired(config, dataset, table):
  """Rows by a stored table; the step draws their noise again."""
  num_pairs, shape = len(table.index), dataset.train.shape[1:]

  def batches(step):
    first = step * config.batch_size
    pair_id = (first + np.arange(config.batch_size)) % num_pairs
    batch = _read(dataset, table.index[pair_id], config.conditional)
    return batch | {"pair_id": pair_id.astype(np.uint32)}

  def draw(keys, batch):
    noise = ot.table.noise(table.seed, batch["pair_id"], int(np.prod(shape)))
    return Pairs(
      noise.reshape(-1, *shape), _data(keys, batch), batch.get("label")
    )

  return Coupling(draw, batches)
