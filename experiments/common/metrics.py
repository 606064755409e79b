"""Diagnostics of chains and distances of samples, from libraries."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, special
from scipy.spatial import distance

from jdiff import training
from jdiff.core import checks


def mean(values, exact: float | None = None) -> dict[str, float | None]:
  """A mean of independent values `[n]`, its standard error, and what is known.

  In the form that `evaluate` answers.
  """
  values = np.asarray(training.fetch(values), np.float64)
  return {
    "value": float(values.mean()),
    "se": float(values.std() / len(values) ** 0.5),
    "exact": exact,
  }


# Both are a hundred programs where they are not one.
@jax.jit
def ess(values):
  """Effective sample size of `[C, K]` values of C chains."""
  # A second and a half to import, needed by chains alone.
  from blackjax import diagnostics

  return diagnostics.effective_sample_size(values)


@jax.jit
def r_hat(values):
  """Potential scale reduction of `[C, K]` values of C chains; 1 is mixed."""
  from blackjax import diagnostics

  return diagnostics.potential_scale_reduction(values)


def w2(x: np.ndarray, y: np.ndarray) -> float:
  """Exact 2-Wasserstein distance of two samples of equal size `[n, D]`.

  By assignment: 0.1 to 0.2 s of one core for n = 1,000, and 0.7 s for 2,000.
  """
  if len(x) != len(y):
    raise ValueError(
      f"x and y must have equal sizes, got {len(x)} and {len(y)}."
    )
  cost = distance.cdist(x, y, "sqeuclidean")
  rows, columns = optimize.linear_sum_assignment(cost)
  return float(np.sqrt(cost[rows, columns].mean()))


class Divergence(NamedTuple):
  """A Sinkhorn divergence.

  Attributes:
    value: In squared units of the samples.
    converged: Whether all three problems met the threshold. A value that did
      not converge is no result.
    blur: The root of the entropic regularisation that was used.
    num_iterations: Of the problem between the two samples.
  """

  value: float
  converged: bool
  blur: float
  num_iterations: int


def sinkhorn(
  x: np.ndarray,
  y: np.ndarray,
  *,
  blur: float | None = None,
  scaling: float = 0.9,
  threshold: float = 1e-3,
  max_iterations: int = 10_000,
) -> Divergence:
  """Debiased Sinkhorn divergence with the cost `|x - y|^2`, not half of it.

  `OT(x, y) - (OT(x, x) + OT(y, y)) / 2` of optimal transports with entropy
  times `epsilon = blur^2`, in float64, by OTT-JAX. As `blur` goes to 0 it goes
  to the squared `w2`, which for equal sizes of some thousands is exact in a
  hundredth of the time: with the defaults 1,000 samples of a 5-D many-well or
  of a 50-D mixture took 4,000 iterations, 25 s of one core (2,000: 90 s), and
  came out 1.3% and 0.2% low. Iterations grow about as `1 / epsilon`: a blur of
  1e-3, which papers quote with GeomLoss, that stops when it gets there, would
  need some 1e8.

  Args:
    x: Samples `[n, D]`.
    y: Reference `[m, D]`.
    blur: A distance, below which samples are not told apart. None is a
      twentieth of the root mean square distance of `y` from its mean, the same
      for all samples that are compared with one reference.
    scaling: Factor of the blur from one iteration to the next, while it comes
      down from the largest distance; afterwards it stays.
    threshold: Largest sum of the marginals' absolute errors at the end.
    max_iterations: Iterations after which it gives up.

  Raises:
    ValueError: If shapes do not fit, a value is not finite, or an option is out
      of its range.

  Source:
    Feydy et al., arXiv:1810.08278, eq. 3; `blur` and `scaling` as in GeomLoss.
  """
  from ott.geometry import epsilon_scheduler
  from ott.tools import sinkhorn_divergence

  x, y = _rows("x", x), _rows("y", y)
  _check_same_width(x, y)
  if blur is None:
    blur = 0.05 * np.sqrt(((y - y.mean(0)) ** 2).sum(1).mean())
  checks.check_finite("blur", blur, positive=True)
  checks.check_finite("threshold", threshold, positive=True)
  checks.check_int("max_iterations", max_iterations)
  if not 0 < scaling < 1:
    raise ValueError(f"scaling must lie in (0, 1), got {scaling}.")
  epsilon = float(blur) ** 2
  box = np.concatenate([x, y])
  first = max(1.0, float((np.ptp(box, axis=0) ** 2).sum()) / epsilon)
  # OTT broadcasts ranks, whatever the caller allows.
  with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
    value, out = sinkhorn_divergence.sinkdiv(
      jnp.asarray(x),
      jnp.asarray(y),
      epsilon=epsilon_scheduler.Epsilon(
        jnp.asarray(epsilon), first, scaling**2
      ),
      solve_kwargs={
        "threshold": threshold,
        "max_iterations": max_iterations,
      },
    )
    # OTT measures errors at the last epsilon, so that none stops before it.
    converged = all(bool(flag) for flag in out.converged)
    count = int(out.n_iters[0])
  return Divergence(float(value), converged, float(blur), count)


def mmd(
  x: np.ndarray,
  y: np.ndarray,
  *,
  bandwidth: float | Sequence[float] | None = None,
  chunk_size: int = 1024,
) -> float:
  """Unbiased estimate of a squared maximum mean discrepancy, in float64.

  The kernel is `exp(-|x - y|^2 / (2 s^2))`, or its mean over several `s`.

  Args:
    x: Samples `[n, D]`, `n >= 2`.
    y: Reference `[m, D]`, `m >= 2`.
    bandwidth: `s`, or several. None is the median distance between two of the
      first 2,000 rows of `y` (of `y` alone, so that all samples that are
      compared with one reference are compared by one kernel).
    chunk_size: Rows of a kernel matrix that are in memory at once.

  Returns:
    `E k(x, x') + E k(y, y') - 2 E k(x, y)` without the pairs of a row and
    itself: zero in the mean if the laws are the same, and then often negative.

  Raises:
    ValueError: If shapes do not fit, a value is not finite, a bandwidth is not
      positive, or the median distance is zero.

  Source:
    Gretton et al., J. Mach. Learn. Res. 13 (2012), eq. 3.
  """
  x, y = _rows("x", x, minimum=2), _rows("y", y, minimum=2)
  _check_same_width(x, y)
  if bandwidth is None:
    bandwidth = np.median(distance.pdist(y[:2_000]))
  scales = np.atleast_1d(np.asarray(bandwidth, np.float64))
  if scales.ndim != 1 or not (np.isfinite(scales) & (scales > 0)).all():
    raise ValueError(
      f"bandwidth must be positive and finite, got {scales.tolist()}."
    )

  def total(a, b):
    """The kernel's sum over all pairs."""
    value = 0.0
    for start in range(0, len(a), chunk_size):
      square = distance.cdist(a[start : start + chunk_size], b, "sqeuclidean")
      for scale in scales:
        value += np.exp(square / (-2 * scale**2)).sum()
    return value / len(scales)

  n, m = len(x), len(y)
  return float(
    (total(x, x) - n) / (n * (n - 1))
    + (total(y, y) - m) / (m * (m - 1))
    - 2 * total(x, y) / (n * m)
  )


