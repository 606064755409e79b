"""What one step of a decode does at its block: law, draw, which to keep.

Pure functions of logits `[N, b, V]` at a block's sites; `decode` runs them in
its loops.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.ctmc.reveal import log_softmax, pick


def schedule(num_sites: int, num_steps: int) -> np.ndarray:
  """Sites committed at each step `[s]` int32: equal, the first one more."""
  counts = np.full(num_steps, num_sites // num_steps, np.int32)
  counts[: num_sites % num_steps] += 1
  return counts


def guide(logits: jax.Array, guidance: jax.typing.ArrayLike) -> jax.Array:
  """Classifier-free guidance `u + (1 + s) (c - u)`, `[N, b, V]`.

  Args:
    logits: `[2 N, b, V]`: `c`, with the prompt, then `u`, without it.
    guidance: Its strength `s`; 0 answers `c`.
  """
  given, free = jnp.split(logits, 2)
  guided = free + (1 + guidance) * (given - free)
  # An infinite logit has no direction to go further in, and would give NaN.
  return jnp.where(jnp.isfinite(given) & jnp.isfinite(free), guided, given)


def sampling_law(
  logits: jax.Array, temperature: jax.typing.ArrayLike, min_p: float
) -> jax.Array:
  """Log-probabilities of the law drawn from: tempered, then cut, then scaled.

  Args:
    logits: `[N, b, V]`.
    temperature: Divides the logits; positive.
    min_p: Tokens below this share of the likeliest one's probability, in the
      tempered law, are dropped (arXiv:2407.01082).
  """
  log_probs = log_softmax(logits / temperature)
  if not min_p:
    return log_probs
  floor = log_probs.max(axis=-1, keepdims=True) + math.log(min_p)
  return log_softmax(jnp.where(log_probs >= floor, log_probs, -jnp.inf))


def draw(
  keys: jax.Array,
  logits: jax.Array,
  *,
  temperature: jax.typing.ArrayLike,
  min_p: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Draws a token at every site.

  Args:
    keys: `[N]`, one a row; consumed.
    logits: `[N, b, V]` clean logits.
    temperature: As in `sampling_law`; a 0 takes the likeliest token, the
      first of equals.
    min_p: As in `sampling_law`.

  Returns:
    `(tokens, log_prob, confidence)`, `[N, b]`: the tokens, int32, their
    log-probability under the law drawn from (0 at temperature 0), and their
    probability under the clean logits.
  """
  if checks.is_concrete(temperature) and temperature == 0:
    tokens = jnp.argmax(logits, axis=-1)
    log_prob = jnp.zeros(tokens.shape, logits.dtype)
  else:
    law = sampling_law(logits, temperature, min_p)
    tokens = jax.vmap(jax.random.categorical)(keys, law)
    log_prob = pick(law, tokens)
  confidence = jnp.exp(pick(log_softmax(logits), tokens))
  return tokens.astype(jnp.int32), log_prob, confidence


def top(score: jax.Array, masked: jax.Array, count: jax.Array) -> jax.Array:
  """The `count [N]` masked sites of highest score, `[N, b]` bool.

  Ties go to the lowest index; fewer sites where fewer are masked.
  """
  score = jnp.where(masked, score, -jnp.inf)
  rank = jnp.argsort(jnp.argsort(-score, axis=1, stable=True), axis=1)
  return (rank < count[:, None]) & masked


def num_confident(
  score: jax.Array,
  masked: jax.Array,
  threshold: float | None,
  factor: float | None,
) -> jax.Array:
  """How many sites a parallel rule commits, `[N]` int32, possibly none.

  Args:
    score: `[N, b]` confidences.
    masked: `[N, b]` bool, the sites that are open.
    threshold: All sites with a confidence above it; or None.
    factor: The largest `n` whose `n`-th highest confidence is at least
      `1 - factor / (n + 1)`; or None.

  Source:
    Wu et al., "Fast-dLLM" (arXiv:2505.22618).
  """
  if threshold is not None:
    return jnp.sum(masked & (score > threshold), axis=1, dtype=jnp.int32)
  if factor is None:
    return jnp.zeros(score.shape[0], jnp.int32)
  score = -jnp.sort(-jnp.where(masked, score, -jnp.inf), axis=1)
  n = np.arange(1, score.shape[1] + 1, dtype=np.int32)
  needed = jnp.asarray(1 - factor / (n + 1), score.dtype)
  return jnp.max(jnp.where(score >= needed[None], n[None], 0), axis=1)
