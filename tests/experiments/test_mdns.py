"""The MDNS experiment end to end, on meshes, and in all its variants."""

import json

import jax
import numpy as np
import pytest

from experiments.common import plots
from experiments.mdns import experiment, ising, potts
from jdiff import training
from jdiff.training import program as program_lib
from tests.helpers import variants


@pytest.mark.parametrize(
  "module, name", variants({"ising": ising, "potts": potts})
)
def test_a_variant_traces(module, name):
  mesh = training.make_mesh(devices=jax.devices()[:1])
  config = module.get_config(name)
  program = program_lib.compile_experiment(training.build(config), mesh)
  with jax.set_mesh(mesh):
    state, metrics = jax.eval_shape(program.step, program.abstract, None)
  assert state.params.keys() == program.abstract.params.keys()
  assert {"loss", "ess_fraction", "log_z"} <= set(metrics)


def steps(config, num, devices):
  mesh = training.make_mesh(devices=jax.devices()[:devices])
  program = program_lib.compile_experiment(experiment.build(config), mesh)
  with jax.set_mesh(mesh):
    state = program.init(jax.random.key(0))
    for _ in range(num):
      state, metrics = jax.block_until_ready(program.step(state, None))
  return jax.device_get((state.params, metrics))


@pytest.mark.parametrize("loss", ["wdce", "rerf"])
def test_one_and_eight_devices_agree(loss):
  config = ising.get_config("smoke")
  config.net.hidden = (16, 16)
  config.batch_size = config.buffer.num_samples = 64
  config.loss = loss
  one, eight = (steps(config, 3, devices) for devices in (1, 8))
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
    # Adam divides by the gradient's size: float noise in, noise of its rate
    # (2e-3) out for entries near zero.
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
  "module, loss",
  [
    (ising, "wdce"),
    pytest.param(potts, "rerf", marks=pytest.mark.thorough),
    pytest.param(ising, "lv", marks=pytest.mark.thorough),
  ],
)
def test_short_run(module, loss, tmp_path):
  config = module.get_config("smoke")
  config.loss = loss
  config.num_steps = config.eval_every = config.checkpoint_every = 150
  config.batch_size = 128
  config.num_eval, config.eval_chunk, config.num_reference = 4096, 2048, 64
  config.mesh.data = 1
  training.run(training.build(config), config, tmp_path, progress=False)
  report = json.loads((tmp_path / "report.json").read_text())
  metrics = report["metrics"]
  log_z = metrics["log_z"]
  assert abs(log_z["value"] - log_z["exact"]) < 5 * log_z["se"]
  assert metrics["ess_fraction"]["value"] > 0.3
  assert metrics["elbo"]["value"] < log_z["exact"] + 3 * metrics["elbo"]["se"]
  assert metrics["eubo"]["value"] > log_z["exact"] - 3 * metrics["eubo"]["se"]
  figures = {p.name for p in (tmp_path / "figures").iterdir()}
  assert figures == {"correlation.png", "samples.png", "training.png"}
  apply, params, _ = training.load(tmp_path)
  samples = training.sample(tmp_path, 10)
  assert samples.shape == (10, 16) and callable(apply) and params


@pytest.mark.thorough
def test_smoke_meets_its_pass_line(tmp_path):
  config = ising.get_config("smoke")
  config.mesh.data = 1
  report = training.run(
    training.build(config), config, tmp_path, progress=False
  )
  metrics = report["metrics"]
  assert metrics["ess_fraction"]["value"] >= 0.85
  log_z = metrics["log_z"]
  assert abs(log_z["value"] - log_z["exact"]) <= 0.02
  m = metrics["abs_magnetisation"]
  assert abs(m["value"] - m["exact"]) <= 0.01


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("order", "left", "config.order must be one of"),
    ("loss", "kl", "config.loss must be one of"),
    ("net.kind", "cnn", "config.net.kind must be"),
    ("net.kind", "blocks", "needs an order with fixed blocks"),
    ("target.kind", "xy", "config.target.kind must be"),
    ("target.beta", float("nan"), "beta must be finite"),
    ("schedule", "linear", "config.schedule must be"),
    ("batch_size", 0, "batch_size"),
    ("num_eval", -1, "num_eval"),
    ("mask_law", "round", "config.mask_law must be one of"),
    ("ema_decay", 1.5, "config.ema_decay must lie in"),
    ("learning_rate", 0.0, "config.learning_rate must be positive"),
    ("buffer.capacity", 0, "config.buffer.capacity"),
  ],
)
def test_bad_config(field, value, message):
  config = ising.get_config("smoke")
  config.update_from_flattened_dict({field: value})
  if value == "blocks":
    config.loss, config.net.symmetric = "rerf", False
  with pytest.raises(ValueError, match=message):
    experiment.build(config)


def test_combinations_that_cannot_learn():
  config = ising.get_config("cpu")
  config.loss = "wdce"
  with pytest.raises(ValueError, match="pass a path loss such as 'rerf'"):
    experiment.build(config)
  config = ising.get_config("cpu")
  config.target.field = 0.1
  with pytest.raises(ValueError, match="cannot learn a field"):
    experiment.build(config)


def test_curves_leave_out_what_is_not_finite(tmp_path):
  history = [
    {"step": 1, "ess_fraction": 0.5, "eval/ess_fraction": None, "log_z": None},
    {"step": 2, "ess_fraction": 0.6, "eval/ess_fraction": 0.7},
  ]
  plots.training(tmp_path / "training.png", history, log_z=1.0)
  assert (tmp_path / "training.png").exists()
