"""Densities to compare samplers on: a funnel, Gaussians, Students.

Those of arXiv:2510.03824, all with known draws and `log_z`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special
from jax.typing import ArrayLike
from scipy import stats

from jdiff.core import checks
from jdiff.core import keys as keys_lib
from jdiff.core.types import Target
from jdiff.targets import mixtures


def funnel(dim: int = 10, *, scale: float = 3.0) -> Target:
  """Neal's funnel: `x_1 ~ N(0, scale^2)`, `x_i | x_1 ~ N(0, e^(x_1))`.

  Observables, of which none has a very long tail (the second moment of `x_i`
  has): `depth` `x_1`, `depth_squared`, `narrow` (whether `x_1 < 0`), and means
  over the other coordinates, `magnitude` of `|x_i|` and `rescaled` of
  `x_i^2 e^(-x_1)`.

  Args:
    dim: Coordinates, at least 2.
    scale: Standard deviation of the first.

  Raises:
    ValueError: If a number is out of its range.
    TypeError: If `dim` is not an integer.
  """
  dim = checks.check_int("dim", dim, 2)
  scale = checks.check_finite("scale", scale, positive=True)

  def log_prob(x):
    checks.check_shape("x", x, (dim,), "Batch with jax.vmap.")
    z = jnp.append(x[:1] / scale, x[1:] * jnp.exp(-0.5 * x[0]))
    log_volume = 0.5 * dim * np.log(2 * np.pi) + np.log(scale)
    return -0.5 * jnp.sum(z**2) - 0.5 * (dim - 1) * x[0] - log_volume

  def sample(key, num_samples):
    def draw(key):
      z = jax.random.normal(key, (dim,))
      depth = scale * z[:1]
      return jnp.append(depth, z[1:] * jnp.exp(0.5 * depth))

    return jax.vmap(draw)(keys_lib.per_example(key, num_samples))

  def observables(x):
    return {
      "depth": x[0],
      "depth_squared": x[0] ** 2,
      "narrow": (x[0] < 0).astype(x.dtype),
      "magnitude": jnp.mean(jnp.abs(x[1:])),
      "rescaled": jnp.mean((x[1:] * jnp.exp(-0.5 * x[0])) ** 2),
    }

  def exact():
    return {
      "log_z": 0.0,
      "depth": 0.0,
      "depth_squared": scale**2,
      "narrow": 0.5,
      "magnitude": float((2 / np.pi) ** 0.5 * np.exp(scale**2 / 8)),
      "rescaled": 1.0,
    }

  return Target(
    log_prob=log_prob,
    dim=dim,
    log_z=0.0,
    sample=sample,
    exact=exact,
    observables=observables,
  )


def gmm40(
  key: jax.Array, dim: int = 50, *, box: float = 40.0, variance: float = 1.0
) -> Target:
  """Forty equal Gaussians with means uniform in `[-box, box]^dim`.

  Draws and observables as for `mixtures.gaussian_mixture`. The means are those
  of this key, not those of any paper.

  Args:
    key: PRNG key of the means; consumed.
    dim: Coordinates.
    box: Half the box's side.
    variance: Of every component, in every direction.

  Raises:
    ValueError: If a number is not positive.
    TypeError: If `dim` is not an integer, or the key no typed PRNG key.
  """
  checks.check_key(key)
  dim = checks.check_int("dim", dim)
  box = checks.check_finite("box", box, positive=True)
  variance = checks.check_finite("variance", variance, positive=True)
  means = jax.random.uniform(key, (40, dim), minval=-box, maxval=box)
  law = mixtures.mixture(np.full(40, 1 / 40), means, variance)
  return mixtures.gaussian_mixture(law)


def student_mixture(
  weights: ArrayLike,
  means: ArrayLike,
  *,
  degrees: float = 2.0,
  log_z: float = 0.0,
) -> Target:
  """A mixture of products of Student's t, of unit scale, over coordinates.

  Its tails are heavier than any Gaussian's: importance weights to it from a
  Gaussian have infinite variance. At `degrees <= 2` its own variance is
  infinite; hence bounded observables: `mode_share` `[K]`, the posterior
  probability of each component, and `positive` `[D]`, whether `x_d > 0`.

  The ten components of arXiv:2510.03824 have equal weights, two degrees and
  means uniform in `[-10, 10]^50`.

  Args:
    weights: `[K]` positive; normalised here.
    means: `[K, D]`.
    degrees: Degrees of freedom, positive.
    log_z: The log partition function that the target is to have, in nats.

  Raises:
    ValueError: If the shapes do not fit, or a number is out of its range.
  """
  degrees = checks.check_finite("degrees", degrees, positive=True)
  log_z = checks.check_finite("log_z", log_z)
  # Its checks and its normalisation; the variances go unused.
  law = mixtures.mixture(weights, means, 1.0)
  num, dim = law.means.shape
  log_norm = float(stats.t(degrees).logpdf(0.0))

  def log_joint(x):
    checks.check_shape("x", x, (dim,), "Batch with jax.vmap.")
    squares = (x[None] - law.means) ** 2
    kernel = -0.5 * (degrees + 1) * jnp.log1p(squares / degrees)
    return law.log_weights + jnp.sum(kernel, axis=1) + dim * log_norm

  def sample(key, num_samples):
    def draw(key):
      key_component, key_offset = jax.random.split(key)
      k = jax.random.categorical(key_component, law.log_weights)
      return law.means[k] + jax.random.t(
        key_offset, degrees, (dim,), law.means.dtype
      )

    return jax.vmap(draw)(keys_lib.per_example(key, num_samples))

  def observables(x):
    return {
      "mode_share": jax.nn.softmax(log_joint(x)),
      "positive": (x > 0).astype(x.dtype),
    }

  def exact():
    share = np.exp(np.asarray(law.log_weights, np.float64))
    above = stats.t(degrees).cdf(np.asarray(law.means, np.float64))
    return {"log_z": log_z, "mode_share": share, "positive": share @ above}

  return Target(
    log_prob=lambda x: special.logsumexp(log_joint(x)) + log_z,
    dim=dim,
    log_z=log_z,
    sample=sample,
    exact=exact if checks.is_concrete(law) else None,
    observables=observables,
  )
