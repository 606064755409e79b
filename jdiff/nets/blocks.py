"""The transformer's block: attention with a cache, feed-forward layers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jdiff.core import axes
from jdiff.core.types import Params
from jdiff.nets import embed, lora


class Cache(NamedTuple):
  """Keys, rotated already, and values of a whole canvas.

  Attributes:
    key: `[N, B, L, K, d]` in the compute dtype, `K` heads of `N` layers.
    value: As `key`.
    padding: `[B]` int32, sites at the front of each row that nothing attends
      to; None in networks without padding.
  """

  key: jax.Array
  value: jax.Array
  padding: jax.Array | None = None


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
  """Turns the pairs `(i, i + d/2)` of `x [B, L, H, d]` by `angles [L, d/2]`.

  Products of rotated queries and keys then depend on differences of position
  alone.
  """
  cos = jnp.cos(angles)[None, :, None]
  sin = jnp.sin(angles)[None, :, None]
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  first, second = jnp.split(wide, 2, axis=-1)
  turned = jnp.concatenate(
    [first * cos - second * sin, first * sin + second * cos], axis=-1
  )
  return turned.astype(x.dtype)


class Block(nn.Module):
  """Attention and feed-forward layers, called as a scan calls.

  `((x [B, Q, D], cache), (index, adapters), angles, alpha, start, padding)`
  answers `((x, cache), None)`: `index` is the layer's, for its place in the
  cache, `angles [Q, d / 2]` are of canvas positions `[start, start + Q)`,
  None where sites have no order, `adapters` maps names of linear maps to
  `lora.low_rank`'s products, and `padding [B]` counts the sites at the front of
  each row that nothing attends to, None for none. Without a cache (None) sites
  attend to each other alone.
  """

  num_heads: int
  num_kv_heads: int
  gated: bool
  mlp_width: int
  norm_eps: float
  dtype: Any

  @nn.compact
  def __call__(
    self,
    carry: tuple[jax.Array, Cache | None],
    layer: tuple[jax.Array, Params],
    angles: jax.Array | None,
    alpha: jax.Array,
    start: jax.Array,
    padding: jax.Array | None = None,
  ) -> tuple[tuple[jax.Array, Cache | None], None]:
    x, cache = carry
    index, adapters = layer
    width = x.shape[-1]

    def linear(name, features, y, axis=-1):
      z = embed.linear(features, self.dtype, axis=axis, name=name)(y)
      if name in adapters:
        z = z + lora.low_rank(y, adapters[name], alpha)
      return z

    def norm(name, y):
      return nn.RMSNorm(epsilon=self.norm_eps, dtype=self.dtype, name=name)(y)

    y = norm("attention_norm", x)
    head_size = width // self.num_heads
    query = linear("query", (self.num_heads, head_size), y)
    key = linear("key", (self.num_kv_heads, head_size), y)
    value = linear("value", (self.num_kv_heads, head_size), y)
    query = axes.constrain(query, None, "heads", None)
    key = axes.constrain(key, None, "kv_heads", None)
    value = axes.constrain(value, None, "kv_heads", None)
    if angles is not None:
      query, key = rotate(query, angles), rotate(key, angles)
    if cache is not None:
      # Carried whole and written in place: as a scan's output every layer's
      # slots would be copied to change a few.
      at = (index, 0, start, 0, 0)
      cache = Cache(
        jax.lax.dynamic_update_slice(
          cache.key, key[None].astype(cache.key.dtype), at
        ),
        jax.lax.dynamic_update_slice(
          cache.value, value[None].astype(cache.value.dtype), at
        ),
        cache.padding,
      )
      key = cache.key[index].astype(self.dtype)
      value = cache.value[index].astype(self.dtype)
    seen = None
    if padding is not None:
      # Positions are not moved: rotated products depend on differences alone.
      seen = jnp.arange(key.shape[1])[None] >= padding[:, None]
      seen = seen[:, None, None]
    y = jax.nn.dot_product_attention(query, key, value, mask=seen)
    x = x + linear("out", width, y, axis=(-2, -1))
    y = norm("mlp_norm", x)
    inner = (*(None,) * (y.ndim - 2), "mlp")
    up = axes.constrain(linear("up", self.mlp_width, y), *inner)
    if self.gated:
      gate = axes.constrain(linear("gate", self.mlp_width, y), *inner)
      up = nn.silu(gate) * up
    else:
      up = nn.gelu(up)
    x = x + linear("down", width, up)
    return (axes.constrain(x, *(None,) * (x.ndim - 1)), cache), None
