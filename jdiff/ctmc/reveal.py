"""Rollouts of the masked process, with their exact path log-ratio.

The masked CTMC reveals every site once. Its total unmasking rate is the
reference's whatever the network says, so the intensity integrals cancel and a
rollout is: reveal sites in an order that ignores the network, draw their
tokens from the network's conditionals, and add up log-probabilities
(arXiv:2508.10684, sec. 3). With several sites a step the product of marginals
is drawn, and the ratio is still exact: fewer steps cost effective sample size,
never bias.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import carries, checks, orders
from jdiff.core import keys as keys_lib
from jdiff.core.types import LogitsFn, Params, Rollout
from jdiff.ctmc import logits as logits_lib
from jdiff.schedules import masking


def rollout(
  params: Params,
  key: jax.Array,
  *,
  logits_fn: LogitsFn,
  num_samples: int,
  length: int,
  mask_id: int,
  num_steps: int | None = None,
  ref_params: Params | None = None,
  ref_logits_fn: LogitsFn | None = None,
  prompt: jax.Array | None = None,
  order="random",
  temperature: float = 1.0,
  schedule: masking.MaskSchedule | None = None,
) -> Rollout:
  """Simulates the masked process from an empty canvas (or a prompt) to data.

  Args:
    params: Passed to `logits_fn`.
    key: One PRNG key, or `[N]` keys, one a sample; consumed. Sample `i`
      depends on `key` and `i` alone.
    logits_fn: The policy, a `LogitsFn`. `t` is the masked share of the
      completion.
    num_samples: Paths `N`.
    length: Canvas length `L`, the prompt included.
    mask_id: The mask token; inside the vocabulary its logit must be `-inf`.
    num_steps: Steps `K` of a `"random"` order; None reveals one site a step.
    ref_params: Parameters of the reference. If this and `ref_logits_fn` are
      None the reference is uniform over the tokens.
    ref_logits_fn: The reference network; `logits_fn` if only `ref_params` is
      given.
    prompt: `[P]` or `[N, P]` int32 tokens that stand at the first `P` sites.
    order: `"random"`, an `orders.Order`, or a schedule of blocks of sites.
    temperature: Divides the policy's logits; the law really sampled is the
      one that `log_policy` and `log_ratio` refer to.
    schedule: If given, each hidden site is revealed independently at each of
      the `num_steps` steps, with the probabilities of this masking schedule
      (Bernoulli reveals); `order` must then be `"random"`. If None, steps
      reveal fixed counts.

  Returns:
    A `Rollout`; `E[exp(log_ratio + reward(samples))]` is the reward-tilted
    reference's normaliser, exactly, for every network, order and `K`.

  Raises:
    ValueError: If sizes, the order, the prompt or the logits do not fit.
    TypeError: If the key is not a typed PRNG key.
  """
  checks.check_int("num_samples", num_samples)
  checks.check_int("length", length)
  checks.check_finite("temperature", temperature, positive=True)
  keys = keys_lib.per_example(key, num_samples)
  canvas, num_prompt = prompted_canvas(prompt, num_samples, length, mask_id)
  policy, ref, num_tokens, dtype = networks(
    params, logits_fn, ref_params, ref_logits_fn, length, mask_id
  )
  free = range(num_prompt, length)
  if not free:
    raise ValueError(
      f"the prompt fills the canvas of length {length}; pass a longer length."
    )
  if schedule is not None and order != "random":
    raise ValueError("Bernoulli reveals (schedule=...) need order='random'.")
  law = orders.as_order(
    order, free, None if schedule is not None else num_steps
  )
  key_order, key_tokens = split_each(keys)
  reveal = Reveal(policy, ref, key_tokens, temperature)
  zeros = jnp.zeros(num_samples, dtype)
  carry = carries.anchor((canvas, zeros, zeros), (params, ref_params, keys))
  if schedule is not None:
    carry, order, num_revealed = _bernoulli(
      reveal, carry, key_order, num_prompt, num_steps, schedule
    )
    num_steps = num_revealed.shape[1]
  else:
    carry, order = _fixed(reveal, carry, key_order, law)
    num_revealed, num_steps = law.num_revealed, law.num_steps
  samples, log_policy, log_ref = carry
  if ref is None:
    log_ref = log_ref - len(free) * jnp.log(
      jnp.asarray(num_tokens, log_ref.dtype)
    )
  return Rollout(
    samples=samples,
    log_policy=log_policy,
    log_ratio=log_ref - log_policy,
    order=order,
    num_revealed=num_revealed,
    nfe=jnp.full(num_samples, num_steps, jnp.int32),
  )


def networks(params, logits_fn, ref_params, ref_logits_fn, length, mask_id):
  """Policy and reference (or None) of their parameters, checked.

  Returns:
    `(policy, ref, num_tokens, dtype)`: `(tokens, t, sites) -> logits` each, and
    what `logits.validate` says of both.
  """
  num_tokens, dtype = logits_lib.validate(
    logits_fn, params, length=length, mask_id=mask_id
  )
  policy = functools.partial(logits_lib.forbid_mask(logits_fn, mask_id), params)
  if ref_params is not None and ref_logits_fn is None:
    ref_logits_fn = logits_fn
  if ref_logits_fn is None:
    return policy, None, num_tokens, dtype
  _, ref_dtype = logits_lib.validate(
    ref_logits_fn, ref_params, length=length, mask_id=mask_id
  )
  ref = functools.partial(
    logits_lib.forbid_mask(ref_logits_fn, mask_id), ref_params
  )
  return policy, ref, num_tokens, jnp.promote_types(dtype, ref_dtype)


class Reveal:
  """Draws tokens at given sites and scores them: what every step does."""

  def __init__(self, policy, ref, keys, temperature):
    self.policy, self.ref, self.keys = policy, ref, keys
    self.temperature = temperature

  def __call__(self, tokens, t, step, sites=None):
    """Returns drawn values and both log-probabilities, all `[N, m]`."""
    t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), tokens.shape[:1])
    logits = self.policy(tokens, t, sites)
    log_probs = log_softmax(logits / self.temperature)
    values = jax.vmap(jax.random.categorical)(
      keys_lib.fold(self.keys, step), log_probs
    ).astype(tokens.dtype)
    log_policy = pick(log_probs, values)
    log_ref = jnp.zeros_like(log_policy)
    if self.ref is not None:
      log_ref = pick(log_softmax(self.ref(tokens, t, sites)), values)
    return values, log_policy, log_ref


def _fixed(reveal, carry, key_order, law: orders.Order):
  """Fixed counts: one scan a run of equal blocks."""
  order = jax.vmap(law.draw)(key_order)
  num_sites = order.shape[1]
  step = 0

  def block(carry, xs):
    tokens, log_policy, log_ref = carry
    sites, t, step = xs
    values, policy, ref = reveal(tokens, t, step, sites)
    if sites.ndim == 1:
      tokens = tokens.at[:, sites].set(values)
    else:
      rows = jnp.arange(tokens.shape[0])[:, None]
      tokens = tokens.at[rows, sites].set(values)
    carry = tokens, log_policy + policy.sum(1), log_ref + ref.sum(1)
    return carry, None

  for segment in law.segments():
    num, size = segment.num_blocks, segment.block_size
    sites = segment_sites(segment, order)
    revealed = segment.start + size * np.arange(num)
    t = (1 - revealed / num_sites).astype(np.float32)
    steps = np.arange(step, step + num, dtype=np.int32)
    if num == 1:
      # Sites stay concrete, so that a network can specialise to them.
      carry, _ = block(carry, (sites[0], t[0], steps[0]))
    else:
      carry, _ = jax.lax.scan(block, carry, (sites, t, steps))
    step += num
  return carry, order


def _bernoulli(reveal, carry, key_order, num_prompt, num_steps, schedule):
  """Independent reveals on the schedule's time grid."""
  tokens = carry[0]
  num_samples, length = tokens.shape
  num_steps = length - num_prompt if num_steps is None else num_steps
  checks.check_int("num_steps", num_steps)
  times = masking.time_grid(num_steps)
  hidden = schedule.mask_prob(times)
  free = jnp.arange(length) >= num_prompt
  # A site with uniform u is revealed at the step whose interval of masking
  # probabilities holds u: this is the Markov law, drawn at once.
  u = jax.vmap(lambda k: jax.random.uniform(k, (length,)))(key_order)
  step_of_site = jnp.sum(u[:, :, None] <= hidden[None, None, 1:-1], axis=-1)
  step_of_site = jnp.where(free[None, :], step_of_site, -1)

  def step(carry, index):
    tokens, log_policy, log_ref = carry
    now = step_of_site == index
    t = jnp.sum(step_of_site >= index, axis=1) / (length - num_prompt)
    values, policy, ref = reveal(tokens, t, index)
    carry = (
      jnp.where(now, values, tokens),
      log_policy + jnp.sum(jnp.where(now, policy, 0), axis=1),
      log_ref + jnp.sum(jnp.where(now, ref, 0), axis=1),
    )
    return carry, None

  carry, _ = jax.lax.scan(step, carry, jnp.arange(num_steps))
  order = jnp.argsort(step_of_site, axis=1, stable=True)[:, num_prompt:]
  counts = jnp.sum(
    step_of_site[:, None, :] == jnp.arange(num_steps)[None, :, None], axis=2
  )
  return carry, order.astype(jnp.int32), counts.astype(jnp.int32)


