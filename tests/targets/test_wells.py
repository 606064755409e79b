"""Many wells against quadrature and their own draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jdiff.targets import wells

CASES = {
  "mw54": lambda: wells.many_well(),
  "tilted": lambda: wells.many_well(3, 2, delta=2.0, tilt=0.4, beta=0.7),
  "pairs": lambda: wells.many_well_pairs(4),
  "dozen": lambda: wells.many_well(12, delta=1.0),
}


def moment(well, function=lambda x: 1.0, low=-8.0, high=8.0):
  """Integral of `exp(well) function`, split where it bends."""
  points = [p for p in (-1.7, 0.0, 1.7) if low < p < high]
  value, error = integrate.quad(
    lambda x: np.exp(well(x)) * function(x),
    low,
    high,
    points=points,
    epsabs=1e-13,
    epsrel=1e-13,
    limit=500,
  )
  assert error < 1e-9 * max(abs(value), 1)
  return value


def z_scores(values, want):
  values = np.float64(values)
  error = values.std(axis=0) / len(values) ** 0.5
  return (values.mean(axis=0) - want) / error


def test_published_values():
  answer = wells.many_well().exact()
  np.testing.assert_allclose(answer["log_z"], -0.5410555129, atol=1e-9)
  np.testing.assert_allclose(answer["squared_norm"] / 5, 3.934104642, rtol=1e-9)
  np.testing.assert_allclose(answer["magnitude"], 1.975015088, rtol=1e-8)
  np.testing.assert_allclose(answer["mode_share"], 1 / 32, rtol=1e-12)
  pair = wells.many_well_pairs(2)
  log_z = np.log(11784.509265) + 0.5 * np.log(2 * np.pi)
  np.testing.assert_allclose(pair.log_z, log_z, rtol=1e-10)
  np.testing.assert_allclose(pair.exact()["positive"], 0.844307096, atol=1e-9)
  want = [1 - 0.844307096, 0.844307096]
  np.testing.assert_allclose(pair.exact()["mode_share"], want, atol=1e-9)
  many = wells.many_well_pairs(32)
  np.testing.assert_allclose(many.log_z, 164.695675, atol=1e-6)
  assert "mode_share" not in many.exact()


@pytest.mark.parametrize(
  ("target", "wells_at", "log_density", "precision"),
  [
    (
      CASES["tilted"](),
      [0, 1],
      lambda x: -0.7 * ((x**2 - 2) ** 2 - 0.4 * x),
      0.7,
    ),
    (CASES["pairs"](), [0, 2], lambda x: 0.5 * x + 6 * x**2 - x**4, 1.0),
  ],
)
def test_against_quadrature(target, wells_at, log_density, precision):
  others = [i for i in range(target.dim) if i not in wells_at]
  x = 2 * np.random.default_rng(0).normal(size=(20, target.dim))
  with jax.enable_x64(True):
    got = jax.jit(jax.vmap(target.log_prob))(jnp.asarray(x))
  want = log_density(x[:, wells_at]).sum(axis=1)
  want = want - 0.5 * precision * (x[:, others] ** 2).sum(axis=1)
  np.testing.assert_allclose(got, want, rtol=1e-12)
  mass = moment(log_density)
  answer = target.exact()
  num, rest = len(wells_at), len(others)
  log_z = num * np.log(mass) + rest * 0.5 * np.log(2 * np.pi / precision)
  np.testing.assert_allclose(target.log_z, log_z, rtol=1e-12)
  assert answer["log_z"] == target.log_z

  def mean(function, low=-8.0):
    return moment(log_density, function, low) / mass

  square = num * mean(lambda x: x**2) + rest / precision
  np.testing.assert_allclose(answer["squared_norm"], square, rtol=1e-11)
  np.testing.assert_allclose(
    answer["mean"][wells_at], mean(lambda x: x), rtol=1e-11
  )
  assert not answer["mean"][others].any()
  np.testing.assert_allclose(answer["magnitude"], mean(np.abs), rtol=1e-7)
  share = mean(lambda x: 1.0, 0.0)
  np.testing.assert_allclose(answer["positive"], share, rtol=1e-7)
  modes = [(1 - share) ** 2, share * (1 - share), share * (1 - share), share**2]
  np.testing.assert_allclose(answer["mode_share"], modes, rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_samples(case):
  target = CASES[case]()
  num = 20_000

  @jax.jit
  def run(key):
    x = target.sample(key, num)
    return x, target.sample(key, 3), jax.vmap(target.observables)(x)

  with jax.debug_key_reuse(True):
    x, few, values = jax.device_get(run(jax.random.key(0)))
  assert x.shape == (num, target.dim) and x.dtype == np.float32
  np.testing.assert_array_equal(x[:3], few)
  answer = target.exact()
  assert set(answer) - {"log_z"} == set(values)
  for name, value in values.items():
    assert (np.abs(z_scores(value, answer[name])) < 4.5).all(), name
  # Control: equal modes are not the tilted ones.
  if case in ("tilted", "pairs"):
    assert np.abs(z_scores(values["positive"], 0.5)).min() > 20
  correlation = np.corrcoef(x.T) - np.eye(target.dim)
  assert np.abs(correlation).max() < 4.5 / num**0.5


def test_law_of_the_draws():
  target = wells.many_well(1, tilt=0.1)

  def well(x):
    return -((x**2 - 4) ** 2) + 0.1 * x

  x = jax.jit(lambda key: target.sample(key, 100_000))(jax.random.key(1))
  grid = np.linspace(-4, 4, 200_001)
  below = integrate.cumulative_simpson(np.exp(well(grid)), x=grid, initial=0)
  cdf = lambda x: np.interp(x, grid, below / below[-1])  # noqa: E731
  x = np.float64(x)[:, 0]
  assert stats.kstest(x, cdf).pvalue > 1e-3
  # Control: a hundredth of a well's width is seen.
  assert stats.kstest(x + 0.01, cdf).pvalue < 1e-6


@pytest.mark.parametrize(("delta", "beta"), [(4.0, 1.0), (1.0, 1e-3), (30, 99)])
def test_the_table_is_fine_enough(delta, beta):
  def well(x):
    return -beta * (x**2 - delta) ** 2

  edges, mass, _ = wells._table(well, delta, 0.0, beta)
  centre, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
  # What float32 makes of the cells' masses, and uniform places within them.
  rounded = np.diff(np.float64(np.float32(np.cumsum(mass))), prepend=0)
  peak = delta**0.5
  points = dict(points=[peak], limit=500, epsrel=1e-12)

  def half(function):
    return integrate.quad(
      lambda x: np.exp(well(x)) * function(x), 0, edges[-1], **points
    )[0]

  want = half(lambda x: x**2) / half(lambda x: 1.0)
  got = rounded @ (centre**2 + width**2 / 12) / rounded.sum()
  np.testing.assert_allclose(got, want, rtol=1e-6)
  np.testing.assert_allclose(rounded @ (centre > 0), 0.5, atol=1e-6)


def test_modes_are_told_apart():
  target = wells.many_well(3, 2)
  x = jnp.array([[-2.0, -2, 1], [2, -2, 1], [-2, 2, -1], [2, 2, -1]])
  share = jax.vmap(target.observables)(x)["mode_share"]
  np.testing.assert_array_equal(share, np.eye(4))


@pytest.mark.parametrize(
  ("make", "error", "message"),
  [
    (lambda: wells.many_well(0), ValueError, "dim must be"),
    (lambda: wells.many_well(2.0), TypeError, "dim must be an integer"),
    (lambda: wells.many_well(2, 3), ValueError, "at most dim=2, got 3"),
    (lambda: wells.many_well(2, 0), ValueError, "num_wells must be"),
    (lambda: wells.many_well(delta=0.0), ValueError, "delta must be positive"),
    (lambda: wells.many_well(beta=-1.0), ValueError, "beta must be positive"),
    (lambda: wells.many_well(tilt=np.inf), ValueError, "tilt must be finite"),
    (lambda: wells.many_well(delta=1e3), ValueError, "at most 1e5"),
    (lambda: wells.many_well_pairs(3), ValueError, "dim must be even, got 3"),
    (
      lambda: wells.many_well().log_prob(jnp.ones((2, 5))),
      ValueError,
      r"x must have shape \[5\].*jax.vmap",
    ),
  ],
)
def test_bad_arguments(make, error, message):
  with pytest.raises(error, match=message):
    make()
