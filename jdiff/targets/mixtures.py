"""Gaussian mixtures, and what Gaussian noise makes of them.

A covariance is held by its eigenvalues and eigenvectors, so that diffusing it,
`x_t = alpha x_0 + sigma noise`, costs a multiplication and an addition: the
components of `x_t` are `N(alpha mu, alpha^2 C + sigma^2 I)`. Its density, score
and draws are then those of a mixture again. With a schedule's own `alpha` and
`sigma` it is the exact law at any time; the unit-rate OU process of
arXiv:2511.03202 with horizon `T` is `schedules.gaussian.vp(T, T)`.

Functions take one point `x [D]`; batch them with `jax.vmap`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jdiff.core import checks
from jdiff.core import keys as keys_lib
from jdiff.core.types import ScoreFn, Target


class Mixture(NamedTuple):
  """`sum_k exp(log_weights_k) N(means_k, C_k)`; a pytree.

  Attributes:
    log_weights: `[K]`, normalised.
    means: `[K, D]`.
    variances: `[K, D]`, eigenvalues of the covariances.
    axes: `[K, D, D]`, eigenvectors in columns; None for the coordinate axes.
  """

  log_weights: jax.Array
  means: jax.Array
  variances: jax.Array
  axes: jax.Array | None = None


def mixture(
  weights: ArrayLike, means: ArrayLike, covariances: ArrayLike
) -> Mixture:
  """A mixture from its usual parameters.

  Args:
    weights: `[K]` positive; normalised here.
    means: `[K, D]`.
    covariances: One variance for all, `[K]` isotropic variances, `[K, D]`
      diagonals, or `[K, D, D]` matrices. Variances may be zero if the mixture
      is diffused before it is asked for a density: with `[N]` points for means
      it is then an empirical law. Traced matrices have no derivative where
      eigenvalues meet.

  Raises:
    ValueError: If the shapes do not fit, or values are seen to be no mixture's.
  """
  concrete = checks.is_concrete(weights, means, covariances)
  for name, array in (
    ("weights", weights),
    ("means", means),
    ("covariances", covariances),
  ):
    checks.check_numbers(name, array)
  # On the host in float64: float32 could turn small eigenvalues negative.
  xp: Any = np if concrete else jnp
  share, centres, spread = (
    xp.asarray(a, float) for a in (weights, means, covariances)
  )
  checks.check_shape("means", centres, (None, None))
  num, dim = centres.shape
  checks.check_int("number of components", num)
  checks.check_shape("weights", share, (num,), "One weight a row of means.")
  if spread.shape not in ((), (num,), (num, dim), (num, dim, dim)):
    raise ValueError(
      "covariances must be one variance, or have shape [K], [K, D] or "
      f"[K, D, D] with K={num} and D={dim}, got {list(spread.shape)}."
    )
  if concrete:
    if not (np.isfinite(share).all() and (share > 0).all()):
      raise ValueError(f"weights must be positive and finite, got {share}.")
    if not (np.isfinite(centres).all() and np.isfinite(spread).all()):
      raise ValueError("means and covariances must be finite.")
  axes = None
  if spread.ndim == 3:
    if concrete and not np.allclose(spread, spread.swapaxes(1, 2)):
      raise ValueError("covariances must be symmetric matrices.")
    variances, axes = xp.linalg.eigh(spread)
  else:
    tail = (1,) * (2 - spread.ndim)
    variances = xp.broadcast_to(
      spread.reshape(*spread.shape, *tail), (num, dim)
    )
  # A singular matrix has eigenvalues that rounding may turn negative.
  if concrete and variances.min() < -1e-12 * variances.max():
    raise ValueError(
      f"covariances must have no negative eigenvalue, got {variances.min()}."
    )
  dtype = jnp.result_type(float)
  return Mixture(
    jnp.asarray(xp.log(share / share.sum()), dtype),
    jnp.asarray(centres, dtype),
    jnp.asarray(xp.maximum(variances, 0), dtype),
    None if axes is None else jnp.asarray(axes, dtype),
  )


def separated(
  num_components: int,
  dim: int,
  *,
  separation: float = 2.0,
  variance: float = 1.0,
  key: jax.Array | None = None,
) -> Mixture:
  """Equal components whose centres are `separation * sqrt(dim)` apart.

  Up to `dim + 1` centres form a regular simplex, all at that distance; more
  fill a cubic grid with that spacing. Their mean is zero. Separation of order
  `sqrt(dim)` is what arXiv:2511.03202 (theorem 4.3) asks for.

  Args:
    num_components: Components `K`.
    dim: Dimension `D`.
    separation: Smallest distance of two centres over `sqrt(dim)`.
    variance: Of every component, in every direction.
    key: Turns the centres by a random rotation; None leaves the grid along the
      coordinate axes and the simplex in the first `K - 1` of them.

  Raises:
    ValueError: If a number is not positive.
    TypeError: If a count is not an integer, or the key no typed PRNG key.
  """
  num = checks.check_int("num_components", num_components)
  dim = checks.check_int("dim", dim)
  separation = checks.check_finite("separation", separation, positive=True)
  variance = checks.check_finite("variance", variance, positive=True)
  if num <= dim + 1:
    units = np.eye(num - 1, dim)
    last = units.sum(axis=0) * (1 - num**0.5) / max(num - 1, 1)
    centres = np.vstack([units, last]) / 2**0.5
  else:
    side = next(m for m in range(2, num + 1) if m**dim >= num)
    # Digits in base `side`, in floats: powers of it may exceed an integer.
    powers = float(side) ** np.arange(dim)
    centres = np.arange(num)[:, None] // powers % side
  centres = (centres - centres.mean(axis=0)) * separation * dim**0.5
  law = mixture(np.full(num, 1 / num), centres, variance)
  if key is None:
    return law
  checks.check_key(key)
  turn = jax.random.orthogonal(key, dim, dtype=law.means.dtype)
  means = jnp.matmul(law.means, turn, precision=lax.Precision.HIGHEST)
  return law._replace(means=means)


def gaussian_mixture(mixture: Mixture, *, log_z: float = 0.0) -> Target:
  """The mixture as a `Target`: `log_prob` is its log-density plus `log_z`.

  Observables: `mean` `[D]`, `squared_norm`, and `mode_share` `[K]`, the
  posterior probability of each component, whose expectations are the weights.

  Args:
    mixture: Any `Mixture`.
    log_z: The log partition function that the target is to have, in nats.
  """
  log_z = checks.check_finite("log_z", log_z)

  def observables(x):
    return {
      "mean": x,
      "squared_norm": jnp.sum(x**2),
      "mode_share": jax.nn.softmax(_log_joint(mixture, x)[0]),
    }

  def exact():
    weights, means, variances = (
      np.asarray(a, np.float64)
      for a in (mixture.log_weights, mixture.means, mixture.variances)
    )
    weights = np.exp(weights)
    square = (means**2 + variances).sum(axis=1)
    return {
      "log_z": log_z,
      "mean": weights @ means,
      "squared_norm": float(weights @ square),
      "mode_share": weights,
    }

  return Target(
    log_prob=lambda x: log_prob(mixture, x) + log_z,
    dim=mixture.means.shape[1],
    log_z=log_z,
    sample=lambda key, num_samples: sample(mixture, key, num_samples),
    exact=exact if checks.is_concrete(mixture) else None,
    observables=observables,
  )


def log_prob(mixture: Mixture, x: jax.Array) -> jax.Array:
  """Normalised log-density of `x` `[D]`, in nats."""
  return jax.nn.logsumexp(_log_joint(mixture, x)[0])


def score(mixture: Mixture, x: jax.Array) -> jax.Array:
  """Gradient of `log_prob` in `x`, `[D]`."""
  log_joint, offset = _log_joint(mixture, x)
  return _average(mixture, log_joint, -offset / mixture.variances)


def sample(mixture: Mixture, key: jax.Array, num_samples: int) -> jax.Array:
  """Exact draws `[N, D]`; draw `i` depends on `key` and `i` alone.

  Args:
    mixture: Any `Mixture`.
    key: One PRNG key, or `[N]` keys; consumed.
    num_samples: Draws `N`.
  """
  checks.check_int("num_samples", num_samples)

  def draw(key):
    key_component, key_noise = jax.random.split(key)
    k = jax.random.categorical(key_component, mixture.log_weights)
    means = mixture.means
    noise = jax.random.normal(key_noise, means.shape[1:], means.dtype)
    noise = jnp.sqrt(mixture.variances[k]) * noise
    if mixture.axes is not None:
      noise = jnp.matmul(
        mixture.axes[k], noise, precision=lax.Precision.HIGHEST
      )
    return means[k] + noise

  return jax.vmap(draw)(keys_lib.per_example(key, num_samples))


def diffused(mixture: Mixture, alpha: ArrayLike, sigma: ArrayLike) -> Mixture:
  """The law of `alpha X + sigma N(0, I)`, with scalars `alpha` and `sigma`."""
  checks.check_shape("alpha", alpha, (), "Batch with jax.vmap.")
  checks.check_shape("sigma", sigma, (), "Batch with jax.vmap.")
  dtype = mixture.means.dtype
  alpha, sigma = jnp.asarray(alpha, dtype), jnp.asarray(sigma, dtype)
  return mixture._replace(
    means=alpha * mixture.means,
    variances=alpha**2 * mixture.variances + sigma**2,
  )


def denoised(
  mixture: Mixture, x: jax.Array, alpha: ArrayLike, sigma: ArrayLike
) -> jax.Array:
  """`E[X_0 | alpha X_0 + sigma noise = x]` `[D]`, if `X_0` is the mixture's.

  Tweedie's `(x + sigma^2 score) / alpha`, in a form that does not divide by
  `alpha`: at `alpha = 0` it is the mixture's mean.
  """
  noisy = diffused(mixture, alpha, sigma)
  log_joint, offset = _log_joint(noisy, x)
  gain = alpha * mixture.variances / noisy.variances
  centre = _average(mixture._replace(axes=None), log_joint, mixture.means)
  return centre + _average(mixture, log_joint, gain * offset)


def score_fn(
  alpha: Callable[[jax.Array], jax.Array],
  sigma: Callable[[jax.Array], jax.Array],
) -> ScoreFn:
  """The exact score of a diffused mixture; `params` is the `Mixture`.

    schedule = schedules.gaussian.vp()
    score = mixtures.score_fn(schedule.alpha, schedule.sigma)
    sde.sample_sde(mixture, key, noise, score_fn=score, schedule=schedule)

  Args:
    alpha: The schedule's `alpha`.
    sigma: The schedule's `sigma`.
  """

  def exact(params: Mixture, x: jax.Array, t: jax.Array) -> jax.Array:
    def one(x, alpha, sigma):
      return score(diffused(params, alpha, sigma), x)

    return jax.vmap(one)(x, alpha(t), sigma(t))

  return exact


def _log_joint(mixture, x):
  """`log(weight * density)` `[K]`, and `x - mean` `[K, D]` in own axes."""
  checks.check_shape("x", x, mixture.means.shape[1:], "Batch with jax.vmap.")
  offset = jnp.asarray(x)[None] - mixture.means
  if mixture.axes is not None:
    offset = jnp.einsum(
      "kde,kd->ke", mixture.axes, offset, precision=lax.Precision.HIGHEST
    )
  variances = mixture.variances
  log_density = -0.5 * jnp.sum(
    offset**2 / variances + jnp.log(2 * jnp.pi * variances), axis=1
  )
  return mixture.log_weights + log_density, offset


def _average(mixture, log_joint, values):
  """Posterior mean over components of vectors `[K, D]` in their own axes."""
  share = jax.nn.softmax(log_joint)
  if mixture.axes is None:
    return jnp.sum(share[:, None] * values, axis=0)
  return jnp.einsum(
    "k,kde,ke->d",
    share,
    mixture.axes,
    values,
    precision=lax.Precision.HIGHEST,
  )
