"""diffu-GRPO: d1's policy gradient on one-step likelihoods (arXiv:2504.12216).

The baseline that GDPO and DMPO are measured against. One forward, with the
whole completion masked, gives each token a log-probability; GRPO's clipped
objective is applied token by token. Part of the prompt is masked at random, so
that inner steps differ: the one source of variance, and of regularisation.

The sum of these log-probabilities is no log-likelihood, nor a bound on one: it
is the likelihood under the product of the first step's marginals. Tokens that
must agree look independent: what one tells about another, the network's answer
to a partly revealed completion, is neither scored nor trained.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jdiff.core import checks
from jdiff.core import keys as keys_lib
from jdiff.core.types import LogitsFn, Params
from jdiff.elbo import token_probs
from jdiff.methods import gdpo

LogProbsFn = Callable[..., jax.Array]
"""`(params, key, tokens [B, T], valid=None) -> log_probs [B, L]`, in nats."""


class Batch(NamedTuple):
  """Rollouts of one collection, or those of one inner step.

  Attributes:
    samples: `[B, T]` int32, whole canvases.
    advantages: `[B]`, `gdpo.group_advantages(..., normalise_std=True)`.
    log_probs_old: `[B, L]`, under the collecting parameters, with this step's
      key: `gdpo.old_elbos(..., elbo_fn=log_probs_fn)` makes `[mu, B, L]`.
    log_probs_ref: The same under the reference, or None.
    valid: `[B, T]` bool, the tokens that count; None takes all.
  """

  samples: jax.Array
  advantages: jax.Array
  log_probs_old: jax.Array
  log_probs_ref: jax.Array | None = None
  valid: jax.Array | None = None


def one_step(
  *,
  logits_fn: LogitsFn | None = None,
  mask_id: int,
  num_prompt: int = 0,
  prompt_mask_prob: float = 0.15,
  token_log_probs: token_probs.TokenLogProbs | None = None,
) -> LogProbsFn:
  """d1's estimate of every completion token's log-probability.

  Args:
    logits_fn: A `LogitsFn`, told `t = 1`.
    mask_id: The mask token.
    num_prompt: Prompt tokens `P`.
    prompt_mask_prob: Probability that a prompt token is masked.
    token_log_probs: Stands in for `logits_fn`, see `elbo.estimate`.

  Returns:
    `log_probs_fn(params, key, tokens [B, T], valid=None) -> [B, L]` float32,
    `L = T - P`: one forward. The prompt masks of example `i` come from its own
    key; `valid` changes nothing, as the whole completion is masked.

  Raises:
    ValueError: If an option is out of range.
    TypeError: If there is no network.
  """
  checks.check_int("num_prompt", num_prompt, minimum=0)
  checks.check_range("prompt_mask_prob", prompt_mask_prob, 0, 1)
  if token_log_probs is None:
    if logits_fn is None:
      raise TypeError("pass logits_fn or token_log_probs, got neither.")
    token_log_probs = token_probs.from_logits(logits_fn, mask_id=mask_id)

  def log_probs_fn(params, key, tokens, valid=None):
    del valid
    checks.check_tokens("tokens", tokens, mask_id=mask_id)
    batch, length = tokens.shape
    if length <= num_prompt:
      raise ValueError(
        f"tokens must be longer than the prompt of {num_prompt}, got {length}."
      )
    keys = keys_lib.per_example(key, batch)
    u = jax.vmap(lambda k: jax.random.uniform(k, (num_prompt,)))(keys)
    hidden = jnp.pad(
      u < prompt_mask_prob,
      ((0, 0), (0, length - num_prompt)),
      constant_values=True,
    )
    canvas = jnp.where(hidden, jnp.asarray(mask_id, tokens.dtype), tokens)
    sites = np.arange(num_prompt, length)
    values = tokens[:, num_prompt:]
    answer = token_log_probs(params, canvas, jnp.ones(batch), sites, values)
    checks.check_shape("token_log_probs's answer", answer, values.shape)
    return answer

  return log_probs_fn


def loss(
  params: Params,
  key: jax.Array,
  batch: Batch,
  *,
  log_probs_fn: LogProbsFn,
  clip: float = 0.2,
  kl_weight: float = 0.0,
  kl: str = "k3",
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The negated clipped objective, averaged over each completion's tokens.

  Args:
    params: Passed to `log_probs_fn`; differentiable.
    key: One PRNG key, or `[B]`; consumed. The one `batch.log_probs_old` was
      made with.
    batch: A `Batch`.
    log_probs_fn: `one_step(...)`.
    clip: The range of a token's ratio is `[1 - clip, 1 + clip]`.
    kl_weight: Weight of a penalty towards the reference, a token.
    kl: See `gdpo.kl_estimate`.

  Returns:
    `(per_example [B], info)`: `ratio_mean`, `clip_fraction` and, where there
    is a reference, `kl`: scalars over tokens, invalid ones with a ratio of 1.

  Raises:
    ValueError: If shapes or options do not fit.
  """
  size, canvas = batch.samples.shape
  checks.check_shape("batch.advantages", batch.advantages, (size,))
  gdpo.check_options(
    clip, kl_weight, kl, batch.log_probs_ref, "batch.log_probs_ref"
  )
  log_probs = log_probs_fn(params, key, batch.samples, valid=batch.valid)
  shape = log_probs.shape
  checks.check_shape("batch.log_probs_old", batch.log_probs_old, shape)
  if batch.log_probs_ref is not None:
    checks.check_shape("batch.log_probs_ref", batch.log_probs_ref, shape)
  if batch.valid is None:
    valid = jnp.ones(shape, bool)
  else:
    checks.check_shape("batch.valid", batch.valid, (size, canvas))
    valid = batch.valid[:, canvas - shape[1] :]
  log_ratio = log_probs - lax.stop_gradient(batch.log_probs_old)
  log_ratio = jnp.where(valid, log_ratio, 0)
  objective, info = gdpo.surrogate(log_ratio, batch.advantages[:, None], clip)
  if batch.log_probs_ref is not None:
    log_ref = lax.stop_gradient(batch.log_probs_ref) - log_probs
    penalty = gdpo.kl_estimate(jnp.where(valid, log_ref, 0), kl)
    info["kl"] = lax.stop_gradient(penalty.mean())
    objective = objective - kl_weight * penalty
  total = jnp.sum(jnp.where(valid, objective, 0), axis=1)
  return -total / jnp.maximum(valid.sum(axis=1), 1), info
