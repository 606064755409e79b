"""Frames as tokens: symbolic codes, finite scalar quantisation, patch tables.

A tokenizer is a pair of pure functions over parameters that may be empty. The
symbolic code loses nothing and has none. Finite scalar quantisation (FSQ,
arXiv:2309.15505) rounds each of `D` bounded latents to a few levels, so that
its codebook is a fixed lattice: there is no commitment loss, no entropy loss
and no dead code to revive. The table of patches (arXiv:2502.01591) appends what
it has not seen and never moves a code, so that what a dynamics model learns to
predict stands still.

Differs from FSQ's published code: the shift of even levels is `atanh`, which
sends a latent of zero to the level zero, where that has `tan`, which nearly
does. Left out: lookup-free quantisation, whose two levels need a sign and an
entropy loss.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.core.types import Params

__all__ = [
  "PatchTable",
  "Tokenizer",
  "fsq",
  "fsq_codes",
  "fsq_index",
  "fsq_quantize",
  "nearest_patch",
  "symbolic",
]

_MARGIN = 1e-3
"""Share by which FSQ's bounds stay inside the rounding of the outer levels."""

_CHUNK_SIZE = 128
"""Patches that are compared with a table at once: bounds the memory."""


class Tokenizer(NamedTuple):
  """Frames to tokens and back.

  Leading axes are free: a frame, a batch, clips. The last three functions are
  those of tokenizers that have them, else None.

  Attributes:
    encode: `(params, obs [..., *frame]) -> [..., N]` int32 in `[0, V)`, cells
      row by row.
    decode: `(params, tokens [..., N]) -> obs [..., *frame]`.
    num_tokens: `V`, a Python int.
    reconstruct: `(params, obs) -> (obs, tokens)`: `decode` of `encode`, with
      gradients that pass straight through the rounding.
    init: `() -> params`, a table without codes.
    fit: `(params, obs) -> params`, a table with codes for these frames too.
  """

  encode: Callable[..., jax.Array]
  decode: Callable[..., jax.Array]
  num_tokens: int
  reconstruct: Callable[..., tuple[jax.Array, jax.Array]] | None = None
  init: Callable[[], Params] | None = None
  fit: Callable[..., Params] | None = None


def symbolic(sizes: Sequence[int], *, grid: tuple[int, int]) -> Tokenizer:
  """The mixed-radix code of a grid's channels, which loses nothing.

  Channels `c` of a cell are the token `c_0 + n_0 (c_1 + n_1 (c_2 + ...))`.

  Args:
    sizes: `(n_0, ..., n_{C-1})`: kinds that each channel holds.
    grid: `(rows, cols)` of a frame.

  Returns:
    A tokenizer of integer frames `[..., rows, cols, C]`, `N = rows * cols`
    tokens each, with `V` the product of the sizes. It ignores its parameters.

  Raises:
    ValueError: If there is no channel, a size is not positive, or the tokens do
      not fit into int32. From the functions: if a frame has another size, or a
      known value lies outside of its range.
    TypeError: If a size is no integer; from the functions, if values are none.
  """
  sizes = checks.check_sizes("sizes", sizes)
  if not sizes:
    raise ValueError("sizes must name at least one channel, got ().")
  rows, cols = _check_pair("grid", grid)
  num_tokens = _num_tokens("sizes", sizes)
  radix = _radix(sizes)

  def encode(params: Params, obs: jax.Array) -> jax.Array:
    del params
    _check_frame("obs", obs, (rows, cols, len(sizes)))
    _check_integers("obs", obs, sizes)
    obs = jnp.asarray(obs, jnp.int32)
    tokens = jnp.sum(obs * _aligned(radix, obs), axis=-1, dtype=jnp.int32)
    return tokens.reshape(*tokens.shape[:-2], rows * cols)

  def decode(params: Params, tokens: jax.Array) -> jax.Array:
    del params
    _check_cells("tokens", tokens, rows * cols, num_tokens)
    digits = _digits(tokens, sizes)
    return digits.reshape(*digits.shape[:-2], rows, cols, len(sizes))

  return Tokenizer(encode, decode, num_tokens)


