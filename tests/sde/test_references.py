"""Reference processes: exact weights of each, paths run back, what is left."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdiff import sde, targets
from jdiff.schedules import gaussian
from jdiff.sde import references

SCHEDULE = gaussian.vp(0.1, 10.0)
REFERENCES = {
  "vp": functools.partial(references.vp, SCHEDULE),
  "brownian": references.brownian,
}
NUM = 100_000


def residual(params, x, t):
  """Neither zero nor good, on vectors or particles."""
  t = t.reshape(-1, *[1] * (x.ndim - 1))
  return params * (jnp.sin(2 * x + 1) - 0.5 * jnp.cos(3 * t) * x)


def close(values, want, sigmas=5.0):
  values = np.asarray(values, np.float64)
  error = values.std() / len(values) ** 0.5
  assert error < 0.02 * max(abs(want), 0.1)
  assert abs(values.mean() - want) < sigmas * error


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("centred", [False, True])
def test_weights_are_exact(kind, centred):
  # Forward, E_P[exp(W)] = Z; along the reference's paths to exact samples,
  # E_P*[exp(-W)] = 1 / Z. With kernels of less noise than the reference's.
  make = REFERENCES[kind]
  if centred:
    # Two particles on a line: the subspace has one dimension.
    target, shape = targets.lennard_jones(2, 1, rm=2.0, oscillator=2.0), (2, 1)
    reference = make(scale=1.2, centred=True)
  else:
    law = targets.mixtures.mixture([0.7, 0.3], [[1.0, 0], [-1.0, 0.5]], 0.5)
    target, shape = targets.gaussian_mixture(law, log_z=0.4), (2,)
    reference = make(scale=1.5)
  steps = 6
  options = dict(
    residual_fn=residual,
    reference=reference,
    spread=jnp.linspace(1.0, 0.8, steps),
  )

  def reward(x):
    return target.log_prob(x) - reference.log_prob(x)

  @jax.jit
  def forward(key):
    result = sde.rollout(
      0.2, key, num_samples=NUM, shape=shape, num_steps=steps, **options
    )
    return result.samples, result.log_ratio, jax.vmap(reward)(result.samples)

  @jax.jit
  def backward(key, data):
    path = sde.reference_path(key, data, reference=reference, num_steps=steps)
    ratio = sde.path_log_ratio(0.2, path, **options)
    return ratio + jax.vmap(reward)(data), path

  samples, ratio, rewards = jax.device_get(forward(jax.random.key(0)))
  log_z = target.log_z
  close(np.exp(ratio), 1.0)
  close(np.exp(ratio + rewards - log_z), 1.0)
  # Control: the share of the weight that less noise brings.
  assert ratio.std() > 0.05
  if centred:
    np.testing.assert_allclose(samples.sum(axis=1), 0, atol=1e-5)
    return
  data = target.sample(jax.random.key(1), NUM)
  log_w, path = jax.device_get(backward(jax.random.key(2), data))
  close(np.exp(log_z - log_w), 1.0)
  assert log_w.mean() > log_z
  np.testing.assert_array_equal(path[-1], data)
  # The far end, given the data, remembers as much as the reference does.
  std = float(reference.std(jnp.float32(1.0)))
  memory = float(reference.memory())
  want = (
    memory
    * np.asarray(data)
    @ np.ones(2)
    * std
    / float(reference.std(jnp.float32(0.0)))
  )
  found = path[0].sum(axis=1) - want
  if std:
    close(found**2, 2 * std**2 * (1 - memory**2))
  else:
    assert not path[0].any()


def test_kernels_compose():
  # Two steps are one, and the marginal is what the kernels keep.
  t, s, r = (jnp.float32(v) for v in (0.9, 0.5, 0.0))
  for make in REFERENCES.values():
    reference = make(scale=2.0)
    (c1, sd1), (c2, sd2) = reference.kernel(t, s), reference.kernel(s, r)
    c, sd = reference.kernel(t, r)
    np.testing.assert_allclose(c1 * c2, c, rtol=1e-6)
    np.testing.assert_allclose(c2**2 * sd1**2 + sd2**2, sd**2, rtol=1e-5)
    np.testing.assert_allclose(
      c1**2 * reference.std(t) ** 2 + sd1**2, reference.std(s) ** 2, rtol=1e-5
    )


def test_the_noise_end_of_a_fast_schedule():
  # Where alpha is tiny a difference of variances is zero in float32.
  reference = references.vp(gaussian.vp(0.1, 40.0))
  times = np.linspace(1, 0, 101)
  t, s = (jnp.asarray(x, jnp.float32) for x in (times[:-1], times[1:]))
  _, sd = reference.kernel(t, s)
  integral = 0.1 * times + 19.95 * times**2
  want = np.sqrt(-np.expm1(-(integral[:-1] - integral[1:])))
  np.testing.assert_allclose(sd, want, rtol=1e-4)


def test_centred_density():
  # Two particles in the plane: (x_1 - x_2) / sqrt(2) has the two dimensions.
  reference = references.brownian(scale=1.3, centred=True)
  x = jnp.array([[0.3, -0.2], [1.1, 0.4]])
  along = (x[0] - x[1]) / 2**0.5
  want = jax.scipy.stats.norm.logpdf(along, 0, 1.3).sum()
  np.testing.assert_allclose(reference.log_prob(x), want, rtol=1e-5)
  np.testing.assert_allclose(reference.log_prob(x + 3.0), want, rtol=1e-5)


@pytest.mark.parametrize("kind", REFERENCES)
def test_fit_spread(kind):
  # Data N(0, tau^2): the best residual is linear, and what is left of it has
  # the posterior's variance over the reference's.
  tau, scale, steps = 0.5, 1.5, 5
  reference = REFERENCES[kind](scale=scale)
  times = np.linspace(1, 0, steps + 1)[:-1]
  gain, std = reference.kernel(jnp.asarray(times), jnp.zeros(steps))
  precision = 1 / tau**2 - 1 / scale**2
  share = precision / (precision + 1 / std**2)

  def best(params, x, t):
    a, s = reference.kernel(t, jnp.zeros_like(t))
    k = precision / (precision + 1 / s**2)
    return params * -(a * k / s)[:, None] * x

  fit = jax.jit(
    functools.partial(
      sde.fit_spread, residual_fn=best, reference=reference, num_steps=steps
    )
  )
  data = tau * jax.random.normal(jax.random.key(0), (40_000, 2))
  found = np.asarray(fit(1.0, jax.random.key(1), data))
  # The bridge's fresh start does not know of the data, by alpha(1) of it.
  slack = 0.02 if kind == "vp" else 0.0
  np.testing.assert_allclose(found, 1 - share, rtol=5 / 200 + slack)
  assert (np.asarray(fit(0.0, jax.random.key(1), data)) >= found - 0.01).all()


def test_spread_makes_few_steps_do():
  # Against the same paths with the reference's noise: a narrow Gaussian's
  # weights are constant up to what the steps hold fixed.
  tau, scale, steps = 0.5, 1.5, 8
  reference = references.brownian(scale=scale)
  precision = 1 / tau**2 - 1 / scale**2
  times = jnp.linspace(1, 0, steps + 1)[:-1]
  _, std = reference.kernel(times, jnp.zeros(steps))

  def best(params, x, t):
    _, s = reference.kernel(t, jnp.zeros_like(t))
    k = precision / (precision + 1 / s**2)
    return -(k / s)[:, None] * x

  @jax.jit
  def spread_of_weights(spread):
    result = sde.rollout(
      None,
      jax.random.key(0),
      residual_fn=best,
      reference=reference,
      num_samples=4096,
      shape=(2,),
      num_steps=steps,
      spread=spread,
    )
    log_prob = jax.scipy.stats.norm.logpdf(result.samples, 0, tau).sum(axis=1)
    return jnp.std(
      result.log_ratio + log_prob - jax.vmap(reference.log_prob)(result.samples)
    )

  left = 1 / (1 + precision * std**2)
  assert float(spread_of_weights(left)) < 1e-3
  assert float(spread_of_weights(jnp.ones(steps))) > 0.3


def test_langevin_start_has_exact_weights():
  law = targets.mixtures.mixture([0.7, 0.3], [[1.5], [-1.5]], 0.3)
  target = targets.gaussian_mixture(law, log_z=1.7)
  reference = references.vp(SCHEDULE, scale=1.5)
  control = sde.langevin(target.log_prob, reference, max_norm=20.0)

  @jax.jit
  def draw(key):
    result = sde.rollout(
      None,
      key,
      residual_fn=control,
      reference=reference,
      num_samples=NUM,
      shape=(1,),
      num_steps=40,
    )
    rewards = jax.vmap(lambda x: target.log_prob(x) - reference.log_prob(x))(
      result.samples
    )
    return result.samples, result.log_ratio, rewards

  x, ratio, rewards = jax.device_get(draw(jax.random.key(0)))
  close(np.exp(ratio + rewards - 1.7), 1.0)
  # And it moves: the reference stays at a mean square of 2.25, the target has
  # 2.55 and none of its mass near zero.
  near = stats.norm(0, 1.5).cdf(0.3) - stats.norm(0, 1.5).cdf(-0.3)
  assert np.mean(np.abs(x) < 0.3) < 0.8 * near


def test_langevin_cuts_what_would_overflow():
  reference = references.brownian()
  steep = sde.langevin(lambda x: -1e25 * jnp.sum(x**2), reference)
  x, t = jnp.ones((1, 2)), jnp.array([0.5])
  force = steep(None, x, t) / (0.25 * 0.5**0.5) - x
  np.testing.assert_allclose(jnp.linalg.norm(force), 100.0, rtol=1e-5)
  assert (force < 0).all()


def test_warnings():
  with pytest.warns(UserWarning, match="correlation of 0.359"):
    references.vp(gaussian.vp(0.1, 4.0))
  reference = references.vp(SCHEDULE, scale=1.0)
  heavy = targets.student_mixture([1.0], [[0.0, 0.0]])
  with pytest.warns(
    UserWarning, match="heavier than the reference's along 100"
  ):
    sde.check_tails(heavy, reference)
  wide = targets.gaussian_mixture(
    targets.mixtures.mixture([1.0], [[0.0, 0.0]], 2.5)
  )
  with pytest.warns(UserWarning, match="heavier than the reference's"):
    sde.check_tails(wide, reference)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    # Variances below twice the reference's have weights of finite variance.
    sde.check_tails(
      targets.gaussian_mixture(
        targets.mixtures.mixture([1.0], [[0.0, 0.0]], 1.5)
      ),
      reference,
    )
    sde.check_tails(targets.many_well(3), reference)
    # Energies that overflow are no tails at all.
    sde.check_tails(
      targets.many_well(3)._replace(log_prob=lambda x: -jnp.exp(jnp.sum(x**2))),
      reference,
    )
    references.brownian()
  assert references.brownian().memory() == 0


def test_bad_arguments():
  reference = references.brownian(centred=True)
  with pytest.raises(ValueError, match=r"shape must be \(n, d\) with n >= 2"):
    sde.rollout(
      None,
      jax.random.key(0),
      residual_fn=lambda p, x, t: x,
      reference=reference,
      num_samples=2,
      shape=(3,),
      num_steps=2,
    )
  with pytest.raises(ValueError, match="scale must be positive"):
    references.brownian(scale=-1.0)
  for spread, message in (
    (jnp.ones(3), r"spread must have shape \[2\]"),
    (jnp.array([1.0, 0.0]), "spread must be positive"),
  ):
    with pytest.raises(ValueError, match=message):
      sde.rollout(
        None,
        jax.random.key(0),
        residual_fn=lambda p, x, t: x,
        reference=references.brownian(),
        num_samples=2,
        shape=(3,),
        num_steps=2,
        spread=spread,
      )
  with pytest.raises(ValueError, match="times must end at 0"):
    sde.reference_path(
      jax.random.key(0),
      jnp.zeros((2, 3)),
      reference=references.brownian(),
      times=[1.0, 0.1],
    )
