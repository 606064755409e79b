"""One generation of the loop: a flow trained from scratch on its training set.

The run itself is that of `experiments.alignflow`, on rows that the study hands
over. What it has learnt can be loaded and sampled without them.
"""

from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from experiments.alignflow import experiment as flow_lib
from experiments.common import data as data_lib
from experiments.common import fields as fields_lib
from jdiff import training

LOOP_FIELDS = (
  "arms",
  "num_train",
  "num_generations",
  "oversample",
  "fresh_share",
  "select",
  "measure",
)
"""Fields of a study's config that a single generation does not have."""


def make_config(
  config: ml_collections.ConfigDict, name: str, seed: int, shape: Sequence[int]
) -> ml_collections.ConfigDict:
  """The config of one generation.

  Args:
    config: The study's.
    name: What to call it.
    seed: Its own, of everything that is random in training.
    shape: Of a row.
  """
  fields = {k: v for k, v in config.to_dict().items() if k not in LOOP_FIELDS}
  fields |= {
    "experiment": "experiments.collapse.generation",
    "name": name,
    "seed": seed,
    "data": {"name": config.data.name, "shape": tuple(shape)},
    "eval_every": config.num_steps,
  }
  return ml_collections.ConfigDict(fields)


def build(
  config: ml_collections.ConfigDict, rows: np.ndarray | None = None
) -> training.Experiment:
  """The experiment of one generation.

  Args:
    config: As `make_config` makes it.
    rows: `[M, ...]`, its training set. Without, what it has learnt can be
      loaded and sampled, and it cannot be trained.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others.
  """
  fields_lib.check(config)
  fields = ml_collections.ConfigDict(config.to_dict())
  batches = None
  if rows is None:
    # Nothing may be computed from rows that are not there.
    rows, batches = np.zeros((2, *config.data.shape), np.float32), _no_rows
    fields.coupling.kind = "independent"
  flow = flow_lib.build(fields, data_lib.Dataset(config.name, rows))

  def evaluate(params: Any, key: Any, *, final: bool):
    # The study measures, with rows at hand.
    return {"nfe": max(config.eval_steps)}

  return flow._replace(
    evaluate=evaluate, figures=None, batches=batches or flow.batches
  )


def _no_rows(step: int):
  raise ValueError(
    "a generation's training set is made by the study it belongs to: run that, "
    "with the folder above its arm as the workdir."
  )
