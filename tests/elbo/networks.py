"""Networks of few sites, with everything about them known by enumeration."""

import itertools

import jax.numpy as jnp
import numpy as np


def sine_params(seed, length, num_tokens, scale=1.5):
  """A network without structure: the sine of a sum over sites."""
  shape = (length, num_tokens + 1, length, num_tokens)
  phase = np.random.default_rng(seed).uniform(-3, 3, shape)
  return {"phase": phase, "scale": scale}


def sine_logits(params, tokens, t, sites=None):
  """`scale * sin(sum_j phase[j, x_j] + t)`; token V is the mask."""
  phase = jnp.asarray(params["phase"])
  # Shares of up to seven sites, freed of float32's rounding.
  t = jnp.round(t.astype(phase.dtype) * 420) / 420
  rows = jnp.arange(phase.shape[0])[None]
  total = jnp.sum(phase[rows, tokens], axis=1) + t[:, None, None]
  logits = params["scale"] * jnp.sin(total)
  return logits if sites is None else logits[:, sites]


def sine_table(params, x):
  """`{frozenset of masked sites: [L] log-probabilities of x}`, in NumPy."""
  phase, scale = np.asarray(params["phase"], np.float64), params["scale"]
  length, vocab = phase.shape[0], phase.shape[1] - 1
  table = {}
  for hidden in every_subset(length):
    tokens = np.array([vocab if i in hidden else x[i] for i in range(length)])
    total = sum(phase[j, tokens[j]] for j in range(length))
    logits = scale * np.sin(total + len(hidden) / length)
    logits = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    table[hidden] = logits[np.arange(length), x]
  return table


def every_subset(length):
  return [
    frozenset(s)
    for k in range(length + 1)
    for s in itertools.combinations(range(length), k)
  ]


def over_orders(table, length):
  """Log-probability of each of the `L!` orders of revealing."""
  log_probs = []
  for order in itertools.permutations(range(length)):
    hidden, total = frozenset(range(length)), 0.0
    for site in order:
      total += table[hidden][site]
      hidden = hidden - {site}
    log_probs.append(total)
  return np.array(log_probs)


def sums(table):
  """`{masked: S(masked)}`, what an estimate weighs."""
  return {a: sum(p[i] for i in a) for a, p in table.items()}
