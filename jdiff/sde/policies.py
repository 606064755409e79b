"""Parts of policies of a Gaussian process that are no network."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jdiff.core import checks
from jdiff.core import keys as keys_lib
from jdiff.core.types import LogProb, Params, ScoreFn
from jdiff.schedules import grids
from jdiff.sde import interpolants, paths
from jdiff.sde.references import Reference


def fit_spread(
  params: Params,
  key: jax.Array,
  samples: jax.Array,
  *,
  residual_fn: ScoreFn,
  reference: Reference,
  num_steps: int | None = None,
  times: ArrayLike | None = None,
) -> jax.Array:
  """What is left of the residual's variance at each step, `[K]`.

  The mean square error of `residual_fn` over bridges to the samples: matched by
  moments, the kernels of `rollout` are then those of least KL from the process
  that ends in the samples. Costs `K` network evaluations a sample.

  Args:
    params: Passed to `residual_fn`.
    key: One PRNG key, or `[B]` keys; consumed.
    samples: `[B, ...]` of the law that is aimed at.
    residual_fn: A `ScoreFn`, see the module.
    reference: The process that is controlled.
    num_steps: Steps `K` of the uniform grid from 1 to 0.
    times: `[K + 1]` decreasing times instead.

  Returns:
    Values in `[1e-4, 2]`.
  """
  checks.check_rows("samples", samples)
  samples = jnp.asarray(samples)
  axes = tuple(range(1, samples.ndim))
  size = reference.size(samples.shape[1:])
  times = grids.as_grid(num_steps, times).astype(samples.dtype)
  keys = keys_lib.per_example(key, samples.shape[0])

  def one(xs):
    t, index = xs
    t = jnp.full(samples.shape[:1], t)
    point = paths.bridge(
      keys_lib.fold(keys, index), samples, t, reference=reference
    )
    error = paths.residual(residual_fn, params, point.x, t, reference=reference)
    error = error - point.residual
    return jnp.mean(jnp.sum(error**2, axis=axes)) / size

  index = jnp.arange(times.size - 1, dtype=jnp.uint32)
  return jnp.clip(jax.lax.map(one, (times[:-1], index)), 1e-4, 2.0)


def langevin(
  log_prob: LogProb, reference: Reference, *, max_norm: float = 100.0
) -> ScoreFn:
  """Annealed Langevin dynamics as a policy's `residual_fn`; needs no params.

  Its drift is half the score of `reference^t target^(1-t)`: of a stationary
  reference the control is `(1 - t) / 2 (x / std(0)^2 + grad log_prob)`. A first
  buffer drawn with it has exact weights, as with any policy.

  Args:
    log_prob: Of one sample, unnormalised.
    reference: The process that is controlled.
    max_norm: Longer gradients are cut to this length; ones that are not finite
      count as zero.

  Source:
    arXiv:2510.03824, the released annealed start, with the factor that its
    weights lack.
  """
  max_norm = checks.check_finite("max_norm", max_norm, positive=True)
  grad = jax.grad(log_prob)

  def clipped(x):
    slope = grad(x)
    slope = jnp.where(jnp.isfinite(slope), slope, 0)
    # Scaled, as squares of what is to be cut may overflow.
    largest = jnp.maximum(jnp.max(jnp.abs(slope)), 1.0)
    norm = largest * jnp.sqrt(jnp.sum((slope / largest) ** 2))
    return slope * jnp.minimum(1.0, max_norm / jnp.maximum(norm, max_norm))

  def residual_fn(params, x, t):
    del params
    gain, std = reference.kernel(t, jnp.zeros_like(t))
    # A start that leaves no trace in the data has no control either.
    usable = jnp.abs(gain) > 1e-4
    weight = 0.5 * (1 - t) * jnp.where(usable, std, 0)
    weight = weight / jnp.where(usable, gain, 1)
    spread = interpolants.expand(reference.std(jnp.zeros_like(t)), x)
    force = x / spread**2 + jax.vmap(clipped)(x)
    return interpolants.expand(weight, x) * force

  return residual_fn
