"""Block decoding of masked models: confidence order, guidance, caches.

The sampler of LLaDA (arXiv:2502.09992): the completion is cut into blocks,
filled from left to right; inside a block each step draws a token at every open
site and commits the most confident ones, or sites in random order. With the
key-value caches and parallel commits of Fast-dLLM (arXiv:2505.22618). Left
out: revisiting committed tokens, draft-and-verify decoding.

In random order with one block and no option that only `decode` has,
`ctmc.rollout` samples the same law, asks the network for the revealed sites
alone and gives an exact `log_ratio`: use that for importance weights. The two
share how a law is drawn from and not their loops, since here the sites of a
step may depend on what was drawn at all of them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import carries, checks
from jdiff.core import keys as keys_lib
from jdiff.core.types import LogitsFn, Params
from jdiff.ctmc import commit, decode_loop, reveal
from jdiff.ctmc import logits as logits_lib

CachedFn = Callable[..., tuple[jax.Array, Any]]
"""`(params, tokens [B, Q], t [B], cache, start, sites) -> (logits, cache)`.

Runs the canvas positions `[start, start + Q)` against keys and values of the
whole canvas, those of the queries fresh and written into the cache. `sites`
`[m]` index into the queries; logits are `[B, m, V]`.
"""


class Decoded(NamedTuple):
  """Decoded sequences, and how they came about.

  A step is an evaluation of the network that the row itself needed; where
  rows need different numbers, waiting for others does not count.

  Attributes:
    samples: `[N, L]` int32, the whole canvas with its prompt.
    commit_step: `[N, G]` int32, the row's step, from 0, at which each site of
      the completion was committed; -1 where end-of-text was filled in.
    confidence: `[N, G]` float32, probability of the committed token under the
      clean logits of that step (guided, no temperature); 0 where filled in.
    log_policy: `[N]` float32, sum of the committed tokens' log-probabilities
      in nats under the law drawn from: tempered, cut by min-p, guided. In
      random order, and where a step fills its block, this is the exact
      log-probability of the path given the order. Under confidence it is not:
      that tokens were kept for being likely is left out. 0 if greedy.
    nfe: `[N]` int32, evaluations of the network, partial ones under a cache
      included; guidance counts two a step.
    num_token_forwards: `[N]` int32, token positions pushed through the
      network: what caches save.
  """

  samples: jax.Array
  commit_step: jax.Array
  confidence: jax.Array
  log_policy: jax.Array
  nfe: jax.Array
  num_token_forwards: jax.Array


def decode(
  params: Params,
  key: jax.Array,
  prompt: jax.Array | None,
  *,
  logits_fn: LogitsFn,
  length: int,
  mask_id: int,
  num_samples: int | None = None,
  block_size: int | None = None,
  num_steps: int | None = None,
  order: str = "confidence",
  temperature: float = 1.0,
  guidance: float = 0.0,
  pad_id: int | None = None,
  min_p: float = 0.0,
  eos_id: int | None = None,
  forbid_eos: bool = False,
  defer_eos: bool = False,
  stop_at_eos: bool = False,
  cache: str | None = None,
  cached_fn: CachedFn | None = None,
  init_cache: Callable[[int, int], Any] | None = None,
  threshold: float | None = None,
  factor: float | None = None,
) -> Decoded:
  """Fills the canvas behind a prompt, block by block from left to right.

  A block of `b` sites takes `s = num_steps * b / G` steps, which commit
  `b // s` sites each and the first `b % s` steps one more.

  Args:
    params: Passed to `logits_fn` and `cached_fn`.
    key: One PRNG key, or `[N]` keys, one a row; consumed. Row `i` depends on
      `key` and `i` alone.
    prompt: `[P]` or `[N, P]` int32 tokens at the first `P` sites; None is
      empty.
    logits_fn: The network; `t` is the masked share of the completion. Asked
      for the block's sites alone. The mask is never drawn.
    length: Canvas length `L = P + G`, the prompt included.
    mask_id: The mask token.
    num_samples: Rows `N`; may be left out if `prompt` is `[N, P]`.
    block_size: Sites a block, a divisor of `G`; None is all of them.
    num_steps: Steps in all, a multiple of the number of blocks; None commits
      one site a step.
    order: `"confidence"` commits the sites whose drawn token is likeliest
      under the clean logits, the lowest index first among equals. `"random"`
      goes in uniformly random order within a block; with one site a step and
      one block, this is any-order ancestral sampling.
    temperature: Divides the logits of the draw; 0 takes the likeliest token.
      Where traced, positive.
    guidance: Strength `s` of classifier-free guidance: logits become
      `u + (1 + s) (c - u)`, `u` of the canvas with its prompt masked and the
      same `t`. 0 is off and costs nothing.
    pad_id: Token whose run at the front of a prompt is padding, which guidance
      leaves as it is.
    min_p: Tokens below this share of the likeliest one's probability in the
      tempered law are never drawn; in `[0, 1)`.
    eos_id: The end-of-text token, needed by the next three.
    forbid_eos: Never draws it.
    defer_eos: Ranks it last, as if its confidence were 0; needs the confidence
      order.
    stop_at_eos: Takes a row as finished once it holds an end-of-text with no
      open site before it. What is still open is filled with end-of-text, and
      the loops end with the last unfinished row.
    cache: None evaluates the whole canvas at every step. Both caches do so at
      a block's first step, and after that keep what they have of positions
      before the block (`"prefix"`) or outside it (`"dual"`). From a block's
      second step on they approximate the network: kept keys and values do not
      see what the block has committed since.
    cached_fn: A `CachedFn`, the same network as `logits_fn`
      (`Network.apply_cached`).
    init_cache: `(batch, length) -> cache` (`Network.init_cache`).
    threshold: Also commits every site with a confidence above it, so that
      steps depend on the data; `num_steps` then is their greatest number. May
      be traced.
    factor: The same with the rule of `commit.num_confident`.

  Returns:
    A `Decoded`.

  Raises:
    ValueError: If sizes, the prompt, the options or the logits do not fit.
    TypeError: If the key is not a typed PRNG key, or a size no integer.
  """
  num_samples = _num_samples(prompt, num_samples)
  checks.check_int("length", length)
  canvas, num_prompt = reveal.prompted_canvas(
    prompt, num_samples, length, mask_id
  )
  num_sites = length - num_prompt
  if not num_sites:
    raise ValueError(
      f"the prompt fills the canvas of length {length}; pass a longer length."
    )
  block_size, counts = _block_plan(num_sites, block_size, num_steps)
  temperature, guidance = _check_law(temperature, guidance, min_p, num_prompt)
  _check_order(order, threshold, factor, defer_eos)
  _check_eos(eos_id, mask_id, forbid_eos, defer_eos, stop_at_eos)
  if pad_id is not None and pad_id == mask_id:
    raise ValueError(f"pad_id must differ from mask_id={mask_id}.")
  _check_cache(cache, cached_fn, init_cache)
  keys = keys_lib.per_example(key, num_samples)
  _, dtype = logits_lib.validate(
    logits_fn, params, length=length, mask_id=mask_id
  )
  key_tokens, priority = keys, None
  if order == "random":
    key_order, key_tokens = reveal.split_each(keys)
    ranks = jax.vmap(lambda k: jax.random.permutation(k, num_sites))(key_order)
    priority = ranks.astype(jnp.float32)
  eos = -1 if eos_id is None else eos_id
  rows = 1 if _is_zero(guidance) else 2

  zeros = jnp.zeros(num_samples, jnp.int32)
  state = decode_loop.State(
    tokens=canvas,
    commit_step=jnp.full((num_samples, num_sites), -1, jnp.int32),
    confidence=jnp.zeros((num_samples, num_sites), dtype),
    log_policy=jnp.zeros(num_samples, dtype),
    steps=zeros,
    positions=zeros,
    cache=init_cache(rows * num_samples, length)
    if cache and init_cache
    else (),
  )
  state = carries.anchor(state, (params, keys, canvas))
  network: Any = cached_fn if cache else logits_fn
  loop = decode_loop.Loop(
    forward=functools.partial(network, params),
    keys=key_tokens,
    priority=priority,
    length=length,
    num_prompt=num_prompt,
    block_size=block_size,
    counts=counts,
    mask_id=mask_id,
    temperature=temperature,
    guidance=guidance if rows == 2 else None,
    pad_id=-1 if pad_id is None else pad_id,
    min_p=min_p,
    eos_id=eos,
    forbidden=(mask_id, eos) if forbid_eos else (mask_id,),
    defer_eos=defer_eos,
    stop_at_eos=stop_at_eos,
    cache=cache,
    threshold=threshold,
    factor=factor,
  )
  state = loop.run(state)
  samples = state.tokens
  if stop_at_eos:
    samples = jnp.where(samples == mask_id, eos, samples)
  return Decoded(
    samples=samples,
    commit_step=state.commit_step,
    confidence=state.confidence,
    log_policy=state.log_policy,
    nfe=rows * state.steps,
    num_token_forwards=rows * state.positions,
  )


def _is_zero(value) -> bool:
  return checks.is_concrete(value) and value == 0


def _num_samples(prompt, num_samples):
  rows = None
  if prompt is not None:
    if np.ndim(prompt) not in (1, 2):
      raise ValueError(
        f"prompt must have shape [P] or [N, P], got {list(np.shape(prompt))}."
      )
    rows = np.shape(prompt)[0] if np.ndim(prompt) == 2 else None
  if num_samples is None:
    if rows is None:
      raise ValueError(
        "num_samples must be given unless prompt is [N, P], got None."
      )
    return rows
  return checks.check_int("num_samples", num_samples)


def _block_plan(num_sites, block_size, num_steps):
  """The block size, and the commits of a block's steps."""
  block_size = num_sites if block_size is None else block_size
  if num_sites % checks.check_int("block_size", block_size):
    raise ValueError(
      f"block_size must divide the completion of {num_sites} sites, got "
      f"{block_size}."
    )
  num_blocks = num_sites // block_size
  num_steps = num_sites if num_steps is None else num_steps
  checks.check_int("num_steps", num_steps)
  if num_steps % num_blocks or not num_blocks <= num_steps <= num_sites:
    raise ValueError(
      f"num_steps must be a multiple of the {num_blocks} blocks, at most the "
      f"{num_sites} sites of the completion, got {num_steps}."
    )
  return block_size, commit.schedule(block_size, num_steps // num_blocks)


def _check_law(temperature, guidance, min_p, num_prompt):
  temperature = checks.check_finite("temperature", temperature)
  if checks.is_concrete(temperature) and temperature < 0:
    raise ValueError(f"temperature must be >= 0, got {temperature}.")
  guidance = checks.check_finite("guidance", guidance)
  if not _is_zero(guidance) and not num_prompt:
    raise ValueError(f"guidance={guidance} needs a prompt, got none.")
  checks.check_range("min_p", min_p, 0, 1, ends="[)")
  return temperature, guidance


def _check_order(order, threshold, factor, defer_eos):
  if order not in ("confidence", "random"):
    raise ValueError(f"order must be 'confidence' or 'random', got {order!r}.")
  rules = dict(threshold=threshold, factor=factor)
  given = {name: value for name, value in rules.items() if value is not None}
  if len(given) == 2:
    raise ValueError(
      f"threshold and factor exclude each other, got threshold={threshold} "
      f"and factor={factor}."
    )
  for name, value in given.items():
    value = checks.check_finite(name, value)
    if checks.is_concrete(value) and value < 0:
      raise ValueError(f"{name} must be >= 0, got {value}.")
  if order == "random" and (given or defer_eos):
    name = next(iter(given), "defer_eos")
    raise ValueError(f"{name} needs order='confidence', got order='random'.")


def _check_eos(eos_id, mask_id, forbid_eos, defer_eos, stop_at_eos):
  flags = dict(
    forbid_eos=forbid_eos, defer_eos=defer_eos, stop_at_eos=stop_at_eos
  )
  given = [name for name, value in flags.items() if value]
  if given and eos_id is None:
    raise ValueError(f"{given[0]} needs eos_id, got None.")
  if forbid_eos and len(given) > 1:
    raise ValueError(f"forbid_eos excludes {given[1]}, got both.")
  if eos_id is not None and eos_id == mask_id:
    raise ValueError(f"eos_id must differ from mask_id={mask_id}.")


def _check_cache(cache, cached_fn, init_cache):
  if cache not in (None, "prefix", "dual"):
    raise ValueError(f"cache must be None, 'prefix' or 'dual', got {cache!r}.")
  if cache and (cached_fn is None or init_cache is None):
    missing = "cached_fn" if cached_fn is None else "init_cache"
    raise ValueError(f"cache={cache!r} needs {missing}, got None.")
