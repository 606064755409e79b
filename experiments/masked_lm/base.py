"""What tuning starts from and stays near: a run's result, or a checkpoint."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments.masked_lm import corpora
from experiments.masked_lm import experiment as base_lib
from jdiff import nets, training
from jdiff.nets import llada, llada_io

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
    params: In place of what the config says: arrays, or a pure function that
      makes them.

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
  if config.base.net.kind == "llada":
    _check_sizes(folder, base_lib.llada_config(config.base, corpus))
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


def _check_sizes(folder: pathlib.Path, sizes: llada.Config) -> None:
  """Raises unless a checkpoint's own sizes, where it has them, are these."""
  if not (folder / "config.json").is_file():
    return
  stored = llada.read_config(folder)
  for field in dataclasses.fields(sizes):
    has, wants = (getattr(x, field.name) for x in (stored, sizes))
    # A shorter canvas is no other model.
    if has != wants and field.name != "max_length":
      raise ValueError(
        f"the checkpoint {folder} has {field.name}={has}, and the config "
        f"{wants}; set config.base.net or config.base.data to the checkpoint's."
      )


def given(params: Any) -> training.Frozen:
  """The same of arrays, or of a pure function that makes them."""
  make = params if callable(params) else lambda: params
  return training.Frozen(
    jax.eval_shape(lambda: jax.tree.map(jnp.asarray, make())),
    # Copies by way of the host: what is here already stays the caller's.
    lambda shardings: training.put(jax.device_get(make()), shardings),
  )


def everywhere(frozen: training.Frozen) -> Any:
  """What is frozen, whole on each device of the mesh in use, or on one."""
  mesh = jax.sharding.get_mesh()
  place: Any = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  if not mesh.empty:
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return frozen.load(jax.tree.map(lambda _: place, frozen.abstract))


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
  with training.scratch() as nowhere:
    training.run(experiment, base, workdir or nowhere, progress=progress)
    _, params, _ = training.load(workdir or nowhere)
    return jax.device_get(params)


def cast(params: Any, dtype: Any) -> Any:
  """Parameters of that dtype."""
  return jax.tree.map(lambda x: x.astype(dtype), params)