def segment_sites(segment: orders.Segment, order: jax.Array):
  """The blocks of a segment: `[n, m]` if fixed, `[n, N, m]` if drawn."""
  if segment.sites is not None:
    return segment.sites
  num, size = segment.num_blocks, segment.block_size
  ranks = order[:, segment.start : segment.start + num * size]
  return jnp.swapaxes(ranks.reshape(-1, num, size), 0, 1)


def log_softmax(logits: jax.Array) -> jax.Array:
  """Log-probabilities in float32 at least: the ones drawn and weighed."""
  wide = jnp.promote_types(logits.dtype, jnp.float32)
  return jax.nn.log_softmax(logits.astype(wide), axis=-1)


def pick(log_probs: jax.Array, tokens: jax.Array) -> jax.Array:
  """`log_probs[..., tokens]` over the last axis."""
  return jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]


def prompted_canvas(prompt, num_samples, length, mask_id):
  """`(canvas [N, L], num_prompt)`: masks behind the prompt, if there is one."""
  canvas = jnp.full((num_samples, length), mask_id, jnp.int32)
  if prompt is None:
    return canvas, 0
  prompt = jnp.asarray(prompt)
  if prompt.ndim == 1:
    prompt = jnp.broadcast_to(prompt[None], (num_samples, prompt.shape[0]))
  checks.check_tokens("prompt", prompt, mask_id=mask_id)
  checks.check_shape("prompt", prompt, (num_samples, None))
  num_prompt = prompt.shape[1]
  if num_prompt > length:
    raise ValueError(
      f"prompt must fit the canvas of length {length}, got {num_prompt} tokens."
    )
  return canvas.at[:, :num_prompt].set(prompt.astype(jnp.int32)), num_prompt


def split_each(keys):
  """Two keys from each of `[N]`."""
  pairs = jax.vmap(jax.random.split)(keys)
  return pairs[:, 0], pairs[:, 1]
