"""Denoising score matching (arXiv:2011.13456), as noise prediction.

The network predicts the noise of `x_t = alpha data + sigma noise`, with EDM's
preconditioning (arXiv:2206.00364) as a wrapper around it. Left out: sliced and
implicit score matching, learned variances.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jdiff.core import checks
from jdiff.core.types import Pairs, Params
from jdiff.methods import flow_matching as fm
from jdiff.schedules.gaussian import GaussianSchedule
from jdiff.sde import interpolants

NoiseFn = Callable[..., jax.Array]
"""`(params, x [B, ...], t [B]) -> E[noise | x_t]`; `label=` if there are."""


def score_matching(
  params: Params,
  key: jax.Array,
  pairs: Pairs,
  *,
  noise_fn: NoiseFn,
  schedule: GaussianSchedule | None = None,
  draw_time: fm.DrawTime = fm.uniform,
  weighting: Callable[[jax.Array], jax.Array] | None = None,
  null_label: int | None = None,
  label_dropout: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Weighted mean squared error of the predicted noise at a random time.

  The minimiser is `E[noise | x_t]` under any coupling and weighting. It is
  `-sigma` times the score of `x_t` only if noise and data are independent:
  with coupled pairs the answer is a right noise prediction, from which
  `as_score_fn` would make a wrong score.

  Args:
    params: Passed to `noise_fn`; differentiable.
    key: One PRNG key, or `[B]` keys; consumed.
    pairs: `Pairs` of `B` examples.
    noise_fn: Predicts the noise; called as a `VelocityFn` is.
    schedule: The path; `schedules.gaussian.linear()` by default.
    draw_time: Law of `t`.
    weighting: `t [B] -> [B]`; 1 by default.
    null_label: The label that means none.
    label_dropout: Probability that an example's label is replaced by it.

  Returns:
    `(per_example [B], info)`: weighted squared errors, averaged over
    dimensions; `info["error"]` is the batch's mean without weights.

  Raises:
    ValueError: If shapes or options do not fit.
    TypeError: If a dtype is of the wrong kind.
  """
  keys, pairs = fm.prepare(key, pairs, null_label, label_dropout)
  t = fm.times(keys, draw_time, pairs)
  x = interpolants.interpolate(pairs.noise, pairs.data, t, schedule).x
  answer = noise_fn(params, x, t, **fm.label_of(pairs))
  error = fm.mean_over_dims(fm.squared_error("noise_fn", answer, pairs.noise))
  info = {"error": jnp.mean(error)}
  if weighting is None:
    return error, info
  weight = weighting(t)
  checks.check_shape("weighting's answer", weight, t.shape)
  return weight * error, info


def as_score_fn(noise_fn: NoiseFn, schedule: GaussianSchedule) -> NoiseFn:
  """`-E[noise | x_t] / sigma`: the score, of independent pairs, at `t > 0`."""

  def score(params, x, t, **label):
    sigma = schedule.sigma(interpolants.expand(t, x))
    return -noise_fn(params, x, t, **label) / sigma

  return score


def edm_noise_fn(
  network_fn: NoiseFn, *, schedule: GaussianSchedule, sigma_data: float = 0.5
) -> NoiseFn:
  """EDM's preconditioning: a network of unit-scale input and output.

  The denoiser is `c_skip x + c_out network(c_in x, t)`, at noise level
  `sigma / alpha` for schedules other than `ve`; written for the noise, whose
  form divides by nothing that vanishes. Differs: the network is told `t`, not
  `log(sigma) / 4`.

  Args:
    network_fn: Called as a `VelocityFn` is.
    schedule: The path.
    sigma_data: Standard deviation of the data.
  """
  checks.check_finite("sigma_data", sigma_data, positive=True)

  def noise_fn(params, x, t, **label):
    wide = interpolants.expand(t, x)
    alpha, sigma = schedule.alpha(wide), schedule.sigma(wide)
    scale = jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)
    answer = network_fn(params, x / scale, t, **label)
    return (sigma * x / scale - alpha * sigma_data * answer) / scale

  return noise_fn


def edm_weighting(
  schedule: GaussianSchedule, sigma_data: float = 0.5
) -> Callable[[jax.Array], jax.Array]:
  """The weights under which the inner network's own error counts alike.

  `(sigma^2 + alpha^2 sigma_data^2) / (alpha sigma_data)^2`, infinite where
  there is no data left (`t = 1` of `linear` and `cosine`).
  """
  checks.check_finite("sigma_data", sigma_data, positive=True)

  def weighting(t):
    return 1 + (schedule.sigma(t) / (schedule.alpha(t) * sigma_data)) ** 2

  return weighting
