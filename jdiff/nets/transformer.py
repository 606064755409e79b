"""A bidirectional transformer with rotary positions, in one or two dimensions.

Pre-norm blocks with RMSNorm (arXiv:1910.07467), GELU or SwiGLU
(arXiv:2002.05202), rotary positions (arXiv:2104.09864), axial on a grid: half
of each head's rotations follow the row and half the column. Keys and values may
be shared by groups of heads (arXiv:2305.13245), linear maps adapted by low-rank
products (`jdiff.nets.lora`), and keys and values kept between calls that run a
part of the canvas (arXiv:2505.22618). Layers run under a scan over stacked
parameters, so compile time does not grow with depth. Left out: dropout, biases,
causal masks and padding.

LLaDA-8B (arXiv:2502.09992) is

  transformer(
    None, 126464, width=4096, num_layers=32, num_heads=32, mlp="swiglu",
    mlp_width=12288, rope_base=5e5, norm_eps=1e-5, mask_id=126336,
    head_bias=False, zero_init_head=False, compute_dtype=jnp.bfloat16,
  )
"""

import math
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jdiff.core import checks
from jdiff.core.types import Params, Sites
from jdiff.nets import blocks, embed, lora
from jdiff.nets.network import Network


def transformer(
  length: int | None,
  num_tokens: int,
  *,
  width: int,
  num_layers: int,
  num_heads: int,
  num_kv_heads: int | None = None,
  mlp: Literal["gelu", "swiglu"] = "gelu",
  mlp_ratio: int = 4,
  mlp_width: int | None = None,
  grid: tuple[int, int] | None = None,
  rope_base: float | None = None,
  norm_eps: float = 1e-6,
  mask_id: int | None = None,
  time_conditioned: bool = False,
  zero_init_head: bool = True,
  head_bias: bool = True,
  remat: bool = False,
  compute_dtype: DTypeLike = jnp.float32,
) -> Network:
  """Builds a denoiser in which every site attends to every other.

  Args:
    length: Canvas length `L`. None is any: no parameter depends on it.
    num_tokens: Size `V` of the vocabulary.
    width: Features `D` of the residual stream.
    num_layers: Blocks.
    num_heads: Attention heads; divides `width` into heads of even size (a
      multiple of four on a grid).
    num_kv_heads: Heads of keys and values, each shared by a group of
      consecutive query heads; divides `num_heads`, which is the default.
    mlp: Feed-forward layers, `"gelu"` or the gated `"swiglu"`.
    mlp_ratio: Hidden width of the feed-forward layers over `width`.
    mlp_width: That width itself, in place of `mlp_ratio`.
    grid: `(rows, cols)` with `rows * cols == length`, for sites that lie on a
      grid, row by row. None is a sequence.
    rope_base: Base of the rotary frequencies; None is 1e4 on a sequence and
      1e2 on a grid.
    norm_eps: Added to the mean squares in norms.
    mask_id: The mask among the `V` tokens, whose logit is then `-inf`. None is
      `V`, one more token that is embedded and never predicted.
    time_conditioned: Whether `t` enters, added to every embedding. A masked
      denoiser can count the masks, so it need not.
    zero_init_head: Starts from uniform logits, and so from the uniform
      reference process, instead of from random ones.
    head_bias: Whether the head has a bias, the only one in the network.
    remat: Recomputes each block's activations in the backward pass, trading
      about a third more time for memory that does not grow with depth.
    compute_dtype: Dtype of the blocks. Parameters, softmaxes, norms' moments
      and logits are float32 whatever it is.

  Returns:
    A `Network` with all of its functions; `apply(params, tokens [B, L], t [B],
    sites=None)` answers `[B, L, V]`, or `[B, m, V]` with the head run on those
    sites alone. `params` may be of another float dtype than float32, and may
    be `lora.attach(params, adapters)`. `hidden` follows the last norm, so that
    `head` is a product with `params["head_kernel"] [D, V]`, plus
    `params["head_bias"] [V]`, with the mask's column at `-inf`.

  Raises:
    ValueError: If a size is not positive or the sizes do not divide.
    TypeError: If a size is no integer or `compute_dtype` no float dtype.
  """
  num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
  sizes = dict(
    num_tokens=num_tokens,
    width=width,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    mlp_ratio=mlp_ratio,
  )
  if length is not None:
    sizes["length"] = length
  if mlp_width is not None:
    sizes["mlp_width"] = mlp_width
  for name, size in sizes.items():
    checks.check_int(name, size)
  if width % num_heads:
    raise ValueError(
      f"width must be a multiple of num_heads, got width={width} and "
      f"num_heads={num_heads}."
    )
  if num_heads % num_kv_heads:
    raise ValueError(
      f"num_heads must be a multiple of num_kv_heads, got {num_heads} and "
      f"{num_kv_heads}."
    )
  head_size, multiple = width // num_heads, 2 if grid is None else 4
  if head_size % multiple:
    raise ValueError(
      f"width / num_heads must be a multiple of {multiple} for rotary "
      f"positions{'' if grid is None else ' on a grid'}, got {head_size}."
    )
  if grid is not None and (
    len(grid) != 2 or min(grid) < 1 or math.prod(grid) != length
  ):
    raise ValueError(
      "grid must be (rows, cols) with rows * cols == length, got "
      f"grid={tuple(grid)} and length={length}."
    )
  if mlp not in ("gelu", "swiglu"):
    raise ValueError(f"mlp must be 'gelu' or 'swiglu', got {mlp!r}.")
  if rope_base is not None:
    rope_base = checks.check_finite("rope_base", rope_base, positive=True)
  checks.check_finite("norm_eps", norm_eps, positive=True)
  if mask_id is not None and checks.check_int("mask_id", mask_id, 0) >= (
    num_tokens
  ):
    raise ValueError(
      f"mask_id must be None or lie in [0, num_tokens = {num_tokens}), got "
      f"{mask_id}."
    )
  module = _Transformer(
    length=length,
    num_tokens=num_tokens,
    width=width,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    gated=mlp == "swiglu",
    mlp_width=mlp_ratio * width if mlp_width is None else mlp_width,
    grid=None if grid is None else tuple(grid),
    rope_base=rope_base,
    norm_eps=norm_eps,
    mask_id=mask_id,
    time_conditioned=time_conditioned,
    zero_init_head=zero_init_head,
    has_head_bias=head_bias,
    remat=remat,
    dtype=embed.float_dtype(compute_dtype),
  )
  return _as_network(module)


