"""Flow and score matching against conditional means in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.core.types import Pairs
from jdiff.methods import flow_matching as fm
from jdiff.methods import score_matching as sm
from jdiff.schedules import gaussian
from jdiff.sde import interpolants
from tests.sde import laws

BATCH = 4096


def gaussian_pairs(law, batch=BATCH, coupled=False, dtype=np.float32):
  noise, other = np.random.default_rng(0).normal(size=(2, batch, 2))
  data = law.mean + law.std * (noise if coupled else other)
  return Pairs(jnp.asarray(noise, dtype), jnp.asarray(data, dtype))


def at(time):
  return lambda key: jnp.asarray(time, jnp.float32)


def z_scores(loss):
  """Mean over examples of the gradient, in standard errors."""
  slopes_at = jax.jit(jax.jacfwd(lambda *args: loss(*args)[0]))

  def at_params(*args):
    slopes = np.asarray(slopes_at(*args))
    return np.abs(slopes.mean(0) / (slopes.std(0) / len(slopes) ** 0.5))

  return at_params


def shifted(exact):
  """The exact field, and a linear model around it at each fixed time."""

  def field(params, x, t):
    return exact(None, x, t) + params[0] * x + params[1]

  return field


@pytest.mark.parametrize("time", [0.2, 0.9])
@pytest.mark.parametrize("name", laws.SCHEDULES)
def test_the_exact_velocity_is_stationary(name, time):
  law = laws.GaussianLaw(laws.SCHEDULES[name])
  pairs = gaussian_pairs(law)

  def loss(params):
    return fm.flow_matching(
      params,
      jax.random.key(1),
      pairs,
      velocity_fn=shifted(law.velocity),
      schedule=law.schedule,
      draw_time=at(time),
    )

  # 5 standard errors of a mean over 4096 independent examples.
  z = z_scores(loss)
  assert np.all(z(jnp.zeros(2)) < 5)
  # A perturbation of 0.3 moves the mean gradient by 0.6 E[x^2] or 0.6.
  assert np.all(z(jnp.array([0.3, 0.3])) > 5)


@pytest.mark.parametrize("name", laws.SCHEDULES)
def test_the_exact_noise_is_stationary_and_scores_need_independence(name):
  law = laws.GaussianLaw(laws.SCHEDULES[name])

  def noise(params, x, t):
    return -law.schedule.sigma(interpolants.expand(t, x)) * law.score(
      params, x, t
    )

  def loss(params, pairs, weighting=None):
    return sm.score_matching(
      params,
      jax.random.key(1),
      pairs,
      noise_fn=shifted(noise),
      schedule=law.schedule,
      draw_time=at(0.5),
      weighting=weighting,
    )

  pairs = gaussian_pairs(law)
  z = z_scores(loss)
  assert np.all(z(jnp.zeros(2), pairs) < 5)
  # The same marginals, another coupling: the score is no longer the answer.
  coupled = gaussian_pairs(law, coupled=True)
  assert np.max(z(jnp.zeros(2), coupled)) > 5
  score = jax.jit(sm.as_score_fn(noise, law.schedule))
  x, t = pairs.noise[:5], jnp.linspace(0.1, 0.9, 5)
  np.testing.assert_allclose(
    score(0.0, x, t), jax.jit(law.score)(0.0, x, t), rtol=1e-5, atol=1e-6
  )
  (plain, info), (weighted, same) = jax.jit(
    lambda p: (loss(p, pairs), loss(p, pairs, lambda t: 3 * t))
  )(jnp.zeros(2))
  np.testing.assert_allclose(weighted, 1.5 * plain, rtol=1e-6)
  np.testing.assert_allclose(info["error"], plain.mean(), rtol=1e-6)
  np.testing.assert_allclose(same["error"], info["error"])


def two_point_velocity(params, x, t):
  """Data -1 or 1, independent of the noise, on the linear path."""
  wide = interpolants.expand(t, x)
  return (x - jnp.tanh((1 - wide) * x / wide**2)) / wide + params


def test_the_minimum_is_the_conditional_variance():
  batch = 2**15
  rng = np.random.default_rng(2)
  pairs = Pairs(
    jnp.asarray(rng.normal(size=(batch, 1)), jnp.float32),
    jnp.asarray(rng.choice([-1, 1], (batch, 1)), jnp.float32),
  )
  loss = jax.jit(
    lambda p: fm.flow_matching(
      p, jax.random.key(2), pairs, velocity_fn=two_point_velocity
    )
  )
  # Var(v | x_t) = sech(alpha x / t^2)^2 / t^2, given both signs equal odds.
  # Midpoint rule in t and x; in x it is spectrally accurate.
  t = (np.arange(400)[:, None] + 0.5) / 400
  x = np.linspace(-7, 7, 2801)[None]
  density = sum(
    np.exp(-0.5 * ((x - sign * (1 - t)) / t) ** 2) for sign in (-1, 1)
  ) / (2 * t * np.sqrt(2 * np.pi))
  tanh = np.tanh((1 - t) * x / t**2)
  want = (density * (1 - tanh**2) / t**2).sum(1).mean() * (x[0, 1] - x[0, 0])
  got = np.asarray(loss(0.0)[0])
  error = got.std() / batch**0.5
  assert abs(got.mean() - want) < 5 * error
  assert 5 * error < 0.1 * want
  # Pythagoras: elsewhere it is larger by the squared distance, here 0.25; the
  # cross term is a mean of 2 * 0.5 * residual.
  moved = np.asarray(loss(0.5)[0])
  assert abs((moved - got).mean() - 0.25) < 5 * (moved - got).std() / batch**0.5


@pytest.mark.parametrize("name", laws.SCHEDULES)
def test_a_deterministic_coupling_has_loss_zero(name):
  schedule = laws.SCHEDULES[name]

  @jax.jit
  def losses(std, offset, ends):
    law = laws.GaussianLaw(schedule, std=std)

    def noise(params, x, t):
      t = interpolants.expand(t, x)
      alpha, sigma = schedule.alpha(t), schedule.sigma(t)
      return (x - alpha * law.mean) / (alpha * std + sigma) + params

    def velocity(params, x, t):
      eps, t = noise(0.0, x, t), interpolants.expand(t, x)
      data = law.mean + std * eps
      return schedule.dalpha(t) * data + schedule.dsigma(t) * eps + params

    args = (offset, jax.random.key(3), Pairs(ends, law.mean + std * ends))
    options = dict(
      schedule=schedule, draw_time=lambda k: 0.05 + 0.9 * fm.uniform(k)
    )
    return jnp.stack(
      [
        fm.flow_matching(*args, velocity_fn=velocity, **options)[0],
        sm.score_matching(*args, noise_fn=noise, **options)[0],
      ]
    )

  with jax.enable_x64(True):
    ends = np.random.default_rng(3).normal(size=(16, 2))
    # One data point, or the monotone map between two Gaussians.
    for std in (0.0, 0.5):
      np.testing.assert_allclose(losses(std, 0.0, ends), 0, atol=1e-24)
      np.testing.assert_allclose(losses(std, 0.1, ends), 0.01, rtol=1e-9)


@pytest.mark.parametrize("name", ["vp", "ve", "cosine"])
def test_edm_weights_make_the_inner_error_count(name):
  schedule = gaussian.ve() if name == "ve" else laws.SCHEDULES[name]
  sigma_data = 0.7

  def network(params, x, t, label=None):
    return jnp.sin(3 * x) + interpolants.expand(t, x)

  with jax.enable_x64(True):
    noise, data = np.random.default_rng(1).normal(size=(2, 32, 3))

    @jax.jit
    def both(t):
      got, _ = sm.score_matching(
        None,
        jax.random.key(5),
        Pairs(noise, data),
        noise_fn=sm.edm_noise_fn(
          network, schedule=schedule, sigma_data=sigma_data
        ),
        schedule=schedule,
        draw_time=lambda key: t,
        weighting=sm.edm_weighting(schedule, sigma_data),
      )
      # The paper's form, at noise level sigma / alpha.
      level = schedule.sigma(t) / schedule.alpha(t)
      x = data + level * noise
      total = level**2 + sigma_data**2
      skip = sigma_data**2 / total
      out = level * sigma_data / jnp.sqrt(total)
      inner = network(None, x / jnp.sqrt(total), jnp.full(32, t))
      return got, ((inner - (data - skip * x) / out) ** 2).mean(1)

    for t in (0.05, 0.5, 0.95):
      got, want = both(t)
      np.testing.assert_allclose(got, want, rtol=1e-9)


def test_times():
  keys = jax.random.split(jax.random.key(6), 4096)
  draw = fm.logit_normal(-0.4, 1.5)
  t, late = jax.jit(
    lambda keys: (jax.vmap(fm.uniform)(keys), jax.vmap(draw)(keys))
  )(keys)
  t, late = np.asarray(t), np.asarray(late)
  # Standard deviations of the mean of a uniform and of a normal.
  assert abs(t.mean() - 0.5) < 5 * (1 / 12 / 4096) ** 0.5
  assert 0 <= t.min() and t.max() < 1
  logit = np.log(late) - np.log1p(-late)
  assert abs(logit.mean() + 0.4) < 5 * 1.5 / 4096**0.5
  assert abs(logit.std() - 1.5) < 5 * 1.5 / (2 * 4096) ** 0.5


def test_labels_are_dropped_at_the_rate_asked_for():
  label = np.arange(BATCH, dtype=np.int32) % 10
  pairs = gaussian_pairs(laws.GaussianLaw(gaussian.linear()))
  pairs = pairs._replace(label=label)

  def velocity(params, x, t, label):
    return interpolants.expand(label, x) + 0 * x

  def run(key, rate):
    options = dict(null_label=10, label_dropout=rate)
    loss, _ = fm.flow_matching(
      None, key, pairs, velocity_fn=velocity, **options
    )
    return loss, fm.prepare(key, pairs, **options)[1].label

  got = jax.jit(lambda key: [run(key, rate) for rate in (0.1, 0.0, 1.0)])(
    jax.random.key(8)
  )
  (loss, seen), (want, same), (_, none) = jax.tree.map(np.asarray, got)
  kept = seen != 10
  assert abs(np.mean(~kept) - 0.1) < 5 * (0.1 * 0.9 / BATCH) ** 0.5
  np.testing.assert_array_equal(seen[kept], label[kept])
  assert seen.dtype == np.int32
  # The loss saw the same, and draws the same times whatever is dropped.
  np.testing.assert_allclose(loss[kept], want[kept], rtol=1e-6)
  assert np.all(loss[~kept] != want[~kept])
  np.testing.assert_array_equal(same, label)
  assert np.all(none == 10)


def test_parts():
  x = np.arange(24).reshape(12, 2)
  rows = fm.take_every(x, 4)
  np.testing.assert_array_equal(rows, x[[3, 7, 11]])
  want = x.copy()
  want[[3, 7, 11]] *= -1
  np.testing.assert_array_equal(fm.put_every(x, -rows, 4), want)
  assert fm.means_by_part(jnp.arange(4.0), 2) == [1.0, 2.0]


def test_half_precision_pairs_are_compared_in_float32():
  law = laws.GaussianLaw(gaussian.linear())
  pairs = gaussian_pairs(law, 4, dtype=jnp.bfloat16)
  seen = []

  def velocity(params, x, t):
    seen.append((x.dtype, t.dtype))
    return x.astype(jnp.bfloat16)

  got, _ = jax.eval_shape(
    lambda key: fm.flow_matching(None, key, pairs, velocity_fn=velocity),
    jax.random.key(0),
  )
  assert got.dtype == jnp.float32
  assert seen == [(jnp.float32, jnp.float32)]


def test_bad_arguments():
  noise = jnp.zeros((4, 2))

  def run(pairs, key=None, **options):
    key = jax.random.key(0) if key is None else key
    options = dict(velocity_fn=lambda p, x, t, **label: x) | options
    # Errors are raised while tracing.
    jax.eval_shape(
      lambda pairs: fm.flow_matching(None, key, pairs, **options), pairs
    )

  good = Pairs(noise, noise)
  labelled = good._replace(label=jnp.zeros(4, jnp.int32))
  with pytest.raises(TypeError, match="pairs.data must be floating"):
    run(Pairs(noise, jnp.zeros((4, 2), jnp.int32)))
  with pytest.raises(ValueError, match=r"pairs.data must have shape \[4, 2\]"):
    run(Pairs(noise, noise[:3]))
  with pytest.raises(ValueError, match=r"pairs.noise must have shape \[B"):
    run(Pairs(jnp.float32(0), jnp.float32(0)))
  with pytest.raises(TypeError, match="key must be a typed PRNG key"):
    run(good, key=jnp.zeros(2, jnp.uint32))
  with pytest.raises(ValueError, match="key must have shape"):
    run(good, key=jax.random.split(jax.random.key(0), 3))
  with pytest.raises(TypeError, match="pairs.label must be integers"):
    run(good._replace(label=jnp.zeros(4)))
  with pytest.raises(ValueError, match=r"pairs.label must have shape \[4\]"):
    run(good._replace(label=jnp.zeros((4, 1), jnp.int32)))
  with pytest.raises(ValueError, match="label_dropout must lie in"):
    run(labelled, null_label=1, label_dropout=1.5)
  with pytest.raises(ValueError, match="needs null_label, got None"):
    run(labelled, label_dropout=0.1)
  with pytest.raises(ValueError, match="needs pairs.label, got None"):
    run(good, null_label=1, label_dropout=0.1)
  with pytest.raises(ValueError, match="null_label must be >= 0"):
    run(labelled, null_label=-1)
  with pytest.raises(ValueError, match="velocity_fn's answer must have shape"):
    run(good, velocity_fn=lambda p, x, t: x[:, :1])
  with pytest.raises(ValueError, match="draw_time's answers must have shape"):
    run(good, draw_time=lambda key: jax.random.uniform(key, (2,)))
  with pytest.raises(ValueError, match="std must be positive"):
    fm.logit_normal(0.0, 0.0)
  with pytest.raises(ValueError, match="sigma_data must be positive"):
    sm.edm_weighting(gaussian.ve(), 0.0)
  with pytest.raises(ValueError, match="weighting's answer must have shape"):
    sm.score_matching(
      None,
      jax.random.key(0),
      good,
      noise_fn=lambda p, x, t: x,
      weighting=lambda t: 1.0,
    )


NUM = 100_000


@jax.jit
def draws(keys):
  laws = {
    "beta": fm.beta(),
    "log_uniform": fm.log_uniform(0.01),
    "within": fm.within(fm.beta(), 0.2, 0.7),
  }
  return {name: jax.vmap(law)(keys) for name, law in laws.items()}


def z_score(values, mean):
  values = np.asarray(values, np.float64)
  return abs(values.mean() - mean) / (values.std() / len(values) ** 0.5)


def test_time_laws():
  t = jax.tree.map(np.asarray, draws(jax.random.split(jax.random.key(0), NUM)))
  beta = t["beta"]
  assert beta.min() > 0 and beta.max() < 1
  # Within five standard errors of the exact values.
  assert z_score(beta, 2 / 7) < 5
  assert z_score(beta < 0.1, 0.27260) < 5
  assert z_score(beta < 0.5, 0.80409) < 5
  assert z_score(beta, 2 / 6) > 5  # Beta(1, 2)
  log_t = np.log(t["log_uniform"])
  assert log_t.min() >= np.log(0.01) - 1e-5 and log_t.max() <= 0
  assert z_score(log_t, np.log(0.01) / 2) < 5
  assert z_score(log_t < 0.75 * np.log(0.01), 0.25) < 5
  assert t["within"].min() > 0.2 and t["within"].max() < 0.7
  np.testing.assert_allclose(t["within"], 0.2 + 0.5 * beta, rtol=1e-6)


def test_time_laws_are_those_of_the_losses():
  seen = []

  def velocity(params, x, t):
    seen.append(t)
    return params * x

  pairs = Pairs(jnp.ones((4, 2)), jnp.zeros((4, 2)))
  fm.flow_matching(
    0.0,
    jax.random.key(0),
    pairs,
    velocity_fn=velocity,
    draw_time=fm.within(fm.beta(), 0.4, 0.5),
  )
  assert np.all((seen[0] > 0.4) & (seen[0] < 0.5))


def test_time_laws_bad_input():
  with pytest.raises(ValueError, match="a must be positive"):
    fm.beta(0.0)
  with pytest.raises(ValueError, match="t_min must be positive"):
    fm.log_uniform(0.0)
  with pytest.raises(ValueError, match="0 <= t_min < t_max <= 1"):
    fm.log_uniform(0.02, 5.0)
  with pytest.raises(ValueError, match="0 <= t_min < t_max <= 1"):
    fm.within(fm.uniform, 0.5, 0.5)