def energy_w2(
  a: np.ndarray,
  b: np.ndarray,
  *,
  a_weights: np.ndarray | None = None,
  b_weights: np.ndarray | None = None,
) -> float:
  """Exact 2-Wasserstein distance of two laws of numbers, such as energies.

  The root of `int_0^1 (F_a^{-1}(u) - F_b^{-1}(u))^2 du`, whose quantile
  functions are steps. `scipy.stats.wasserstein_distance` knows order 1 only.

  Args:
    a: Values `[n]`, in any order.
    b: Values `[m]`.
    a_weights: Weights `[n]` of `a` up to a factor; None is equal ones.
    b_weights: Weights `[m]` of `b`.

  Returns:
    A distance in units of the values.

  Raises:
    ValueError: If shapes do not fit, a number is not finite, a weight is
      negative or all of a side are zero.
  """
  a, a_ends = _quantiles("a", a, a_weights)
  b, b_ends = _quantiles("b", b, b_weights)
  ends = np.sort(np.concatenate([a_ends, b_ends]))
  # Between two ends both are constant; the one that holds a middle is theirs.
  middles = ends - 0.5 * np.diff(ends, prepend=0.0)
  difference = (
    a[np.searchsorted(a_ends, middles)] - b[np.searchsorted(b_ends, middles)]
  )
  return float(np.sqrt(np.diff(ends, prepend=0.0) @ difference**2))


