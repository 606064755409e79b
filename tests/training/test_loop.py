import json
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import training
from tests.training import results, toy


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An uninterrupted run that resumed ones are held against."""
  workdir = tmp_path_factory.mktemp("whole")
  report = results.run(toy.build(toy.CONFIG), toy.CONFIG, workdir)
  return workdir, report


def failing_at(experiment, step, fail):
  """The experiment, calling `fail` before the given step, once."""
  calls = []

  def batches(index):
    if index == step and not calls:
      calls.append(index)
      fail()
    return experiment.batches(index)

  return experiment._replace(batches=batches)


def test_run_writes_its_files(whole):
  workdir, report = whole
  assert report == json.loads((workdir / "report.json").read_text())
  assert report.keys() == {
    "experiment",
    "name",
    "variant",
    "seed",
    "steps",
    "nfe",
    "wall_seconds",
    "metrics",
  }
  assert (report["steps"], report["nfe"]) == (30, 1)
  assert report["metrics"].keys() == {"mse", "first_weight"}
  assert report["metrics"]["first_weight"]["se"] is None
  records = results.metrics(workdir)
  assert [r["step"] for r in records] == [5, 10, 10, 15, 20, 20, 25, 30, 30]
  assert "eval/mse_se" in records[2]
  assert records[-1]["eval/mse"] == report["metrics"]["mse"]["value"]
  assert (workdir / "figures" / "curve.png").read_text() == "9"
  config = json.loads((workdir / "config.json").read_text())
  assert config == toy.CONFIG


def test_loss_falls(whole):
  losses = [r["loss"] for r in results.metrics(whole[0]) if "loss" in r]
  assert losses[-1] < 0.5 * losses[0]


def test_finished_run_is_only_reported(whole, capsys):
  workdir, report = whole

  def fail(*args):
    raise AssertionError

  experiment = toy.build(toy.CONFIG)._replace(step=fail, evaluate=fail)
  assert training.run(experiment, toy.CONFIG, workdir) == report
  out = capsys.readouterr().out
  assert "error in SE" in out and "mse" in out


def test_resume_after_an_exception_is_bitwise(whole, tmp_path):
  def fail():
    raise RuntimeError("the machine is gone")

  broken = failing_at(toy.build(toy.CONFIG), 17, fail)
  with pytest.raises(RuntimeError, match="gone"):
    results.run(broken, toy.CONFIG, tmp_path)
  # The newest checkpoint is 12, so the record of step 15 is written twice.
  assert [r["step"] for r in results.metrics(tmp_path)][-1] == 15
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 16, "lo')
  results.run(broken, toy.CONFIG, tmp_path)
  results.assert_same_run(whole[0], tmp_path)


@pytest.mark.parametrize(
  "number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_signal_saves_and_resumes_bitwise(
  whole, tmp_path, capsys, number, code
):
  if threading.current_thread() is not threading.main_thread():
    pytest.skip("signals reach the main thread alone")
  handler = signal.getsignal(number)
  experiment = failing_at(
    toy.build(toy.CONFIG), 13, lambda: os.kill(os.getpid(), number)
  )
  with pytest.raises(SystemExit) as info:
    results.run(experiment, toy.CONFIG, tmp_path)
  assert info.value.code == code
  assert "saved after step 14" in capsys.readouterr().err
  assert (tmp_path / "checkpoints" / "14").is_dir()
  assert signal.getsignal(number) is handler
  results.run(experiment, toy.CONFIG, tmp_path)
  results.assert_same_run(whole[0], tmp_path)


@pytest.mark.parametrize("at_end", [False, True])
def test_a_signal_ends_an_evaluation(whole, tmp_path, at_end):
  if threading.current_thread() is not threading.main_thread():
    pytest.skip("signals reach the main thread alone")
  experiment = toy.build(toy.CONFIG)

  def evaluate(params, key, *, final):
    if final == at_end:
      os.kill(os.getpid(), signal.SIGTERM)
      raise AssertionError("the evaluation went on")
    return experiment.evaluate(params, key, final=final)

  with pytest.raises(SystemExit):
    results.run(experiment._replace(evaluate=evaluate), toy.CONFIG, tmp_path)
  results.run(experiment, toy.CONFIG, tmp_path)
  results.assert_same_run(whole[0], tmp_path)


def test_another_config_is_refused(whole):
  config = toy.config(learning_rate=0.1, width=8)
  with pytest.raises(ValueError) as info:
    results.run(toy.build(config), config, whole[0])
  text = str(info.value)
  assert "learning_rate (0.05 there, 0.1 here)" in text
  assert "width (4 there, 8 here)" in text
  assert "seed" not in text


@pytest.mark.parametrize(
  "changes, kind, message",
  [
    ({"num_steps": 0}, ValueError, "config.num_steps must be >= 1, got 0"),
    ({"log_every": 2.5}, TypeError, "config.log_every must be an integer"),
    ({"seed": -1}, ValueError, "config.seed must be >= 0, got -1"),
    ({"name": 3}, TypeError, "config.name must be a string"),
    ({"mesh": {"data": 1}}, ValueError, "config.mesh must hold"),
    ({"mesh": {"data": 16, "fsdp": 1}}, ValueError, "needs 16 devices"),
    ({"width": len}, TypeError, "config must hold JSON values"),
  ],
)
def test_bad_configs_are_refused(tmp_path, changes, kind, message):
  experiment = toy.build(toy.CONFIG)
  with pytest.raises(kind, match=message):
    results.run(experiment, toy.config(**changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_missing_fields_are_named(tmp_path):
  config = {k: v for k, v in toy.CONFIG.items() if k not in ("seed", "mesh")}
  with pytest.raises(ValueError, match="config lacks seed, mesh"):
    results.run(toy.build(toy.CONFIG), config, tmp_path)


def test_nan_aborts_and_keeps_the_last_good_checkpoint(tmp_path):
  # Step 8 poisons the parameters, but its loss was still finite: the next
  # log step (10) sees a NaN loss, the next save would be at 12.
  config = toy.config(nan_step=8)
  for _ in range(2):  # Seen again, as the error says.
    with pytest.raises(training.NonFiniteError) as info:
      results.run(toy.build(config), config, tmp_path)
    assert "metric loss is nan at step 10" in str(info.value)
    assert "goes on from the checkpoint of step 6" in str(info.value)
  assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["6"]
  _, params, _ = training.load(tmp_path)
  assert np.all(np.isfinite(params["w"]))


def test_the_first_nan_is_found_where_the_error_says(tmp_path):
  config = toy.config(nan_step=8)
  with jax.debug_nans(True), pytest.raises(FloatingPointError, match="(nan)"):
    results.run(toy.build(config), config, tmp_path)


def test_nan_parameters_are_never_saved(tmp_path):
  # The step of the save itself: its loss is finite, its parameters are not.
  config = toy.config(nan_step=12)
  with pytest.raises(training.NonFiniteError, match="params .* at step 12"):
    results.run(toy.build(config), config, tmp_path)
  assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["6"]


def test_collect_and_host_feed_the_step(tmp_path):
  base = toy.build(toy.CONFIG)
  seen = []

  def collect(state, batch):
    key = training.step_key(state)
    return state, jax.random.normal(key, (4,)) + batch[:4, 0]

  def host(rollout):
    assert isinstance(rollout, np.ndarray)
    seen.append(rollout)
    return {"reward": rollout**2}

  def step(state, batch):
    rollout, arrays = batch
    reward = arrays["reward"].mean()
    error = jnp.abs(rollout**2 - arrays["reward"]).max()
    state = state._replace(step=state.step + 1)
    return state, {"reward": reward, "error": error}

  experiment = base._replace(collect=collect, host=host, step=step)
  config = toy.config(num_steps=6, log_every=1)
  results.run(experiment, config, tmp_path)
  records = [r for r in results.metrics(tmp_path) if "reward" in r]
  assert len(records) == len(seen) == 6
  assert len({r["reward"] for r in records}) == 6
  for record, rollout in zip(records, seen, strict=True):
    assert record["error"] < 1e-6
    np.testing.assert_allclose(record["reward"], np.mean(rollout**2), rtol=1e-6)


def test_step_and_batch_are_optional(tmp_path):
  def step(state, batch):
    assert batch is None
    return state._replace(step=state.step + 1), {}

  experiment = toy.build(toy.CONFIG)._replace(
    step=step, batches=None, figures=None
  )
  report = results.run(experiment, toy.config(num_steps=2), tmp_path)
  assert report["steps"] == 2


@pytest.mark.parametrize(
  "step, kind, message",
  [
    (lambda s, b: (s, {}), ValueError, "advance state.step by one, found 0"),
    (
      lambda s, b: (s._replace(step=s.step + 1.0), {}),
      TypeError,
      r"step turned from int32\[\] into float32\[\]",
    ),
    (lambda s, b: (s, {"x": jnp.ones(3)}), ValueError, "metric 'x' must have"),
    (lambda s, b: (s, {"step": 1.0}), ValueError, "'step' is reserved"),
    (lambda s, b: (s.params, {}), TypeError, "must return a TrainState first"),
  ],
)
def test_bad_steps_are_refused(tmp_path, step, kind, message):
  experiment = toy.build(toy.CONFIG)._replace(step=step)
  with pytest.raises(kind, match=message):
    results.run(experiment, toy.CONFIG, tmp_path)


def test_bad_experiments_are_refused(tmp_path):
  experiment = toy.build(toy.CONFIG)
  with pytest.raises(ValueError, match="must have collect"):
    results.run(experiment._replace(host=len), toy.CONFIG, tmp_path)
  with pytest.raises(TypeError, match="init must return a TrainState"):
    results.run(experiment._replace(init=lambda key: {}), toy.CONFIG, tmp_path)


def test_evaluations_are_checked(tmp_path):
  experiment = toy.build(toy.CONFIG)._replace(
    evaluate=lambda params, key, *, final: {"x": {"estimate": 1.0}}
  )
  with pytest.raises(TypeError, match="'x' must be a number or hold value"):
    results.run(experiment, toy.CONFIG, tmp_path)


def test_settings_are_restored(whole):
  del whole
  assert jax.config.jax_compilation_cache_dir is None
  assert jax.sharding.get_abstract_mesh().empty


def test_each_function_is_traced_once(tmp_path):
  traces = []
  base = toy.build(toy.CONFIG)

  def step(state, batch):
    traces.append(0)
    return base.step(state, batch)

  def init(key):
    # A weak type in the state would make the second step compile again.
    return base.init(key)._replace(extra=jnp.where(True, 1.0, 2.0))

  def weak_step(state, batch):
    state, metrics = step(state, batch)
    return state._replace(extra=jnp.float32(3)), metrics

  experiment = base._replace(init=init, step=weak_step)
  results.run(experiment, toy.config(num_steps=4), tmp_path)
  assert len(traces) == 1
