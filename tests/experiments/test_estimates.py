"""Estimates of weighted draws against hand values."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import estimates


def test_of_weights():
  # Weights 1, 3 and 0: their mean is 4 / 3, and ess = 16 / 10 of 3 samples.
  log_w = np.array([0.0, np.log(3), -np.inf])
  found = estimates.of_weights(log_w, {"log_z": 0.5})
  assert found["log_z"]["exact"] == 0.5
  np.testing.assert_allclose(found["log_z"]["value"], np.log(4 / 3), rtol=1e-6)
  np.testing.assert_allclose(
    found["log_z"]["se"], ((3 / 1.6 - 1) / 3) ** 0.5, rtol=1e-6
  )
  np.testing.assert_allclose(found["ess_fraction"]["value"], 1.6 / 3, rtol=1e-6)
  # Zeros have no part in the bound; the other two lie log(3) apart.
  half = np.log(3) / 2
  np.testing.assert_allclose(found["elbo"]["value"], half, rtol=1e-6)
  np.testing.assert_allclose(found["elbo"]["se"], half / 2**0.5, rtol=1e-6)
  assert estimates.of_weights(log_w, {})["log_z"]["exact"] is None


def test_entry():
  assert estimates.entry(1, None, np.nan) == {
    "value": 1.0,
    "se": None,
    "exact": None,
  }
  assert estimates.entry(jnp.float32(1), 2, 0)["exact"] == 0.0


def test_of_observables():
  # Shares 1/4 and 3/4: the delta method's error is sqrt(sum w^2 (f - mean)^2).
  log_w = np.log([1.0, 3.0])
  observed = {
    "energy": np.array([0.0, 4.0]),
    "mean": np.array([[0.0, 1.0], [4.0, 1.0]]),
    "correlation": np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 7.0]]),
    "wide": np.zeros((2, estimates.MAX_ENTRIES + 1)),
  }
  exact = {"energy": 2.5, "mean": np.array([2.0, 1.0])}
  found = estimates.of_observables(log_w, observed, exact)
  assert set(found) == {
    *("energy", "energy_raw", "mean_0", "mean_1"),
    *("correlation_1", "correlation_3"),
  }

  def check(name, value, se, exact):
    got = found[name]
    np.testing.assert_allclose(got["value"], value, rtol=1e-6)
    np.testing.assert_allclose(got["se"], se, rtol=1e-6, atol=1e-7)
    assert got["exact"] == exact

  spread = ((1 / 4 * 3) ** 2 + (3 / 4 * 1) ** 2) ** 0.5
  check("energy", 3.0, spread, 2.5)
  # The plain average, with the error of a plain average.
  check("energy_raw", 2.0, 2 / 2**0.5, 2.5)
  check("mean_0", 3.0, spread, 2.0)
  check("mean_1", 1.0, 0.0, 1.0)
  check("correlation_1", 1.0, 0.0, None)
  check("correlation_3", 6.0, spread, None)


def shares(counts, log_w=None, truth=None):
  """`mode_share` of draws that fell into modes so many times."""
  modes = np.repeat(np.eye(len(counts)), counts, axis=0)
  exact = {} if truth is None else {"mode_share": np.asarray(truth)}
  log_w = np.zeros(len(modes)) if log_w is None else log_w
  return estimates.of_observables(log_w, {"mode_share": modes}, exact)


def test_modes_of_even_weights():
  found = shares([60, 40], truth=[0.5, 0.5])
  assert found["mode_share_0"]["exact"] == 0.5
  np.testing.assert_allclose(found["mode_share_0"]["value"], 0.6, rtol=1e-6)
  np.testing.assert_allclose(found["mode_share_0_raw"]["value"], 0.6, rtol=1e-6)
  np.testing.assert_allclose(found["mode_share_min"]["value"], 0.4, rtol=1e-6)
  assert found["mode_share_min"]["exact"] == 0.5
  # sqrt(0.24 / 100) is below the binomial error of the exact share, 0.05.
  np.testing.assert_allclose(
    found["mode_share_worst_z"]["value"], 0.1 / 0.05, rtol=1e-5
  )
  assert found["modes_lost"] == {"value": 0.0, "se": None, "exact": 0.0}


def test_lost_modes():
  # 4 of 100 draws where 50 belong are lost, 6 are not: a tenth is the line.
  assert shares([96, 4], truth=[0.5, 0.5])["modes_lost"]["value"] == 1
  assert shares([94, 6], truth=[0.5, 0.5])["modes_lost"]["value"] == 0
  # A mode never drawn has no error of its own: the exact share's is taken.
  found = shares([50, 0, 50], truth=[0.3, 0.4, 0.3])
  assert found["modes_lost"]["value"] == 1
  assert found["mode_share_1"]["se"] == 0
  want = 0.4 / (0.4 * 0.6 / 100) ** 0.5
  np.testing.assert_allclose(
    found["mode_share_worst_z"]["value"], want, rtol=1e-5
  )


def test_weights_repair_shares_but_not_what_is_lost():
  # Weights that make 2 of 100 draws count for half: reweighted shares are
  # right, and the sampler itself has lost a mode nonetheless.
  log_w = np.where(np.arange(100) < 98, 0.0, np.log(49))
  found = shares([98, 2], log_w, truth=[0.5, 0.5])
  np.testing.assert_allclose(found["mode_share_min"]["value"], 0.5, rtol=1e-5)
  np.testing.assert_allclose(
    found["mode_share_min_raw"]["value"], 0.02, rtol=1e-5
  )
  assert found["modes_lost"]["value"] == 1
  assert found["mode_share_worst_z"]["value"] < 1e-3


@pytest.mark.parametrize("truth", [None, np.full(9, 1 / 9)])
def test_many_modes_are_told_by_their_extremes(truth):
  found = shares([10] * 9, truth=truth)
  known = {"mode_share_worst_z", "modes_lost"} if truth is not None else set()
  assert set(found) == {"mode_share_min", "mode_share_min_raw"} | known
  assert (found["mode_share_min"]["exact"] is None) == (truth is None)
