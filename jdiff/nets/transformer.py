"""A bidirectional transformer with rotary positions, in one or two dimensions.

Pre-norm blocks with RMSNorm (arXiv:1910.07467), GELU or SwiGLU
(arXiv:2002.05202), rotary positions (arXiv:2104.09864), axial on a grid: half
of each head's rotations follow the row and half the column. Keys and values may
be shared by groups of heads (arXiv:2305.13245), linear maps adapted by low-rank
products (`jdiff.nets.lora`), and keys and values kept between calls that run a
part of the canvas (arXiv:2505.22618). Layers run under a scan over stacked
parameters, so compile time does not grow with depth. Left out: dropout, biases
and causal masks. `nets.llada` has the sizes of LLaDA (arXiv:2502.09992).
"""

import math
from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jdiff.core import axes, checks
from jdiff.core.types import Params, Sites
from jdiff.nets import blocks, embed, lora
from jdiff.nets.network import Network

_IN = {"out": ("heads", None), "down": ("mlp",)}
_OUT = {
  "query": ("heads", None),
  "key": ("kv_heads", None),
  "value": ("kv_heads", None),
  "gate": ("mlp",),
  "up": ("mlp",),
}
"""Names of a linear map's axes where they are not the width."""


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
  forbid_mask: bool = True,
  pad_id: int | None = None,
  shift_targets: bool = False,
  time_conditioned: bool = False,
  zero_init_head: bool = True,
  head_bias: bool = True,
  remat: bool = False,
  remat_policy: Callable[..., bool] | None = None,
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
    forbid_mask: Whether the mask's logit is `-inf` indeed. False answers what
      the head says, to compare networks; samplers and losses want True.
    pad_id: Token whose run at the front of a row is padding, which nothing
      attends to: rows of prompts that differ in length are filled with it to
      the left. What it answers at padding has no meaning. None has no padding;
      a canvas without a prompt must not be able to begin with this token.
    shift_targets: Whether a site is predicted from the site before it (the
      first from itself), as in models made from autoregressive ones. Such a
      network has no `apply_cached`.
    time_conditioned: Whether `t` enters, added to every embedding. A masked
      denoiser can count the masks, so it need not.
    zero_init_head: Starts from uniform logits, and so from the uniform
      reference process, instead of from random ones.
    head_bias: Whether the head has a bias, the only one in the network.
    remat: Recomputes each block's activations in the backward pass, trading
      about a third more time for memory that does not grow with depth.
    remat_policy: Which of them are kept all the same, one of
      `jax.checkpoint_policies`; None keeps the blocks' inputs alone.
    compute_dtype: Dtype of the blocks. Parameters, softmaxes, norms' moments
      and logits are float32 whatever it is (softmaxes alone, if it is wider).

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
  for name, token in (("mask_id", mask_id), ("pad_id", pad_id)):
    if token is not None and checks.check_int(name, token, 0) >= num_tokens:
      raise ValueError(
        f"{name} must be None or lie in [0, num_tokens = {num_tokens}), got "
        f"{token}."
      )
  if pad_id is not None and pad_id == mask_id:
    raise ValueError(f"pad_id must differ from mask_id, got {pad_id} twice.")
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
    forbid_mask=forbid_mask,
    pad_id=pad_id,
    shift_targets=shift_targets,
    time_conditioned=time_conditioned,
    zero_init_head=zero_init_head,
    has_head_bias=head_bias,
    remat=remat,
    remat_policy=remat_policy,
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
    empty = _lay_cache(empty)
    padding = None if module.pad_id is None else jnp.zeros(batch, jnp.int32)
    return blocks.Cache(empty, empty, padding)

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
    for name in ("key", "value"):
      shape = module.cache_shape(batch, module.length)
      leaf = getattr(cache, name)
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

  named = parameter_axes if module.mask_id is not None else _odd_axes
  network = Network(init, apply, hidden, head, axes=named)
  if module.shift_targets:
    return network
  return network._replace(init_cache=init_cache, apply_cached=apply_cached)


