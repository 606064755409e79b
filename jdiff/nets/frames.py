"""What networks of world models share: ends, and a look at finished frames."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jdiff.core import checks
from jdiff.core.frames import Context, KeyValues, Seen, WorldNetwork
from jdiff.core.types import Params, Sites
from jdiff.nets import blocks, embed

ONE_HOT_SIZE = 256
"""Vocabularies up to this size are looked up by a product of matrices.

Its gradient is one too; that of a gather is a scatter, slow on a CPU."""


def look_up(table: jax.Array, tokens: jax.Array) -> jax.Array:
  """Rows of `table [V, ...]` at tokens `[...]`, or their means.

  Means are over probabilities `[..., V']` of the first `V' <= V` rows.
  """
  if jnp.issubdtype(tokens.dtype, jnp.integer):
    if table.shape[0] > ONE_HOT_SIZE:
      return table[tokens]
    tokens = jax.nn.one_hot(tokens, table.shape[0], dtype=table.dtype)
  return jnp.tensordot(tokens.astype(table.dtype), table[: tokens.shape[-1]], 1)


class Ends(nn.Module):
  """Embeddings of a block at one end, logits at the other.

  Attributes:
    allowed: `[G][V]` bool nested tuple: the tokens that each site may hold;
      the mask is `V`.
    num_given: Sites at the front that every other site is told of.
    width: Features.
    dtype: Of the computation.
  """

  allowed: tuple[tuple[bool, ...], ...]
  num_given: int
  width: int
  dtype: Any

  def setup(self):
    vocab = len(self.allowed[0])
    small = nn.initializers.normal(0.5)
    self.tokens = self.param("tokens", small, (vocab + 1, self.width))
    self.sites = self.param("sites", small, (len(self.allowed), self.width))
    self.noise = self.param("noise", nn.initializers.zeros, (self.width,))
    self.given = nn.Dense(self.width, dtype=self.dtype)
    self.norm = nn.RMSNorm(dtype=self.dtype)
    self.head = nn.Dense(vocab, dtype=self.dtype)

  def block(self, blocks: jax.Array, noise: jax.Array | None) -> jax.Array:
    """`[B, Q, G]` tokens to `[B, Q, G, D]`; `noise` is `[B]`."""
    x = self.tokenwise(blocks)
    given = x[..., : self.num_given, :]
    given = self.given(given.reshape(*given.shape[:-2], -1))[..., None, :]
    x = x + self.sites.astype(self.dtype)[None, None] + given
    if noise is not None:
      told = noise.astype(self.dtype)[:, None] * self.noise[None]
      x = x + told[:, None, None]
    return x

  def tokenwise(self, tokens: jax.Array) -> jax.Array:
    """Tokens, or probabilities of them, without their places."""
    return look_up(self.tokens.astype(self.dtype), tokens)

  def logits(self, x: jax.Array, sites: Sites | None) -> jax.Array:
    """`[B, Q, G, D]` to `[B, Q, m, V]` float32."""
    if sites is None:
      sites = np.arange(len(self.allowed))
    allowed = jnp.asarray(self.allowed)[sites]
    if np.ndim(sites) == 1:
      x = x[..., sites, :]
      allowed = allowed[None, None]
    else:
      x = jnp.take_along_axis(x, sites[:, None, :, None], axis=2)
      allowed = allowed[:, None]
    logits = self.head(self.norm(x)).astype(jnp.float32)
    return jnp.where(allowed, logits, -jnp.inf)


class MoveHead(nn.Module):
  """Which way the observer moves: the action points at a cell, and asks it.

  Logits over cells of each action start at zero, and on a scale that learns
  fast: with sharp ones at the start, or products of embeddings, training gets
  stuck on a wrong cell.
  """

  num_tokens: int
  num_actions: int
  num_moves: int
  num_cells: int
  width: int

  @nn.compact
  def __call__(self, tokens: jax.Array, action: jax.Array) -> jax.Array:
    """`tokens [B, N]` and `action [B]` to `[B, num_moves]` float32 logits."""
    table = self.param(
      "places", nn.initializers.zeros, (self.num_actions, self.num_cells)
    )
    kinds = self.param(
      "tokens", nn.initializers.normal(1.0), (self.num_tokens, self.width)
    )
    actions = self.param(
      "actions", nn.initializers.normal(1.0), (self.num_actions, self.width)
    )
    share = jax.nn.softmax(10.0 * look_up(table, action), axis=-1)
    asked = jnp.einsum("bn,bnd->bd", share, look_up(kinds, tokens))
    x = jnp.concatenate([asked, look_up(actions, action)], axis=-1)
    x = nn.silu(nn.Dense(2 * self.width)(x))
    return nn.Dense(self.num_moves)(x)


class Look(nn.Module):
  """Attention from the sites of a block to the cells of finished frames.

  Logits fall with the squared distance in the world and with the logarithm of
  age, each head at its own learnt rate, and one more that is constant lets a
  cell that no frame covers say so.

  Attributes:
    num_heads: Heads `H`.
    width: Features of sites; a head has `width / H`.
    places: `[G, 2]` nested tuple, where the sites lie, seen by the observer.
    dtype: Of the computation; logits are float32.
  """

  num_heads: int
  width: int
  places: tuple[tuple[float, float], ...]
  dtype: Any

  def setup(self):
    shape = (self.num_heads, self.width // self.num_heads)
    self.query = embed.linear(shape, self.dtype)
    self.key = embed.linear(shape, self.dtype)
    self.value = embed.linear(shape, self.dtype)
    self.out = embed.linear(self.width, self.dtype, axis=(-2, -1))
    heads = (self.num_heads,)
    # Near cells first and old frames nearly as good as new ones: at the start
    # a neighbour in the last frame must not outweigh the cell itself in an old
    # one. Rates are learnt ten times as fast as other parameters: exact copies
    # want steep ones.
    self.distance_rate = self.param(
      "distance_rate", nn.initializers.constant(0.2), heads
    )
    self.age_rate = self.param(
      "age_rate", nn.initializers.constant(-0.2), heads
    )
    self.nothing = self.param("nothing", nn.initializers.zeros, heads)

  def keep(self, x: jax.Array) -> KeyValues:
    """What is kept of features `[..., D]`: `[..., H, d]`."""
    return KeyValues(self.key(x), self.value(x))

  def __call__(self, x: jax.Array, frames: tuple[Seen, ...]) -> jax.Array:
    """`x [B, Q, G, D]`; `frames` hold this layer's key-values, no `D` axis."""
    query = self.query(x) * (self.width // self.num_heads) ** -0.5
    logits = [self._logits(query, seen) for seen in frames]
    nothing = self.nothing[None, None, :, None, None]
    top = nothing
    for part in logits:
      top = jnp.maximum(top, part.max(axis=-1, keepdims=True))
    top = jax.lax.stop_gradient(top)
    shares = [jnp.exp(part - top) for part in logits]
    total = jnp.exp(nothing - top)
    for share in shares:
      total = total + share.sum(axis=-1, keepdims=True)
    answers = []
    for share, seen in zip(shares, frames, strict=True):
      assert seen.kv is not None
      value = seen.kv.value
      dots = "bqhgk,bqkhd->bqghd" if value.ndim == 6 else "bqhgk,bkhd->bqghd"
      value = value.reshape(*value.shape[:-4], -1, *value.shape[-2:])
      share = (share / total).astype(self.dtype)
      answers.append(jnp.einsum(dots, share, value))
    return self.out(sum(answers[1:], answers[0]))

  def _logits(self, query, seen):
    """`[B, Q, H, G, F N]` float32, -1e9 where there is nothing to see."""
    assert seen.kv is not None
    key = seen.kv.key
    dots = "bqghd,bqfnhd->bqhgfn" if key.ndim == 6 else "bqghd,bfnhd->bqhgfn"
    logits = jnp.einsum(dots, query, key, preferred_element_type=jnp.float32)
    logits = logits.reshape(*logits.shape[:4], -1)
    batch, num = seen.cells.shape[:2]
    cells = seen.cells.reshape(batch, num, 1, -1, 2)
    places = jnp.asarray(self.places, jnp.float32)[None, None, :, None]
    gaps = [cells[..., i] - places[..., i] for i in range(2)]
    distance = (gaps[0] ** 2 + gaps[1] ** 2)[:, :, None]
    age = jnp.log1p(seen.age).reshape(batch, num, 1, 1, -1)
    near, fresh = (
      jax.nn.softplus(10.0 * rate)[None, None, :, None, None]
      for rate in (self.distance_rate, self.age_rate)
    )
    logits = logits - near * distance - fresh * age
    valid = seen.valid.reshape(batch, num, 1, 1, -1)
    return jnp.where(valid, logits, -1e9)


class Within(nn.Module):
  """A transformer's block among the sites of frames, without positions."""

  num_heads: int
  mlp_width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., G, D]` to the same."""
    block = blocks.Block(
      num_heads=self.num_heads,
      num_kv_heads=self.num_heads,
      gated=False,
      mlp_width=self.mlp_width,
      norm_eps=1e-6,
      dtype=self.dtype,
    )
    nn.share_scope(self, block)
    rows = x.reshape(-1, *x.shape[-2:])
    (rows, _), _ = block(
      (rows, None), (jnp.int32(0), {}), None, jnp.float32(0), jnp.int32(0)
    )
    return rows.reshape(x.shape)


def both(context: Context) -> tuple[Seen, ...]:
  """The parts of a context that there are."""
  return tuple(s for s in (context.window, context.recalled) if s is not None)


def of_layer(frames: tuple[Seen, ...], layer: Any) -> tuple[Seen, ...]:
  """Frames with the key-values of one layer."""
  return tuple(
    s._replace(kv=jax.tree.map(lambda x: x[layer], s.kv)) for s in frames
  )


def block_places(
  offsets: np.ndarray, length: int
) -> tuple[tuple[float, float], ...]:
  """Where a block's sites lie: cells at `offsets [N, 2]`, others in between."""
  num_cells = len(offsets)
  places = np.zeros((length, 2), np.float32)
  places[length - num_cells :] = offsets
  return tuple((float(row), float(col)) for row, col in places)


def check_block(blocks: Any, length: int) -> None:
  """Raises unless `blocks` are `[B, Q, G]` integers."""
  if not jnp.issubdtype(jnp.result_type(blocks), jnp.integer):
    raise TypeError(
      f"blocks must be integer tokens, got dtype {jnp.result_type(blocks)}."
    )
  checks.check_shape("blocks", blocks, (None, None, length))


def checked_sizes(
  allowed: np.ndarray, offsets: np.ndarray, sizes: dict[str, int]
) -> dict[str, Any]:
  """Fields of a module, hashable, after checks that networks share."""
  for name, value in sizes.items():
    checks.check_int(name, value)
  allowed, offsets = np.asarray(allowed, bool), np.asarray(offsets)
  checks.check_shape("offsets", offsets, (None, 2))
  if allowed.ndim != 2 or len(allowed) < len(offsets):
    raise ValueError(
      f"allowed must be [G, V] with G at least the {len(offsets)} cells, got "
      f"shape {list(allowed.shape)}."
    )
  if sizes["width"] % sizes["num_heads"]:
    raise ValueError(
      f"num_heads must divide width={sizes['width']}, got {sizes['num_heads']}."
    )
  return sizes | {
    "allowed": tuple(tuple(bool(x) for x in row) for row in allowed),
    "places": block_places(offsets, len(allowed)),
    "num_cells": len(offsets),
  }


def as_world_network(
  module: nn.Module, length: int, num_cells: int
) -> WorldNetwork:
  """Wraps a module's `everything`, `encode`, `recall`, `logits` and `move`."""

  def init(key: jax.Array) -> Params:
    blocks = jnp.zeros((1, 1, length), jnp.int32)
    return module.init(key, blocks, method="everything")["params"]

  def call(name):
    def method(params: Params, *args: Any) -> Any:
      _check_vocabulary(params, len(module.allowed[0]))
      return module.apply({"params": params}, *args, method=name)

    return method

  def logits(params, blocks, context, sites=None):
    check_block(blocks, length)
    return call("logits")(params, blocks, context, sites)

  def encode(params, blocks, seen):
    check_block(blocks, length)
    return call("encode")(params, blocks, seen)

  def recall(params, tokens):
    if jnp.issubdtype(tokens.dtype, jnp.integer):
      checks.check_shape("tokens", tokens, (None,) * 4)
    else:
      checks.check_shape("tokens", tokens, (None,) * 5)
    return call("recall")(params, tokens)

  def move(params, tokens, action):
    checks.check_shape("tokens", tokens, (None, num_cells))
    checks.check_shape("action", action, (tokens.shape[0],))
    return call("move")(params, tokens, action)

  return WorldNetwork(init, encode, recall, logits, move)


def _check_vocabulary(params: Params, num_tokens: int) -> None:
  """Raises unless parameters are of a network of `num_tokens` and the mask."""
  given = params["ends"]["tokens"].shape[0] - 1
  if given != num_tokens:
    raise ValueError(
      f"params must be of a vocabulary of {num_tokens} tokens, got those of "
      f"{given}; load a checkpoint of the same environment and layout."
    )
