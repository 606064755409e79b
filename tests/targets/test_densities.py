"""The funnel and the mixtures against SciPy and their own draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from jdiff.targets import densities

WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[-4.0, 1.0], [0.5, -3.0], [6.0, 2.0]])


def z_scores(values, want):
  values = np.float64(values)
  error = values.std(axis=0) / len(values) ** 0.5
  return (values.mean(axis=0) - want) / error


def draws(target, num):
  """Samples and observables, all in agreement with what is known exactly."""

  @jax.jit
  def run(key):
    x = target.sample(key, num)
    return x, target.sample(key, 3), jax.vmap(target.observables)(x)

  with jax.debug_key_reuse(True):
    x, few, values = jax.device_get(run(jax.random.key(0)))
  assert x.shape == (num, *target.shape) and x.dtype == np.float32
  np.testing.assert_allclose(x[:3], few, rtol=1e-5)
  answer = target.exact()
  assert answer["log_z"] == target.log_z
  assert set(answer) - {"log_z"} == set(values)
  for name, value in values.items():
    assert (np.abs(z_scores(value, answer[name])) < 4.5).all(), name
  return x, values


def test_funnel_density():
  target = densities.funnel(4, scale=2.0)
  x = np.random.default_rng(0).normal(size=(9, 4)) * [3, 2, 1, 5]
  with jax.enable_x64(True):
    got = jax.jit(jax.vmap(target.log_prob))(jnp.asarray(x))
  want = stats.norm(0, 2).logpdf(x[:, 0])
  want += stats.norm(0, np.exp(x[:, :1] / 2)).logpdf(x[:, 1:]).sum(axis=1)
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_funnel_draws():
  target = densities.funnel()
  assert target.dim == 10
  x, values = draws(target, 20_000)
  assert stats.kstest(x[:, 0] / 3, "norm").pvalue > 1e-3
  # In the neck, where float32 is tried most.
  deep = x[x[:, 0] < -6]
  assert stats.kstest(deep[:, 1] / np.exp(deep[:, 0] / 2), "norm").pvalue > 1e-3
  # Control: the funnel of another scale.
  other = densities.funnel(scale=2.5).exact()
  assert np.abs(z_scores(values["magnitude"], other["magnitude"])) > 4.5
  assert np.abs(z_scores(values["depth_squared"], other["depth_squared"])) > 9


def test_funnel_is_finite_far_out():
  target = densities.funnel()
  x = jnp.zeros((3, 10)).at[:, 0].set(jnp.array([-60.0, 0, 150]))
  x = x.at[:, 1:].set(1e-3)
  run = jax.jit(jax.vmap(jax.value_and_grad(target.log_prob)))
  value, slope = run(x)
  assert np.isfinite(value).all() and np.isfinite(slope).all()


def test_gmm40():
  target = densities.gmm40(jax.random.key(3), 2, box=5.0, variance=0.3)
  x, _ = draws(target, 10_000)
  np.testing.assert_allclose(target.exact()["mode_share"], 1 / 40, rtol=1e-5)
  assert np.abs(x).max() < 5 + 5 * 0.3**0.5
  axis = np.linspace(-8, 8, 161)
  points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
  with jax.enable_x64(True):
    log_prob = jax.jit(jax.vmap(target.log_prob))(jnp.asarray(points))
  mass = np.exp(log_prob).sum() * (axis[1] - axis[0]) ** 2
  np.testing.assert_allclose(mass, 1, rtol=1e-6)
  # The means are the key's.
  same = densities.gmm40(jax.random.key(3), 2, box=5.0, variance=0.3)
  other = densities.gmm40(jax.random.key(4), 2, box=5.0, variance=0.3)
  assert same.log_prob(x[0]) == target.log_prob(x[0])
  assert other.log_prob(x[0]) != target.log_prob(x[0])


@pytest.mark.parametrize("degrees", [2.0, 5.5])
def test_student_density(degrees):
  target = densities.student_mixture(
    10 * WEIGHTS, MEANS, degrees=degrees, log_z=0.7
  )
  x = np.float64([[0.0, 0.0], [3.0, -50.0], [-4.0, 1.0], [1e6, -1e4]])
  with jax.enable_x64(True):
    got = jax.jit(jax.vmap(target.log_prob))(jnp.asarray(x))
  each = stats.t(degrees).logpdf(x[:, None] - MEANS[None]).sum(axis=2)
  want = special.logsumexp(each + np.log(WEIGHTS)[None], axis=1) + 0.7
  # The weights themselves were made in float32.
  np.testing.assert_allclose(got, want, rtol=1e-6)
  # Float32 far out, where squares are large.
  low = jax.jit(jax.vmap(target.log_prob))(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(low, want, rtol=1e-5)


def test_student_normalised():
  target = densities.student_mixture([1, 3], [[-2.0], [1.0]], log_z=0.7)

  @jax.jit
  def density(angle):
    x = jnp.tan(angle)
    return jnp.exp(jax.vmap(target.log_prob)(x[:, None])) * (1 + x**2)

  angle, weight = np.polynomial.legendre.leggauss(400)
  angle, weight = angle * np.pi / 2, weight * np.pi / 2
  with jax.enable_x64(True):
    mass = np.asarray(density(jnp.asarray(angle))) @ weight
  np.testing.assert_allclose(mass, np.exp(0.7), rtol=1e-6)


def test_student_draws():
  target = densities.student_mixture(WEIGHTS, MEANS)
  x, values = draws(target, 20_000)

  def cdf(x):
    return stats.t(2).cdf(x[:, None] - MEANS[None, :, 0]) @ WEIGHTS

  assert stats.kstest(x[:, 0], cdf).pvalue > 1e-3
  # Control: not the tails of three degrees.
  assert (
    stats.kstest(
      x[:, 0],
      lambda x: stats.t(9).cdf(x[:, None] - MEANS[None, :, 0]) @ WEIGHTS,
    ).pvalue
    < 1e-6
  )
  assert np.abs(z_scores(values["mode_share"], 1 / 3)).min() > 4.5


def test_student_posterior_averages_to_the_weights():
  # In one dimension by quadrature, so that the oracle owes nothing to draws.
  target = densities.student_mixture([0.3, 0.7], [[-1.0], [2.0]], degrees=3.0)
  with jax.enable_x64(True):
    both = jax.jit(
      lambda x: (
        jnp.exp(target.log_prob(x[None])),
        target.observables(x[None])["mode_share"][0],
      )
    )

    def integrand(x):
      density, share = both(jnp.float64(x))
      return float(density * share)

    got = integrate.quad(integrand, -np.inf, np.inf, epsabs=1e-8)[0]
  np.testing.assert_allclose(got, 0.3, rtol=1e-6)


@pytest.mark.parametrize(
  ("make", "error", "message"),
  [
    (lambda: densities.funnel(1), ValueError, "dim must be >= 2"),
    (lambda: densities.funnel(scale=0.0), ValueError, "scale must be positive"),
    (
      lambda: densities.funnel(3).log_prob(jnp.ones(4)),
      ValueError,
      r"x must have shape \[3\].*jax.vmap",
    ),
    (lambda: densities.gmm40(0), TypeError, "key must be a typed"),
    (
      lambda: densities.gmm40(jax.random.key(0), box=-1.0),
      ValueError,
      "box must be positive",
    ),
    (
      lambda: densities.gmm40(jax.random.key(0), variance=0.0),
      ValueError,
      "variance must be positive",
    ),
    (
      lambda: densities.student_mixture([1.0], MEANS),
      ValueError,
      r"weights must have shape \[3\]",
    ),
    (
      lambda: densities.student_mixture([1.0, 0.0, 1.0], MEANS),
      ValueError,
      "weights must be positive",
    ),
    (
      lambda: densities.student_mixture(WEIGHTS, MEANS, degrees=0.0),
      ValueError,
      "degrees must be positive",
    ),
    (
      lambda: densities.student_mixture(WEIGHTS, MEANS).log_prob(jnp.ones(3)),
      ValueError,
      r"x must have shape \[2\].*jax.vmap",
    ),
  ],
)
def test_bad_arguments(make, error, message):
  with pytest.raises(error, match=message):
    make()