def parameter_axes(path: tuple[str, ...]) -> axes.Names | None:
  """Names of the axes of a parameter, or of an adapter, by its path.

  Args:
    path: Keys from the root of `params` or `lora.init`'s answer.

  Returns:
    None for what is small and stays whole.
  """
  if path[-2:] == ("embed", "embedding"):
    return ("vocab", "width")
  if path[-1:] == ("head_kernel",):
    return ("width", "vocab")
  if len(path) < 2 or path[-2] not in lora.TARGETS:
    return None
  name, leaf = path[-2:]
  ins, outs = _IN.get(name, ("width",)), _OUT.get(name, ("width",))
  # Layers are stacked, and the scan over them goes one by one.
  return {
    "kernel": (None, *ins, *outs),
    "a": (None, *ins, None),
    "b": (None, None, *outs),
  }.get(leaf)


def _odd_axes(path: tuple[str, ...]) -> axes.Names | None:
  """The same where the embedding has a row more than the head, for the mask.

  Nothing divides both numbers, and the vocabulary stays whole.
  """
  names = parameter_axes(path)
  if names is None:
    return None
  return tuple(None if name == "vocab" else name for name in names)


def _lay_cache(empty: jax.Array) -> jax.Array:
  """Rows and heads over the mesh; the layers' axis comes first."""
  by_row = jnp.moveaxis(empty, 1, 0)
  by_row = axes.constrain(by_row, None, None, "kv_heads", None)
  return jnp.moveaxis(by_row, 0, 1)


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
  forbid_mask: bool
  pad_id: int | None
  shift_targets: bool
  time_conditioned: bool
  zero_init_head: bool
  has_head_bias: bool
  remat: bool
  remat_policy: Callable[..., bool] | None
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
      block = nn.remat(
        blocks.Block, prevent_cse=False, policy=self.remat_policy
      )
    self.blocks = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, *(nn.broadcast,) * 4),
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
    x = axes.constrain(self.embed(tokens), None, None)
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
    padding = None
    if self.pad_id is not None:
      run = jnp.cumprod(tokens == self.pad_id, axis=1, dtype=jnp.int32)
      padding = jnp.sum(run, axis=1)
      if cache is not None:
        # A part of the canvas does not show what stands before it.
        before = cast(jax.Array, cache.padding)
        # Nor does a part that is all padding show where it ends.
        hidden = (padding == tokens.shape[1]) & (before > padding)
        padding = jnp.where((at == 0) & ~hidden, padding, before)
        cache = cache._replace(padding=padding)
    layers = (jnp.arange(self.num_layers), (adapters or {}).get("blocks", {}))
    scale = jnp.asarray(alpha, jnp.float32)
    (x, cache), _ = self.blocks((x, cache), layers, angles, scale, at, padding)
    if self.shift_targets:
      sites = jnp.arange(tokens.shape[1]) if sites is None else sites
      sites = jnp.maximum(jnp.asarray(sites) - 1, 0)
    # Gathered before the head, which then is paid for at those sites only.
    return self.norm(embed.gather_sites(x, sites)), cache

  def head(self, x: jax.Array) -> jax.Array:
    logits = embed.matmul(
      x.astype(self.dtype),
      self.head_kernel.astype(self.dtype),
      preferred_element_type=jnp.promote_types(self.dtype, jnp.float32),
    )
    if logits.ndim > 1:
      logits = axes.constrain(logits, *(None,) * (logits.ndim - 2), "vocab")
    over = (None,) * (logits.ndim - 1)
    if self.has_head_bias:
      logits = logits + self.head_bias[over]
    if self.mask_id is not None and self.forbid_mask:
      masks = jnp.arange(self.num_tokens) == self.mask_id
      logits = jnp.where(masks[over], -jnp.inf, logits)
    return logits