def _as_network(module: "_Transformer") -> Network:
  def init(key: jax.Array) -> Params:
    tokens = jnp.zeros((1, module.length or 1), jnp.int32)
    return module.init(key, tokens, jnp.ones(1))["params"]

  def call(method: str, params: Params, *args: Any) -> Any:
    return module.apply({"params": params}, *args, method=method)

  def run(
    params: Params,
    tokens: jax.Array,
    t: jax.Array,
    sites: Sites | None = None,
    *cached: Any,
  ) -> tuple[Params, jax.Array, blocks.Cache | None]:
    base, *adapters = lora.split(params)
    return base, *call("trunk", base, tokens, t, sites, *adapters, *cached)

  def hidden(
    params: Params,
    tokens: jax.Array,
    t: jax.Array,
    sites: Sites | None = None,
  ) -> jax.Array:
    embed.check_call(tokens, t, sites, module.length)
    return run(params, tokens, t, sites)[1]

  def head(params: Params, hidden: jax.Array) -> jax.Array:
    if jnp.shape(hidden)[-1:] != (module.width,):
      raise ValueError(
        f"hidden must have shape [..., {module.width}], got "
        f"{list(jnp.shape(hidden))}."
      )
    return cast(jax.Array, call("head", lora.split(params)[0], hidden))

  def apply(
    params: Params,
    tokens: jax.Array,
    t: jax.Array,
    sites: Sites | None = None,
  ) -> jax.Array:
    return head(params, hidden(params, tokens, t, sites))

  def init_cache(batch: int, length: int) -> blocks.Cache:
    checks.check_int("batch", batch)
    checks.check_int("length", length)
    if module.length not in (None, length):
      raise ValueError(
        f"length must be the network's, {module.length}, got {length}."
      )
    empty = jnp.zeros(module.cache_shape(batch, length), module.dtype)
    return blocks.Cache(empty, empty)

  def apply_cached(
    params: Params,
    tokens: jax.Array,
    t: jax.Array,
    cache: blocks.Cache,
    start: jax.Array | int,
    sites: Sites | None = None,
  ) -> tuple[jax.Array, blocks.Cache]:
    embed.check_call(tokens, t, sites, None)
    batch, num_queries = tokens.shape
    for name, leaf in zip(cache._fields, cache, strict=True):
      shape = module.cache_shape(batch, module.length)
      checks.check_shape(f"cache.{name}", leaf, shape, "See init_cache.")
    canvas = cache.key.shape[2]
    # A slice clamps its start, and would answer for other positions silently.
    last = canvas - num_queries
    if last < 0 or (checks.is_concrete(start) and not 0 <= int(start) <= last):
      raise ValueError(
        f"start + Q must lie within the cache's length of {canvas}, got "
        f"start={start} and Q={num_queries}."
      )
    base, x, filled = run(params, tokens, t, sites, cache, start)
    return head(base, x), cast(blocks.Cache, filled)

  return Network(init, apply, hidden, head, init_cache, apply_cached)