def histogram_kl(
  values: np.ndarray,
  reference: np.ndarray,
  *,
  weights: np.ndarray | None = None,
  interval: tuple[float, float] = (-np.pi, np.pi),
  num_bins: int = 60,
) -> float:
  """KL of two histograms of numbers, from the reference's to the values', nats.

  Half a count is added to every bin, so that it is finite.

  Args:
    values: `[n]`.
    reference: `[m]`.
    weights: `[n]` of the values, up to a factor; None is equal ones.
    interval: Where the bins lie; by default a circle's.
    num_bins: Equal bins.
  """
  share = np.ones(len(values)) if weights is None else np.asarray(weights)
  share = share / share.sum() * len(values)
  options = dict(bins=num_bins, range=interval)
  q, _ = np.histogram(values, weights=share, **options)
  p, _ = np.histogram(reference, **options)
  p, q = (p + 0.5) / (p + 0.5).sum(), (q + 0.5) / (q + 0.5).sum()
  return float(special.rel_entr(p, q).sum())


def distances(x: np.ndarray) -> np.ndarray:
  """Distances `[N, n (n - 1) / 2]` of the pairs of `n` particles `[N, n, d]`.

  Pairs `i < j`, row by row. Raveled, they are what `energy_w2` compares two
  samples of configurations by, without a thought for symmetries.
  """
  x = np.asarray(x)
  if x.ndim != 3:
    raise ValueError(f"x must have shape [N, n, d], got {list(x.shape)}.")
  i, j = np.triu_indices(x.shape[1], 1)
  return np.linalg.norm(x[:, i] - x[:, j], axis=-1)


def _rows(name, x, minimum=1):
  """`x` as finite float64 `[n, D]`."""
  x = np.asarray(x, np.float64)
  if x.ndim != 2 or len(x) < minimum:
    raise ValueError(
      f"{name} must have shape [n, D] with n >= {minimum}, got {list(x.shape)}."
    )
  if not np.isfinite(x).all():
    raise ValueError(f"{name} must be finite.")
  return x


def _check_same_width(x, y):
  if x.shape[1] != y.shape[1]:
    raise ValueError(
      "x and y must have rows of one dimension, got shapes "
      f"{list(x.shape)} and {list(y.shape)}."
    )


def _quantiles(name, values, weights):
  """Sorted values, and the shares of the law up to each of them."""
  values = np.asarray(values, np.float64)
  if weights is None:
    weights = np.ones(values.shape)
  weights = np.asarray(weights, np.float64)
  if values.ndim != 1 or not len(values) or weights.shape != values.shape:
    raise ValueError(
      f"{name} and its weights must have one shape [n], n >= 1, got "
      f"{list(values.shape)} and {list(weights.shape)}."
    )
  if not (np.isfinite(values).all() and np.isfinite(weights).all()):
    raise ValueError(f"{name} and its weights must be finite.")
  if weights.min() < 0 or not weights.any():
    raise ValueError(
      f"the weights of {name} must not be negative, nor all zero, got values "
      f"from {weights.min()} to {weights.max()}."
    )
  order = np.argsort(values)
  ends = np.cumsum(weights[order])
  # Divided, so that the last is one.
  return values[order], ends / ends[-1]
