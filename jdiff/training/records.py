"""Numbers on their way out: metrics.jsonl, the report and its table."""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jdiff.core import files
from jdiff.training import processes
from jdiff.training import workdir as workdir_lib


class NonFiniteError(FloatingPointError):
  """A metric or a parameter is no longer a finite number."""


class Records:
  """The lines of `metrics.jsonl`; process 0 writes, all remember.

  Args:
    workdir: Holds the file.
    last_step: Later lines, and a last one cut off by a crash, are dropped:
      the steps that made them will be run again.
  """

  def __init__(self, workdir: str | os.PathLike, last_step: int):
    path = pathlib.Path(workdir) / workdir_lib.METRICS
    self.history = processes.agree(lambda: read_history(workdir, last_step))
    self._file = None
    if jax.process_index() == 0:
      part = path.with_suffix(".part")
      part.write_text("".join(json.dumps(r) + "\n" for r in self.history))
      os.replace(part, path)
      self._file = path.open("a")

  def write(self, step: int, values: Mapping[str, Any], seconds: float):
    """Adds one record and hands it to the operating system at once."""
    record = {"step": step, **values, "wall_seconds": round(seconds, 3)}
    self.history.append(record)
    if self._file is not None:
      self._file.write(json.dumps(record) + "\n")
      self._file.flush()

  def has_evaluation(self, step: int) -> bool:
    """Whether an evaluation at this step is among the records."""
    return any(
      record["step"] == step and any(k.startswith("eval/") for k in record)
      for record in self.history
    )

  def close(self) -> None:
    """Closes the file."""
    if self._file is not None:
      self._file.close()


def read_history(
  workdir: str | os.PathLike, last_step: int
) -> list[dict[str, Any]]:
  """The records up to a step, without a last line that is cut off."""
  path = pathlib.Path(workdir) / workdir_lib.METRICS
  history: list[dict[str, Any]] = []
  if not path.exists():
    return history
  for line in files.read_text(path).splitlines():
    try:
      record = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
      break
    known = record if isinstance(record, dict) else {}
    if not isinstance(known.get("step"), int) or "wall_seconds" not in known:
      raise ValueError(
        f"{path} must hold records with step and wall_seconds, got "
        f"{line[:40]!r}."
      )
    if record["step"] > last_step:
      break
    history.append(record)
  return history


def finite(
  step: int, metrics: Mapping[str, Any], kept: int | None
) -> dict[str, int | float]:
  """Fetched metrics as Python numbers.

  Args:
    step: When they were taken.
    metrics: By name.
    kept: The step of the newest checkpoint, for the error.

  Raises:
    NonFiniteError: If one is infinite or not a number.
  """
  values = {name: np.asarray(value).item() for name, value in metrics.items()}
  for name, value in values.items():
    if not math.isfinite(value):
      raise non_finite(f"metric {name} is {value}", step, kept)
  return values


def non_finite(what: str, step: int, kept: int | None) -> NonFiniteError:
  """The error to raise, with what is left and how to see it again."""
  start = "the start" if kept is None else f"the checkpoint of step {kept}"
  left = "" if kept is None else ", which is kept"
  return NonFiniteError(
    f"{what} at step {step}. The same command goes on from {start}{left}, and "
    "fails there again; with JAX_DEBUG_NANS=1 in the environment it ends at "
    "the operation that made the first NaN (JAX_DEBUG_INFS=1: infinity)."
  )


def measurements(values: Any) -> dict[str, dict[str, Any]]:
  """What `evaluate` returned, as `{name: {"value", "se", "exact"}}`.

  Unknown and non-finite numbers are None.

  Raises:
    TypeError: If it is not a dict of scalars or of such records.
  """
  if not isinstance(values, Mapping):
    raise TypeError(
      f"evaluate must return a dict, got {type(values).__name__}."
    )
  fields = ("value", "se", "exact")
  out = {}
  for name, value in values.items():
    entry = value if isinstance(value, Mapping) else {"value": value}
    if "value" not in entry or set(entry) - set(fields):
      raise TypeError(
        f"evaluate's {name!r} must be a number or hold value, se and exact, "
        f"got the fields {sorted(entry)}."
      )
    out[name] = {field: _number(name, entry.get(field)) for field in fields}
  return out


def evaluation_record(measured: Mapping[str, Any]) -> dict[str, Any]:
  """The flat form: `eval/<name>`, and `eval/<name>_se` where it is known."""
  record = {}
  for name, entry in measured.items():
    record[f"eval/{name}"] = entry["value"]
    if entry["se"] is not None:
      record[f"eval/{name}_se"] = entry["se"]
  return record


def report(
  config: Any, step: int, measured: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
  """The one form of `report.json`."""
  metrics = dict(measured)
  nfe = metrics.pop("nfe", {"value": None})["value"]
  return {
    "experiment": config.experiment,
    "name": config.name,
    "variant": config.variant,
    "seed": config.seed,
    "steps": step,
    "nfe": nfe,
    "wall_seconds": round(seconds, 3),
    "metrics": metrics,
  }


def table(report: Mapping[str, Any]) -> str:
  """The report's metrics: estimate, exact value, error in standard errors."""
  rows = [("metric", "estimate", "exact", "error in SE")]
  for name, entry in report["metrics"].items():
    value, se, exact = entry["value"], entry["se"], entry["exact"]
    estimate = _text(value) + ("" if se is None else f" +- {se:.2g}")
    known = None not in (value, se, exact) and se > 0
    error = f"{(value - exact) / se:+.2f}" if known else "-"
    rows.append((name, estimate, _text(exact), error))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    for row in rows
  ]
  head = (
    f"{report['name']} ({report['variant']}), seed {report['seed']}: "
    f"{report['steps']} steps in {report['wall_seconds']:.1f} s"
  )
  return "\n".join([head, *(line.rstrip() for line in lines)])


def _number(name: str, value: Any) -> int | float | None:
  if value is None:
    return None
  array = np.asarray(value)
  if array.shape or array.dtype.kind not in "biuf":
    # ml_dtypes such as bfloat16 are of kind V.
    if array.shape or array.dtype.name != "bfloat16":
      raise TypeError(f"evaluate's {name!r} must hold scalars, got {value!r}.")
    array = array.astype(np.float32)
  number = array.item()
  return number if math.isfinite(number) else None


def _text(value: float | None) -> str:
  return "-" if value is None else f"{value:.6g}"
