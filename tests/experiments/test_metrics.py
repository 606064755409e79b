"""Distances of samples against closed forms and exact assignments."""

import itertools

import numpy as np
import pytest
from scipy import stats

from experiments.common import metrics


def two_samples(n, m, dim=2):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(n, dim))
  return x, 0.7 * rng.normal(size=(m, dim)) + np.arange(1.0, dim + 1)


def test_sinkhorn_is_exact_transport_where_the_blur_is_small():
  x, y = two_samples(60, 60)
  exact = metrics.w2(x, y) ** 2
  found = metrics.sinkhorn(x, y, blur=0.05)
  assert found.converged
  # The threshold's share of the mass, over distances of a few units.
  assert found.value == pytest.approx(exact, rel=3e-3)
  # Half the cost, or entropy's bias, would be seen.
  assert metrics.sinkhorn(x, y, blur=2.0).value < 0.99 * exact


def test_sinkhorn_of_a_shift_is_its_square_at_every_blur():
  # The cost of a shifted pair has the shift's square and linear terms, which
  # the marginals fix.
  x, _ = two_samples(40, 1)
  shift = np.array([3.0, -4.0])
  found = metrics.sinkhorn(x, x + shift)
  assert found.converged
  assert found.value == pytest.approx(25.0, rel=1e-4)
  spread = np.sqrt(x.var(axis=0).sum())
  assert found.blur == pytest.approx(0.05 * spread)


def test_sinkhorn_of_one_law_in_two_sizes_is_zero():
  x, _ = two_samples(30, 1)
  found = metrics.sinkhorn(x, np.concatenate([x, x]), blur=0.2)
  assert found.converged
  assert abs(found.value) < 1e-4


def test_sinkhorn_says_where_it_has_not_converged():
  x, y = two_samples(60, 60)
  assert not metrics.sinkhorn(x, y, blur=0.01, max_iterations=50).converged
  # Not before the last blur either, which takes about 100 iterations.
  x, y = 100 * x, 100 * y
  found = metrics.sinkhorn(x, y, blur=5.0, scaling=0.95)
  assert found.converged and found.num_iterations > 100
  assert found.value == pytest.approx(metrics.w2(x, y) ** 2, rel=3e-3)


def test_mmd_is_unbiased():
  dim, scale, mean, spread, repeats, n, m = 3, 1.3, 0.8, 0.6, 600, 50, 40

  def kernel(variance, shift):
    ratio = scale**2 / (scale**2 + variance)
    return ratio ** (dim / 2) * np.exp(
      -dim * shift**2 / (2 * (scale**2 + variance))
    )

  exact = (
    kernel(2, 0) + kernel(2 * spread**2, 0) - 2 * kernel(1 + spread**2, mean)
  )
  rng = np.random.default_rng(1)
  values = np.array(
    [
      metrics.mmd(
        rng.normal(size=(n, dim)),
        mean + spread * rng.normal(size=(m, dim)),
        bandwidth=scale,
      )
      for _ in range(repeats)
    ]
  )
  error = values.std() / repeats**0.5
  assert abs(values.mean() - exact) < 4 * error
  # With each row's pair with itself it would be found wrong.
  bias = (1 - kernel(2, 0)) / n + (1 - kernel(2 * spread**2, 0)) / m
  assert bias > 8 * error


def test_mmd_options():
  x, y = two_samples(70, 90)
  values = [metrics.mmd(x, y, bandwidth=s) for s in (0.5, 2.0)]
  assert metrics.mmd(x, y, bandwidth=(0.5, 2.0)) == pytest.approx(
    np.mean(values), rel=1e-12
  )
  assert metrics.mmd(x, y, bandwidth=0.5, chunk_size=16) == pytest.approx(
    values[0], rel=1e-12
  )
  pairs = [np.linalg.norm(a - b) for a, b in itertools.combinations(y, 2)]
  assert metrics.mmd(x, y) == metrics.mmd(x, y, bandwidth=np.median(pairs))


def test_energy_w2_of_equal_sizes_is_that_of_sorted_values():
  rng = np.random.default_rng(2)
  a, b = rng.normal(size=50), rng.gamma(2.0, size=50)
  exact = np.sqrt(np.mean((np.sort(a) - np.sort(b)) ** 2))
  assert metrics.energy_w2(a, b) == pytest.approx(exact, rel=1e-12)
  assert metrics.energy_w2(a, b) == pytest.approx(
    metrics.w2(a[:, None], b[:, None]), rel=1e-12
  )


