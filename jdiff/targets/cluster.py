"""Reference samples: exact draws of small targets, Swendsen-Wang of others."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import keys as keys_lib
from jdiff.core.types import LogProb
from jdiff.targets import enumerate as enumerate_lib

NUM_SWEEPS = 128
_CHUNK = 256


def sampler(
  size: int,
  num_states: int,
  near: np.ndarray,
  *,
  beta: float,
  strength: float,
  field: float,
  log_prob: LogProb,
) -> Callable[[jax.Array, int], jax.Array]:
  """`sample(key, num_samples) -> [N, L]` int32 for a lattice model.

  Exact, by enumeration, up to `2 ** 16` configurations. Beyond that each
  sample is the end of its own Swendsen-Wang chain of `NUM_SWEEPS` sweeps from
  a random start (Phys. Rev. Lett. 58, 86, 1987), whose autocorrelation is a
  handful of sweeps at these sizes.

  Args:
    size: Lattice side.
    num_states: Tokens a site.
    near: `[L, 4]` neighbours, as `lattice.neighbours` orders them.
    beta: Inverse temperature.
    strength: What a bond between equal tokens gains over unequal ones;
      `beta * strength` may be negative for two states.
    field: `h` of two states.
    log_prob: Of one configuration, for the enumeration.
  """
  num_sites = size * size

  def exact(key, num_samples):
    states = enumerate_lib.enumerate_states(num_sites, num_states)
    log_probs = jax.lax.map(
      log_prob, jnp.asarray(states), batch_size=min(len(states), 2**14)
    )
    index = jax.random.categorical(key, log_probs, shape=(num_samples,))
    return jnp.asarray(states)[index]

  def sweep(tokens, key):
    key_bonds, key_flip = jax.random.split(key)
    forward = near[:, [0, 2]]
    ahead = tokens[jnp.maximum(forward, 0)]
    agree = ahead == tokens[:, None]
    satisfied = (agree if beta * strength >= 0 else ~agree) & (forward >= 0)
    chance = -np.expm1(-abs(beta * strength))
    opened = satisfied & (jax.random.uniform(key_bonds, agree.shape) < chance)
    back = near[:, [1, 3]]
    backward = (back >= 0) & jnp.stack(
      [opened[jnp.maximum(back[:, j], 0), j] for j in (0, 1)], axis=1
    )
    label = _components(
      jnp.asarray(np.concatenate([forward, back], axis=1)),
      jnp.concatenate([opened, backward], axis=1),
    )
    if num_states == 2:
      spin = 2.0 * tokens - 1.0
      total = jax.ops.segment_sum(spin, label, num_sites)
      log_odds = -2 * beta * field * total
      u = jax.random.uniform(key_flip, (num_sites,))
      shift = (u < jax.nn.sigmoid(log_odds)).astype(tokens.dtype)
    else:
      shift = jax.random.randint(
        key_flip, (num_sites,), 0, num_states, tokens.dtype
      )
    return (tokens + shift[label]) % num_states, None

  def chain(key):
    key_start, key_sweeps = jax.random.split(key)
    start = jax.random.randint(
      key_start, (num_sites,), 0, num_states, jnp.int32
    )
    keys = jax.random.split(key_sweeps, NUM_SWEEPS)
    return jax.lax.scan(sweep, start, keys)[0]

  @jax.jit
  def chains(keys):
    return jax.lax.map(chain, keys, batch_size=_CHUNK)

  def sample(key, num_samples):
    if num_states**num_sites <= enumerate_lib.MAX_STATES:
      return exact(key, num_samples)
    return chains(keys_lib.per_example(key, num_samples))

  return sample


def _components(near: jax.Array, opened: jax.Array) -> jax.Array:
  """Smallest site of each site's cluster, `[L]`."""

  def lower(label):
    beside = jnp.where(opened, label[jnp.maximum(near, 0)], label[:, None])
    label = jnp.minimum(label, beside.min(axis=1))
    # Pointer jumping halves the rounds that a winding cluster needs.
    return label[label]

  def body(carry):
    label, _ = carry
    new = lower(label)
    return new, jnp.any(new != label)

  label = jnp.arange(near.shape[0])
  return jax.lax.while_loop(lambda c: c[1], body, (label, jnp.bool_(True)))[0]
