"""Log-probability of a given path, differentiable in the parameters.

`rollout` returns the same numbers without a gradient. RERF, LV and CE need
them with one; EUBO needs them on samples that the policy did not draw.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks, orders
from jdiff.core import keys as keys_lib
from jdiff.core.types import LogitsFn, Params
from jdiff.ctmc import logits as logits_lib
from jdiff.ctmc.reveal import log_softmax, pick, segment_sites


def path_log_prob(
  params: Params,
  samples: jax.Array,
  order: jax.Array,
  num_revealed,
  *,
  logits_fn: LogitsFn,
  mask_id: int,
  temperature: float = 1.0,
  causal: bool = False,
  key: jax.Array | None = None,
  num_terms: int | None = None,
) -> jax.Array:
  """Log-probability `[N]` of the reveals along given paths, in nats.

  Args:
    params: Passed to `logits_fn`; the answer is differentiable in them.
    samples: `[N, L]` int32 complete sequences.
    order: `[N, G]` int32, the revealed sites in order; sites outside it are
      the prompt. `[G]` if one order serves all.
    num_revealed: `[K]` (or `[N, K]`) sites a step. As a NumPy array `[K]`
      (`Order.num_revealed`) it makes block sizes static, and each step then
      asks the network for its own sites alone; a traced array works too, and
      pays for all sites at every step.
    logits_fn: The policy, a `LogitsFn`.
    mask_id: The mask token.
    temperature: As in `rollout`.
    causal: Whether the network reads, at each site, only sites revealed in
      earlier steps even where later ones are visible. One evaluation on the
      complete samples then gives every conditional of the path.
    key: Needed with `num_terms`: one PRNG key, or `[N]`; consumed.
    num_terms: If given, an unbiased estimate from that many terms of the sum
      over sites, stratified along the path; its gradient is unbiased too.

  Raises:
    ValueError: If shapes or options do not fit.
  """
  checks.check_tokens("samples", samples, mask_id=mask_id)
  num_samples, length = samples.shape
  checks.check_integers("order", order)
  order = order if isinstance(order, np.ndarray) else jnp.asarray(order)
  temperature = checks.check_finite("temperature", temperature, positive=True)
  if order.ndim == 1:
    order = jnp.broadcast_to(order[None], (num_samples, order.shape[0]))
  checks.check_shape("order", order, (num_samples, None))
  if checks.is_concrete(num_revealed):
    totals = np.sum(np.asarray(num_revealed), axis=-1)
    if np.any(totals != order.shape[1]):
      raise ValueError(
        f"num_revealed must add up to the {order.shape[1]} sites of order, got "
        f"{np.unique(totals).tolist()}."
      )
  policy = functools.partial(logits_lib.forbid_mask(logits_fn, mask_id), params)
  if num_terms is not None:
    if key is None:
      raise ValueError("num_terms needs a key, got key=None.")
    keys = keys_lib.per_example(key, num_samples)
    return _subsampled(
      policy,
      samples,
      order,
      num_revealed,
      mask_id,
      temperature,
      keys,
      checks.check_int("num_terms", num_terms),
    )
  if causal:
    t = jnp.zeros(num_samples, jnp.float32)
    log_probs = log_softmax(policy(samples, t) / temperature)
    terms = jnp.take_along_axis(pick(log_probs, samples), order, axis=1)
    return terms.sum(axis=1)
  if isinstance(num_revealed, np.ndarray) and num_revealed.ndim == 1:
    return _by_blocks(
      policy, samples, order, num_revealed, mask_id, temperature
    )
  return _by_steps(
    policy, samples, order, jnp.asarray(num_revealed), mask_id, temperature
  )


def path_log_ratio(
  params: Params,
  samples: jax.Array,
  order: jax.Array,
  num_revealed,
  *,
  logits_fn: LogitsFn,
  mask_id: int,
  ref_params: Params | None = None,
  ref_logits_fn: LogitsFn | None = None,
  temperature: float = 1.0,
  causal: bool = False,
  key: jax.Array | None = None,
  num_terms: int | None = None,
) -> jax.Array:
  """`log dP_ref/dP_policy` `[N]` along given paths; see `path_log_prob`.

  `E_policy[exp(log_ratio + reward)]` is the tilted reference's normaliser. On
  a rollout's own samples and order it equals `Rollout.log_ratio`. Without a
  reference network the reference is uniform over the tokens.
  """
  options: dict[str, Any] = dict(
    mask_id=mask_id, causal=causal, num_terms=num_terms
  )
  log_policy = path_log_prob(
    params,
    samples,
    order,
    num_revealed,
    logits_fn=logits_fn,
    temperature=temperature,
    key=key,
    **options,
  )
  if ref_params is None and ref_logits_fn is None:
    num_tokens, _ = logits_lib.validate(
      logits_fn, params, length=samples.shape[1], mask_id=mask_id
    )
    return -order.shape[-1] * jnp.log(float(num_tokens)) - log_policy
  log_ref = path_log_prob(
    ref_params,
    samples,
    order,
    num_revealed,
    logits_fn=logits_fn if ref_logits_fn is None else ref_logits_fn,
    key=key,
    **options,
  )
  return log_ref - log_policy


def _step_of_site(order, num_revealed, length):
  """`[N, L]` int32: the step that reveals each site, -1 for the prompt."""
  num_samples, num_sites = order.shape
  counts = jnp.asarray(num_revealed)
  if counts.ndim == 1:
    counts = jnp.broadcast_to(counts[None], (num_samples, counts.shape[0]))
  ends = jnp.cumsum(counts, axis=1)
  ranks = jnp.arange(num_sites)
  steps = jax.vmap(lambda e: jnp.searchsorted(e, ranks, side="right"))(ends)
  rows = jnp.arange(num_samples)[:, None]
  empty = jnp.full((num_samples, length), -1, jnp.int32)
  return empty.at[rows, order].set(steps.astype(jnp.int32))


def _by_steps(policy, samples, order, num_revealed, mask_id, temperature):
  """One full evaluation a step: block sizes may be traced."""
  length = samples.shape[1]
  step_of_site = _step_of_site(order, num_revealed, length)
  num_sites = order.shape[1]

  @jax.checkpoint
  def term(step):
    hidden = step_of_site >= step
    tokens = jnp.where(hidden, mask_id, samples)
    t = jnp.sum(hidden, axis=1).astype(jnp.float32) / num_sites
    log_probs = pick(log_softmax(policy(tokens, t) / temperature), samples)
    return jnp.sum(jnp.where(step_of_site == step, log_probs, 0), axis=1)

  _, terms = jax.lax.scan(
    lambda _, k: (None, term(k)), None, jnp.arange(num_revealed.shape[-1])
  )
  return terms.sum(axis=0)


def _by_blocks(policy, samples, order, num_revealed, mask_id, temperature):
  """Each step asks for the sites that it reveals; memory O(1) in steps."""
  num_samples = samples.shape[0]
  num_sites = order.shape[1]
  step_of_site = _step_of_site(order, num_revealed, samples.shape[1])
  ends = np.cumsum(num_revealed)
  cuts = np.flatnonzero(np.diff(num_revealed)) + 1
  parts = []

  @jax.checkpoint
  def term(step, t, sites):
    tokens = jnp.where(step_of_site >= step, mask_id, samples)
    t = jnp.full(num_samples, t, jnp.float32)
    log_probs = log_softmax(policy(tokens, t, sites) / temperature)
    values = jnp.take_along_axis(samples, sites, axis=1)
    return pick(log_probs, values).sum(axis=1)

  for steps in np.split(np.arange(len(num_revealed)), cuts):
    size = int(num_revealed[steps[0]])
    start = int(ends[steps[0]]) - size
    segment = orders.Segment(start, len(steps), size, None)
    revealed = start + size * np.arange(len(steps))
    t = (1 - revealed / num_sites).astype(np.float32)
    _, terms = jax.lax.scan(
      lambda _, xs: (None, term(*xs)),
      None,
      (steps.astype(np.int32), t, segment_sites(segment, order)),
    )
    parts.append(terms.sum(axis=0))
  return sum(parts[1:], parts[0])


def _subsampled(
  policy, samples, order, num_revealed, mask_id, temperature, keys, num_terms
):
  """`num_terms` sites a path, each on its own canvas, in one evaluation."""
  num_samples, length = samples.shape
  num_sites = order.shape[1]
  u = jax.vmap(lambda k: jax.random.uniform(k, (num_terms,)))(keys)
  # A point in each stratum of [0, G): every rank has expectation J / G.
  rank = (jnp.arange(num_terms)[None, :] + u) * (num_sites / num_terms)
  rank = jnp.minimum(jnp.floor(rank), num_sites - 1).astype(jnp.int32)
  sites = jnp.take_along_axis(order, rank, axis=1)
  step_of_site = _step_of_site(order, num_revealed, length)
  step = jnp.take_along_axis(step_of_site, sites, axis=1)
  hidden = step_of_site[:, None, :] >= step[:, :, None]
  tokens = jnp.where(hidden, mask_id, samples[:, None, :])
  tokens = tokens.reshape(num_samples * num_terms, length)
  t = hidden.sum(axis=2).reshape(-1).astype(jnp.float32) / num_sites
  logits = policy(tokens, t, sites.reshape(-1, 1)) / temperature
  values = jnp.take_along_axis(samples, sites, axis=1).reshape(-1, 1)
  terms = pick(log_softmax(logits), values).reshape(num_samples, num_terms)
  return terms.sum(axis=1) * (num_sites / num_terms)
