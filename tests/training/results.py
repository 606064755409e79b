"""Reading what a run wrote, for comparisons."""

import json
import pathlib

import jax
import numpy as np

from jdiff import training


def metrics(workdir):
  """The records, without the one field that depends on the clock."""
  text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
  records = [json.loads(line) for line in text.splitlines()]
  for record in records:
    assert record.pop("wall_seconds") >= 0
  return records


def assert_same_run(one, other):
  """Bitwise: every record, the final report and the parameters."""
  assert metrics(one) == metrics(other)
  reports = [
    json.loads((pathlib.Path(w) / "report.json").read_text())
    for w in (one, other)
  ]
  for report in reports:
    report.pop("wall_seconds")
  assert reports[0] == reports[1]
  trees = [training.load(w)[1] for w in (one, other)]
  jax.tree.map(np.testing.assert_array_equal, *trees)


def run(experiment, config, workdir):
  return training.run(experiment, config, workdir, progress=False)


def report(workdir):
  """The run's own report, as it was written."""
  return json.loads((pathlib.Path(workdir) / "report.json").read_text())
