"""Actions for clips that have none: one code a transition, inferred.

A mixture of `A` next-frame models, one a code. With few codes the sum over them
is exact, so nothing is relaxed or passed straight through a quantiser: the loss
is the negative log-likelihood of the mixture, and a transition's action is its
likeliest code.

Source: latent actions as in Genie (arXiv:2402.15391). Differs: there a vector
quantiser between an encoder of both frames and a decoder; here the exact
posterior of the decoder, and no encoder.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdiff.core import checks
from jdiff.core.types import Params

TransitionFn = Callable[..., jax.Array]
"""`(params, tokens [B, N]) -> log_probs [B, A, N, V]` of the next frame."""


class Posterior(NamedTuple):
  """What transitions say of their codes.

  Attributes:
    log_prob: `[B]` float32, of the next frame under the mixture, in nats.
    log_code: `[B, A]` float32, log-posterior of the codes.
  """

  log_prob: jax.Array
  log_code: jax.Array


def posterior(
  params: Params,
  tokens: jax.Array,
  after: jax.Array,
  *,
  transition_fn: TransitionFn,
) -> Posterior:
  """The codes' posterior, under a uniform prior.

  Args:
    params: Passed to `transition_fn`.
    tokens: `[B, N]` int32, frames.
    after: `[B, N]` int32, those that followed.
    transition_fn: A `TransitionFn`.

  Raises:
    ValueError: If shapes do not fit.
  """
  checks.check_tokens("tokens", tokens)
  checks.check_tokens("after", after)
  checks.check_shape("after", after, tokens.shape)
  log_probs = transition_fn(params, tokens)
  batch, num_cells = tokens.shape
  checks.check_shape(
    "transition_fn's answer",
    log_probs,
    (batch, None, num_cells, None),
    "It is [batch, codes, cells, kinds].",
  )
  num_codes = log_probs.shape[1]
  picked = jnp.take_along_axis(
    log_probs,
    jnp.broadcast_to(after[:, None, :, None], (*log_probs.shape[:3], 1)),
    axis=-1,
  )[..., 0].sum(-1)
  joint = picked - jnp.log(num_codes)
  total = jax.nn.logsumexp(joint, axis=1)
  return Posterior(total, joint - total[:, None])


def loss(
  params: Params,
  tokens: jax.Array,
  after: jax.Array,
  *,
  transition_fn: TransitionFn,
) -> jax.Array:
  """`[B]` nats a cell of the next frames; arguments as in `posterior`."""
  found = posterior(params, tokens, after, transition_fn=transition_fn)
  return -found.log_prob / tokens.shape[1]
