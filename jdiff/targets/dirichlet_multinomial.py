"""Pólya's urn: a law over sequences of any length, solved exactly."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from scipy import special

from jdiff.core import checks, orders
from jdiff.core.types import Target


def dirichlet_multinomial(length: int, alpha) -> Target:
  """`log_prob = sum_n log Gamma(c_n(x) + a_n)`, `c_n` the count of token `n`.

  The conditional of a hidden site given any revealed ones is `(c_n + a_n) /
  (u + sum a)`, with `u` revealed: a sampler that uses it has log-weights equal
  to `log Z` on every path, at any length.

  Args:
    length: Sites `L`.
    alpha: `[V]` positive concentrations, `V >= 2`.

  Raises:
    ValueError: If `length < 1` or `alpha` is not a positive vector.
  """
  checks.check_int("length", length)
  alpha = np.asarray(alpha, np.float64)
  if alpha.ndim != 1 or alpha.size < 2 or not (alpha > 0).all():
    raise ValueError(f"alpha must be [V >= 2] and positive, got {alpha}.")
  num_tokens, total = alpha.size, alpha.sum()

  def counts(tokens):
    one_hot = jax.nn.one_hot(tokens, num_tokens, dtype=jnp.result_type(float))
    return one_hot.sum(axis=-2)

  def log_prob(x):
    return jnp.sum(gammaln(counts(x) + jnp.asarray(alpha)))

  def conditional(tokens, sites=None):
    mass = jnp.log(counts(tokens) + jnp.asarray(alpha)[None])
    shape = tokens.shape if sites is None else np.shape(sites)
    num = shape[-1]
    logits = jnp.broadcast_to(mass[:, None], (tokens.shape[0], num, num_tokens))
    return logits, jnp.ones(logits.shape[:2], bool)

  def sample(key, num_samples):
    key_probs, key_tokens = jax.random.split(key)
    probs = jax.random.dirichlet(
      key_probs, jnp.asarray(alpha, jnp.float32), (num_samples,)
    )
    return jax.random.categorical(
      key_tokens, jnp.log(probs)[:, None], axis=-1, shape=(num_samples, length)
    ).astype(jnp.int32)

  log_z = float(
    special.gammaln(alpha).sum()
    + special.gammaln(length + total)
    - special.gammaln(total)
  )
  return Target(
    log_prob=log_prob,
    length=length,
    num_tokens=num_tokens,
    log_z=log_z,
    sample=sample,
    exact=lambda: {"log_z": log_z, "share": alpha / total},
    observables=lambda x: {"share": counts(x) / length},
    conditional=conditional,
    orders={"random": orders.uniform(length)},
  )
