"""The same run from several seeds, and what they agree on."""

import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jdiff.core import checks
from jdiff.training import loop, records
from jdiff.training import workdir as workdir_lib
from jdiff.training.experiment import Experiment, Study

SUMMARY = "summary.json"


def run_seeds(
  build: Callable[[Any], Experiment | Study],
  config: Any,
  workdir: str | os.PathLike,
  seeds: Iterable[int],
  *,
  progress: bool = True,
) -> dict[str, Any]:
  """Runs each seed in `workdir/seed_<n>` and summarises them.

  Seeds that are finished are not run again. One that stops being finite does
  not keep the others from running.

  Args:
    build: `build(config) -> Experiment`, or a study.
    config: As for `run`; its own `seed` is replaced.
    workdir: Gets the runs and `summary.json`.
    seeds: Distinct integers >= 0.
    progress: As for `run`.

  Returns:
    The summary: `{"experiment", "name", "variant", "seeds", "failed",
    "metrics": {name: {"mean", "std", "worst", "exact", "values"}}}`. `std`
    is over seeds, with `n - 1`. `worst` is the value furthest from the exact
    one, or the smallest where no exact value is known (for metrics that are
    better small, read `values`, in the order of `seeds`).

  Raises:
    NonFiniteError: After all have run, if some failed.
  """
  seeds = [checks.check_int("seed", seed, 0) for seed in seeds]
  if not seeds or len(set(seeds)) < len(seeds):
    raise ValueError(f"seeds must be distinct, one at least, got {seeds}.")
  workdir = pathlib.Path(workdir)
  fields = workdir_lib.checked_config(config).to_dict()
  reports, failures = [], {}
  with workdir_lib.compile_cache(workdir):
    for seed in seeds:
      config = workdir_lib.checked_config({**fields, "seed": seed})
      try:
        reports.append(
          loop.run(
            build(config), config, workdir / f"seed_{seed}", progress=progress
          )
        )
      except records.NonFiniteError as error:
        failures[seed] = error
  summary = {
    "experiment": fields["experiment"],
    "name": fields["name"],
    "variant": fields["variant"],
    "seeds": [seed for seed in seeds if seed not in failures],
    "failed": list(failures),
    "metrics": _summarise([report["metrics"] for report in reports]),
  }
  workdir_lib.write_json(workdir / SUMMARY, summary)
  if failures:
    raise records.NonFiniteError(
      f"{len(failures)} of {len(seeds)} seeds failed: "
      + " ".join(f"seed {seed}: {error}" for seed, error in failures.items())
    )
  return summary


def _summarise(reports: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
  """Per metric; seeds that lack a value or know none are left out of it."""
  names = dict.fromkeys(name for report in reports for name in report)
  summary = {}
  for name in names:
    entries = [report.get(name, {}) for report in reports]
    values = [entry.get("value") for entry in entries]
    exact = next(
      (e["exact"] for e in entries if e.get("exact") is not None), None
    )
    # A run of another seed may draw another instance, with another answer.
    pairs = [
      (entry["value"], entry.get("exact"))
      for entry in entries
      if entry.get("value") is not None
    ]
    known = [value for value, _ in pairs]
    if not pairs:
      worst = None
    elif any(e is None for _, e in pairs):
      worst = min(known)
    else:
      worst = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))[0]
    summary[name] = {
      "mean": float(np.mean(known)) if known else None,
      "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
      "worst": worst,
      "exact": exact,
      "values": values,
    }
  return summary
