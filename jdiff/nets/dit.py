"""The diffusion transformer: velocities of images, by attention over patches.

DiT (arXiv:2212.09748) with adaLN-zero: the conditioning (time, span of time,
class) shifts, scales and gates every branch, and all gates are zero at first.
Differs: no biases in the blocks' linear maps, whose inputs adaLN has shifted
already (and a key's bias cancels in the softmax); lower frequencies in the time
embedding, of `t` in `[0, 1]`; a lower base in the position embedding. Left out:
learned variances, and dropping labels, which is the loss's affair.

Attention is plain products and a softmax, so that both `jax.jvp` and `jax.grad`
of it work; fused kernels have no forward mode.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike

from jdiff.core import checks
from jdiff.core.types import Params
from jdiff.nets import embed
from jdiff.nets.network import Network


def dit(
  shape: tuple[int, int, int],
  *,
  patch_size: int,
  width: int,
  num_layers: int,
  num_heads: int,
  head_size: int | None = None,
  mlp_ratio: int = 4,
  num_classes: int = 0,
  two_times: bool = False,
  max_frequency: float = embed.SMOOTH_FREQUENCY,
  remat: bool = False,
  compute_dtype: DTypeLike = jnp.float32,
) -> Network:
  """Builds a velocity field, or an average velocity, on images.

  Args:
    shape: `(H, W, C)` of one image or latent.
    patch_size: Side `p` of a patch; divides `H` and `W`.
    width: Features `D` of the residual stream, a multiple of four.
    num_layers: Blocks.
    num_heads: Attention heads; divides `width` unless `head_size` is given.
    head_size: Features of a head, `width / num_heads` by default.
    mlp_ratio: Hidden width of the feed-forward layers over `width`.
    num_classes: Classes; one more, of index `num_classes`, means none and is
      what a call without labels gets. 0 builds a network without labels.
    two_times: Whether the network also takes an earlier time `s`, for average
      velocities.
    max_frequency: Fastest angle of the time embedding over the unit of time.
    remat: Recomputes each block's activations in the backward pass, trading
      about a third more time for memory that hardly grows with depth.
    compute_dtype: Dtype of the blocks. Parameters, conditioning, softmaxes,
      norms' moments and the answer are float32 whatever it is.

  Returns:
    A `Network`; `apply(params, x [B, H, W, C], t [B], s=None, *, label=None,
    gates=None)` answers `[B, H, W, C]`, zero until trained. It is a
    `VelocityFn`, and with `two_times` a `FlowMapFn` too, where leaving `s` out
    means `s = t`. `gates`, `[num_layers, num_heads]` or `[B, num_layers,
    num_heads]` floats, multiply what each head hands to its output projection:
    zero removes a head, one changes nothing.

  Raises:
    ValueError: If a size is not positive or the sizes do not divide.
    TypeError: If a size is no integer or `compute_dtype` no float dtype.
  """
  checks.check_sizes("shape", shape, parts="(H, W, C)")
  shape = (shape[0], shape[1], shape[2])  # a list would not hash
  sizes = dict(
    patch_size=patch_size,
    width=width,
    num_layers=num_layers,
    num_heads=num_heads,
    mlp_ratio=mlp_ratio,
  )
  for name, size in sizes.items():
    checks.check_int(name, size)
  checks.check_int("num_classes", num_classes, minimum=0)
  checks.check_finite("max_frequency", max_frequency, positive=True)
  if shape[0] % patch_size or shape[1] % patch_size:
    raise ValueError(
      f"patch_size must divide H and W, got patch_size={patch_size} and "
      f"shape={shape}."
    )
  if head_size is not None:
    checks.check_int("head_size", head_size)
  if (head_size is None and width % num_heads) or width % 4:
    raise ValueError(
      "width must be a multiple of num_heads where no head_size is given, and "
      f"of 4 for the positions, got width={width} and num_heads={num_heads}."
    )
  module = _DiT(
    shape=shape,
    patch_size=patch_size,
    width=width,
    num_layers=num_layers,
    num_heads=num_heads,
    head_size=head_size or width // num_heads,
    mlp_width=mlp_ratio * width,
    num_classes=num_classes,
    two_times=two_times,
    max_frequency=max_frequency,
    remat=remat,
    dtype=embed.float_dtype(compute_dtype),
  )
  init, call = embed.as_velocity(module, shape, num_classes, two_times)

  def apply(
    params: Params,
    x: jax.Array,
    t: jax.Array,
    s: jax.Array | None = None,
    *,
    label: jax.Array | None = None,
    gates: jax.Array | None = None,
  ) -> jax.Array:
    if gates is not None:
      batch = jnp.shape(x)[:1] if jnp.ndim(gates) == 3 else ()
      checks.check_shape("gates", gates, (*batch, num_layers, num_heads))
    return call(params, x, t, s, label, gates)

  return Network(init, apply)


def compact(params: Params, gates: ArrayLike) -> tuple[Params, int]:
  """Cuts the heads with closed gates out of a DiT's parameters.

  The layers run as one scan over stacked kernels, so all get as many heads as
  the layer that keeps most; a forward with a number of heads for every layer
  would have to be unrolled, and compiled layer by layer. What is too many is
  all zeros, and stays so in training, since every gradient there has a factor
  of zero. Gates that keep as many heads in all layers waste nothing.

    params, num_heads = compact(params, gates)
    network = dit(shape, num_heads=num_heads, head_size=head_size, ...)

  with the size of heads that the first network had, answers as that one did
  with the gates.

  Args:
    params: Parameters of a `dit` of `L` layers and `H` heads.
    gates: `[L, H]`, with known values. Others than zeros and ones are folded
      into the output projection.

  Returns:
    `(params, num_heads)`: parameters with heads in their old order, and the
    number of heads to build the network with, at least one.

  Raises:
    ValueError: If the gates' shape does not fit, or one is not finite.
    TypeError: If gates are traced: shapes depend on them.
  """
  if not checks.is_concrete(gates):
    raise TypeError(
      "gates must have known values, got a traced array; call compact outside "
      "of jit."
    )
  blocks = params["blocks"]
  gates = np.asarray(gates)
  checks.check_shape("gates", gates, blocks["out"]["kernel"].shape[:2])
  if not np.isfinite(gates).all():
    raise ValueError("gates must be finite.")
  num_heads = max(1, int(np.count_nonzero(gates, axis=1).max()))
  # Open heads first, in their order.
  kept = np.argsort(gates == 0, axis=1, kind="stable")[:, :num_heads]
  gates = np.take_along_axis(gates, kept, axis=1)

  def cut(name, axis, scale):
    kernel = jnp.asarray(blocks[name]["kernel"])
    shape = [1] * kernel.ndim
    shape[0], shape[axis] = kept.shape
    taken = jnp.take_along_axis(kernel, jnp.asarray(kept.reshape(shape)), axis)
    return {"kernel": taken * jnp.asarray(scale.reshape(shape), kernel.dtype)}

  heads = {name: cut(name, 2, gates != 0) for name in ("query", "key", "value")}
  out = cut("out", 1, gates)
  return {**params, "blocks": {**blocks, **heads, "out": out}}, num_heads


def patchify(x: jax.Array, patch_size: int) -> jax.Array:
  """Patches of `x [B, H, W, C]`, row by row: `[B, L, p * p * C]`."""
  batch, height, width, channels = x.shape
  rows, cols = height // patch_size, width // patch_size
  x = x.reshape(batch, rows, patch_size, cols, patch_size, channels)
  return x.swapaxes(2, 3).reshape(batch, rows * cols, -1)


def unpatchify(
  patches: jax.Array, shape: tuple[int, int, int], patch_size: int
) -> jax.Array:
  """The inverse of `patchify`: `[B, H, W, C]`, of which `shape` is the end."""
  height, width, channels = shape
  rows, cols = height // patch_size, width // patch_size
  x = patches.reshape(-1, rows, cols, patch_size, patch_size, channels)
  return x.swapaxes(2, 3).reshape(-1, *shape)


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Softmax attention, `[B, L, H, d]` throughout."""
  # Written out, since `jax.nn.dot_product_attention` may choose a kernel that
  # cannot be differentiated forwards, and rounds float64 to float32.
  scores = jnp.einsum(
    "blhd,bmhd->bhlm",
    query,
    key,
    preferred_element_type=jnp.promote_types(query.dtype, jnp.float32),
  )
  weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5, axis=-1)
  return jnp.einsum("bhlm,bmhd->blhd", weights.astype(value.dtype), value)


