"""What a working directory holds beside checkpoints and metrics."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
from jax.experimental.compilation_cache import compilation_cache

from jdiff.core import checks, files
from jdiff.training import processes

CONFIG, METRICS, REPORT = "config.json", "metrics.jsonl", "report.json"
CHECKPOINTS, FIGURES, CACHE = "checkpoints", "figures", "xla_cache"

REPORT_FIELDS = {
  *("experiment", "name", "variant", "seed", "steps", "nfe", "wall_seconds"),
  "metrics",
}

MAX_CONFIG_BYTES, MAX_CONFIG_DEPTH = 2**20, 8

_STRINGS = ("experiment", "variant", "name")
_COUNTS = ("num_steps", "log_every", "eval_every", "checkpoint_every")


def checked_config(
  config: ml_collections.ConfigDict | Mapping[str, Any],
) -> ml_collections.ConfigDict:
  """A frozen copy of a config whose fields the loop can rely on.

  Raises:
    ValueError: If a field of the loop is missing or out of range.
    TypeError: If one has the wrong type, or if a value is no JSON.
  """
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  if not isinstance(config, Mapping):
    raise TypeError(
      f"config must be a ConfigDict or a dict, got {type(config).__name__}."
    )
  _check_plain("config", config, MAX_CONFIG_DEPTH)
  wanted = (*_STRINGS, "seed", *_COUNTS, "mesh")
  missing = [name for name in wanted if name not in config]
  if missing:
    raise ValueError(f"config lacks {', '.join(missing)}.")
  for name in _STRINGS:
    if not isinstance(config[name], str):
      raise TypeError(f"config.{name} must be a string, got {config[name]!r}.")
  checks.check_int("config.seed", config["seed"], 0)
  for name in _COUNTS:
    checks.check_int(f"config.{name}", config[name])
  mesh = config["mesh"]
  known = {"data", "fsdp", "tensor"}
  if not isinstance(mesh, Mapping) or not known - {"tensor"} <= set(mesh) <= (
    known
  ):
    raise ValueError(
      f"config.mesh must hold data and fsdp, and may hold tensor, got {mesh!r}."
    )
  if mesh["data"] != -1:
    checks.check_int("config.mesh.data", mesh["data"])
  checks.check_int("config.mesh.fsdp", mesh["fsdp"])
  checks.check_int("config.mesh.tensor", mesh.get("tensor", 1))
  _plain(config)
  return ml_collections.FrozenConfigDict(config)


def write_config(workdir: str | os.PathLike, config: Any) -> None:
  """Writes `config.json`, unless it is there."""
  path = pathlib.Path(workdir) / CONFIG
  if not path.exists():
    write_json(path, _plain(config))


def check_same_config(workdir: str | os.PathLike, config: Any) -> None:
  """Refuses a config that is not the workdir's.

  The mesh may differ: a state is restored onto any.

  Raises:
    ValueError: If another field does, or if the directory holds no run.
  """
  path = pathlib.Path(workdir) / CONFIG
  new_fields, old_fields = _flat(_plain(config)), _flat(_stored(workdir))
  different = [
    f"{name} ({old_fields.get(name, 'absent')!r} there, "
    f"{new_fields.get(name, 'absent')!r} here)"
    for name in sorted(new_fields.keys() | old_fields.keys())
    if not name.startswith("mesh.")
    and new_fields.get(name, ...) != old_fields.get(name, ...)
  ]
  if different:
    raise ValueError(
      f"{path.parent} belongs to a run with another config: "
      f"{', '.join(different)}; choose another workdir or the same config."
    )


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
  """The config of a workdir, as the experiment's `build` got it.

  Raises:
    ValueError: If the directory holds no run.
  """
  return checked_config(_tuples(_stored(workdir)))


def read_report(workdir: str | os.PathLike) -> dict[str, Any] | None:
  """The report of a workdir, or None if there is none that can be read."""
  try:
    report = files.read_json(pathlib.Path(workdir) / REPORT)
  except (FileNotFoundError, ValueError):
    return None
  whole = isinstance(report, dict) and REPORT_FIELDS <= report.keys()
  return report if whole else None


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a file that is never seen half written; process 0 alone."""
  if jax.process_index():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_suffix(".part")
  part.write_text(json.dumps(value, indent=2) + "\n")
  os.replace(part, path)


@contextlib.contextmanager
def compile_cache(workdir: str | os.PathLike) -> Iterator[None]:
  """Keeps compiled programs in the workdir, unless the user has a place.

  What processes share for a while lies there too.
  """
  if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
    with processes.scratch_in(workdir):
      yield
    return
  # JAX opens its cache once; a reset makes it look at the setting again.
  jax.config.update(
    "jax_compilation_cache_dir", str(pathlib.Path(workdir).absolute() / CACHE)
  )
  compilation_cache.reset_cache()
  try:
    with processes.scratch_in(workdir):
      yield
  finally:
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


def _stored(workdir: str | os.PathLike) -> Any:
  path = pathlib.Path(workdir) / CONFIG
  if not path.exists():
    raise ValueError(f"{workdir} holds no run: there is no {CONFIG} in it.")
  stored = files.read_json(path, MAX_CONFIG_BYTES)
  if not isinstance(stored, dict):
    raise ValueError(f"{path} must be a JSON object.")
  # Before anything else walks through it.
  _check_plain("config", stored, MAX_CONFIG_DEPTH)
  return stored


def _check_plain(name: str, value: Any, depth: int) -> None:
  """Raises unless a config is shallow, and its numbers are finite."""
  if isinstance(value, Mapping):
    parts = list(value.items())
  elif isinstance(value, list | tuple):
    parts = list(enumerate(value))
  elif isinstance(value, int) and abs(value) >= 2**63:
    raise ValueError(f"{name} must be an integer of 64 bits.")
  elif isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f"{name} must be finite, got {value}.")
  else:
    return
  if not depth:
    raise ValueError(f"{name} is nested too deeply for a config.")
  for key, part in parts:
    _check_plain(f"{name}.{key}", part, depth - 1)


def _plain(config: Any) -> Any:
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  try:
    return json.loads(json.dumps(config))
  except TypeError as error:
    raise TypeError(
      f"config must hold JSON values alone, no functions or arrays ({error})."
    ) from None


def _tuples(value: Any) -> Any:
  """Lists back to the tuples that configs hold."""
  if isinstance(value, dict):
    return {name: _tuples(part) for name, part in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(part) for part in value)
  return value


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(value, dict):
    return {prefix[:-1]: value}
  return {
    name: leaf
    for key, part in value.items()
    for name, leaf in _flat(part, f"{prefix}{key}.").items()
  }
