"""Memorisation: the clock, losses, measurements, and the sweep of widths."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from experiments.memorization import (
  clock,
  defaults,
  digits,
  experiment,
  mixture,
  report,
  sweep,
)
from experiments.memorization import data as rows_lib
from jdiff import nets, sde, training
from jdiff.core.types import Pairs
from jdiff.methods import flow_matching
from jdiff.schedules import gaussian
from jdiff.targets import mixtures
from tests.experiments import memorizing
from tests.helpers import perturbed, variants
from tests.training import results


@pytest.mark.slow
@pytest.mark.parametrize("module, name", variants({"mixture": mixture}))
def test_a_variant_of_the_sweep_traces(module, name):
  config = module.get_config(name)
  point = config.sweep.dims[-1], config.sweep.widths[-1], config.sweep.sizes[0]
  memorizing.trace(sweep._part(config, *point))


# The clock.


def test_the_two_clocks_are_one_process():
  t_max = 5.0
  theirs, ours = gaussian.vp(t_max, t_max), gaussian.linear()
  time = jnp.geomspace(0.02, t_max, 7)
  t = clock.house_time(time)
  np.testing.assert_allclose(
    ours.log_snr(t), theirs.log_snr(time / t_max), atol=1e-5
  )
  # alpha of that process, by the paper's own formula.
  scale = jnp.hypot(t, 1 - t)
  np.testing.assert_allclose((1 - t) / scale, jnp.exp(-time / 2), rtol=1e-5)
  assert clock.stationary_scale(t_max) == pytest.approx(float(scale[-1]))
  assert float(t[0]) == pytest.approx(0.1244, abs=1e-4)
  times = clock.grid(4, 0.02, t_max)
  np.testing.assert_allclose(times[[0, 3, 4]], [t[-1], t[0], 0], rtol=1e-5)
  assert np.all(np.diff(times) < 0)


def test_laws_of_time():
  keys = jax.random.split(jax.random.key(0), 20_000)

  def drawn(law, beta=(0.8, 2.0)):
    t = np.asarray(jax.vmap(clock.draw_time(law, 0.02, 5.0, beta))(keys))
    time = np.log1p((t / (1 - t)) ** 2)
    assert time.min() > 0.0199 and time.max() < 5.01
    return (time - 0.02) / 4.98

  # Five standard errors, of deviations below 0.3.
  tolerance = 5 * 0.3 / 20_000**0.5
  assert drawn("uniform").mean() == pytest.approx(0.5, abs=tolerance)
  assert drawn("logit_normal").mean() == pytest.approx(0.5, abs=tolerance)
  assert drawn("beta").mean() == pytest.approx(2 / 7, abs=tolerance)
  assert drawn("beta", (1.0, 4.0)).mean() == pytest.approx(0.2, abs=tolerance)
  early = (drawn("log_uniform") * 4.98 + 0.02 < 0.1**0.5).mean()
  assert early == pytest.approx(0.5, abs=2 * tolerance)
  with pytest.raises(ValueError, match="config.time.law must be one of"):
    clock.draw_time("cosine", 0.02, 5.0)
  for bad in (0.0, 5.0):
    with pytest.raises(ValueError, match="config.time.t_min must be"):
      clock.draw_time("uniform", bad, 5.0)


# Losses.


def test_losses_are_errors_of_their_predictions():
  key_params, key, key_data = jax.random.split(jax.random.key(0), 3)
  network = nets.velocity_mlp(3, hidden=(8,))
  params = perturbed(jax.jit(network.init)(key_params), 0, 0.3)
  noise, data = jax.random.normal(key_data, (2, 6, 3))
  pairs = Pairs(noise, data)
  law = clock.draw_time("log_uniform", 0.02, 5.0)

  @jax.jit
  def found(params):
    return {
      name: experiment.make_loss(name, network.apply, law)(params, key, pairs)
      for name in experiment.LOSSES
    }

  @jax.jit
  def wanted(params):
    flow, _ = flow_matching.flow_matching(
      params, key, pairs, velocity_fn=network.apply, draw_time=law
    )
    # The same times, and the paper's process at them.
    keys, _ = flow_matching.prepare(key, pairs)
    t = flow_matching.times(keys, law, pairs)
    time = jnp.log1p((t / (1 - t)) ** 2)
    a, s = jnp.exp(-time / 2)[:, None], jnp.sqrt(-jnp.expm1(-time))[:, None]
    x = (1 - t)[:, None] * data + t[:, None] * noise
    clean = sde.denoised_from_velocity(network.apply(params, x, t), x, t)
    theirs = a * data + s * noise
    score = (a * clean - theirs) / s**2
    target = -(theirs - a * data) / s**2
    return {
      "velocity": flow,
      "data": jnp.mean((clean - data) ** 2, axis=1),
      "score": jnp.mean((target - score) ** 2, axis=1),
      "noise": jnp.mean((s * score + noise) ** 2, axis=1),
    }

  losses = found(params)
  for name, value in wanted(params).items():
    np.testing.assert_allclose(losses[name], value, rtol=1e-3)
  with pytest.raises(ValueError, match="config.loss must be one of"):
    experiment.make_loss("eps", network.apply, law)


# Measurements, of networks that are known.


def reporter(config, velocity_fn, dataset=None):
  rows = rows_lib.load(config, dataset)
  law = clock.draw_time("log_uniform", 0.02, 5.0)
  return report.Reporter(
    config,
    rows,
    velocity_fn,
    lambda fn: experiment.make_loss("noise", fn, law),
  )


def test_the_empirical_score_copies_and_held_out_rows_do_not():
  config = experiment.part(
    digits.get_config("cpu"), "exact", num_eval=64, num_train=24
  )
  exact = reporter(config, sde.empirical_velocity_fn(gaussian.linear()))
  found = exact.evaluate(exact.train, jax.random.key(0), final=True)
  assert found["memorised"] == {"value": 1.0, "se": 0.0}
  assert found["nearest_distance"]["value"] < 1e-4
  assert found["memorised_floor"]["value"] < 0.005
  assert found["memorised_half"]["value"] == 1
  # The same draws: no loss is lower.
  assert found["train_loss"]["value"] == pytest.approx(
    found["train_loss_least"]["value"], rel=1e-5
  )
  assert found["test_loss"]["value"] > 10 * found["train_loss"]["value"]
  assert "frechet_features" in found and "loss_gap" not in found


def test_the_true_score_does_not_copy():
  # Sizes of `short_sweep`, so that programs are shared.
  config = sweep._part(
    memorizing.short_sweep(**{"sampler.num_steps": 40}), 4, 8, 40
  )
  schedule = gaussian.linear()
  score_fn = mixtures.score_fn(schedule.alpha, schedule.sigma)

  def velocity(law, x, t):
    return sde.velocity_from_score(score_fn(law, x, t), x, t)

  exact = reporter(config, velocity)
  found = exact.evaluate(exact.rows.law, jax.random.key(0), final=True)
  assert found["loss_gap"]["value"] == pytest.approx(
    found["loss_gap_true"]["value"], rel=1e-3
  )
  assert 0.2 < found["loss_gap"]["value"] < 1.1
  for name in ("memorised", "memorised_half"):
    assert found[name]["value"] < 0.2
  # As near as two samples of the law are, up to the steps of the sampler.
  assert found["frechet"] < 0.1
  difference = found["test_loss"]["value"] - found["test_loss_true"]["value"]
  assert abs(difference) < 1e-4
  assert found["train_loss_least"]["value"] < found["train_loss"]["value"]


def test_a_share_and_its_error():
  config = experiment.part(memorizing.short(), "shares")
  dataset = memorizing.blobs()
  network = nets.dit(
    (4, 4, 1), patch_size=2, width=16, num_layers=1, num_heads=2
  )
  found = reporter(config, network.apply, dataset)
  train = dataset.train[:6]
  between = (train[:3] + train[3:]) / 2
  copies = found._copies(np.concatenate([train, between]))
  assert copies["memorised"]["value"] == pytest.approx(2 / 3)
  assert copies["memorised"]["se"] == pytest.approx((2 / 81) ** 0.5)
  np.testing.assert_array_equal(report.nearest(train + 0.01, train), train)


# The sweep.


@pytest.mark.thorough
def test_the_sweep(tmp_path):
  config = memorizing.short_sweep()
  built = sweep.build(config)
  found = training.run(built, config, tmp_path, progress=False)
  metrics = found["metrics"]
  for width in (8, 16):
    name = f"width_{width}_n_40"
    part = results.report(tmp_path / name)["metrics"]
    assert metrics[f"{name}/memorised"] == part["memorised"]
    assert metrics[f"{name}/loss_gap"] == part["loss_gap"]
    for of_rows in report.OF_THE_ROWS:
      assert metrics[f"n_40/{of_rows}"] == part[of_rows]
      assert f"{name}/{of_rows}" not in metrics
  assert (tmp_path / "figures" / "memorised.png").stat().st_size > 0
  apply, params, fields = training.load(tmp_path / "width_16_n_40")
  assert fields.net.hidden == (16, 16)
  assert apply(params, jnp.zeros((2, 4)), jnp.full(2, 0.5)).shape == (2, 4)
  assert training.run(built, config, tmp_path, progress=False) == found


def test_fewer_rows_are_the_first_of_more():
  config = memorizing.short_sweep(**{"sweep.dims": (3, 4)})
  few, more = (
    rows_lib.load(sweep._part(config, 4, 8, size)).dataset for size in (6, 40)
  )
  assert more.train.shape == (40, 4)
  np.testing.assert_array_equal(few.train, more.train[:6])
  np.testing.assert_array_equal(few.test, more.test)
  assert sweep._name(config, 4, 8, 6) == "width_8_n_6_dim_4"


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("sweep.widths", (), "config.sweep.widths must hold distinct"),
    ("sweep.sizes", (6, 6), "config.sweep.sizes must hold distinct"),
    ("sweep.sizes", (1, 6), "config.num_train must be >= 2"),
    ("sweep.dims", (0,), "config.sweep.dims must be >= 1"),
    ("data.separation", 0.0, "separation must be positive"),
    ("data.num_test", 0, "config.data.num_test must be >= 1"),
  ],
)
def test_bad_sweep(field, value, message):
  config = memorizing.short_sweep()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    sweep.build(config)


def test_gates_need_heads():
  fields = sweep._part(memorizing.short_sweep(), 4, 8, 40).to_dict()
  config = ml_collections.FrozenConfigDict({**fields, "gates": ((1,),)})
  with pytest.raises(ValueError, match="config.gates needs net.kind='dit'"):
    experiment.build(config)


def test_defaults_are_whole():
  config = defaults.base("experiments.memorization.arms", "digits")
  assert set(mixture.get_config().to_dict()) == {*config.to_dict(), "sweep"}
