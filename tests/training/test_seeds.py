import json

import numpy as np
import pytest

from jdiff import training
from jdiff.training import seeds as seeds_lib
from tests.training import toy


def test_summary_of_three_seeds(tmp_path):
  config = toy.config(num_steps=6)
  summary = training.run_seeds(
    toy.build, config, tmp_path, [3, 0, 1], progress=False
  )
  assert summary == json.loads((tmp_path / "summary.json").read_text())
  reports = [
    json.loads((tmp_path / f"seed_{n}" / "report.json").read_text())
    for n in (3, 0, 1)
  ]
  assert [r["seed"] for r in reports] == [3, 0, 1]
  values = [r["metrics"]["mse"]["value"] for r in reports]
  assert len(set(values)) == 3
  mse = summary["metrics"]["mse"]
  assert mse["values"] == values
  np.testing.assert_allclose(mse["mean"], np.mean(values))
  np.testing.assert_allclose(mse["std"], np.std(values, ddof=1))
  # Exactly 0 is known for this one, so its worst is the largest.
  assert (mse["exact"], mse["worst"]) == (0.0, max(values))
  first = summary["metrics"]["first_weight"]
  assert (first["exact"], first["worst"]) == (None, min(first["values"]))
  # One compile cache for all of them, and no retraining.
  assert not (tmp_path / "seed_0" / "xla_cache").exists()
  assert summary == training.run_seeds(
    toy.build, config, tmp_path, [3, 0, 1], progress=False
  )


def test_a_failed_seed_does_not_stop_the_others(tmp_path):
  def build(config):
    bad = 3 if config["seed"] == 0 else -1
    return toy.build(toy.CONFIG | {"nan_step": bad})

  config = toy.config(num_steps=6)
  with pytest.raises(training.NonFiniteError, match="1 of 2 seeds failed"):
    training.run_seeds(build, config, tmp_path, [0, 1], progress=False)
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert (summary["seeds"], summary["failed"]) == ([1], [0])


def test_worst_where_values_or_exact_ones_are_missing():
  def metric(value, exact):
    return {"m": {"value": value, "se": None, "exact": exact}}

  cases = [
    ([metric(1.0, 2.0), metric(2.5, 2.0)], 1.0),
    ([metric(1.0, 1.0), metric(5.0, 4.5)], 5.0),
    ([metric(1.0, None), metric(2.5, 2.0)], 1.0),
    ([metric(None, 2.0), metric(2.5, 2.0)], 2.5),
    ([metric(None, 2.0)], None),
  ]
  for reports, worst in cases:
    assert seeds_lib._summarise(reports)["m"]["worst"] == worst


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_bad_seeds_are_refused(tmp_path, seeds):
  with pytest.raises(ValueError, match="seed"):
    training.run_seeds(toy.build, toy.CONFIG, tmp_path, seeds)
