"""Keys that do not depend on how a batch is laid over devices."""

import jax
import jax.numpy as jnp

from jdiff.core import checks


def per_example(key: jax.Array, num_examples: int, start=0) -> jax.Array:
  """One key for each example, by its global index.

  Args:
    key: PRNG key; consumed. Typed keys of shape `[num_examples]` are taken as
      per-example keys already and returned as they are.
    num_examples: Examples `N` in this batch.
    start: Global index of the first one, for callers that hold a shard.

  Returns:
    Typed keys `[N]`; entry `i` depends on `key` and `start + i` alone.
  """
  checks.check_key(key)
  checks.check_int("num_examples", num_examples)
  if key.ndim == 1:
    checks.check_shape("key", key, (num_examples,))
    return key
  if key.ndim:
    raise ValueError(
      f"key must be one key or [{num_examples}] keys, got shape "
      f"{list(key.shape)}."
    )
  index = jnp.arange(num_examples, dtype=jnp.uint32)
  index = index + jnp.asarray(start, jnp.uint32)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def fold(keys: jax.Array, data) -> jax.Array:
  """`fold_in` of one integer into each of `[N]` keys."""
  return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)
