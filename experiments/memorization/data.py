"""Training rows, few, and held-out rows of the same law.

Sets of `experiments.common.data`, and `"mixture"`: Gaussian components, whose
law is known.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common import data as data_lib
from jdiff.core import checks
from jdiff.targets import mixtures


class Rows(NamedTuple):
  """What a run sees, and what it is measured by.

  Attributes:
    dataset: Its `train` are the rows that are learnt.
    labelled: The whole set's `(images, labels)`, to fit a classifier on whose
      features are compared; None without labels.
    law: The law of the rows, or None.
  """

  dataset: data_lib.Dataset
  labelled: tuple[Any, np.ndarray] | None
  law: mixtures.Mixture | None


def load(config, dataset: data_lib.Dataset | None = None) -> Rows:
  """The rows of a config: the first `num_train` of its set.

  Args:
    config: A config of `experiments/memorization/`.
    dataset: The set, by default the one that `config.data` names.

  Raises:
    ValueError: If the set is unknown, has fewer rows, or none held out.
  """
  law = None
  options = config.data.to_dict()
  name = options.pop("name")
  if name == "mixture":
    law, drawn = mixture(**options, num_train=config.num_train)
    dataset = drawn if dataset is None else dataset
  if dataset is None:
    dataset = data_lib.load(name, **options)
  # The ratio of two distances needs two rows.
  num = checks.check_int("config.num_train", config.num_train, 2)
  if num > len(dataset.train):
    raise ValueError(
      f"config.num_train must be at most {len(dataset.train)}, the rows of "
      f"{dataset.name!r} that are not held out, got {num}."
    )
  if dataset.test is None or not len(dataset.test):
    raise ValueError(
      f"{dataset.name!r} must hold out rows to compare with, got none; raise "
      "config.data.test_share."
    )
  labels, labelled = dataset.train_labels, None
  if dataset.image_shape is not None and labels is not None:
    most = 2**14
    labelled = np.asarray(dataset.train[:most], np.float32), labels[:most]
  few = dataset._replace(
    train=np.asarray(dataset.train[:num], np.float32),
    train_labels=None if labels is None else labels[:num],
  )
  return Rows(few, labelled, law)


@functools.lru_cache(maxsize=64)
def mixture(
  *,
  num_components: int,
  dim: int,
  separation: float,
  variance: float,
  num_train: int,
  num_test: int,
  seed: int,
) -> tuple[mixtures.Mixture, data_lib.Dataset]:
  """Separated Gaussians, and draws; fewer are the first of more.

  Args:
    num_components: Components.
    dim: Dimension.
    separation: Distance of neighbouring centres over the root of `dim`.
    variance: Of every component, in every direction.
    num_train: Rows to learn.
    num_test: Rows held out.
    seed: Of the draws, and of the centres' rotation.
  """
  checks.check_int("config.data.seed", seed, 0)
  key_law, key_train, key_test = jax.random.split(jax.random.key(seed), 3)
  law = mixtures.separated(
    num_components,
    dim,
    separation=separation,
    variance=variance,
    key=key_law,
  )

  def draw(name, key, num):
    checks.check_int(f"config.{name}", num)
    return np.asarray(mixtures.sample(law, key, num))

  train = draw("num_train", key_train, num_train)
  test = draw("data.num_test", key_test, num_test)
  return law, data_lib.Dataset("mixture", train, test=test)
