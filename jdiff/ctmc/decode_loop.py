"""The loops of a decode: blocks from left to right, steps inside a block."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.ctmc import commit
from jdiff.ctmc import logits as logits_lib


class State(NamedTuple):
  """Rows on their way: the carry of every loop."""

  tokens: jax.Array  # [N, L] int32
  commit_step: jax.Array  # [N, G] int32
  confidence: jax.Array  # [N, G] float32
  log_policy: jax.Array  # [N] float32
  steps: jax.Array  # [N] int32, taken by each row
  positions: jax.Array  # [N] int32, pushed through the network
  cache: Any


@dataclasses.dataclass(frozen=True)
class Loop:
  """The loops of `decode` over blocks and steps; its options, checked.

  Attributes:
    forward: The network with its parameters: `(tokens, t, sites) -> logits`,
      or under a cache `(tokens, t, cache, start, sites) -> (logits, cache)`.
    keys: `[N]`; step `j` of a row draws from `fold_in(key, j)`.
    priority: `[N, G]` float, a random order of the sites; None commits by
      confidence.
    length: Canvas length `L`.
    num_prompt: Sites `P` of the prompt.
    block_size: Sites `b` of a block.
    counts: `[s]` int32, the fewest commits of a block's steps.
    mask_id: The mask token.
    temperature: Of the draw.
    guidance: Strength of the guidance, or None.
    pad_id: Token whose run at the front of a prompt is padding, or -1.
    min_p: Of the draw.
    eos_id: The end-of-text token, or -1.
    forbidden: Tokens that are never drawn.
    defer_eos: Whether it ranks last.
    stop_at_eos: Whether rows end with it.
    cache: None, `"prefix"` or `"dual"`.
    threshold: Rule of parallel commits, or None.
    factor: Rule of parallel commits, or None.
  """

  forward: Callable[..., Any]
  keys: jax.Array
  priority: jax.Array | None
  length: int
  num_prompt: int
  block_size: int
  counts: np.ndarray
  mask_id: int
  temperature: float
  guidance: float | None
  pad_id: int
  min_p: float
  eos_id: int
  forbidden: tuple[int, ...]
  defer_eos: bool
  stop_at_eos: bool
  cache: str | None
  threshold: float | None
  factor: float | None

  def run(self, state: State) -> State:
    """Fills all blocks, left to right."""
    num_blocks = (self.length - self.num_prompt) // self.block_size
    if self.cache != "prefix" and num_blocks > 1:
      return jax.lax.fori_loop(0, num_blocks, self.block, state)
    # Unrolled: the queries of a prefix cache shrink from block to block.
    for index in range(num_blocks):
      state = self.block(index, state)
    return state

  def block(self, index, state):
    """All steps of one block."""
    first = index * self.block_size
    start = self.num_prompt + first
    sites = np.arange(self.block_size, dtype=np.int32)
    whole = (0, self.length, start + sites)
    if self.cache is None:
      return self.steps(0, state, first, whole)
    size = self.block_size if self.cache == "dual" else self.length - start

    def refresh(state):
      state = self.step(0, state, first, whole)
      return self.steps(1, state, first, (start, size, sites))

    if not self.stop_at_eos:
      return refresh(state)
    # Loops end by themselves; the first evaluation stands before one.
    going = jnp.any(self.unfinished(state))
    return jax.lax.cond(going, refresh, lambda s: s, state)

  def steps(self, begin, state, first, queries):
    """The steps of a block from `begin` on."""
    end = len(self.counts)
    if begin == end:
      return state
    if self.threshold is None and self.factor is None and not self.stop_at_eos:
      return jax.lax.fori_loop(
        begin, end, lambda i, s: self.step(i, s, first, queries), state
      )

    def go_on(loop):
      index, state = loop
      return (index < end) & jnp.any(self.active(state, first))

    def body(loop):
      index, state = loop
      return index + 1, self.step(index, state, first, queries)

    _, state = jax.lax.while_loop(go_on, body, (jnp.int32(begin), state))
    return state

  def step(self, index, state, first, queries):
    """One evaluation, and commits at the block from site `first` on."""
    active = self.active(state, first)
    logits, cache = self.logits(state, queries)
    values, log_prob, confidence = commit.draw(
      jax.vmap(jax.random.fold_in)(self.keys, state.steps),
      logits,
      temperature=self.temperature,
      min_p=self.min_p,
    )
    cut = functools.partial(self.cut, first=first)
    masked = cut(state.tokens[:, self.num_prompt :]) == self.mask_id
    count = jnp.asarray(self.counts)[index]
    if self.priority is not None:
      score = cut(self.priority)
    else:
      score = confidence
      if self.defer_eos:
        score = jnp.where(values == self.eos_id, 0, score)
      count = jnp.maximum(
        count, commit.num_confident(score, masked, self.threshold, self.factor)
      )
    now = commit.top(score, masked, jnp.where(active, count, 0))

    def put(array, new, offset=0):
      old = cut(array[:, offset:])
      new = jnp.where(now, new.astype(old.dtype), old)
      return jax.lax.dynamic_update_slice_in_dim(array, new, offset + first, 1)

    gained = jnp.sum(jnp.where(now, log_prob, 0), axis=1)
    return State(
      tokens=put(state.tokens, values, self.num_prompt),
      commit_step=put(state.commit_step, state.steps[:, None]),
      confidence=put(state.confidence, confidence),
      log_policy=state.log_policy + gained.astype(state.log_policy.dtype),
      steps=state.steps + active,
      positions=state.positions + jnp.where(active, queries[1], 0),
      cache=cache,
    )

  def logits(self, state, queries):
    """Clean logits `[N, b, V]` of the block, and the cache after them."""
    start, size, sites = queries
    tokens = state.tokens
    hidden = tokens[:, self.num_prompt :] == self.mask_id
    t = jnp.mean(hidden, axis=1, dtype=jnp.float32)
    if self.guidance is not None:
      blind = tokens.at[:, : self.num_prompt].set(self.blind_prompt(tokens))
      tokens, t = jnp.concatenate([tokens, blind]), jnp.concatenate([t, t])
    cache = state.cache
    if self.cache is None:
      logits = self.forward(tokens, t, sites)
    else:
      tokens = jax.lax.dynamic_slice_in_dim(tokens, start, size, axis=1)
      logits, cache = self.forward(tokens, t, cache, start, sites)
    checks.check_shape(
      "the network's answer",
      logits,
      (tokens.shape[0], self.block_size, None),
      "It is [batch, sites asked for, vocabulary].",
    )
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if self.guidance is not None:
      logits = commit.guide(logits, self.guidance)
    return logits_lib.forbid(logits, self.forbidden), cache

  def blind_prompt(self, tokens):
    """Prompts `[N, P]` without what they say; padding stays what it is."""
    prompt = tokens[:, : self.num_prompt]
    run = jnp.cumprod(prompt == self.pad_id, axis=1, dtype=jnp.int32)
    return jnp.where(run == 1, prompt, self.mask_id)

  def cut(self, array, first):
    """The block's columns of an array `[N, G]`."""
    return jax.lax.dynamic_slice_in_dim(array, first, self.block_size, axis=1)

  def active(self, state, first):
    """`[N]` bool: rows with something left to do in the block."""
    hidden = self.cut(state.tokens[:, self.num_prompt :], first) == self.mask_id
    return jnp.any(hidden, axis=1) & self.unfinished(state)

  def unfinished(self, state):
    """`[N]` bool: rows without an end-of-text behind committed tokens."""
    if not self.stop_at_eos:
      return jnp.ones(state.tokens.shape[0], bool)
    completion = state.tokens[:, self.num_prompt :]
    settled = jnp.cumsum(completion == self.mask_id, axis=1) == 0
    return ~jnp.any(settled & (completion == self.eos_id), axis=1)
