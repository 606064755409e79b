"""MeanFlow, shortcut, consistency and reflow against exact flow maps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.core.types import Pairs
from jdiff.methods import consistency, meanflow, shortcut
from jdiff.methods import flow_matching as fm
from jdiff.schedules import gaussian
from jdiff.sde import interpolants
from tests.sde import laws


class Coupled(laws.GaussianLaw):
  """Data `mean + std noise`: `x_t` determines the pair, in closed form.

  `std = 0` is a single data point. The flow keeps each pair on its path.
  """

  def ends(self, x, t):
    t = interpolants.expand(t, x)
    alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
    noise = (x - alpha * self.mean) / (alpha * self.std + sigma)
    return noise, self.mean + self.std * noise

  def velocity(self, params, x, t, label=None):
    return interpolants.interpolate(
      *self.ends(x, t), t, self.schedule
    ).velocity + (0 if params is None else params)

  def average(self, params, x, t, s, label=None):
    """The exact average velocity plus `params`, also at `s = t`."""
    end = interpolants.interpolate(*self.ends(x, t), s, self.schedule).x
    same = interpolants.expand(s == t, x)
    span = jnp.where(same, 1.0, interpolants.expand(t - s, x))
    return jnp.where(same, self.velocity(None, x, t), (x - end) / span) + params


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_deterministic_coupling_has_loss_zero(name):
  schedule = laws.SCHEDULES[name]

  @jax.jit
  def losses(std, offset, ends):
    law = Coupled(schedule, std=std)
    pairs = Pairs(ends, law.mean + std * ends)
    args = (offset, jax.random.key(0), pairs)
    options = dict(flow_map_fn=law.average, schedule=schedule)
    mean = meanflow.meanflow(*args, ratio=0.5, power=0.0, **options)
    weighted = meanflow.meanflow(*args, ratio=0.5, **options)
    # A teacher without the offset, so that its square is all that is left.
    options["ema_params"] = jnp.zeros_like(offset)
    found = {
      "mean": mean[0] / 2,
      "consistent": consistency.consistency_training(
        *args, num_steps=4, **options
      )[0],
    }
    steps, seen = shortcut_with_times(law, args, options)
    if name == "linear":
      found["shortcut"] = steps
    else:
      # A curved path has a velocity other than the smallest step's average.
      finest = seen[0] - seen[1] == 2 / 16
      found["shortcut"] = jnp.where(finest, offset**2, steps)
    reflow = consistency.live_reflow(
      *args, velocity_fn=law.velocity, schedule=schedule, num_steps=3
    )
    return found, weighted, mean[1], reflow[0]

  with jax.enable_x64(True):
    ends = np.random.default_rng(0).normal(size=(64, 2))
    for std in (0.0, 0.5):
      found, weighted, _, reflow = losses(std, 0.0, ends)
      for value in found.values():
        np.testing.assert_allclose(value, 0, atol=1e-20)
      np.testing.assert_allclose(weighted[0], 0, atol=1e-17)
      plain = np.arange(64) % 8 != 7
      np.testing.assert_allclose(reflow[plain], 0, atol=1e-24)
      # Euler's end is exact on straight lines only.
      assert (reflow[~plain].max() < 1e-20) == (name == "linear")
      found, weighted, info, reflow = losses(std, 0.1, ends)
      for value in found.values():
        np.testing.assert_allclose(value, 0.01, rtol=1e-7)
      # Two dimensions: e = 0.02 weighted by 1 / (e + 1e-3).
      np.testing.assert_allclose(weighted[0], 0.02 / 0.021, rtol=1e-7)
      np.testing.assert_allclose(weighted[1]["error"], 0.01, rtol=1e-7)
      np.testing.assert_allclose(info["error"], 0.01, rtol=1e-7)
      np.testing.assert_allclose(reflow[plain], 0.01, rtol=1e-7)


def shortcut_with_times(law, args, options, num_steps=16):
  """The loss, and the times `(t, s)` of its one call on the whole batch."""
  seen = []

  def recorded(params, x, t, s):
    seen.append((t, s))
    return law.average(params, x, t, s)

  options = options | dict(flow_map_fn=recorded, num_steps=num_steps)
  loss, _ = shortcut.shortcut(*args, **options)
  return loss, seen[-1]


@pytest.mark.parametrize("name", laws.SCHEDULES)
def test_meanflow_identity_of_a_marginal_velocity(name):
  law = laws.GaussianLaw(laws.SCHEDULES[name])

  @jax.jit
  def sides(x, t, s, velocity, step):
    u, target = meanflow.average_and_target(
      None, x, t, s, velocity, flow_map_fn=law.average
    )

    def moved(step):
      return law.average(None, x + step * velocity, t + step, s)

    slope = (moved(step) - moved(-step)) / (2 * step)
    return u, target, velocity - (t - s)[:, None] * slope

  with jax.enable_x64(True):
    rng = np.random.default_rng(1)
    x, other = rng.normal(size=(2, 32, 2))
    s, t = np.sort(rng.uniform(0.05, 0.95, size=(2, 32)), axis=0)
    velocity = jax.jit(law.velocity)(0.0, x, t)
    u, target, by_difference = sides(x, t, s, velocity, 1e-5)
    np.testing.assert_allclose(target, u, atol=1e-9)
    # Central difference: h^2 times third derivatives below 1e3, and rounding
    # / (h (t - s)).
    np.testing.assert_allclose(target, by_difference, atol=1e-6)
    # Along another velocity the derivative is as right, the identity is not.
    u, target, by_difference = sides(x, t, s, other, 1e-5)
    np.testing.assert_allclose(target, by_difference, atol=1e-6)
    assert np.abs(target - u).mean() > 0.1


def test_meanflow_is_stationary_at_the_exact_average():
  law = laws.GaussianLaw(gaussian.linear())
  rng = np.random.default_rng(2)
  noise, other = rng.normal(size=(2, 8192, 1))
  pairs = Pairs(
    jnp.asarray(noise, jnp.float32),
    jnp.asarray(law.mean + law.std * other, jnp.float32),
  )

  def average(params, x, t, s):
    return law.average(None, x, t, s) + params[0] * x + params[1]

  @jax.jit
  def z_scores(params):
    slopes = jax.jacfwd(values)(params)
    error = jnp.std(slopes, axis=0) / 8192**0.5
    return jnp.abs(slopes.mean(0)) / error

  def values(params):
    return meanflow.meanflow(
      params,
      jax.random.key(3),
      pairs,
      flow_map_fn=average,
      # Apart from each other, or rounding of (x_t - x_s) / (t - s) shows.
      draw_time=lambda key: 0.05 + 0.9 * fm.uniform(key),
      ratio=1.0,
      power=0.0,
    )[0]

  # Independent pairs: the target's mean given x_t is the marginal's target.
  # 5 standard errors of a mean over 8192 examples.
  assert np.all(z_scores(jnp.zeros(2)) < 5)
  assert np.all(z_scores(jnp.array([0.3, 0.3])) > 5)


def test_meanflow_times():
  batch = 4096
  zeros = jnp.zeros((batch, 1))

  # At x = v = 0 the loss of u = s is s^2, and that of u = t - s, whose
  # derivative is 1, is 4 (t - s)^2.
  @jax.jit
  def losses(key):
    return [
      meanflow.meanflow(
        None, key, Pairs(zeros, zeros), flow_map_fn=field, power=0.0
      )[0]
      for field in (
        lambda p, x, t, s: s[:, None] + 0 * x,
        lambda p, x, t, s: (t - s)[:, None] + 0 * x,
      )
    ]

  first, second = (np.asarray(x) for x in losses(jax.random.key(4)))
  s, span = np.sqrt(first), np.sqrt(second) / 2
  apart = span > 0
  assert abs(apart.mean() - 0.25) < 5 * (0.25 * 0.75 / batch) ** 0.5
  # Later and earlier of two N(-0.4, 1): means -0.4 +- 1 / sqrt(pi), variance
  # 1 - 1 / pi.
  for time, mean in (
    (s[~apart], -0.4 + np.pi**-0.5),
    (s[apart], -0.4 - np.pi**-0.5),
    ((s + span)[apart], -0.4 + np.pi**-0.5),
  ):
    logit = np.log(time) - np.log1p(-time)
    error = (1 - 1 / np.pi) ** 0.5 / len(time) ** 0.5
    assert abs(logit.mean() - mean) < 5 * error


def test_meanflow_guidance():
  label = jnp.array([0, 1, 2, 0], jnp.int32)  # 2 is the null label
  noise, data = jnp.ones((4, 1)), jnp.zeros((4, 1))

  def average(params, x, t, s, label):
    return params[label][:, None] + 0 * x

  table = jnp.array([3.0, 5.0, 7.0])

  @functools.partial(jax.jit, static_argnums=1)
  def run(time, guidance):
    return meanflow.meanflow(
      table,
      jax.random.key(5),
      Pairs(noise, data, label),
      flow_map_fn=average,
      draw_time=lambda key: time,
      power=0.0,
      guidance=guidance,
      null_label=2,
    )[0]

  label, u = np.asarray(label), np.asarray(table)[label]
  guidance = meanflow.Guidance(1.5, 0.25, max_time=0.8)
  # v = 1: the target is 1.5 v + 0.25 u - 0.75 u_null but where label is null.
  want = 1.5 + 0.25 * u - 0.75 * 7
  want = np.where(label == 2, 1.0, want)
  np.testing.assert_allclose(run(0.5, guidance), (u - want) ** 2, rtol=1e-6)
  np.testing.assert_allclose(run(0.9, guidance), (u - 1) ** 2, rtol=1e-6)
  got = run(0.5, meanflow.Guidance(2.0))
  want = np.where(label == 2, 1.0, 2 - 7)
  np.testing.assert_allclose(got, (u - want) ** 2, rtol=1e-6)


def test_shortcut_targets_of_an_exact_flow_map():
  law = laws.GaussianLaw(gaussian.linear())
  with jax.enable_x64(True):
    x = np.random.default_rng(3).normal(size=(3, 2))
    t, size = np.array([1.0, 0.75, 0.5]), np.array([1.0, 0.25, 0.25])

    def average(params, x, t, s):
      # Where s = t the quotient is 0 / 0; the other branch is taken.
      return jnp.where(
        (s == t)[:, None],
        law.velocity(None, x, t),
        law.average(None, x, t, s),
      )

    @jax.jit
    def target(x, t, size):
      return [
        shortcut.two_half_steps(
          None, x, t, size, flow_map_fn=average, num_steps=num_steps, clip=clip
        )
        for num_steps, clip in ((64, None), (8, None), (64, 0.1))
      ]

    exact, coarse, clipped = target(x, t, size)
    want = jax.jit(law.average)(0.0, x, t, t - size)
    np.testing.assert_allclose(exact, want, atol=1e-13)
    # At K = 8 half of 1/4 is the smallest step, and Euler takes it.
    np.testing.assert_allclose(coarse[0], want[0], atol=1e-13)
    velocity = jax.jit(law.velocity)
    half = size[:, None] / 2
    first = velocity(0.0, x, t)
    second = velocity(0.0, x - half * first, t - size / 2)
    euler = (first + second) / 2
    np.testing.assert_allclose(coarse[1:], euler[1:], atol=1e-13)
    assert np.abs(euler - want)[1:].max() > 1e-3
    assert np.abs(clipped).max() <= 0.1


def test_shortcut_times():
  law = Coupled(gaussian.linear())
  rng = np.random.default_rng(4)
  batch, num_steps, every = 8192, 8, 2
  ends = jnp.asarray(rng.normal(size=(batch, 1)), jnp.float32)

  @jax.jit
  def run(key):
    args = (0.0, key, Pairs(ends, law.mean + law.std * ends))
    return shortcut_with_times(
      law, args, dict(bootstrap_every=every), num_steps
    )[1]

  t, s = (np.asarray(x) for x in run(jax.random.key(6)))
  boot = np.arange(batch) % every == every - 1
  np.testing.assert_array_equal(s[~boot], t[~boot])
  check_uniform(t[~boot] * num_steps, np.arange(1, num_steps + 1))
  size = t - s
  levels = (1.0, 0.5, 0.25)
  check_uniform(size[boot], levels)
  for level in levels:
    times = t[boot][size[boot] == level]
    check_uniform(times / level, np.arange(1, int(1 / level) + 1))


def check_uniform(values, support):
  """Every value on the support, each as often within 5 standard errors."""
  values, support = np.asarray(values), np.asarray(support)
  assert np.isin(values, support).all()
  counts = (values[None] == support[:, None]).sum(1)
  share = 1 / len(support)
  error = (len(values) * share * (1 - share)) ** 0.5
  assert np.all(np.abs(counts - len(values) * share) <= 5 * error)
