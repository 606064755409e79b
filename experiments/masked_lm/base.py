"""What tuning starts from and stays near: a run's result, or a checkpoint."""

import functools
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments.masked_lm import corpora
from experiments.masked_lm import experiment as base_lib
from jdiff import nets, training
from jdiff.nets import llada_io

RANDOM = "random"


def frozen(
  config: ml_collections.ConfigDict,
  corpus: corpora.Corpus,
  network: nets.Network,
  params: Any = None,
) -> training.Frozen:
  """The base of a config, loaded when a run begins.

  Args:
    config: With `base.workdir`, `base.checkpoint` and `base.dtype`.
    corpus: Of `config.base.data`.
    network: Of `config.base.net`.
    params: In place of what the config says: arrays, or a function that makes
      them.

  Raises:
    ValueError: If the config names a run and a checkpoint.
    FileNotFoundError: If the checkpoint is not there.
  """
  if params is not None:
    return given(params)
  workdir, checkpoint = config.base.workdir, config.base.checkpoint
  if workdir and checkpoint:
    raise ValueError(
      "config.base takes a workdir or a checkpoint, got "
      f"{workdir!r} and {checkpoint!r}."
    )
  dtype = jnp.dtype(config.base.dtype)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, dtype),
    jax.eval_shape(network.init, jax.eval_shape(jax.random.key, 0)),
  )
  if not checkpoint:
    trained = functools.cache(lambda: train(config, corpus))
    return training.Frozen(
      abstract,
      lambda shardings: training.put(cast(trained(), dtype), shardings),
    )
  if checkpoint == RANDOM:
    return training.Frozen(
      abstract,
      lambda shardings: jax.jit(
        lambda key: cast(network.init(key), dtype), out_shardings=shardings
      )(jax.random.key(config.seed)),
    )
  folder = pathlib.Path(checkpoint)
  if not folder.is_dir():
    raise FileNotFoundError(
      f"config.base.checkpoint is {checkpoint!r}, which is no folder; pass one "
      "of LLaDA's safetensors, or one that experiments.masked_lm.convert has "
      "made."
    )
  if not any(folder.glob("*.safetensors")):
    return training.Frozen(
      abstract,
      lambda shardings: training.load_params(folder, abstract, shardings),
    )
  sizes = base_lib.llada_config(config.base, corpus)
  return training.Frozen(
    abstract,
    lambda shardings: llada_io.load(
      folder, sizes, shardings=shardings, dtype=dtype
    ),
  )


def given(params: Any) -> training.Frozen:
  """The same of arrays, or of a pure function that makes them."""
  make = params if callable(params) else lambda: params
  return training.Frozen(
    jax.eval_shape(lambda: jax.tree.map(jnp.asarray, make())),
    lambda shardings: training.put(make(), shardings),
  )


def train(config, corpus: corpora.Corpus, *, progress: bool = True) -> Any:
  """Parameters of the run in `config.base.workdir`, as NumPy arrays.

  Trained there first if need be; without a workdir they are trained anew and
  not kept.

  Args:
    config: Of tuning.
    corpus: Of `config.base.data`.
    progress: Whether the training shows its own.
  """
  base = ml_collections.ConfigDict(config.base.to_dict())
  workdir = base.workdir
  with base.unlocked():
    # A run has none of these, and is found again by its config.
    del base.workdir, base.checkpoint, base.dtype
    base.seed, base.variant = config.seed, "base"
  base.lock()
  experiment = base_lib.build(base, corpus)
  with tempfile.TemporaryDirectory() as nowhere:
    training.run(experiment, base, workdir or nowhere, progress=progress)
    _, params, _ = training.load(workdir or nowhere)
    return jax.device_get(params)


def cast(params: Any, dtype: Any) -> Any:
  """Parameters of that dtype."""
  return jax.tree.map(lambda x: x.astype(dtype), params)
