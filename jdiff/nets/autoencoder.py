"""A patch autoencoder: pixels to a few latents a patch, and back.

A vision transformer on either side (as the tokenizers of arXiv:2402.15391 and
arXiv:2110.04627), for a quantiser to stand between: a hidden layer that sees
one patch, then blocks of attention over patches with axial rotary positions
(`jdiff.nets.transformer`). Without blocks every patch is on its own, so that a
token changes where its pixels do and nowhere else. Left out: time, since a
frame's codes then never depend on other frames, and adversarial and perceptual
losses, which need other networks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jdiff.core import checks
from jdiff.core.types import Params
from jdiff.nets import blocks, embed
from jdiff.nets.dit import patchify, unpatchify


class AutoEncoder(NamedTuple):
  """An encoder and a decoder over one dict of parameters.

  Attributes:
    init: `(key) -> params`, float32 leaves under `"encoder"` and `"decoder"`.
      Call it under `jax.jit`: eager initialisation differs in the last bit.
    encode: `(params, obs [..., H, W, C]) -> z [..., N, D]` floats.
    decode: `(params, z [..., N, D]) -> obs [..., H, W, C]`.
  """

  init: Callable[[jax.Array], Params]
  encode: Callable[[Params, jax.Array], jax.Array]
  decode: Callable[[Params, jax.Array], jax.Array]


def autoencoder(
  shape: tuple[int, int, int],
  num_latents: int,
  *,
  patch_size: int,
  width: int,
  num_layers: int = 0,
  num_heads: int = 1,
  mlp_ratio: int = 4,
  center: float = 0.5,
  scale: float = 0.5,
  remat: bool = False,
  compute_dtype: DTypeLike = jnp.float32,
) -> AutoEncoder:
  """Builds an encoder and a decoder of images by patches.

    net = autoencoder((64, 64, 3), len(levels), patch_size=8, width=128)
    tokenizer = tokenizers.fsq(net.encode, net.decode, levels)

  Args:
    shape: `(H, W, C)` of a frame.
    num_latents: Latents `D` of a patch.
    patch_size: Side `p` of a patch; divides `H` and `W`. `N = H W / p^2`.
    width: Features of the residual stream.
    num_layers: Blocks in the encoder, and as many in the decoder. 0 leaves
      each patch on its own.
    num_heads: Attention heads; divides `width` into heads whose size is a
      multiple of four, if there are blocks.
    mlp_ratio: Hidden width of the feed-forward layers over `width`.
    center: Of the pixels' values.
    scale: Of their spread: the layers see `(pixels - center) / scale` on one
      side and answer it on the other.
    remat: Recomputes each block's activations in the backward pass, trading
      about a third more time for memory that hardly grows with depth.
    compute_dtype: Dtype of the layers. Parameters, softmaxes, norms' moments,
      latents and pixels are float32 whatever it is.

  Returns:
    An `AutoEncoder`. The decoder's pixels are not bounded: near the ends of
    their range a sigmoid has no slope left to learn by.

  Raises:
    ValueError: If a size is not positive or the sizes do not divide; from the
      functions, if a frame or the latents have another size.
    TypeError: If a size is no integer or `compute_dtype` no float dtype; from
      the functions, if the argument is not floating.
  """
  checks.check_sizes("shape", shape, parts="(H, W, C)")
  frame = (shape[0], shape[1], shape[2])  # a list would not hash
  sizes = dict(
    num_latents=num_latents,
    patch_size=patch_size,
    width=width,
    num_heads=num_heads,
    mlp_ratio=mlp_ratio,
  )
  for name, size in sizes.items():
    checks.check_int(name, size)
  checks.check_int("num_layers", num_layers, minimum=0)
  center = checks.check_finite("center", center)
  scale = checks.check_finite("scale", scale, positive=True)
  if frame[0] % patch_size or frame[1] % patch_size:
    raise ValueError(
      f"patch_size must divide H and W, got patch_size={patch_size} and "
      f"shape={frame}."
    )
  if num_layers and (width % num_heads or width // num_heads % 4):
    raise ValueError(
      "width / num_heads must be a multiple of 4 for rotary positions on a "
      f"grid, got width={width} and num_heads={num_heads}."
    )
  grid = (frame[0] // patch_size, frame[1] // patch_size)
  num_cells, num_pixels = grid[0] * grid[1], patch_size**2 * frame[2]
  sides = [
    _Stack(
      num_outputs=num_outputs,
      grid=grid,
      width=width,
      num_layers=num_layers,
      num_heads=num_heads,
      mlp_width=mlp_ratio * width,
      remat=remat,
      dtype=embed.float_dtype(compute_dtype),
    )
    for num_outputs in (num_latents, num_pixels)
  ]
  encoder, decoder = sides

  def init(key: jax.Array) -> Params:
    key_encoder, key_decoder = jax.random.split(key)
    pixels = jnp.zeros((1, num_cells, num_pixels))
    latents = jnp.zeros((1, num_cells, num_latents))
    return {
      "encoder": encoder.init(key_encoder, pixels)["params"],
      "decoder": decoder.init(key_decoder, latents)["params"],
    }

  def encode(params: Params, obs: jax.Array) -> jax.Array:
    _check("obs", obs, frame)
    x = (obs.reshape(-1, *frame) - center) / scale
    x = patchify(x, patch_size)
    z = cast(jax.Array, encoder.apply({"params": params["encoder"]}, x))
    return z.reshape(*obs.shape[:-3], num_cells, num_latents)

  def decode(params: Params, z: jax.Array) -> jax.Array:
    _check("z", z, (num_cells, num_latents))
    x = z.reshape(-1, num_cells, num_latents)
    x = cast(jax.Array, decoder.apply({"params": params["decoder"]}, x))
    obs = unpatchify(x * scale + center, frame, patch_size)
    return obs.reshape(*z.shape[:-2], *frame)

  return AutoEncoder(init, encode, decode)


def _check(name: str, array: jax.Array, shape: tuple[int, ...]) -> None:
  leading = [None] * max(0, jnp.ndim(array) - len(shape))
  checks.check_shape(name, array, (*leading, *shape))
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise TypeError(f"{name} must be floating, got dtype {array.dtype}.")


class _Stack(nn.Module):
  """A hidden layer a patch, blocks over patches, a linear map."""

  num_outputs: int
  grid: tuple[int, int]
  width: int
  num_layers: int
  num_heads: int
  mlp_width: int
  remat: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    def dense(name, features, y):
      return nn.Dense(
        features,
        dtype=self.dtype,
        dot_general=embed.dot_general,
        name=name,
      )(y)

    x = dense("embed", self.width, nn.gelu(dense("hidden", self.mlp_width, x)))
    if self.num_layers:
      block = blocks.Block
      if self.remat:
        # Inside a scan there is no common subexpression to guard against.
        block = nn.remat(blocks.Block, prevent_cse=False)
      angles = embed.rotary_angles(self.grid, self.width // self.num_heads)
      layers: tuple = (jnp.arange(self.num_layers), {})
      (x, _), _ = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
        length=self.num_layers,
      )(
        self.num_heads,
        self.num_heads,
        False,
        self.mlp_width,
        1e-6,
        self.dtype,
        name="blocks",
      )(
        (x, None),
        layers,
        jnp.asarray(angles),
        jnp.float32(1.0),
        jnp.int32(0),
      )
    x = nn.RMSNorm(dtype=self.dtype, name="norm")(x)
    wide = jnp.promote_types(self.dtype, jnp.float32)
    kernel = self.param(
      "head_kernel",
      nn.initializers.lecun_normal(),
      (self.width, self.num_outputs),
    )
    bias = self.param("head_bias", nn.initializers.zeros, (self.num_outputs,))
    y = embed.matmul(x, kernel.astype(self.dtype), preferred_element_type=wide)
    return y + bias[None, None]
