"""What the masked process costs, against named baselines.

  python -m benchmarks.ctmc

Each table is one comparison; `ratio` is its first row's time over the row's
own. Rows of a table run in turns, so that a machine that other work slows
down slows all of them, and the fastest turn counts. `compile` is the first
call less that. Networks are those of the experiments, untrained: the time
does not depend on the parameters. A time is that of one call on a whole batch.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from experiments.mdns import experiment, ising
from jdiff import ctmc, targets
from jdiff.core import keys as keys_lib


class Case(NamedTuple):
  """A network on its lattice, as an experiment would build it."""

  logits_fn: Any
  params: Any
  law: ctmc.Order
  length: int
  mask_id: int

  def rollout(self, num_samples, num_steps=None):
    """A jitted `rollout(params, key)`; `num_steps` for random orders."""
    return jax.jit(
      functools.partial(
        ctmc.rollout,
        logits_fn=self.logits_fn,
        num_samples=num_samples,
        length=self.length,
        mask_id=self.mask_id,
        num_steps=num_steps,
        order=self.law if num_steps is None else "random",
      )
    )


def case(variant, size):
  config = ising.get_config(variant)
  config.target.size = size
  built = experiment.build(config)
  target = targets.ising(size, beta=config.target.beta)
  return Case(
    built.apply,
    built.init(jax.random.key(0)).params,
    target.orders[config.order],
    target.length,
    target.num_tokens,
  )


def python_loop(c, num_samples):
  """The rollout as a Python loop over one jitted step: the baseline."""

  @jax.jit
  def begin(key):
    keys = keys_lib.per_example(key, num_samples)
    pairs = jax.vmap(jax.random.split)(keys)
    tokens = jnp.full((num_samples, c.length), c.mask_id, jnp.int32)
    order = jax.vmap(c.law.draw)(pairs[:, 0])
    return pairs[:, 1], tokens, jnp.zeros(num_samples), order

  @jax.jit
  def step(params, keys, tokens, log_policy, order, index):
    sites = jax.lax.dynamic_slice_in_dim(order, index, 1, axis=1)
    t = 1 - index / c.length
    t = jnp.full(num_samples, t, jnp.float32)
    log_probs = jax.nn.log_softmax(c.logits_fn(params, tokens, t, sites))
    values = jax.vmap(jax.random.categorical)(
      keys_lib.fold(keys, index), log_probs
    ).astype(jnp.int32)
    picked = jnp.take_along_axis(log_probs, values[..., None], axis=2)
    rows = jnp.arange(num_samples)[:, None]
    return tokens.at[rows, sites].set(values), log_policy + picked[:, 0, 0]

  def run(params, key):
    keys, tokens, log_policy, order = begin(key)
    for i in range(c.length):
      tokens, log_policy = step(
        params, keys, tokens, log_policy, order, np.int32(i)
      )
    return tokens, log_policy

  return run


def scan_against_loop(key):
  c = case("smoke", 4)
  for batch in (16, 1024):
    scan, loop = c.rollout(batch), python_loop(c, batch)
    timing.race(
      "(a) one jitted scan against a loop over jitted steps, 4x4, MLP 2x128",
      {
        "Python loop": lambda f=loop: f(c.params, key),
        "ctmc.rollout": lambda f=scan: f(c.params, key),
      },
      dict.fromkeys(("Python loop", "ctmc.rollout"), c.length),
      batch,
    )
    # The same keys and the same work, or the times would not compare.
    rollout = scan(c.params, key)
    tokens, log_policy = loop(c.params, key)
    np.testing.assert_array_equal(rollout.samples, tokens)
    np.testing.assert_allclose(rollout.log_policy, log_policy, rtol=1e-5)


def blocks_against_full(key):
  batch, mlp, site = 256, case("smoke", 8), case("cpu_uniform", 8)
  for c, name in ((mlp, "MLP 2x128"), (site, "site-centred 2x128")):
    few, full = c.length // 4, c.length
    some, all_steps = c.rollout(batch, few), c.rollout(batch, full)
    timing.race(
      f"(b) L/4 blocks against one site a step, 8x8, {name}",
      {
        "K = L": lambda f=all_steps, c=c: f(c.params, key),
        "K = L/4": lambda f=some, c=c: f(c.params, key),
      },
      {"K = L": full, "K = L/4": few},
      batch,
    )


def cost_against_length(key):
  batch, runs, nfe = 64, {}, {}
  for size in (4, 8, 16):
    c = case("cpu_uniform", size)
    name = f"site-centred, random order, {size}x{size}"
    runs[name] = functools.partial(c.rollout(batch), c.params, key)
    nfe[name] = c.law.num_steps
  c = case("cpu", 16)
  name = "per-block, chain order, 16x16"
  runs[name] = functools.partial(c.rollout(batch), c.params, key)
  nfe[name] = c.law.num_steps
  timing.race("(c) rollouts against the lattice's size", runs, nfe, batch)


def causal_against_steps(key):
  batch, c = 64, case("cpu", 16)
  rollout = c.rollout(batch)(c.params, key)

  def value_and_grad(causal):
    def mean(params):
      log_prob = ctmc.path_log_prob(
        params,
        rollout.samples,
        rollout.order,
        c.law.num_revealed,
        logits_fn=c.logits_fn,
        mask_id=c.mask_id,
        causal=causal,
      )
      return log_prob.mean(), log_prob

    return jax.jit(jax.value_and_grad(mean, has_aux=True))

  steps, once = value_and_grad(False), value_and_grad(True)
  timing.race(
    "(d) path_log_prob with its gradient, chain order, per-block, 16x16",
    {
      "a step at a time": lambda: steps(c.params),
      "causal": lambda: once(c.params),
    },
    {"a step at a time": c.law.num_steps, "causal": 1},
    batch,
  )
  for gradient in (steps, once):
    (_, log_prob), _ = gradient(c.params)
    np.testing.assert_allclose(log_prob, rollout.log_policy, rtol=1e-4)


def main():
  print(timing.where())
  key = jax.random.key(0)
  scan_against_loop(key)
  blocks_against_full(key)
  cost_against_length(key)
  causal_against_steps(key)


if __name__ == "__main__":
  main()
