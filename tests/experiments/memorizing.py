"""Tiny configs and rows of the memorisation studies."""

import jax
import numpy as np

from experiments.common import data as data_lib
from experiments.memorization import digits, experiment, mixture
from jdiff import training
from jdiff.training import program as program_lib


def with_test(dataset, num=32):
  rng = np.random.default_rng(7)
  shape = (num, *dataset.train.shape[1:])
  return dataset._replace(test=rng.normal(size=shape).astype(np.float32))


def blobs(num_rows=40, shape=(4, 4, 1)):
  """Two labelled classes of rows, far apart."""
  rng = np.random.default_rng(1)
  labels = rng.integers(0, 2, num_rows).astype(np.int32)
  rows = 0.3 * rng.normal(size=(num_rows, *shape))
  rows += (labels - 0.5).reshape(-1, *[1] * len(shape))
  half = num_rows // 2
  return data_lib.Dataset(
    "blobs",
    rows[:half].astype(np.float32),
    labels[:half],
    test=rows[half:].astype(np.float32),
    num_classes=2,
    image_shape=shape,
  )


def short(**fields):
  config = digits.get_config("smoke")
  config.update_from_flattened_dict(
    {
      "num_train": 6,
      "net.patch_size": 2,
      "net.width": 16,
      "net.num_heads": 4,
      "batch_size": 8,
      "num_steps": 4,
      "log_every": 1,
      "eval_every": 2,
      "checkpoint_every": 2,
      "sampler.num_steps": 3,
      "num_eval": 12,
      "prune.num_batches": 2,
      "finetune.num_steps": 2,
      "mesh.data": 1,
      **fields,
    }
  )
  return config


def short_sweep(**fields):
  config = mixture.get_config("smoke")
  config.update_from_flattened_dict(
    {
      "sweep.widths": (8, 16),
      "sweep.sizes": (40,),
      "sweep.dims": (4,),
      "sweep.num_layers": 2,
      "batch_size": 8,
      "num_steps": 3,
      "log_every": 1,
      "eval_every": 3,
      "checkpoint_every": 3,
      "sampler.num_steps": 3,
      "mesh.data": 1,
      **fields,
    }
  )
  return config


def trace(config, dataset=None):
  mesh = training.make_mesh(devices=jax.devices()[:1])
  built = experiment.build(config, dataset)
  program = program_lib.compile_experiment(built, mesh)
  with jax.set_mesh(mesh):
    _, found = jax.eval_shape(program.step, program.abstract, built.batches(0))
  assert {"loss", "grad_norm"} <= set(found)
