"""What the base finds without fine-tuning, for as many rewards."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tr2d2 import parts, problems
from jdiff import ctmc, training

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
  def draw(key):
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
    training.fetch(draw(jax.random.fold_in(key, i)))
    for i in range(-(-num_calls // CHUNK))
  ]
  samples = np.concatenate(chunks)[:num_calls]
  return Found(samples, np.asarray(problem.reward(samples)))


def tree(
  problem: problems.Problem, params, key: jax.Array, num_calls: int, config
) -> Found:
  """Tree searches of the config's size, one after the other."""
  searcher = parts.make_search(config, problem)
  num_roots, turns = config.search.num_roots, config.search.num_expansions
  ask = jax.jit(
    lambda keys, trees: jax.vmap(
      lambda key, tree: searcher.ask(params, key, tree)
    )(keys, trees)
  )
  tell = jax.jit(jax.vmap(searcher.tell))
  fresh = jax.vmap(lambda _: searcher.init())(jnp.arange(num_roots))
  trees, samples, rewards, count, asked = fresh, [], [], 0, 0
  # An exhausted tree has nothing to ask: the turns bound the loop.
  limit = num_calls
  while count < num_calls and asked < limit:
    if asked % turns == 0:
      trees = fresh
    keys = jax.random.split(jax.random.fold_in(key, asked), num_roots)
    proposals = ask(keys, trees)
    host = training.fetch(proposals)
    scores = parts.score(problem.reward, host)
    trees = tell(trees, proposals, jnp.asarray(scores))
    samples.append(host.samples[host.valid].reshape(-1, problem.length))
    rewards.append(scores[host.valid].reshape(-1, scores.shape[-1]))
    count += len(samples[-1])
    asked += 1
  return Found(
    np.concatenate(samples)[:num_calls], np.concatenate(rewards)[:num_calls]
  )
