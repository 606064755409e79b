"""Log-probabilities of given tokens, with and without all logits in memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.core.types import LogitsFn

TokenLogProbs = Callable[..., jax.Array]
"""`(params, tokens [B, T], t [B], sites [m], values [B, m]) -> [B, m]`.

The log-probability, float32 at least, of token `values` at each of the
concrete `sites`, in nats.
"""


def from_logits(logits_fn: LogitsFn, *, mask_id: int) -> TokenLogProbs:
  """The plain path: all logits of the sites asked for, `[B, m, V]`."""

  def token_log_probs(params, tokens, t, sites, values):
    # `sites` goes on only if it says something: networks that never see any
    # need no such argument.
    args = () if len(sites) == tokens.shape[1] else (sites,)
    logits = logits_fn(params, tokens, t, *args)
    checks.check_shape(
      "logits_fn's answer",
      logits,
      (*values.shape, None),
      "It is [batch, sites asked for, vocabulary].",
    )
    return _log_probs(logits, values, mask_id)

  return token_log_probs


def streamed(
  hidden_fn: Callable[..., jax.Array],
  head_fn: Callable[..., jax.Array],
  *,
  chunk_size: int,
  mask_id: int,
) -> TokenLogProbs:
  """Applies the head to a few sites at a time, and again in the backward pass.

  No `[B, m, V]` array is built: with a vocabulary of 1e5 it is what fills the
  memory. The cost is one more application of the head.

  Args:
    hidden_fn: `(params, tokens [B, T], t [B], sites [m]) -> [B, m, D]`, the
      network up to its head.
    head_fn: `(params, hidden [..., D]) -> [..., V]` logits.
    chunk_size: Sites a chunk `c`; `[B, c, V]` logits are alive at a time.
    mask_id: The mask token; its logit is left out if it lies inside `V`.

  Returns:
    What `token_log_probs=` of the ELBO estimates takes.
  """
  chunk_size = checks.check_int("chunk_size", chunk_size)

  def token_log_probs(params, tokens, t, sites, values):
    hidden = hidden_fn(params, tokens, t, sites)
    checks.check_shape(
      "hidden_fn's answer",
      hidden,
      (*values.shape, None),
      "It is [batch, sites asked for, features].",
    )
    num_sites = values.shape[1]
    size = min(chunk_size, num_sites)

    @jax.checkpoint
    def chunk(hidden_and_values):
      hidden, values = hidden_and_values
      return _log_probs(head_fn(params, hidden), values, mask_id)

    picked = jax.lax.map(chunk, (_chunks(hidden, size), _chunks(values, size)))
    return jnp.moveaxis(picked, 0, 1).reshape(-1, picked.shape[0] * size)[
      :, :num_sites
    ]

  return token_log_probs


def _chunks(x, size):
  """`[B, m, ...]` as `[m / size, B, size, ...]`, the last row repeated.

  Repeated, because a head need not be finite, or differentiable, at zeros.
  """
  batch, num = x.shape[:2]
  index = np.minimum(np.arange(-(-num // size) * size), num - 1)
  if len(index) > num:
    x = x[:, index]
  return jnp.moveaxis(x.reshape(batch, -1, size, *x.shape[2:]), 1, 0)


def _log_probs(logits, values, mask_id):
  """Log-probability of `values [B, m]` under `logits [B, m, V]`.

  The logit less the log-normaliser: the other log-probabilities are not built.
  Both are sums over the vocabulary, so that one which is split over devices is
  never gathered: each sums its part.
  """
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  vocab = jnp.arange(logits.shape[-1])[None, None]
  if 0 <= mask_id < logits.shape[-1]:
    logits = jnp.where(vocab == mask_id, -jnp.inf, logits)
  chosen = vocab == values[..., None]
  picked = jnp.sum(jnp.where(chosen, logits, 0), axis=-1)
  # What is no token has no probability, not the one of a logit of zero.
  known = (values >= 0) & (values < logits.shape[-1])
  picked = jnp.where(known, picked, jnp.nan)
  return picked - jax.nn.logsumexp(logits, axis=-1)
