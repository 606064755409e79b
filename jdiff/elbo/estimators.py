"""Estimates of a masked model's evidence lower bound (ELBO).

Masks are drawn first and weigh their terms, so an estimate is a deterministic
function of the parameters given the masks. Log-ratios of two models, or of new
and old parameters, must be differences on the same masks: with independent ones
their variance is hundreds of times larger.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.core import keys as keys_lib
from jdiff.core.types import LogitsFn, Params
from jdiff.ctmc import masks as masks_lib
from jdiff.elbo import token_probs

IMPLEMENTATIONS = ("batch", "scan")


class Masks(NamedTuple):
  """Weighted masks of a batch of sequences.

  Attributes:
    mask: `[B, R, T]` bool over the whole canvas, False at prompts and at sites
      that are not valid.
    weight: `[B, R]` float; the ELBO estimate is `mean_r weight_r S_r`, `S_r`
      the sum of log-probabilities at the masked sites.
    t: `[B, R]` float32, the masked share of the valid completion, which the
      network is given. None stands for the masked share of all sites after
      the prompt.
  """

  mask: jax.Array
  weight: jax.Array
  t: jax.Array | None = None


def draw_masks(
  key: jax.Array,
  tokens: jax.Array,
  *,
  law: masks_lib.DrawMasks,
  num_prompt: int = 0,
  valid: jax.Array | None = None,
) -> Masks:
  """Draws each sequence's masks, from its own key.

  Args:
    key: One PRNG key, or `[B]` keys, one a sequence; consumed.
    tokens: `[B, T]` int32 clean sequences, prompts included. Their values do
      not matter here.
    law: A `ctmc.DrawMasks`: `elbo.node_masks(3)`, `ctmc.count_masks(4)`.
    num_prompt: Sites at the front that are given, never masked.
    valid: `[B, T]` bool, False at padding: never masked, not counted. None if
      there is none. Prompts need not be marked.

  Returns:
    `Masks`. A sequence without a valid site has empty ones.

  Raises:
    ValueError: If shapes or the prompt's length do not fit.
  """
  checks.check_tokens("tokens", tokens)
  batch, length = tokens.shape
  _check_prompt(num_prompt, length)
  if valid is None:
    valid = jnp.ones((batch, length), bool)
  checks.check_shape("valid", valid, (batch, length))
  valid = jnp.asarray(valid)
  if valid.dtype != jnp.bool_:
    raise TypeError(f"valid must be bool, got dtype {valid.dtype}.")
  valid = valid[:, num_prompt:]
  mask, weight = jax.vmap(law)(keys_lib.per_example(key, batch), valid)
  num_valid = jnp.maximum(jnp.sum(valid, axis=1), 1).astype(jnp.float32)
  t = jnp.sum(mask, axis=2).astype(jnp.float32) / num_valid[:, None]
  prompt = jnp.zeros((*mask.shape[:2], num_prompt), bool)
  return Masks(jnp.concatenate([prompt, mask], axis=2), weight, t)


def estimate(
  params: Params,
  tokens: jax.Array,
  masks: Masks,
  *,
  logits_fn: LogitsFn | None = None,
  mask_id: int,
  num_prompt: int = 0,
  implementation: str = "batch",
  token_log_probs: token_probs.TokenLogProbs | None = None,
) -> jax.Array:
  """The ELBO of each sequence on given masks; differentiable in `params`.

  Args:
    params: Passed to the network.
    tokens: `[B, T]` int32, no mask ids. Tokens at prompts and padding are shown
      to the network as they stand.
    masks: Of `draw_masks`; share them between the models that are compared.
    logits_fn: A `LogitsFn`, asked for the sites after the prompt alone.
    mask_id: The mask token; never predicted.
    num_prompt: Sites at the front that are given.
    implementation: `"batch"` is one evaluation of `B R` rows, `"scan"` goes
      through the `R` masks one at a time and recomputes each in the backward
      pass: its memory does not grow with `R`.
    token_log_probs: If given, stands in for `logits_fn`, as `elbo.streamed`
      does for networks of a large vocabulary.

  Returns:
    `[B]` float32 at least, in nats a sequence; with `E` over masks a lower
    bound on the log-probability of the sequence.

  Raises:
    ValueError: If shapes do not fit, or a concrete `tokens` holds the mask id.
    TypeError: If there is no network.
  """
  checks.check_tokens("tokens", tokens, mask_id=mask_id)
  batch, length = tokens.shape
  _check_prompt(num_prompt, length)
  checks.check_shape("masks.mask", masks.mask, (batch, None, length))
  num_rows = masks.mask.shape[1]
  checks.check_shape("masks.weight", masks.weight, (batch, num_rows))
  _check_implementation(implementation)
  if token_log_probs is None:
    if logits_fn is None:
      raise TypeError("pass logits_fn or token_log_probs, got neither.")
    token_log_probs = token_probs.from_logits(logits_fn, mask_id=mask_id)
  if num_prompt == length:
    return jnp.zeros(batch, jnp.promote_types(masks.weight.dtype, jnp.float32))
  t = masks.t
  if t is None:
    t = masks.mask[..., num_prompt:].mean(axis=2, dtype=jnp.float32)
  # Concrete, so that a network can specialise to them.
  sites = np.arange(num_prompt, length)

  def terms(tokens, mask, t):
    """Sums of log-probabilities at the masked sites of `[N, T]` rows."""
    masked = jnp.where(mask, jnp.asarray(mask_id, tokens.dtype), tokens)
    log_probs = token_log_probs(
      params, masked, t, sites, tokens[:, num_prompt:]
    )
    return jnp.sum(jnp.where(mask[:, num_prompt:], log_probs, 0), axis=1)

  if implementation == "batch":
    rows = jnp.repeat(tokens, num_rows, axis=0)
    sums = terms(rows, masks.mask.reshape(-1, length), t.reshape(-1))
    sums = sums.reshape(batch, num_rows)
  else:
    row = jax.checkpoint(lambda mask, t: terms(tokens, mask, t))
    sums = jax.lax.map(
      lambda row_of: row(*row_of), (jnp.swapaxes(masks.mask, 0, 1), t.T)
    ).T
  return jnp.mean(masks.weight * sums, axis=1)


def estimator(
  *,
  logits_fn: LogitsFn | None = None,
  mask_id: int,
  law: masks_lib.DrawMasks,
  num_prompt: int = 0,
  implementation: str = "batch",
  token_log_probs: token_probs.TokenLogProbs | None = None,
) -> Callable[..., jax.Array]:
  """`elbo_fn(params, key, tokens [B, T], valid=None) -> [B]`: draw, estimate.

  The same key gives the same masks whatever the parameters, so a difference of
  two calls with one key is a log-ratio on shared masks. Arguments as in
  `draw_masks` and `estimate`.
  """
  checks.check_int("num_prompt", num_prompt, minimum=0)
  _check_implementation(implementation)

  def elbo_fn(params, key, tokens, valid=None):
    masks = draw_masks(key, tokens, law=law, num_prompt=num_prompt, valid=valid)
    return estimate(
      params,
      tokens,
      masks,
      logits_fn=logits_fn,
      mask_id=mask_id,
      num_prompt=num_prompt,
      implementation=implementation,
      token_log_probs=token_log_probs,
    )

  return elbo_fn


def _check_implementation(implementation):
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"implementation must be one of {IMPLEMENTATIONS}, got "
      f"{implementation!r}."
    )


def _check_prompt(num_prompt, length):
  checks.check_int("num_prompt", num_prompt, minimum=0)
  if num_prompt > length:
    raise ValueError(
      f"num_prompt must be at most the canvas length {length}, got "
      f"{num_prompt}."
    )
