"""The constrained-sampling experiment end to end, and in all its variants."""

import jax
import numpy as np
import pytest

from experiments.olla import (
  data,
  experiment,
  fair_bnn,
  polymer,
  stress,
  toys,
)
from jdiff import training
from jdiff.training import program as program_lib
from tests.helpers import variants
from tests.training import results

MODULES = {
  "toys": toys,
  "stress": stress,
  "polymer": polymer,
  "fair_bnn": fair_bnn,
}

# A run and the one that repeats it are the same programs.
pytestmark = pytest.mark.usefixtures("compile_cache")

# Its exact answers are quadratures that take half a minute.
SLOW_POD = variants({"toys": toys}, first=("smoke",))
OTHERS = variants({k: m for k, m in MODULES.items() if m is not toys})


@pytest.mark.parametrize("module, name", SLOW_POD + OTHERS)
def test_a_variant_traces(module, name):
  mesh = training.make_mesh(devices=jax.devices()[:1])
  config = module.get_config(name)
  program = program_lib.compile_experiment(training.build(config), mesh)
  with jax.set_mesh(mesh):
    state, metrics = jax.eval_shape(program.step, program.abstract, None)
  assert state.params.shape[0] == config.num_chains
  assert {"eq_violation", "status_ok"} <= set(metrics)


def short(config):
  config.num_chains, config.num_steps, config.thinning = 64, 40, 10
  config.eval_every, config.checkpoint_every = 20, 20
  return config


def on_one_device(variant="smoke"):
  config = short(toys.get_config(variant))
  config.mesh.data = 1
  return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The folder of a finished run."""
  workdir, config = tmp_path_factory.mktemp("whole"), on_one_device()
  training.run(training.build(config), config, workdir, progress=False)
  return workdir


def test_toys(whole):
  check_run(whole, is_toy=True)


@pytest.mark.thorough
@pytest.mark.parametrize(
  "variant, sampler", [("smoke", "projected"), ("star", "olla")]
)
def test_other_toys(variant, sampler, tmp_path):
  config = on_one_device(variant)
  config.kernel = sampler
  training.run(training.build(config), config, tmp_path, progress=False)
  check_run(tmp_path, is_toy=True)


def test_stress(tmp_path):
  config = short(stress.get_config("smoke"))
  config.kernel, config.step_size, config.mesh.data = "hmc", 0.2, 1
  training.run(training.build(config), config, tmp_path, progress=False)
  check_run(tmp_path, is_toy=False)


def check_run(workdir, *, is_toy):
  metrics = results.report(workdir)["metrics"]
  for name, entry in metrics.items():
    if entry["exact"] is not None:
      # 64 chains started from the exact law or near it.
      error = abs(entry["value"] - entry["exact"])
      assert error < 5 * entry["se"] + 0.01, name
  assert metrics["eq_violation"]["value"] < 0.1
  figures = {p.name for p in (workdir / "figures").iterdir()}
  assert "estimates.png" in figures
  assert ("samples.png" in figures) == is_toy
  assert training.sample(workdir, 10).shape[0] == 10
  with pytest.raises(ValueError, match="at most the 64 chains"):
    training.sample(workdir, 65)


def test_one_and_eight_devices_agree():
  def final(devices):
    config = short(toys.get_config("cap"))
    mesh = training.make_mesh(devices=jax.devices()[:devices])
    program = program_lib.compile_experiment(experiment.build(config), mesh)
    with jax.set_mesh(mesh):
      state = program.init(jax.random.key(0))
      for _ in range(3):
        state, metrics = jax.block_until_ready(program.step(state, None))
    return jax.device_get((state.params, metrics))

  for a, b in zip(
    jax.tree.leaves(final(1)), jax.tree.leaves(final(8)), strict=True
  ):
    # Float noise of 30 steps of a chaotic walk with a switch at the boundary.
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_resumed_run_ends_the_same(whole, tmp_path):
  config = on_one_device()
  built = training.build(config)

  with pytest.raises(RuntimeError, match="stopped here"):

    def evaluate(params, key, *, final):
      raise RuntimeError("stopped here")

    training.run(
      built._replace(evaluate=evaluate), config, tmp_path, progress=False
    )
  again = training.run(built, config, tmp_path, progress=False)
  assert again["metrics"] == results.report(whole)["metrics"]


def test_held_out_rows_stay_out():
  train, test = data.diabetes()
  assert len(train[0]) + len(test[0]) == 442
  rows = {row.tobytes() for row in train[0]}
  assert not any(row.tobytes() in rows for row in test[0])
  # Standardised by the training rows alone.
  np.testing.assert_allclose(train[0].mean(axis=0), 0, atol=1e-5)
  assert np.abs(test[0].mean(axis=0)).max() > 1e-2


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("kernel", "nuts", "config.kernel must be"),
    ("target.kind", "klein", "config.target.kind must be one of"),
    ("landing", 2.5, r"must lie in \(0, 2\)"),
    ("step_size", -1.0, "step_size must be positive"),
    ("burn_in", 1.0, "config.burn_in must lie in"),
    ("num_chains", 0, "config.num_chains"),
    ("epsilon", -0.1, "config.epsilon must be >= 0"),
  ],
)
def test_bad_config(field, value, message):
  config = toys.get_config("smoke")
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    experiment.build(config)


def test_bad_target_arguments():
  config = toys.get_config("smoke")
  with config.unlocked():
    config.target.radius = 2.0
  with pytest.raises(ValueError, match="config.target does not fit 'circle'"):
    experiment.build(config)
  config = toys.get_config("ball")
  config.kernel = "projected"
  with pytest.raises(ValueError, match="needs equalities"):
    experiment.build(config)
