"""A fixed-capacity buffer on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdiff.core import checks


class ReplayState(NamedTuple):
  """A ring of examples.

  Attributes:
    data: Pytree of `[capacity, ...]` arrays.
    num_added: Scalar int32, examples ever written.
  """

  data: Any
  num_added: jax.Array


def init(example: Any, capacity: int) -> ReplayState:
  """An empty buffer for examples shaped like `example` (no batch axis)."""
  checks.check_int("capacity", capacity)
  data = jax.tree.map(
    lambda x: jnp.zeros((capacity, *jnp.shape(x)), jnp.result_type(x)), example
  )
  return ReplayState(data, jnp.int32(0))


def size(state: ReplayState) -> jax.Array:
  """Examples held now, scalar int32."""
  return jnp.minimum(state.num_added, _capacity(state))


def add(state: ReplayState, batch: Any) -> ReplayState:
  """Writes a batch `[B, ...]` over the oldest entries; `B <= capacity`."""
  capacity = _capacity(state)
  sizes = {jnp.shape(x)[0] for x in jax.tree.leaves(batch)}
  if len(sizes) != 1 or max(sizes) > capacity:
    raise ValueError(
      "batch leaves must share one leading size that fits the capacity of "
      f"{capacity}, got {sorted(sizes)}."
    )
  (num,) = sizes
  given, wanted = (str(jax.tree.structure(x)) for x in (batch, state.data))
  if given != wanted:
    raise ValueError(f"batch must be a {wanted}, got a {given}.")
  slots = (state.num_added + jnp.arange(num)) % capacity
  data = jax.tree.map(
    lambda old, new: old.at[slots].set(new.astype(old.dtype)),
    state.data,
    batch,
  )
  # Modulo arithmetic on a counter that saturates at 2 * capacity keeps both
  # the write slot and `size` right without ever overflowing int32.
  added = state.num_added + num
  added = jnp.where(added >= 2 * capacity, added - capacity, added)
  return ReplayState(data, added)


def valid(state: ReplayState) -> jax.Array:
  """`[capacity]` bool: which entries have been written."""
  return jnp.arange(_capacity(state)) < size(state)


def sample(key: jax.Array, state: ReplayState, num_samples: int) -> Any:
  """Draws `[num_samples, ...]` uniformly with replacement.

  An empty buffer has nothing to draw: entries are then all zeros.
  """
  index = jax.random.randint(
    key, (num_samples,), 0, jnp.maximum(size(state), 1)
  )
  return jax.tree.map(lambda x: x[index], state.data)


def _capacity(state: ReplayState) -> int:
  return jax.tree.leaves(state.data)[0].shape[0]