def _modulated(x: jax.Array, shift: jax.Array, scale: jax.Array, dtype: Any):
  y = nn.LayerNorm(use_bias=False, use_scale=False, dtype=dtype)(x)
  return y * (1 + scale[:, None]) + shift[:, None]


class _Block(nn.Module):
  num_heads: int
  head_size: int
  mlp_width: int
  dtype: Any

  @nn.compact
  def __call__(
    self, x: jax.Array, condition: jax.Array, gates: jax.Array | None
  ) -> tuple[jax.Array, None]:
    width = x.shape[-1]

    def dense(name, features, y, axis=-1):
      return embed.linear(features, self.dtype, axis=axis, name=name)(y)

    modulation = nn.Dense(
      6 * width,
      dtype=self.dtype,
      kernel_init=nn.initializers.zeros,
      name="modulation",
    )(condition)
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(
      modulation, 6, axis=-1
    )
    y = _modulated(x, shift1, scale1, self.dtype)
    heads = (self.num_heads, self.head_size)
    y = attend(*(dense(name, heads, y) for name in ("query", "key", "value")))
    if gates is not None:  # [1 or B, H]
      y = y * gates.astype(y.dtype)[:, None, :, None]
    x = x + gate1[:, None] * dense("out", width, y, axis=(-2, -1))
    y = _modulated(x, shift2, scale2, self.dtype)
    y = dense("down", width, nn.gelu(dense("up", self.mlp_width, y)))
    return x + gate2[:, None] * y, None


