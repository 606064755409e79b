"""Rollouts that branch off a partly revealed canvas.

The law is that of `rollout` with a random order: blocks of fixed counts, the
sites of each drawn uniformly among those still hidden. Whoever chose the
canvas, what follows it is drawn from the policy, and its log-probabilities are
of the law really sampled.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import carries, checks, orders
from jdiff.core import keys as keys_lib
from jdiff.core.types import LogitsFn, Params
from jdiff.ctmc import reveal as reveal_lib


class Branches(NamedTuple):
  """`M` children of one canvas, and a rollout of each to its data end.

  Attributes:
    children: `[M, L]` int32, the canvas with its next block revealed.
    samples: `[M, L]` int32, complete.
    log_policy_step: `[M]` float32, log-probability of that block.
    log_ref_step: `[M]` float32, the same under the reference.
    log_policy: `[M]` float32, of everything revealed after the canvas, the
      block included.
    log_ref: `[M]` float32, the same under the reference.
  """

  children: jax.Array
  samples: jax.Array
  log_policy_step: jax.Array
  log_ref_step: jax.Array
  log_policy: jax.Array
  log_ref: jax.Array


def branch(
  params: Params,
  key: jax.Array,
  canvas: jax.Array,
  step: jax.Array | int,
  *,
  logits_fn: LogitsFn,
  num_branches: int,
  mask_id: int,
  num_steps: int | None = None,
  num_prompt: int = 0,
  ref_params: Params | None = None,
  ref_logits_fn: LogitsFn | None = None,
  temperature: float = 1.0,
) -> Branches:
  """Draws the next block of a canvas several times, and each to the end.

  Args:
    params: Passed to `logits_fn`.
    key: One PRNG key, or `[M]` keys; consumed.
    canvas: `[L]` int32, hidden where it holds the mask.
    step: Steps that the canvas has behind it, below the law's number; traced
      or not. It must hold as many masks as the law leaves there.
    logits_fn: The policy, a `LogitsFn`.
    num_branches: Children `M`.
    mask_id: The mask token.
    num_steps: Steps of the whole path; None reveals one site a step.
    num_prompt: Sites at the front that are given.
    ref_params: As in `rollout`.
    ref_logits_fn: As in `rollout`.
    temperature: Of the policy, as in `rollout`.

  Returns:
    `Branches`. The policy and the reference are evaluated once on the canvas,
    for all children, and then on `M` rows at each later step.

  Raises:
    ValueError: If sizes or the canvas do not fit.
  """
  checks.check_int("num_branches", num_branches)
  checks.check_finite("temperature", temperature, positive=True)
  checks.check_integers("canvas", canvas)
  checks.check_shape("canvas", canvas, (None,))
  checks.check_integers("step", step)
  length = canvas.shape[0]
  policy, ref, num_tokens, dtype = reveal_lib.networks(
    params, logits_fn, ref_params, ref_logits_fn, length, mask_id
  )
  law = block_sizes(length, num_steps, num_prompt)
  _check_canvas(canvas, step, law, num_prompt, mask_id)
  num_sites, widest = int(law.sum()), int(law.max())
  ends, sizes = jnp.asarray(np.cumsum(law)), jnp.asarray(law)
  keys = keys_lib.per_example(key, num_branches)
  key_order, key_tokens = reveal_lib.split_each(keys)
  canvas = canvas.astype(jnp.int32)
  order = jax.vmap(lambda k: _order(k, canvas == mask_id))(key_order)
  order = order[:, num_prompt:]
  rows = jnp.arange(num_branches)[:, None]
  log_v = jnp.log(jnp.asarray(num_tokens, dtype))

  def at(step):
    """Sites revealed before a step, and the time."""
    start = ends[step] - sizes[step]
    return start, (1 - start / num_sites).astype(jnp.float32)

  def once(network):
    """A network that has been run on the canvas, whichever sites are asked."""
    logits = network(canvas[None], at(step)[1][None], None)[0]
    return lambda tokens, t, sites: logits[sites]

  def advance(step, carry, policy, ref):
    tokens, log_policy, log_ref = carry
    start, t = at(step)
    slots = jnp.arange(widest)
    live = slots < sizes[step]
    sites = jnp.take(order, start + slots, axis=1, mode="clip")
    draw = reveal_lib.Reveal(policy, ref, key_tokens, temperature)
    values, drawn, scored = draw(tokens, t, step, sites)
    if ref is None:
      scored = jnp.broadcast_to(-log_v, drawn.shape)
    # Blocks are of two sizes; the spare slot of a smaller one writes nowhere.
    places = jnp.where(live[None], sites, length)
    tokens = tokens.at[rows, places].set(values, mode="drop")
    drawn = jnp.sum(jnp.where(live[None], drawn, 0), axis=1)
    scored = jnp.sum(jnp.where(live[None], scored, 0), axis=1)
    return tokens, log_policy + drawn, log_ref + scored

  step = jnp.asarray(step, jnp.int32)
  tokens = jnp.broadcast_to(canvas[None], (num_branches, length))
  zeros = jnp.zeros(num_branches, dtype)
  carry = carries.anchor((tokens, zeros, zeros), (params, ref_params, keys))
  first = advance(step, carry, once(policy), None if ref is None else once(ref))
  last = jax.lax.fori_loop(
    step + 1,
    len(law),
    lambda k, carry: advance(k, carry, policy, ref),
    first,
  )
  return Branches(first[0], last[0], *first[1:], *last[1:])


def block_sizes(
  length: int, num_steps: int | None, num_prompt: int = 0
) -> np.ndarray:
  """`[K]` int32, the sites that each step of a random order reveals."""
  checks.check_int("num_prompt", num_prompt, 0)
  if num_prompt >= length:
    raise ValueError(
      f"num_prompt must leave room on the canvas of length {length}, got "
      f"{num_prompt}."
    )
  sites = range(num_prompt, length)
  return orders.as_order("random", sites, num_steps).num_revealed


def _check_canvas(canvas, step, law, num_prompt, mask_id):
  """Raises unless the canvas is one that the law has after so many steps."""
  if not checks.is_concrete(canvas, step):
    return
  if not 0 <= int(step) < len(law):
    raise ValueError(f"step must lie in [0, {len(law)}), got {int(step)}.")
  hidden = np.asarray(canvas) == mask_id
  left = int(law[int(step) :].sum())
  if hidden[:num_prompt].any() or hidden.sum() != left:
    raise ValueError(
      f"canvas must hold {left} masks after step={int(step)}, and none among "
      f"its num_prompt={num_prompt} first sites, got {int(hidden.sum())}."
    )


def _order(key, hidden):
  """A permutation of the sites: those that are revealed, then a random one."""
  u = jax.random.uniform(key, hidden.shape)
  return jnp.argsort(jnp.where(hidden, u, -1)).astype(jnp.int32)
