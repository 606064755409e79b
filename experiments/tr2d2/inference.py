"""What the base finds without fine-tuning, for as many rewards."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tr2d2 import parts, problems
from jdiff import ctmc, training
from jdiff.core import keys as keys_lib

CHUNK = 1024
"""Draws of the base at a time."""


class Found(NamedTuple):
  """Sequences in the order in which their rewards were asked for.

  Attributes:
    samples: `[N, L]` int32.
    rewards: `[N, K]` float32, NaN where invalid.
  """

  samples: np.ndarray
  rewards: np.ndarray


def best_of_n(
  problem: problems.Problem, params, key: jax.Array, num_calls: int, config
) -> Found:
  """Independent draws of a policy."""

  @jax.jit
  def draw(params, key):
    return ctmc.rollout(
      params,
      training.example_keys(key, CHUNK),
      logits_fn=problem.network.apply,
      num_samples=CHUNK,
      length=problem.length,
      mask_id=problem.num_tokens,
      num_steps=config.sampler.num_steps or None,
    ).samples

  chunks = [
    training.fetch(draw(params, jax.random.fold_in(key, i)))
    for i in range(-(-num_calls // CHUNK))
  ]
  samples = np.concatenate(chunks)[:num_calls]
  return Found(samples, np.asarray(problem.reward(samples)))


def tree(
  problem: problems.Problem, params, key: jax.Array, num_calls: int, config
) -> Found:
  """One search of the config's kind and width, as deep as the rewards last.

  Fewer than `num_calls` where the trees are exhausted before.
  """
  num_roots = config.search.num_roots
  num_expansions = -(-num_calls // (num_roots * config.search.num_children))
  searcher = parts.make_search(
    config, problem, num_expansions=num_expansions, temperature=1.0
  )
  ask = jax.jit(jax.vmap(searcher.ask, in_axes=(None, 0, 0)))
  tell = jax.jit(jax.vmap(searcher.tell))
  trees = jax.vmap(lambda _: searcher.init())(jnp.arange(num_roots))
  samples, rewards = [], []
  for i in range(num_expansions):
    keys = keys_lib.per_example(jax.random.fold_in(key, i), num_roots)
    proposals = ask(params, keys, trees)
    host = training.fetch(proposals)
    scores = parts.score(problem.reward, host)
    trees = tell(trees, proposals, jnp.asarray(scores))
    samples.append(host.samples[host.valid].reshape(-1, problem.length))
    rewards.append(scores[host.valid].reshape(-1, scores.shape[-1]))
  return Found(
    np.concatenate(samples)[:num_calls], np.concatenate(rewards)[:num_calls]
  )