class _Transformer(nn.Module):
  length: int | None
  num_tokens: int
  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  gated: bool
  mlp_width: int
  grid: tuple[int, ...] | None
  rope_base: float | None
  norm_eps: float
  mask_id: int | None
  time_conditioned: bool
  zero_init_head: bool
  has_head_bias: bool
  remat: bool
  dtype: Any

  def cache_shape(self, batch: int, length: int | None) -> tuple[Any, ...]:
    head_size = self.width // self.num_heads
    return (self.num_layers, batch, length, self.num_kv_heads, head_size)

  def setup(self):
    self.embed = nn.Embed(
      self.num_tokens + (self.mask_id is None),
      self.width,
      dtype=self.dtype,
      embedding_init=nn.initializers.normal(1.0),
    )
    if self.time_conditioned:
      self.time = embed.TimeEmbedding(self.width, self.dtype)
    block = blocks.Block
    if self.remat:
      # Inside a scan there is no common subexpression to guard against.
      block = nn.remat(blocks.Block, prevent_cse=False)
    self.blocks = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
      length=self.num_layers,
    )(
      self.num_heads,
      self.num_kv_heads,
      self.gated,
      self.mlp_width,
      self.norm_eps,
      self.dtype,
    )
    self.norm = nn.RMSNorm(epsilon=self.norm_eps, dtype=self.dtype)
    initializer = (
      nn.initializers.zeros
      if self.zero_init_head
      else nn.initializers.lecun_normal()
    )
    self.head_kernel = self.param(
      "head_kernel", initializer, (self.width, self.num_tokens)
    )
    if self.has_head_bias:
      self.head_bias = self.param(
        "head_bias", nn.initializers.zeros, (self.num_tokens,)
      )

  def __call__(self, tokens: jax.Array, t: jax.Array) -> jax.Array:
    return self.head(self.trunk(tokens, t)[0])

  def trunk(
    self,
    tokens: jax.Array,
    t: jax.Array,
    sites: Sites | None = None,
    adapters: Params = None,
    alpha: float = 1.0,
    cache: blocks.Cache | None = None,
    start: jax.Array | int = 0,
  ) -> tuple[jax.Array, blocks.Cache | None]:
    x = self.embed(tokens)
    if self.time_conditioned:
      x = x + self.time(t)[:, None]
    length = tokens.shape[1] if cache is None else cache.key.shape[2]
    angles = jnp.asarray(
      embed.rotary_angles(
        self.grid or (length,), self.width // self.num_heads, self.rope_base
      )
    )
    at = jnp.asarray(start, jnp.int32)
    if cache is not None:
      angles = jax.lax.dynamic_slice_in_dim(angles, at, tokens.shape[1])
    layers = (jnp.arange(self.num_layers), (adapters or {}).get("blocks", {}))
    scale = jnp.asarray(alpha, jnp.float32)
    (x, cache), _ = self.blocks((x, cache), layers, angles, scale, at)
    # Gathered before the head, which then is paid for at those sites only.
    return self.norm(embed.gather_sites(x, sites)), cache

  def head(self, x: jax.Array) -> jax.Array:
    logits = embed.matmul(
      x.astype(self.dtype),
      self.head_kernel.astype(self.dtype),
      preferred_element_type=jnp.float32,
    )
    over = (None,) * (logits.ndim - 1)
    if self.has_head_bias:
      logits = logits + self.head_bias[over]
    if self.mask_id is not None:
      masks = jnp.arange(self.num_tokens) == self.mask_id
      logits = jnp.where(masks[over], -jnp.inf, logits)
    return logits