def fsq_quantize(z: jax.Array, levels: Sequence[int]) -> jax.Array:
  """Rounds latents to FSQ's codes, with straight-through gradients.

  Latent `i` with `L` levels: `half = (L - 1)(1 - 1e-3) / 2`; `offset` is 1/2
  for even `L` and 0 for odd; `bounded = half tanh(z + atanh(offset / half)) -
  offset`, which lies between `-L // 2` and `(L - 1) // 2` and vanishes at `z =
  0`; the code is `round(bounded) / (L // 2)`. Its gradient is that of `bounded
  / (L // 2)`.

  Args:
    z: `[..., D]` floats.
    levels: `D` integers, each at least 3: with two, `offset` exceeds `half`
      and the shift is not finite.

  Returns:
    Codes `[..., D]` in `[-1, 1]`, float32 at least.

  Raises:
    ValueError: If a level is below 3, the codes do not fit into int32, or `z`
      has another number of latents.
    TypeError: If a level is no integer or `z` is not floating.
  """
  levels = _check_levels(levels)
  _check_latents("z", z, levels)
  # Levels half a unit apart need more than bfloat16's eight bits.
  z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
  size = np.asarray(levels, np.float64)
  half = (size - 1) * (1 - _MARGIN) / 2
  offset = np.where(size % 2 == 0, 0.5, 0.0)
  shift, half, offset, unit = (
    _aligned(x.astype(z.dtype), z)
    for x in (np.arctanh(offset / half), half, offset, size // 2)
  )
  bounded = jnp.tanh(z + shift) * half - offset
  rounded = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
  return rounded / unit


def fsq_index(codes: jax.Array, levels: Sequence[int]) -> jax.Array:
  """Tokens of FSQ's codes: `sum_i (c_i + 1) (L_i // 2) prod_{j<i} L_j`.

  Args:
    codes: `[..., D]`, as `fsq_quantize` answers them.
    levels: `D` integers, each at least 3.

  Returns:
    `[...]` int32 in `[0, prod(levels))`.

  Raises:
    ValueError: As `fsq_quantize`.
    TypeError: As `fsq_quantize`.
  """
  levels = _check_levels(levels)
  _check_latents("codes", codes, levels)
  unit = _aligned(np.asarray(levels) // 2, codes)
  digits = jnp.round(codes * unit.astype(codes.dtype)).astype(jnp.int32) + unit
  return jnp.sum(digits * _aligned(_radix(levels), digits), -1, dtype=jnp.int32)


def fsq_codes(tokens: jax.Array, levels: Sequence[int]) -> jax.Array:
  """FSQ's codes of tokens, the inverse of `fsq_index`.

  Args:
    tokens: `[...]` integers in `[0, prod(levels))`.
    levels: `D` integers, each at least 3.

  Returns:
    `[..., D]` float32 in `[-1, 1]`.

  Raises:
    ValueError: If a level is below 3 or a known token is out of range.
    TypeError: If a level or the tokens are no integers.
  """
  levels = _check_levels(levels)
  num_tokens = _num_tokens("levels", levels)
  checks.check_integers("tokens", tokens)
  _check_integers("tokens", jnp.expand_dims(tokens, -1), (num_tokens,))
  digits = _digits(tokens, levels)
  unit = _aligned(np.asarray(levels) // 2, digits)
  return (digits - unit).astype(jnp.float32) / unit.astype(jnp.float32)


def fsq(
  encoder_apply: Callable[[Params, jax.Array], jax.Array],
  decoder_apply: Callable[[Params, jax.Array], jax.Array],
  levels: Sequence[int],
) -> Tokenizer:
  """A learnt tokenizer: an encoder, FSQ, a decoder.

  `reconstruct` is what to train: its squared error is the whole loss.

  Args:
    encoder_apply: `(params, obs [..., H, W, C]) -> [..., N, D]` floats.
    decoder_apply: `(params, codes [..., N, D]) -> obs`; given the codes alone.
    levels: `D` integers, each at least 3. Some that are in use: (8, 6, 5) has
      240 codes, (8, 5, 5, 5) 1,000, (7, 5, 5, 5, 5) 4,375.

  Returns:
    A tokenizer with `reconstruct`, whose parameters are those of the two
    functions.

  Raises:
    ValueError: If a level is below 3 or the codes do not fit into int32; from
      the functions, if the encoder answers another number of latents.
    TypeError: If a level is no integer.
  """
  levels = _check_levels(levels)
  num_tokens = _num_tokens("levels", levels)

  def quantize(params: Params, obs: jax.Array) -> jax.Array:
    z = encoder_apply(params, obs)
    _check_latents("encoder_apply's answer", z, levels)
    return fsq_quantize(z, levels)

  def encode(params: Params, obs: jax.Array) -> jax.Array:
    return fsq_index(quantize(params, obs), levels)

  def decode(params: Params, tokens: jax.Array) -> jax.Array:
    return decoder_apply(params, fsq_codes(tokens, levels))

  def reconstruct(
    params: Params, obs: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    codes = quantize(params, obs)
    tokens = fsq_index(jax.lax.stop_gradient(codes), levels)
    return decoder_apply(params, codes), tokens

  return Tokenizer(encode, decode, num_tokens, reconstruct)


class PatchTable(NamedTuple):
  """The codes of `nearest_patch`, in the order in which they were seen.

  Attributes:
    patches: `[V, p * p * C]` float32, zeros beyond the codes in use.
    size: int32, the codes in use.
    num_missed: int32, patches for which the table, being full, had no room.
  """

  patches: jax.Array
  size: jax.Array
  num_missed: jax.Array


def nearest_patch(
  shape: tuple[int, int, int],
  *,
  patch_size: int,
  capacity: int,
  threshold: float = 0.0,
) -> Tokenizer:
  """A table of patches: a frame's tokens are its patches' nearest codes.

  `fit` goes through the patches, row by row and frame by frame, and appends
  those whose distance to every code exceeds the threshold, until the table is
  full. Where a game draws tiles of the patch's size and the threshold lies
  below the distance of any two, encoding loses nothing.

  Args:
    shape: `(H, W, C)` of a frame.
    patch_size: Side `p` of a patch in pixels; divides `H` and `W`.
    capacity: Codes that the table can hold, `V`.
    threshold: Euclidean distance of flattened patches, in the frames' units.

  Returns:
    A tokenizer with `init` and `fit` over a `PatchTable`, `N = H W / p^2`
    tokens a frame. Frames are real numbers of any dtype, and decoded as
    float32. `encode` needs a table of at least one code.

  Raises:
    ValueError: If the patch does not divide the frame, a size is not positive,
      or the threshold is negative or not finite. From the functions: if a frame
      has another size, or a known token is out of range.
    TypeError: If a size is no integer.
  """
  height, width, channels = checks.check_sizes(
    "shape", shape, parts="(H, W, C)"
  )
  shape = (height, width, channels)
  side = checks.check_int("patch_size", patch_size)
  checks.check_int("capacity", capacity)
  threshold = checks.check_finite("threshold", threshold)
  if threshold < 0:
    raise ValueError(f"threshold must be >= 0, got {threshold}.")
  if height % side or width % side:
    raise ValueError(
      f"patch_size must divide H and W, got patch_size={side} and shape="
      f"{shape}."
    )
  rows, cols, size = height // side, width // side, side * side * channels
  far = float(threshold) ** 2

  def patches_of(obs: jax.Array) -> jax.Array:
    _check_frame("obs", obs, shape)
    x = jnp.asarray(obs, jnp.float32)
    x = x.reshape(-1, rows, side, cols, side, channels)
    return x.swapaxes(2, 3).reshape(-1, size)

  def distances(table: PatchTable, patch: jax.Array) -> jax.Array:
    # Differences, not the expanded square: equal patches are at exactly zero.
    answer = jnp.sum(jnp.square(table.patches - patch[None]), axis=-1)
    return jnp.where(jnp.arange(capacity) < table.size, answer, jnp.inf)

  def init() -> PatchTable:
    patches = jnp.zeros((capacity, size), jnp.float32)
    return PatchTable(patches, jnp.int32(0), jnp.int32(0))

  def fit(table: PatchTable, obs: jax.Array) -> PatchTable:
    patches = patches_of(obs)
    nearest = jax.lax.map(
      lambda patch: jnp.min(distances(table, patch)),
      patches,
      batch_size=_CHUNK_SIZE,
    )

    # The first patch that is far from all codes is the next one that a walk
    # through the patches would append: a loop over codes, not over patches.
    def has_room(carry):
      table, nearest = carry
      return (table.size < capacity) & jnp.any(nearest > far)

    def append(carry):
      table, nearest = carry
      patch = patches[jnp.argmax(nearest > far)]
      codes = table.patches.at[table.size].set(patch)
      distance = jnp.sum(jnp.square(patches - patch[None]), axis=-1)
      table = table._replace(patches=codes, size=table.size + 1)
      return table, jnp.minimum(nearest, distance)

    table, nearest = jax.lax.while_loop(has_room, append, (table, nearest))
    missed = jnp.sum(nearest > far, dtype=jnp.int32)
    return table._replace(num_missed=table.num_missed + missed)

  def encode(table: PatchTable, obs: jax.Array) -> jax.Array:
    if checks.is_concrete(table.size) and table.size == 0:
      raise ValueError("params must be a table with a code; call fit first.")
    tokens = jax.lax.map(
      lambda patch: jnp.argmin(distances(table, patch)),
      patches_of(obs),
      batch_size=_CHUNK_SIZE,
    )
    return tokens.astype(jnp.int32).reshape(*obs.shape[:-3], rows * cols)

  def decode(table: PatchTable, tokens: jax.Array) -> jax.Array:
    _check_cells("tokens", tokens, rows * cols, capacity)
    x = table.patches[jnp.asarray(tokens)]
    x = x.reshape(-1, rows, cols, side, side, channels)
    return x.swapaxes(2, 3).reshape(*tokens.shape[:-1], *shape)

  return Tokenizer(encode, decode, capacity, init=init, fit=fit)


def _check_pair(name: str, pair: Sequence[int]) -> tuple[int, int]:
  first, second = checks.check_sizes(name, pair, parts="(rows, cols)")
  return first, second


def _check_levels(levels: Sequence[int]) -> tuple[int, ...]:
  levels = checks.check_sizes("levels", levels)
  if not levels:
    raise ValueError("levels must hold a number for each latent, got ().")
  if min(levels) < 3:
    raise ValueError(
      f"levels must each be >= 3, got {levels}: the bounds of two levels are "
      "not finite."
    )
  _num_tokens("levels", levels)
  return levels


def _num_tokens(name: str, sizes: tuple[int, ...]) -> int:
  product = math.prod(sizes)
  if product > np.iinfo(np.int32).max:
    raise ValueError(
      f"the product of {name} must be at most {np.iinfo(np.int32).max}, for "
      f"tokens to fit into int32, got {product}."
    )
  return product


def _check_latents(name: str, z: jax.Array, levels: tuple[int, ...]) -> None:
  leading = [None] * max(0, jnp.ndim(z) - 1)
  checks.check_shape(
    name, z, (*leading, len(levels)), f"The levels are {levels}."
  )
  if not jnp.issubdtype(jnp.result_type(z), jnp.floating):
    raise TypeError(f"{name} must be floating, got {jnp.result_type(z)}.")


def _check_frame(name: str, obs: jax.Array, shape: tuple[int, ...]) -> None:
  leading = [None] * max(0, jnp.ndim(obs) - len(shape))
  checks.check_shape(name, obs, (*leading, *shape))


def _check_integers(
  name: str, values: jax.Array, sizes: tuple[int, ...]
) -> None:
  """Raises unless `values [..., C]` are integers below `sizes`."""
  dtype = jnp.result_type(values)
  if not jnp.issubdtype(dtype, jnp.integer):
    raise TypeError(f"{name} must be integers, got dtype {dtype}.")
  if checks.is_concrete(values) and np.size(values):
    given = np.asarray(values).reshape(-1, len(sizes))
    if (given < 0).any() or (given >= np.asarray(sizes)).any():
      raise ValueError(
        f"{name} must lie in [0, n) with n in {sizes}, got values from "
        f"{given.min(axis=0).tolist()} to {given.max(axis=0).tolist()}."
      )


def _check_cells(
  name: str, tokens: jax.Array, num_cells: int, num_tokens: int
) -> None:
  _check_frame(name, tokens, (num_cells,))
  _check_integers(name, jnp.expand_dims(tokens, -1), (num_tokens,))


def _radix(sizes: tuple[int, ...]) -> np.ndarray:
  return np.cumprod([1, *sizes[:-1]]).astype(np.int32)


def _digits(tokens: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
  """Digits `[..., C]` int32 of `tokens [...]`, the first size fastest."""
  tokens = jnp.asarray(tokens, jnp.int32)[..., None]
  radix = _aligned(_radix(sizes), tokens)
  return tokens // radix % _aligned(np.asarray(sizes, np.int32), tokens)


def _aligned(values: np.ndarray, array: jax.Array) -> np.ndarray:
  """`values [D]` with leading axes, to be joined with `array [..., D]`."""
  return values.reshape((1,) * (jnp.ndim(array) - 1) + values.shape)
