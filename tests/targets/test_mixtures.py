"""Gaussian mixtures against quadrature, autodiff and their own draws."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdiff import sde, targets
from jdiff.schedules import gaussian
from jdiff.targets import mixtures

WEIGHTS = np.array([0.4, 0.3, 0.2, 0.1])
SPREADS = ("shared", "isotropic", "diagonal", "full")


def parameters(spread, dim=3):
  """Usual parameters, and the covariances written out in full."""
  rng = np.random.default_rng(0)
  means = 2 * rng.normal(size=(4, dim))
  diagonal = rng.uniform(0.2, 1.5, (4, dim))
  factor = rng.normal(size=(4, dim, dim))
  eye = np.eye(dim)
  covariances = {
    "shared": np.float64(0.7),
    "isotropic": diagonal[:, 0],
    "diagonal": diagonal,
    "full": factor @ factor.swapaxes(1, 2) + 0.3 * eye,
  }[spread]
  full = {
    "shared": np.broadcast_to(0.7 * eye, (4, dim, dim)),
    "isotropic": diagonal[:, 0, None, None] * eye,
    "diagonal": diagonal[:, :, None] * eye,
    "full": covariances,
  }[spread]
  return means, covariances, full


def grid(dim, num=401, reach=14.0):
  """Points of a box that holds all the mass, and their cell."""
  axis = np.linspace(-reach, reach, num)
  points = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), axis=-1)
  return jnp.asarray(points.reshape(-1, dim)), (axis[1] - axis[0]) ** dim


@pytest.mark.parametrize("spread", SPREADS)
def test_against_scipy_and_autodiff(spread):
  means, covariances, full = parameters(spread)
  x = 2 * np.random.default_rng(1).normal(size=(7, 3))
  alpha, sigma = 0.6, 0.9

  @jax.jit
  def run(x, alpha, sigma):
    law = mixtures.mixture(WEIGHTS, means, covariances)
    noisy = mixtures.diffused(law, alpha, sigma)

    def one(law, x):
      value = jax.value_and_grad(functools.partial(mixtures.log_prob, law))(x)
      return *value, mixtures.score(law, x)

    return [jax.vmap(functools.partial(one, law))(x) for law in (law, noisy)]

  with jax.enable_x64(True):
    answers = jax.device_get(run(jnp.asarray(x), alpha, sigma))
  eye = np.eye(3)
  for (log_prob, slope, score), (a, s) in zip(
    answers, [(1.0, 0.0), (alpha, sigma)], strict=True
  ):
    density = [
      weight * stats.multivariate_normal(a * mean, a**2 * c + s**2 * eye).pdf(x)
      for weight, mean, c in zip(WEIGHTS, means, full, strict=True)
    ]
    np.testing.assert_allclose(log_prob, np.log(np.sum(density, 0)), rtol=1e-11)
    np.testing.assert_allclose(score, slope, rtol=1e-11, atol=1e-11)
  # Control: the score of the law itself is not that of the noised one.
  assert np.abs(answers[0][2] - answers[1][2]).max() > 0.1


@pytest.mark.parametrize("spread", SPREADS)
def test_normalised(spread):
  means, covariances, _ = parameters(spread, dim=2)

  @jax.jit
  def mass(points):
    law = mixtures.mixture(WEIGHTS, means, covariances)
    noisy = mixtures.diffused(law, 0.6, 0.9)
    return [
      jnp.exp(jax.vmap(functools.partial(mixtures.log_prob, law))(points)).sum()
      for law in (law, noisy)
    ]

  with jax.enable_x64(True):
    points, cell = grid(2, 301)
    # Smooth, and zero with its derivatives at the ends: spectral accuracy.
    np.testing.assert_allclose(np.array(mass(points)) * cell, 1, rtol=1e-9)


def test_diffusion_is_a_convolution():
  with jax.enable_x64(True):
    law = mixtures.mixture([0.3, 0.7], [[-1.0], [2.0]], [0.1, 0.6])
    alpha, sigma = 0.7, 0.5
    y, cell = grid(1, 2001, 8.0)
    x = jnp.linspace(-2.0, 2.0, 9)

    @jax.jit
    def both(x, y):
      prior = jax.vmap(functools.partial(mixtures.log_prob, law))(y)
      away = (x[:, None] - alpha * y[None, :, 0]) / sigma
      joint = prior[None] - 0.5 * away**2 - jnp.log(sigma * (2 * jnp.pi) ** 0.5)
      noisy = mixtures.diffused(law, alpha, sigma)
      found = jax.vmap(functools.partial(mixtures.log_prob, noisy))(x[:, None])
      clean = jax.vmap(lambda x: mixtures.denoised(law, x, alpha, sigma))(
        x[:, None]
      )
      want = jax.nn.logsumexp(joint, axis=1) + jnp.log(cell)
      return found, want, clean[:, 0], jax.nn.softmax(joint) @ y[:, 0]

    found, want, clean, mean = both(x, y)
  np.testing.assert_allclose(found, want, rtol=1e-10, atol=1e-10)
  np.testing.assert_allclose(clean, mean, rtol=1e-10)


@pytest.mark.parametrize("spread", SPREADS)
def test_tweedie(spread):
  means, covariances, full = parameters(spread)
  with jax.enable_x64(True):
    law = mixtures.mixture(WEIGHTS, means, covariances)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(5, 3)))

    @jax.jit
    def both(x, alpha, sigma):
      noisy = mixtures.diffused(law, alpha, sigma)

      def one(x):
        tweedie = (x + sigma**2 * mixtures.score(noisy, x)) / alpha
        return mixtures.denoised(law, x, alpha, sigma), tweedie

      return jax.vmap(one)(x)

    for alpha, sigma in [(0.9, 0.1), (0.5, 0.8)]:
      np.testing.assert_allclose(*both(x, alpha, sigma), rtol=1e-10)
    # Nothing is left of the data: its mean; and nothing of the noise: x.
    clean, tweedie = both(x, 0.0, 1.0)
    want = np.broadcast_to(WEIGHTS @ means, (5, 3))
    np.testing.assert_allclose(clean, want, rtol=1e-10)
    assert not np.isfinite(tweedie).any()
    np.testing.assert_allclose(both(x, 1.0, 1e-8)[0], x, rtol=1e-10)


@pytest.mark.parametrize("spread", ["isotropic", "full"])
def test_samples(spread):
  means, covariances, full = parameters(spread)
  law = mixtures.mixture(WEIGHTS, means, covariances)
  num = 40_000

  @jax.jit
  def run(law, key):
    target = targets.gaussian_mixture(law)
    x = target.sample(key, num)
    few = target.sample(key, 3)
    return x, few, jax.vmap(target.observables)(x)

  with jax.debug_key_reuse(True):
    x, few, values = jax.device_get(run(law, jax.random.key(0)))
  assert x.shape == (num, 3) and x.dtype == np.float32
  np.testing.assert_allclose(x[:3], few, rtol=1e-5)
  answer = targets.gaussian_mixture(law, log_z=1.7).exact()
  np.testing.assert_allclose(answer["mean"], WEIGHTS @ means, rtol=1e-5)
  np.testing.assert_allclose(answer["mode_share"], WEIGHTS, rtol=1e-5)
  second = np.einsum(
    "k,kde->de", WEIGHTS, full + means[:, :, None] * means[:, None]
  )
  trace = np.trace(second)
  np.testing.assert_allclose(answer["squared_norm"], trace, rtol=1e-5)
  for name, value in values.items():
    assert (np.abs(z_scores(value, answer[name])) < 4.5).all(), name
  assert (np.abs(z_scores(products(x), second)) < 4.5).all()
  # Control: draws with the axes transposed have another covariance.
  if spread == "full":
    turned = law._replace(axes=law.axes.swapaxes(1, 2))
    wrong = run(turned, jax.random.key(0))[0]
    assert (np.abs(z_scores(products(wrong), second)) > 4.5).any()


def products(x):
  return np.float64(x)[:, :, None] * np.float64(x)[:, None]


def z_scores(values, want):
  values = np.float64(values)
  error = values.std(axis=0) / len(values) ** 0.5
  return (values.mean(axis=0) - want) / error


def test_target():
  law = mixtures.mixture(WEIGHTS, *parameters("full", dim=2)[:2])
  target = targets.gaussian_mixture(law, log_z=1.7)
  assert target.dim == 2 and target.log_z == target.exact()["log_z"] == 1.7
  with jax.enable_x64(True):
    points, cell = grid(2, 301)
    mass = jax.jit(lambda x: jnp.exp(jax.vmap(target.log_prob)(x)).sum())
    # The mixture itself was made in float32.
    np.testing.assert_allclose(mass(points) * cell, np.exp(1.7), rtol=1e-6)
  # Made under a trace, it knows what does not need values.
  traced = jax.jit(lambda law, x: targets.gaussian_mixture(law).log_prob(x))(
    law, jnp.ones(2)
  )
  np.testing.assert_allclose(
    traced, target.log_prob(jnp.ones(2)) - 1.7, rtol=1e-5
  )


@pytest.mark.parametrize(
  ("num", "dim", "equal"),
  [
    (1, 3, True),
    (2, 1, True),
    (4, 2, False),
    (8, 2, False),
    (8, 7, True),
    (8, 64, True),
    (8, 3, False),
    (5, 1, False),
  ],
)
def test_separated(num, dim, equal):
  for key in (None, jax.random.key(0)):
    law = mixtures.separated(num, dim, separation=1.5, variance=0.5, key=key)
    np.testing.assert_allclose(np.exp(law.log_weights), 1 / num, rtol=1e-6)
    np.testing.assert_array_equal(law.variances, np.full((num, dim), 0.5))
    assert law.axes is None and law.means.dtype == jnp.float32
    means = np.float64(law.means)
    np.testing.assert_allclose(means.mean(axis=0), 0, atol=1e-5)
    apart = np.linalg.norm(means[:, None] - means[None], axis=2)
    apart = apart[~np.eye(num, dtype=bool)] / dim**0.5
    if num > 1:
      np.testing.assert_allclose(apart.min(), 1.5, rtol=1e-5)
      assert (np.ptp(apart) < 1e-5) == equal
  # A rotation: other centres, the same distances.
  if dim > 1 and num > 1:
    plain = mixtures.separated(num, dim, separation=1.5, variance=0.5)
    assert np.abs(plain.means - law.means).max() > 0.1


def test_score_fn_drives_the_samplers():
  # The exact score brings noise back to the mixture.
  law = mixtures.separated(3, 2, separation=2.0, variance=0.3)
  schedule = gaussian.vp()
  num = 4000

  @jax.jit
  def run(key):
    key_start, key_steps = jax.random.split(key)
    got = sde.sample_sde(
      law,
      key_steps,
      jax.random.normal(key_start, (num, 2)),
      score_fn=mixtures.score_fn(schedule.alpha, schedule.sigma),
      schedule=schedule,
      times=np.linspace(1, 0.001, 201),
    ).samples
    target = targets.gaussian_mixture(law)
    return jax.vmap(target.observables)(got)

  values = jax.device_get(run(jax.random.key(5)))
  answer = targets.gaussian_mixture(law).exact()
  share = np.float64(values["mode_share"])
  error = share.std(axis=0) / num**0.5
  assert (np.abs(share.mean(axis=0) - 1 / 3) < 5 * error).all()
  # Euler's own error in the second moment is some per cent here.
  np.testing.assert_allclose(
    values["squared_norm"].mean(), answer["squared_norm"], rtol=0.05
  )


def test_transforms():
  law = mixtures.mixture(WEIGHTS, *parameters("full")[:2])
  times = jnp.array([0.1, 0.5, 0.9])
  schedule = gaussian.vp()
  score = mixtures.score_fn(schedule.alpha, schedule.sigma)
  x = jnp.ones((3, 3))
  jitted = jax.jit(chex.assert_max_traces(score, n=1))
  got = jitted(law, x, times)
  moved = jitted(law._replace(means=law.means + 1), x, times)
  assert np.abs(moved - got).max() > 0.1
  # A traced mixture, differentiable in its means.
  means, covariances, _ = parameters("full")

  def value(means, time):
    law = mixtures.mixture(WEIGHTS, means, covariances)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    return mixtures.log_prob(mixtures.diffused(law, alpha, sigma), x[0]) / alpha

  slope = jax.jit(jax.vmap(jax.grad(value), (None, 0)))
  slope = slope(jnp.asarray(means, jnp.float32), times)
  # Moving all centres is moving the point the other way.
  np.testing.assert_allclose(slope.sum(axis=1), -got, rtol=1e-4)


def test_points_for_components():
  # Zero variances: an empirical law, fit for a density once it is noised.
  means = parameters("shared")[0]
  law = mixtures.mixture(np.full(4, 0.25), means, 0.0)
  x = jnp.ones((1, 3))

  @jax.jit
  def run(key):
    noisy = mixtures.diffused(law, 0.8, 0.6)
    found = (
      mixtures.log_prob(noisy, x[0])[None],
      mixtures.score(noisy, x[0])[None],
    )
    return (
      found,
      sde.empirical_score(x, jnp.asarray(means, jnp.float32), 0.8, 0.6),
      mixtures.sample(law, key, 50),
    )

  found, want, draws = run(jax.random.key(0))
  chex.assert_trees_all_close(found, want, rtol=1e-4)
  away = np.abs(np.asarray(draws)[:, None] - means[None]).max(axis=2)
  assert away.min(axis=1).max() < 1e-5


@pytest.mark.parametrize(
  ("make", "error", "message"),
  [
    (
      lambda: mixtures.mixture([1.0], [1.0], 1.0),
      ValueError,
      "means must have",
    ),
    (
      lambda: mixtures.mixture([1.0, 1.0], [[1.0]], 1.0),
      ValueError,
      r"weights must have shape \[1\]",
    ),
    (
      lambda: mixtures.mixture([1.0], [[1.0, 2.0]], np.ones((2, 2))),
      ValueError,
      "K=1 and D=2",
    ),
    (
      lambda: mixtures.mixture([1.0, 0.0], [[1.0], [2.0]], 1.0),
      ValueError,
      "weights must be positive",
    ),
    (
      lambda: mixtures.mixture([1.0], [[np.nan]], 1.0),
      ValueError,
      "must be finite",
    ),
    (
      lambda: mixtures.mixture([1.0], [[1.0]], -1.0),
      ValueError,
      "no negative eigenvalue",
    ),
    (
      lambda: mixtures.mixture([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]]),
      ValueError,
      "no negative eigenvalue",
    ),
    (
      lambda: mixtures.mixture([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]]),
      ValueError,
      "symmetric",
    ),
    (lambda: mixtures.separated(0, 2), ValueError, "num_components must be"),
    (
      lambda: mixtures.separated(2, 2, variance=0.0),
      ValueError,
      "variance must be positive",
    ),
    (
      lambda: mixtures.separated(2, 2, key=np.zeros(2, np.uint32)),
      TypeError,
      "key must be a typed",
    ),
    (
      lambda: mixtures.score(mixtures.separated(2, 2), jnp.ones((5, 2))),
      ValueError,
      r"x must have shape \[2\].*jax.vmap",
    ),
    (
      lambda: mixtures.diffused(mixtures.separated(2, 2), jnp.ones(3), 1.0),
      ValueError,
      "alpha must have shape",
    ),
    (
      lambda: targets.gaussian_mixture(mixtures.separated(2, 2), log_z=np.inf),
      ValueError,
      "log_z must be finite",
    ),
  ],
)
def test_bad_arguments(make, error, message):
  with pytest.raises(error, match=message):
    make()
