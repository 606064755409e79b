import json

import jax
import numpy as np
import pytest

from jdiff import training
from tests.training import results, toy


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp("run")
  results.run(toy.build(toy.CONFIG), toy.CONFIG, path)
  return path


def test_load_returns_what_was_evaluated(workdir):
  apply, params, config = training.load(workdir)
  report = json.loads((workdir / "report.json").read_text())
  first = report["metrics"]["first_weight"]["value"]
  assert float(params["w"][0]) == first
  np.testing.assert_allclose(
    apply(params, np.eye(4, dtype=np.float32)), params["w"]
  )
  assert config.num_steps == 30 and config.mesh.data == 1
  assert list(params["w"].devices()) == [jax.devices()[0]]


def test_load_takes_a_build_and_a_mesh(workdir):
  seen = []

  def build(config):
    seen.append(config)
    return toy.build(config)._replace(params=lambda state: state.params)

  mesh = training.make_mesh(8, 1)
  _, raw, config = training.load(workdir, build=build, mesh=mesh)
  assert seen == [config]
  assert len(raw["w"].devices()) == 8
  assert not np.array_equal(raw["w"], training.load(workdir)[1]["w"])


def test_evaluate_gives_the_same_report(workdir, capsys):
  path = workdir / "report.json"
  before, records = path.read_text(), results.metrics(workdir)
  path.unlink()
  report = training.evaluate(workdir)
  again = json.loads(path.read_text())
  assert report == again
  assert again["metrics"] == json.loads(before)["metrics"]
  assert again["steps"] == 30
  assert results.metrics(workdir) == records
  assert "error in SE" in capsys.readouterr().out


def test_sample_is_written_and_repeatable(workdir):
  samples = training.sample(workdir, 5)
  assert samples.shape == (5, 4)
  np.testing.assert_array_equal(np.load(workdir / "samples.npy"), samples)
  np.testing.assert_array_equal(training.sample(workdir, 5), samples)


def test_tuples_come_back_as_tuples(tmp_path):
  config = toy.config(num_steps=2, sizes=(1, (2, 3)))
  results.run(toy.build(config), config, tmp_path)
  assert training.load(tmp_path)[2].sizes == (1, (2, 3))


def test_what_is_missing_is_said(workdir, tmp_path):
  with pytest.raises(ValueError, match="holds no run: there is no config.json"):
    training.load(tmp_path)
  (tmp_path / "config.json").write_text(json.dumps(toy.CONFIG))
  with pytest.raises(ValueError, match="holds no checkpoint yet"):
    training.load(tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["config.json"]

  def build(config):
    return toy.build(config)._replace(sample=None)

  with pytest.raises(ValueError, match="toy has no sample function"):
    training.sample(workdir, 5, build=build)
  with pytest.raises(ValueError, match="num_samples must be >= 1"):
    training.sample(workdir, 0)


@pytest.mark.parametrize(
  "name, message",
  [
    ("no.such.module", "no module of that name is found"),
    ("tests.training.results", "a module without build"),
  ],
)
def test_build_names_what_is_wrong(name, message):
  with pytest.raises(ValueError, match=message):
    training.build(toy.config(experiment=name))
