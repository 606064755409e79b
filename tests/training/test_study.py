import pytest

from jdiff import training
from tests.training import results, toy


def study(calls=None, fail_after=None):
  """Two runs, the second from another seed, and their difference."""

  def run(workdir, progress):
    found = []
    for seed in 0, 1:
      if fail_after == seed:
        raise OSError("out of space")
      config = toy.config(seed=seed, num_steps=6)
      report = training.run(
        toy.build(config), config, workdir / f"part_{seed}", progress=progress
      )
      found.append(report["metrics"]["mse"]["value"])
      if calls is not None:
        calls.append(seed)
    return {"difference": found[1] - found[0]}

  return training.Study(run)


CONFIG = toy.config(num_steps=12)


def test_a_study_reports_on_its_runs(tmp_path):
  calls = []
  report = training.run(study(calls), CONFIG, tmp_path, progress=False)
  parts = [
    results.report(tmp_path / f"part_{seed}")["metrics"]["mse"]["value"]
    for seed in (0, 1)
  ]
  assert report["metrics"]["difference"]["value"] == parts[1] - parts[0] != 0
  assert report["steps"] == 12
  # Compiled programs are kept once, and a finished study is only read.
  assert not list(tmp_path.glob("part_*/xla_cache"))
  assert training.run(study(calls), CONFIG, tmp_path, progress=False) == report
  assert calls == [0, 1]


def test_a_study_continues(tmp_path):
  with pytest.raises(OSError, match="out of space"):
    training.run(study(fail_after=1), CONFIG, tmp_path / "a", progress=False)
  before = results.report(tmp_path / "a" / "part_0")
  whole = training.run(study(), CONFIG, tmp_path / "b", progress=False)
  report = training.run(study(), CONFIG, tmp_path / "a", progress=False)
  assert results.report(tmp_path / "a" / "part_0") == before
  assert report["metrics"] == whole["metrics"]


def test_a_study_has_no_checkpoint_of_its_own(tmp_path):
  training.run(study(), CONFIG, tmp_path, progress=False)
  with pytest.raises(ValueError, match="one of them: part_0, part_1"):
    training.load(tmp_path, build=lambda config: study())
  _, params, _ = training.load(tmp_path / "part_1", build=toy.build)
  assert params is not None
