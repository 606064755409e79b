r"""Checkpoints of LLaDA-class models, from and to safetensors.

  python -m experiments.masked_lm.convert --source=llada --target=llada_orbax
  python -m experiments.masked_lm.convert --source=W --target=tuned

The first reads a folder of safetensors with its config.json, and writes Orbax's
form, which restores faster and on any mesh: pass it as
`--config.base.checkpoint`. The second takes the workdir of a run, merges its
adapters, and writes safetensors.
"""

import argparse
import os
import pathlib
import shutil

import jax

from experiments import main as entry
from experiments.masked_lm import corpora
from experiments.masked_lm import experiment as masked_lm
from jdiff import training
from jdiff.nets import llada, llada_io
from jdiff.nets.transformer import parameter_axes
from jdiff.training import sharding, workdir


def to_orbax(source: str | os.PathLike, target: str | os.PathLike) -> int:
  """Safetensors to Orbax, spread over the devices here; answers parameters.

  Raises:
    ValueError: If the tensors are not those of a LLaDA model, or there is
      something at `target`.
    FileNotFoundError: If `source` is no checkpoint.
  """
  config = llada.read_config(source)
  if pathlib.Path(target).exists():
    raise ValueError(f"{target} exists; pass another --target.")
  abstract = llada.abstract(config)
  places = sharding.state_shardings(
    abstract, _mesh(abstract), axes=parameter_axes
  )
  params = llada_io.load(source, config, shardings=places)
  training.save_params(target, params)
  # So that whoever starts from it can compare sizes.
  shutil.copy(pathlib.Path(source) / "config.json", target)
  return config.num_params


def to_safetensors(source: str | os.PathLike, target: str | os.PathLike) -> int:
  """The result of a run to safetensors; answers parameters.

  Raises:
    ValueError: If `source` is no workdir with a checkpoint, its network is
      none of LLaDA's kind, or there is a checkpoint at `target`.
  """
  run = workdir.read_config(source)
  base = run.base if "base" in run else run
  sizes = masked_lm.llada_config(base, corpora.stand_in(**base.data))
  _, params, _ = training.load(source, mesh=_mesh(llada.abstract(sizes)))
  llada_io.export(params, target, sizes)
  return sizes.num_params


def _mesh(abstract):
  """All devices that divide the parameters, or one."""
  mesh = training.make_mesh(1, len(jax.devices()))
  try:
    sharding.state_shardings(abstract, mesh, axes=parameter_axes)
  except ValueError:
    return training.make_mesh(1, 1, devices=jax.local_devices())
  return mesh


def main(argv: list[str] | None = None) -> None:
  """Converts in the direction that the source says."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--source", required=True, help="Folder to read.")
  parser.add_argument("--target", required=True, help="Folder to make.")
  given = parser.parse_args(argv)
  is_run = (pathlib.Path(given.source) / workdir.CHECKPOINTS).is_dir()
  convert = to_safetensors if is_run else to_orbax
  try:
    number = convert(given.source, given.target)
  except entry.USER_ERRORS as error:
    parser.exit(2, f"error: {' '.join(str(error).split())}\n")
  print(f"{given.target}: {number:,} parameters")


if __name__ == "__main__":
  main()
