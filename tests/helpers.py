"""Networks and laws small enough to be enumerated."""

import functools
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# For what runs for longer than it compiles, unlike the suite's other programs.
optimised_jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 1}
)


def one_device_flags():
  """The suite's XLA flags for a child that has no simulated devices."""
  flags = os.environ["XLA_FLAGS"].split()
  return " ".join(flag for flag in flags if "device_count" not in flag)


def table_logits(length, num_tokens):
  """A network with free logits for every partial sequence and site.

  Params: `[(V + 1) ** L, L, V]`; token V is the mask.
  """
  radix = (num_tokens + 1) ** np.arange(length)[::-1]

  def logits_fn(params, tokens, t, sites=None):
    del t
    row = jnp.sum(tokens * jnp.asarray(radix)[None], axis=1)
    logits = params[row]
    if sites is None:
      return logits
    sites = jnp.broadcast_to(
      jnp.asarray(sites), (tokens.shape[0], np.shape(sites)[-1])
    )
    return jnp.take_along_axis(logits, sites[..., None], axis=1)

  return logits_fn


def random_table(seed, length, num_tokens, scale=1.0, dtype=np.float32):
  shape = ((num_tokens + 1) ** length, length, num_tokens)
  rng = np.random.default_rng(seed)
  return jnp.asarray(scale * rng.standard_normal(shape), dtype)


def conditional_table(log_prob, length, num_tokens):
  """The table of exact conditionals of a law, by summation; float64."""
  states = itertools.product(range(num_tokens), repeat=length)
  mass = np.array([np.exp(log_prob(np.array(s))) for s in states])
  mass = mass.reshape((num_tokens,) * length)
  for axis in range(length):
    total = mass.sum(axis=axis, keepdims=True)
    mass = np.concatenate([mass, total], axis=axis)
  table = np.zeros((*mass.shape, length, num_tokens))
  for d in range(length):
    for v in range(num_tokens):
      value = np.take(mass, [v], axis=d)
      table[..., d, v] = np.log(np.broadcast_to(value, mass.shape))
  return table.reshape(-1, length, num_tokens)


def enumerate_orders(law):
  """Every order `[G]` of a law, all equally likely, as lists of blocks."""
  choices = []
  for stage in law.stages:
    sizes = np.full(stage.num_steps, len(stage.sites) // stage.num_steps)
    sizes[stage.num_steps - len(stage.sites) % stage.num_steps :] += 1
    cuts = np.cumsum(sizes)[:-1]
    options = [stage.sites]
    if stage.num_steps > 1:
      options = list(itertools.permutations(stage.sites))
    choices.append(
      [
        [sorted(b.tolist()) for b in np.split(np.array(o), cuts)]
        for o in options
      ]
    )
  return [sum(parts, []) for parts in itertools.product(*choices)]


def path_prob(table, states, blocks, num_tokens):
  """Probability of each complete state by revealing `blocks`, in NumPy."""
  length = states.shape[1]
  radix = (num_tokens + 1) ** np.arange(length)[::-1]
  table = np.asarray(table, np.float64)
  probs = np.exp(table - np.logaddexp.reduce(table, axis=-1, keepdims=True))
  tokens = np.full_like(states, num_tokens)
  total = np.ones(len(states))
  for block in blocks:
    row = tokens @ radix
    for site in block:
      total = total * probs[row, site, states[:, site]]
    tokens[:, block] = states[:, block]
  return total


def perturbed(params, seed, scale):
  """Parameters with Gaussian noise: an untrained, non-uniform network."""
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  noisy = [
    p + scale * jax.random.normal(k, p.shape, p.dtype)
    for p, k in zip(leaves, keys, strict=True)
  ]
  return jax.tree.unflatten(tree, noisy)


def thorough(values, first):
  """Parameters: the first ones, and the rest for `make test-thorough`."""
  assert set(first) <= set(values)
  return [
    value if value in first else pytest.param(value, marks=pytest.mark.thorough)
    for value in values
  ]


def variants(modules, first=("smoke", "pod")):
  """Parameters `(module, variant)`: some of them, and the rest if thorough."""
  return [
    pytest.param(
      module,
      name,
      id=f"{label}-{name}",
      marks=() if name in first else pytest.mark.thorough,
    )
    for label, module in modules.items()
    for name in module.VARIANTS
  ]