class _DiT(nn.Module):
  shape: tuple[int, int, int]
  patch_size: int
  width: int
  num_layers: int
  num_heads: int
  head_size: int
  mlp_width: int
  num_classes: int
  two_times: bool
  max_frequency: float
  remat: bool
  dtype: Any

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    t: jax.Array,
    s: jax.Array | None,
    label: jax.Array | None,
    gates: jax.Array | None = None,
  ) -> jax.Array:
    wide = jnp.promote_types(self.dtype, jnp.float32)
    condition = embed.Conditioning(
      self.width,
      self.num_classes,
      self.two_times,
      self.max_frequency,
      wide,
      name="condition",
    )(t, s, label)
    condition = nn.silu(condition).astype(self.dtype)
    x = nn.Dense(
      self.width,
      dtype=self.dtype,
      dot_general=embed.dot_general,
      name="embed",
    )(patchify(x, self.patch_size))
    grid = (
      self.shape[0] // self.patch_size,
      self.shape[1] // self.patch_size,
    )
    positions = embed.sincos_positions(grid, self.width)
    x = x + jnp.asarray(positions, self.dtype)[None]
    if gates is not None:  # [L, 1 or B, H], a layer at a time
      gates = jnp.asarray(gates)
      gates = gates[:, None] if gates.ndim == 2 else gates.swapaxes(0, 1)
    block = _Block
    if self.remat:
      # Inside a scan there is no common subexpression to guard against.
      block = nn.remat(_Block, prevent_cse=False)
    x, _ = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(nn.broadcast, 0),
      length=self.num_layers,
    )(
      self.num_heads, self.head_size, self.mlp_width, self.dtype, name="blocks"
    )(x, condition, gates)
    zeros = nn.initializers.zeros
    modulation = nn.Dense(
      2 * self.width, dtype=self.dtype, kernel_init=zeros, name="modulation"
    )(condition)
    shift, scale = jnp.split(modulation, 2, axis=-1)
    x = _modulated(x, shift, scale, self.dtype)
    size = self.patch_size**2 * self.shape[-1]
    kernel = self.param("head_kernel", zeros, (self.width, size))
    bias = self.param("head_bias", zeros, (size,))
    y = embed.matmul(x, kernel.astype(self.dtype), preferred_element_type=wide)
    return unpatchify(y + bias[None, None], self.shape, self.patch_size)
