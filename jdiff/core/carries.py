"""First carries of scans and loops that may run under `shard_map`."""

from typing import Any

import jax
import jax.numpy as jnp


def anchor(carry: Any, inputs: Any) -> Any:
  """Gives a scan's first carry the device variance of what will enter it.

  Under `shard_map` constants count as equal on all devices, and a scan whose
  carry becomes device-dependent would not type-check. Elsewhere a no-op.
  """
  if not jax.sharding.get_abstract_mesh().manual_axes:
    return carry
  zero = jnp.int32(0)
  for leaf in jax.tree.leaves(inputs):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    if leaf.size:
      first = leaf.ravel()[0]
      zero = zero + (first != first).astype(jnp.int32) * 0
  return jax.tree.map(lambda x: x + zero.astype(x.dtype), carry)
