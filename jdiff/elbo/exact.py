"""Exact ELBO and any-order likelihood of short sequences: the oracles.

Both need the network on every subset of masked sites, `2^L` evaluations, and
are differentiable. With `p(i | A)` the probability of token `i` given the
tokens outside `A`:

  ELBO = sum_A 1 / (|A| C(L, |A|)) sum_{i in A} log p(i | A),
  F(A) = 1/|A| sum_{i in A} p(i | A) F(A without i),   F({}) = 1,

and `log F({1..L}) >= ELBO` is the log-likelihood of revealing the sites one at
a time in uniformly random order; over all sequences `F` sums to one.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.core.types import LogitsFn, Params
from jdiff.elbo import token_probs

ROWS = 1024
"""Rows of an evaluation; more subsets are gone through in turns."""


def exact_elbo(
  params: Params,
  tokens: jax.Array,
  *,
  logits_fn: LogitsFn,
  mask_id: int,
  num_prompt: int = 0,
  max_length: int = 14,
) -> jax.Array:
  """The ELBO by the sum over all `2^L` masks.

  Args:
    params: Passed to `logits_fn`.
    tokens: `[B, T]` int32, no mask ids.
    logits_fn: A `LogitsFn`.
    mask_id: The mask token.
    num_prompt: Sites at the front that are given; `L = T - num_prompt`.
    max_length: The longest completion that is not refused.

  Returns:
    `[B]` float32 at least, in nats a sequence.

  Raises:
    ValueError: If the completion is longer than `max_length`.
  """
  subsets, log_probs = _subset_log_probs(
    params, tokens, logits_fn, mask_id, num_prompt, max_length
  )
  length = subsets.shape[1]
  size = subsets.sum(axis=1)
  number = np.array([math.comb(length, k) for k in range(length + 1)])[size]
  weight = np.where(size > 0, 1 / (np.maximum(size, 1) * number), 0.0)
  sums = jnp.sum(jnp.where(subsets[:, None], log_probs, 0), axis=2)
  return jnp.sum(jnp.asarray(weight, sums.dtype)[:, None] * sums, axis=0)


def exact_log_prob(
  params: Params,
  tokens: jax.Array,
  *,
  logits_fn: LogitsFn,
  mask_id: int,
  num_prompt: int = 0,
  max_length: int = 14,
) -> jax.Array:
  """The log-likelihood under a uniformly random order, one site a step.

  Arguments as in `exact_elbo`.

  Returns:
    `[B]` float32 at least, in nats a sequence.
  """
  subsets, log_probs = _subset_log_probs(
    params, tokens, logits_fn, mask_id, num_prompt, max_length
  )
  length = subsets.shape[1]
  size = subsets.sum(axis=1)
  total = jnp.zeros(log_probs.shape[:2], log_probs.dtype)
  for k in range(1, length + 1):
    (index,) = np.nonzero(size == k)
    members = np.nonzero(subsets[index])[1].reshape(-1, k)
    # A subset's index has a bit for each member.
    smaller = index[:, None] - 2**members
    steps = log_probs[index[:, None], :, members] + total[smaller]
    value = jax.nn.logsumexp(steps, axis=1) - math.log(k)
    total = total.at[index].set(value)
  return total[-1]


def _subset_log_probs(
  params, tokens, logits_fn, mask_id, num_prompt, max_length
):
  """Every mask `[2^L, L]` bool and what it predicts, `[2^L, B, L]`."""
  checks.check_tokens("tokens", tokens, mask_id=mask_id)
  batch, canvas = tokens.shape
  checks.check_int("num_prompt", num_prompt, minimum=0)
  length = canvas - num_prompt
  if not 0 < length <= max_length:
    raise ValueError(
      f"tokens must have 1 to max_length={max_length} sites after the prompt "
      f"to enumerate their masks, got {length}."
    )
  subsets = (np.arange(2**length)[:, None] >> np.arange(length)[None]) & 1 == 1
  log_probs = token_probs.from_logits(logits_fn, mask_id=mask_id)
  sites = np.arange(num_prompt, canvas)
  values = tokens[:, num_prompt:]

  def chunk(masks):
    """`[n, L]` masks to `[n, B, L]` log-probabilities."""
    num = masks.shape[0]
    hidden = jnp.where(
      masks[:, None], jnp.asarray(mask_id, tokens.dtype), values[None]
    )
    prompt = jnp.broadcast_to(
      tokens[None, :, :num_prompt], (num, batch, num_prompt)
    )
    rows = jnp.concatenate([prompt, hidden], axis=2).reshape(-1, canvas)
    t = jnp.repeat(masks.mean(axis=1, dtype=jnp.float32), batch)
    answer = log_probs(params, rows, t, sites, jnp.tile(values, (num, 1)))
    return answer.reshape(num, batch, length)

  # Numbers of subsets are powers of two, and so are these: no remainder.
  size = min(2**length, 2 ** max(0, int(math.log2(max(1, ROWS // batch)))))
  if size == 2**length:
    return subsets, chunk(jnp.asarray(subsets))
  answer = jax.lax.map(chunk, jnp.asarray(subsets).reshape(-1, size, length))
  return subsets, answer.reshape(-1, batch, length)
