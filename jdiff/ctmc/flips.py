"""Rollouts with a uniform (non-absorbing) reference: UDNS.

Every site may be revised at every step. The reference flips each site to a
uniform token with the schedule's rate; the policy draws each site from the
reference's bridge to a predicted clean token. The weight is exact for every
network and number of steps (arXiv:2508.10684, appendix; formulas re-derived).
Unlike the masked process it needs the time, and forgets its start only as far
as the schedule's noise reaches.
"""

import functools

import jax
import jax.numpy as jnp

from jdiff.core import carries, checks
from jdiff.core import keys as keys_lib
from jdiff.core.types import LogitsFn, Params, Rollout
from jdiff.ctmc import logits as logits_lib
from jdiff.ctmc.reveal import log_softmax, pick
from jdiff.schedules import masking


def corrupt_uniform(
  key: jax.Array, tokens: jax.Array, noise_prob: jax.Array, *, num_tokens: int
) -> jax.Array:
  """Redraws each site uniformly with probability `noise_prob [B]`."""
  checks.check_tokens("tokens", tokens)
  checks.check_int("num_tokens", num_tokens, 2)
  checks.check_shape("noise_prob", noise_prob, tokens.shape[:1])
  keys = keys_lib.per_example(key, tokens.shape[0])

  def one(key, x, prob):
    key_where, key_what = jax.random.split(key)
    redraw = jax.random.uniform(key_where, x.shape) < prob
    fresh = jax.random.randint(key_what, x.shape, 0, num_tokens, x.dtype)
    return jnp.where(redraw, fresh, x)

  return jax.vmap(one)(keys, tokens, noise_prob)


def uniform_rollout(
  params: Params,
  key: jax.Array,
  *,
  logits_fn: LogitsFn,
  num_samples: int,
  length: int,
  num_tokens: int,
  num_steps: int,
  schedule: masking.MaskSchedule | None = None,
) -> Rollout:
  """Simulates the process from uniform noise at `t = 1` to data at `t = 0`.

  Args:
    params: Passed to `logits_fn`.
    key: One PRNG key, or `[N]` keys; consumed.
    logits_fn: Predicts clean tokens from noisy ones: `[N, L, V]` with
      `V = num_tokens`.
    num_samples: Paths `N`.
    length: Sites `L`.
    num_tokens: Tokens a site.
    num_steps: Steps `K`.
    schedule: `mask_prob(t)` is the probability that a site has been redrawn
      by time `t`; linear by default, so `t = 1` is exactly uniform.

  Returns:
    A `Rollout` without an order. `E[exp(log_ratio + log_prob(samples) + L log
    V)] = Z`.

  Raises:
    ValueError: If sizes or the logits do not fit.
  """
  checks.check_int("num_samples", num_samples)
  checks.check_int("length", length)
  checks.check_int("num_tokens", num_tokens, 2)
  checks.check_int("num_steps", num_steps)
  schedule = masking.linear() if schedule is None else schedule
  keys = keys_lib.per_example(key, num_samples)
  kept = 1 - schedule.mask_prob(masking.time_grid(num_steps))
  policy = functools.partial(logits_fn, params)
  vocab, dtype = logits_lib.validate(
    logits_fn, params, length=length, mask_id=num_tokens
  )
  if vocab != num_tokens:
    raise ValueError(
      f"logits_fn must answer [batch, {length}, num_tokens = {num_tokens}], "
      f"got {vocab} tokens."
    )

  def step(carry, xs):
    x, log_policy, log_ref = carry
    t, kept_now, kept_next, index = xs
    logits = policy(x, jnp.full(num_samples, t))
    clean = jnp.exp(log_softmax(logits))
    # q(x_next | x, x0) ~ q(x | x_next) q(x_next | x0), both symmetric flips.
    here = jax.nn.one_hot(x, num_tokens, dtype=dtype)
    back = _flip(here, kept_now / kept_next)
    # Normaliser of the bridge, per clean token: q(x | x0) at time t.
    norm = _flip(here, kept_now)
    # Where q(x | x0) underflows to zero, so does what it would divide.
    clean = jnp.where(norm > 0, clean / jnp.where(norm > 0, norm, 1), 0)
    probs = back * _flip(clean, kept_next)
    log_probs = log_softmax(jnp.log(probs))
    new = jax.vmap(jax.random.categorical)(
      keys_lib.fold(keys, index), log_probs
    ).astype(x.dtype)
    # The reference is reversible: p_ref(x | new) p(new) = p_ref(new | x) p(x).
    log_ref = log_ref + pick(jnp.log(back), new).sum(axis=1)
    log_policy = log_policy + pick(log_probs, new).sum(axis=1)
    return (new, log_policy, log_ref), None

  start = jax.vmap(
    lambda k: jax.random.randint(k, (length,), 0, num_tokens, jnp.int32)
  )(keys_lib.fold(keys, num_steps))
  zeros = jnp.zeros(num_samples, dtype)
  carry = carries.anchor((start, zeros, zeros), (params, keys))
  times = masking.time_grid(num_steps)[:-1]
  (samples, log_policy, log_ref), _ = jax.lax.scan(
    step, carry, (times, kept[:-1], kept[1:], jnp.arange(num_steps))
  )
  return Rollout(
    samples=samples,
    log_policy=log_policy,
    log_ratio=log_ref - log_policy,
    order=None,
    num_revealed=None,
    nfe=jnp.full(num_samples, num_steps, jnp.int32),
  )


def _flip(probs, kept):
  """Applies the symmetric kernel: keep with `kept`, else redraw uniformly."""
  total = probs.sum(axis=-1, keepdims=True)
  return kept * probs + (1 - kept) * total / probs.shape[-1]
