"""What a study keeps of each generation, and what can be had from it again.

`real.npz` holds the real rows, `<arm>/generation_<n>/generation.npz` the
samples `G_n` and which rows of the pool are in `D_n` and `D_{n+1}`. The pool
is the real rows and then the samples of each generation: any training set can
be put together from files alone.
"""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import training
from jdiff.core import checks, files
from jdiff.methods import collapse
from jdiff.training import records
from jdiff.training import workdir as workdir_lib

REAL, GENERATION, MEASURES = "real.npz", "generation.npz", "measures.json"


def folder(workdir: str | os.PathLike, arm: str, generation: int):
  """Where an arm keeps a generation."""
  return pathlib.Path(workdir) / arm / f"generation_{generation}"


def keep_real(workdir: pathlib.Path, rows: np.ndarray) -> None:
  """Writes the real rows, or checks that they are those of before.

  Raises:
    ValueError: If they are others.
  """
  path = workdir / REAL
  if not path.exists():
    _write(path, pool=rows)
  elif not np.array_equal(_read(path)["pool"], rows):
    raise ValueError(
      f"{path} holds other rows than the data set has now; choose another "
      "workdir or the same data."
    )


def write(directory: pathlib.Path, state: collapse.State) -> None:
  """Writes what the last step of a loop has added to its state."""
  labels = np.asarray(state.labels)
  arrays = {
    "num_real": np.count_nonzero(labels == 0),
    "samples": state.pool[labels == len(state.indices) - 1],
    "indices": state.indices[-2],
    "next_indices": state.indices[-1],
  }
  if state.probe is not None:
    arrays["probe"] = state.probe
  _write(directory / GENERATION, **arrays)


def extend(
  directory: pathlib.Path, state: collapse.State
) -> collapse.State | None:
  """The state after the step that was written; None if there is none."""
  path = directory / GENERATION
  if not training.agree(path.exists):
    return None
  stored = _read(path)
  samples, generation = stored["samples"], len(state.indices)
  labels = jnp.full(len(samples), generation, jnp.int32)
  return collapse.State(
    jnp.concatenate([state.pool, samples]),
    jnp.concatenate([state.labels, labels]),
    (*state.indices, jnp.asarray(stored["next_indices"])),
    # Of the map that was used then, so that another one is noticed.
    jnp.asarray(stored["probe"]) if "probe" in stored else None,
  )


def training_set(
  workdir: str | os.PathLike, arm: str, generation: int
) -> np.ndarray:
  """`D_n` of a study's arm, `[M, ...]`, from its files.

  Raises:
    ValueError: If there is no such generation.
  """
  checks.check_int("generation", generation)
  file = folder(workdir, arm, generation) / GENERATION
  if not file.exists():
    raise ValueError(
      f"{workdir} must hold generation {generation} of arm {arm!r}, and there "
      f"is no {file.relative_to(workdir)}."
    )
  kept = [
    _read(folder(workdir, arm, n) / GENERATION)
    for n in range(1, generation + 1)
  ]
  real = _read(pathlib.Path(workdir) / REAL)["pool"][: kept[0]["num_real"]]
  pool = np.concatenate([real, *[one["samples"] for one in kept[:-1]]])
  return pool[kept[-1]["indices"]]


def measures(directory: pathlib.Path) -> dict[str, Any] | None:
  """What was measured of a generation; None if it was not."""
  path = directory / MEASURES
  return training.agree(
    lambda: files.read_json(path) if path.exists() else None
  )


def keep_measures(
  directory: pathlib.Path, values: dict[str, Any]
) -> dict[str, Any]:
  """Writes measurements; returns them in the form that is read again."""
  measured = records.measurements(values)
  workdir_lib.write_json(directory / MEASURES, measured)
  return measured


def _write(path: pathlib.Path, **arrays) -> None:
  """Writes an archive that is never seen half written; process 0 alone."""
  if jax.process_index():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_suffix(".part")
  with part.open("wb") as file:
    np.savez(file, **arrays)
  os.replace(part, path)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  return files.load_arrays(path)