def test_energy_w2_with_weights():
  rng = np.random.default_rng(3)
  a, b = rng.normal(size=7), rng.gamma(2.0, size=11)
  a_weights, b_weights = rng.integers(0, 5, 7), rng.integers(1, 5, 11)
  found = metrics.energy_w2(
    a, b, a_weights=0.1 * a_weights, b_weights=b_weights
  )
  # Weights are repetitions.
  again = metrics.energy_w2(np.repeat(a, a_weights), np.repeat(b, b_weights))
  assert found == pytest.approx(again, rel=1e-12)
  u = (np.arange(200_000) + 0.5) / 200_000
  quantiles = [
    np.quantile(values, u, weights=weights, method="inverted_cdf")
    for values, weights in ((a, a_weights), (b, b_weights))
  ]
  exact = np.sqrt(np.mean((quantiles[0] - quantiles[1]) ** 2))
  # At most 18 of the cells hold a step.
  assert found == pytest.approx(exact, rel=1e-3)
  assert abs(metrics.energy_w2(a, b) - exact) > 0.01  # the weights matter


def test_energy_w2_of_closed_forms():
  assert metrics.energy_w2([0.0], [3.0, 4.0, 5.0]) == pytest.approx(
    (50 / 3) ** 0.5
  )
  a, b = (
    stats.norm.ppf((np.arange(n) + 0.5) / n, *law)
    for n, law in ((2_000, (0.0, 1.0)), (3_000, (2.0, 1.5)))
  )
  # The last of n midpoints misses tails of about 1 / n in the variance.
  assert metrics.energy_w2(a, b) == pytest.approx(4.25**0.5, abs=2e-3)
  rng = np.random.default_rng(4)
  a, b = rng.normal(size=4_000), rng.normal(2.0, 1.5, size=5_000)
  # To first order the means differ by 0.026 and the spreads by 0.019, with
  # the derivatives 2 / W2 and 0.5 / W2.
  assert metrics.energy_w2(a, b) == pytest.approx(4.25**0.5, abs=4 * 0.026)


def test_distances_are_those_of_pairs():
  x = np.random.default_rng(5).normal(size=(6, 4, 3))
  exact = [
    [np.linalg.norm(a - b) for a, b in itertools.combinations(row, 2)]
    for row in x
  ]
  np.testing.assert_allclose(metrics.distances(x), exact, rtol=1e-12)


@pytest.mark.parametrize(
  "call, match",
  [
    (lambda x: metrics.sinkhorn(x[0], x), r"x must have shape \[n, D\]"),
    (lambda x: metrics.sinkhorn(x, x[:, :1]), "x and y must have rows of one"),
    (lambda x: metrics.sinkhorn(x, x * np.nan), "y must be finite"),
    (lambda x: metrics.sinkhorn(x, x, blur=0.0), "blur must be positive"),
    (lambda x: metrics.sinkhorn(x, x, scaling=1.0), r"scaling must lie in"),
    (lambda x: metrics.sinkhorn(x, x, threshold=0), "threshold must be posit"),
    (lambda x: metrics.mmd(x, x[:1]), r"y must have shape .* n >= 2"),
    (lambda x: metrics.mmd(x, x, bandwidth=(1, -1)), "bandwidth must be posit"),
    (lambda x: metrics.mmd(x, 0 * x), "bandwidth must be positive"),
    (lambda x: metrics.energy_w2(x, x[0]), r"a and its weights must have one"),
    (lambda x: metrics.energy_w2(x[0], []), r"b and its weights must have one"),
    (lambda x: metrics.energy_w2([np.inf], x[0]), "a and its weights must be"),
    (
      lambda x: metrics.energy_w2([1], [1], a_weights=[-1]),
      "weights of a must not be negative",
    ),
    (
      lambda x: metrics.energy_w2([1], [1], b_weights=[0]),
      "weights of b must not be negative, nor all zero",
    ),
    (lambda x: metrics.distances(x), r"x must have shape \[N, n, d\]"),
  ],
)
def test_bad_input_is_named(call, match):
  with pytest.raises(ValueError, match=match):
    call(two_samples(5, 5)[0])


def test_histogram_kl():
  x = np.repeat([-1.0, 1.0], [300, 100])
  assert metrics.histogram_kl(x, x) == 0
  # Two bins with half a count more in each; 3 nats of weight undo the shares.
  options = dict(num_bins=2, interval=(-2.0, 2.0))
  p, q = np.array([200.5, 200.5]) / 401, np.array([300.5, 100.5]) / 401
  even = np.repeat([-1.0, 1.0], 200)
  assert metrics.histogram_kl(x, even, **options) == pytest.approx(
    np.sum(p * np.log(p / q))
  )
  weights = np.repeat([1.0, 3.0], [300, 100])
  assert metrics.histogram_kl(
    x, even, weights=weights, **options
  ) == pytest.approx(0, abs=1e-9)


def test_w2_wants_equal_sizes():
  with pytest.raises(ValueError, match="equal sizes, got 2 and 3"):
    metrics.w2(np.zeros((2, 1)), np.zeros((3, 1)))
