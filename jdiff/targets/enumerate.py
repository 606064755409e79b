"""Every configuration of a small discrete system, and its exact denoiser."""

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.core.types import LogitsFn

MAX_STATES = 2**16
"""Up to here enumeration is the oracle of choice: about a second."""


def enumerate_states(length: int, num_tokens: int) -> np.ndarray:
  """`[V ** L, L]` int32: every configuration, the last site fastest."""
  if num_tokens**length > 2**22:
    raise ValueError(
      f"{num_tokens} ** {length} configurations are too many to enumerate."
    )
  index = np.arange(num_tokens**length)
  powers = num_tokens ** np.arange(length)[::-1]
  return (index[:, None] // powers[None] % num_tokens).astype(np.int32)


def denoiser(log_pmf: np.ndarray) -> LogitsFn:
  """The exact conditionals of a law that is a table, as a network.

  Revealed one site a step, in any order, they draw from that law.

  Args:
    log_pmf: `[V, ..., V]`, an axis a site, unnormalised nats; `-inf` where the
      law is zero.

  Returns:
    A `LogitsFn` that uses no parameters; the mask is `V`. At a canvas that the
    law cannot have, its answers are uniform.

  Raises:
    ValueError: If axes differ in size, or canvases are too many to tabulate.
  """
  log_pmf = np.asarray(log_pmf, np.float64)
  length, num_tokens = log_pmf.ndim, log_pmf.shape[0] if log_pmf.ndim else 0
  checks.check_shape("log_pmf", log_pmf, (num_tokens,) * max(length, 1))
  if (num_tokens + 1) ** length > 2**24:
    raise ValueError(
      f"({num_tokens} + 1) ** {length} canvases are too many to tabulate."
    )
  mass = np.exp(log_pmf - log_pmf.max())
  for axis in range(length):
    # A mask stands for any token: its slot holds the sum over them.
    whole = mass.sum(axis=axis, keepdims=True)
    mass = np.concatenate([mass, whole], axis=axis)
  with np.errstate(divide="ignore"):
    table = jnp.asarray(np.log(mass).ravel(), jnp.float32)
  strides = (num_tokens + 1) ** np.arange(length)[::-1].astype(np.int32)

  def logits_fn(params, tokens, t, sites=None):
    del params, t
    where = np.arange(length) if sites is None else jnp.asarray(sites)
    index = jnp.sum(tokens * strides[None], axis=1)
    stride = jnp.broadcast_to(
      jnp.asarray(strides)[where], (tokens.shape[0], where.shape[-1])
    )
    here = jnp.take_along_axis(
      tokens, jnp.broadcast_to(jnp.asarray(where), stride.shape), axis=1
    )
    base = (index[:, None] - here * stride)[..., None]
    moves = jnp.arange(num_tokens)[None, None] * stride[..., None]
    logits = table[base + moves]
    # Not -inf everywhere, whose softmax is NaN.
    known = jnp.any(logits > -jnp.inf, axis=-1, keepdims=True)
    return jnp.where(known, jax.nn.log_softmax(logits, axis=-1), 0.0)

  return logits_fn
