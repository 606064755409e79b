"""The loss gap against quadrature, closed forms and theorem 4.3."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import sde
from jdiff.schedules import gaussian
from jdiff.targets import mixtures

# The unit-rate OU process of arXiv:2511.03202: house time is its own time.
OU = gaussian.vp(1.0, 1.0)
TIMES = np.array([0.01, 0.03, 0.1, 0.3, 0.7, 1.0])
TRUTH = mixtures.mixture([0.35, 0.65], [[-1.5], [1.0]], [0.2, 0.4])
TRUE_SCORE = mixtures.score_fn(OU.alpha, OU.sigma)


def levels(t):
  return np.exp(-t / 2), np.sqrt(-np.expm1(-t))


class Line:
  """Expectations in one dimension by quadrature, for rows `[..., N]`."""

  def __init__(self, rows, law=TRUTH, num=6001, reach=9.0):
    self.rows = np.asarray(rows, np.float64)
    self.x = np.linspace(-reach, reach, num)
    self.step = self.x[1] - self.x[0]
    self.weights, self.means, self.variances = (
      np.float64(a).reshape(-1)
      for a in (np.exp(np.float64(law.log_weights)), law.means, law.variances)
    )

  def bell(self, mean, variance):
    away = (self.x - mean) ** 2 / variance
    return np.exp(-0.5 * away) / np.sqrt(2 * np.pi * variance)

  def scores(self, t):
    """Densities and scores of the truth and of the rows."""
    alpha, sigma = levels(t)
    variances = alpha**2 * self.variances + sigma**2
    parts = [
      (w, alpha * m, v)
      for w, m, v in zip(self.weights, self.means, variances, strict=True)
    ]
    true = self.density_and_score(parts)
    parts = [(1 / len(self.rows), alpha * y, sigma**2) for y in self.rows]
    return *true, *self.density_and_score(parts)

  def density_and_score(self, parts):
    # Scores as ratios, with the floor of a density that has no weight anyway.
    density = sum(w * self.bell(m, v) for w, m, v in parts)
    slope = sum(w * self.bell(m, v) * (m - self.x) / v for w, m, v in parts)
    return density, slope / np.maximum(density, 1e-290)

  def mean(self, density, values):
    return np.sum(density * values) * self.step

  def loss(self, t, score):
    """The denoising loss, row by row of the definition."""
    alpha, sigma = levels(t)
    terms = [
      self.mean(
        self.bell(alpha * y, sigma**2),
        (-(self.x - alpha * y) / sigma**2 - score) ** 2,
      )
      for y in self.rows
    ]
    return np.mean(terms)

  def answers(self, t):
    p, score, p_hat, score_hat = self.scores(t)
    loss, least = self.loss(t, score), self.loss(t, score_hat)
    return {
      "gap": loss - least,
      "fisher": self.mean(p_hat, (score_hat - score) ** 2),
      "under_truth": self.mean(p, (score_hat - score) ** 2),
      "loss": loss,
      "least": least,
      "information": self.mean(p_hat, score_hat**2),
      "true_information": self.mean(p, score**2),
    }


FOUR = np.array([-1.9, -1.2, 0.6, 1.7])


@pytest.mark.parametrize("t", TIMES)
def test_the_gap_is_a_fisher_divergence(t):
  line = Line(FOUR)
  found = line.answers(t)
  np.testing.assert_allclose(found["gap"], found["fisher"], rtol=1e-7)
  # The least loss, whatever the rows are.
  least = 1 / levels(t)[1] ** 2 - found["information"]
  np.testing.assert_allclose(found["least"], least, rtol=1e-7)
  # Control: under the truth's own marginal it is another number.
  assert abs(found["under_truth"] / found["gap"] - 1) > 1e-3


def test_quadrature_uses_the_scores_of_the_library():
  # Where the density of the rows does not vanish in NumPy's own form.
  line = Line(FOUR)
  x = line.x[500:-500:50, None]

  @jax.jit
  def run(x, times):
    truth = jax.tree.map(lambda a: a.astype(float), TRUTH)

    def one(t):
      alpha, sigma = OU.alpha(t), OU.sigma(t)
      _, found = sde.empirical_score(x, FOUR[:, None], alpha, sigma)
      return TRUE_SCORE(truth, x, jnp.full(len(x), t)), found

    return jax.vmap(one)(times)

  with jax.enable_x64(True):
    got = jax.device_get(run(jnp.asarray(x), jnp.asarray(TIMES)))
  for t, true, found in zip(TIMES, *got, strict=True):
    _, score, p_hat, score_hat = (a[500:-500:50] for a in line.scores(t))
    np.testing.assert_allclose(true[:, 0], score, rtol=1e-9, atol=1e-9)
    seen = p_hat > 1e-200
    np.testing.assert_allclose(
      found[seen, 0], score_hat[seen], rtol=1e-9, atol=1e-9
    )


@functools.partial(jax.jit, static_argnames=("score_fn", "num_samples"))
def gaps(params, key, data, times, score_fn=TRUE_SCORE, num_samples=10_000):
  def one(t):
    return sde.loss_gap(
      params,
      key,
      data,
      t,
      score_fn=score_fn,
      schedule=OU,
      num_samples=num_samples,
    )

  return jax.lax.map(one, times)


def test_monte_carlo_gap():
  data = jnp.asarray(FOUR[:, None], jnp.float32)
  with jax.debug_key_reuse(True):
    got = jax.device_get(
      gaps(TRUTH, jax.random.key(0), data, jnp.asarray(TIMES))
    )
  want = [Line(FOUR).answers(t) for t in TIMES]
  want = {name: np.array([w[name] for w in want]) for name in want[0]}
  # A mean of 1e4 values without tails is as good as normal.
  assert (np.abs(got.gap - want["gap"]) < 4.5 * got.gap_se).all()
  assert (np.abs(got.fisher - want["gap"]) < 4.5 * got.fisher_se).all()
  assert (got.gap_se < 0.1 * want["gap"] + 0.01).all()
  assert (got.fisher_se < got.gap_se).all()
  np.testing.assert_allclose(got.loss, want["loss"], rtol=0.05)
  # At the first time it is made of rare draws between the rows.
  np.testing.assert_allclose(
    got.loss_empirical[1:], want["least"][1:], rtol=0.05
  )
  np.testing.assert_allclose(
    got.loss - got.loss_empirical, got.gap, rtol=1e-3, atol=1e-2
  )
  # Control: the divergence under the truth is not it, seen best near data.
  away = np.abs(got.fisher - want["under_truth"])[:4]
  assert (away > 4.5 * got.fisher_se[:4]).all()
  # The memoriser itself has no gap.
  score_fn = sde.empirical_score_fn(OU)
  own = gaps(data, jax.random.key(0), data, jnp.asarray(TIMES), score_fn, 100)
  np.testing.assert_allclose(own.fisher, 0, atol=1e-6)


def test_one_point():
  variance, dim = 0.7, 3
  law = mixtures.mixture([1.0], np.zeros((1, dim)), variance)
  row = jnp.array([[0.5, -1.0, 0.3]])
  alpha, sigma = levels(TIMES)
  total = alpha**2 * variance + sigma**2
  want = (alpha**2 / total**2) * float(jnp.sum(row**2))
  want += dim * (alpha**2 * variance) ** 2 / (sigma**2 * total**2)
  got = gaps(law, jax.random.key(1), row, jnp.asarray(TIMES))
  assert (np.abs(got.gap - want) < 4.5 * got.gap_se).all()
  assert (np.abs(got.fisher - want) < 4.5 * got.fisher_se).all()
  # By quadrature, in one dimension; copies change nothing.
  flat = mixtures.mixture([1.0], [[0.0]], variance)
  for t, a, s, v in zip(TIMES, alpha, sigma, total, strict=True):
    closed = (a * 0.9 / v) ** 2 + (a**2 * variance / (s * v)) ** 2
    for rows in ([0.9], [0.9, 0.9]):
      found = Line(rows, flat).answers(t)
      np.testing.assert_allclose(found["gap"], closed, rtol=1e-6)
  # Averaged over the point, it is the ceiling: E |x|^2 = D v.
  mean = want + alpha**2 / total**2 * (dim * variance - float(jnp.sum(row**2)))
  ceiling = sde.loss_gap_ceiling(dim, variance, alpha, sigma)
  np.testing.assert_allclose(ceiling, mean, rtol=1e-5)
  # For one component it is all that can be lost, D / sigma^2 - I(p).
  np.testing.assert_allclose(ceiling, dim / sigma**2 - dim / total, rtol=1e-5)


def test_average_over_training_sets():
  # E[gap] = E[I(p_hat)] - I(p) <= d / sigma^2 - I(p), falling with N.
  t, num = 0.05, 100
  rows = mixtures.sample(TRUTH, jax.random.key(2), num * 16)
  rows = np.float64(rows).reshape(num, 16)
  found = {}
  for n in (1, 4, 16):
    each = [Line(r[:n], num=1501).answers(t) for r in rows]
    gap, excess = (
      np.array([e[a] - e[b] for e in each])
      for a, b in (("loss", "least"), ("information", "true_information"))
    )
    difference = gap - excess
    error = difference.std() / num**0.5
    assert abs(difference.mean()) < 4.5 * error + 1e-6
    found[n] = gap
    ceiling = 1 / levels(t)[1] ** 2 - each[0]["true_information"]
    if n == 1:
      assert abs(gap.mean() - ceiling) < 4.5 * gap.std() / num**0.5
    else:
      less = found[1] - gap
      assert less.mean() > 4.5 * less.std() / num**0.5
      assert gap.mean() + 4.5 * gap.std() / num**0.5 < ceiling


@pytest.mark.parametrize(
  ("dim", "num_rows", "num_sets", "low", "high"),
  # The gap over its ceiling: it needs exponentially many rows to close.
  [(64, 64, 4, 0.98, 1.02), (4, 1024, 4, 0.05, 0.17)],
)
def test_separation(dim, num_rows, num_sets, low, high):
  # Two centres at a distance of 2 sqrt(D); at t = 0.1.
  law = mixtures.separated(2, dim, separation=2.0, variance=0.5)

  @jax.jit
  def run(key):
    def one(key):
      key_data, key_gap = jax.random.split(key)
      data = mixtures.sample(law, key_data, num_rows)
      t = jnp.array([0.1])
      return gaps(law, key_gap, data, t, num_samples=512).fisher[0]

    return jax.lax.map(one, jax.random.split(key, num_sets)).mean()

  ceiling = sde.loss_gap_ceiling(dim, 0.5, *levels(0.1))
  assert low < run(jax.random.key(3)) / ceiling < high


def test_bad_arguments():
  data = jnp.zeros((5, 2))
  gap = functools.partial(
    sde.loss_gap, None, score_fn=lambda p, x, t: x, schedule=OU
  )
  with pytest.raises(ValueError, match="num_samples must be >= 2"):
    gap(jax.random.key(0), data, 0.5, num_samples=1)
  with pytest.raises(ValueError, match="t must have shape"):
    gap(jax.random.key(0), data, jnp.ones(3), num_samples=3)
  with pytest.raises(TypeError, match="key must be a typed PRNG key"):
    gap(jnp.zeros(2, jnp.uint32), data, 0.5, num_samples=3)
  with pytest.raises(ValueError, match="score_fn's answer must have shape"):
    jax.eval_shape(
      lambda key: gap(
        key, data, 0.5, num_samples=3, score_fn=lambda p, x, t: x[:, :1]
      ),
      jax.random.key(0),
    )
