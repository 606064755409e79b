"""Tokenizers: codes that are one to one, gradients through the rounding."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.world import tokenizers
from tests import helpers

LEVELS = helpers.thorough(
  [(3,), (4, 3), (8, 5, 5, 5), (8, 6, 5), (7, 5, 5, 5, 5)],
  first=[(3,), (4, 3), (8, 6, 5), (8, 5, 5, 5)],
)


def bounded(z, levels):
  """FSQ's bounded latents, in NumPy float64, and what divides the rounded."""
  size = np.asarray(levels, np.float64)
  half = (size - 1) * (1 - 1e-3) / 2
  offset = (size % 2 == 0) / 2
  return np.tanh(z + np.arctanh(offset / half)) * half - offset, size // 2


def unbounded(codes, levels):
  """The latents whose bounded values are the codes themselves."""
  size = np.asarray(levels, np.float64)
  half = (size - 1) * (1 - 1e-3) / 2
  offset = (size % 2 == 0) / 2
  # The lowest even level and the outer odd ones lie just beyond the bounds.
  inside = np.clip((codes * (size // 2) + offset) / half, -0.9999, 0.9999)
  return np.arctanh(inside) - np.arctanh(offset / half)


@pytest.mark.parametrize("levels", LEVELS)
def test_index_and_codes_are_inverse_and_every_code_is_reached(levels):
  num_tokens = int(np.prod(levels))
  tokens = jnp.arange(num_tokens)
  codes = tokenizers.fsq_codes(tokens, levels)
  # The lattice itself, the first latent fastest.
  axes = [(np.arange(n) - n // 2) / (n // 2) for n in levels]
  lattice = [c[::-1] for c in itertools.product(*axes[::-1])]
  np.testing.assert_allclose(codes, lattice, rtol=1e-7, atol=0)
  assert tokenizers.fsq_index(codes, levels).dtype == jnp.int32
  np.testing.assert_array_equal(tokenizers.fsq_index(codes, levels), tokens)
  # Latents that bound to a code round to it, and so no rounding moves a code.
  z = jnp.asarray(unbounded(np.asarray(codes, np.float64), levels), jnp.float32)
  np.testing.assert_allclose(
    tokenizers.fsq_quantize(z, levels), codes, rtol=1e-6, atol=1e-7
  )


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_stay_in_range_and_zero_stays_zero(levels):
  z = jnp.stack([jnp.full(len(levels), x) for x in (-1e6, 0.0, 1e6)])
  codes = tokenizers.fsq_quantize(z, levels)
  size = np.asarray(levels)
  outer = [-np.ones(len(levels)), 0 * size, ((size - 1) // 2) / (size // 2)]
  np.testing.assert_allclose(codes, outer, atol=1e-6)
  tokens = tokenizers.fsq_index(codes, levels)
  assert tokens[0] == 0 and tokens[2] == np.prod(levels) - 1


def test_gradient_passes_straight_through():
  levels, step = (8, 6, 5, 3), 1e-6
  with jax.enable_x64(True):
    z = np.random.default_rng(0).normal(size=(7, 4))
    _, pullback = jax.vjp(lambda z: tokenizers.fsq_quantize(z, levels), z)
    (grad,) = pullback(jnp.ones((7, 4)))
  after, unit = bounded(z + step, levels)
  before, _ = bounded(z - step, levels)
  # Central differences: step^2 f''' / 6 and rounding / step are below 1e-9.
  np.testing.assert_allclose(grad, (after - before) / unit / (2 * step), 1e-6)


def test_quantising_is_rounding_of_the_bounded():
  levels = (8, 6, 5, 3)
  z = np.random.default_rng(1).normal(size=(2, 500, 4))
  values, unit = bounded(z, levels)
  codes = tokenizers.fsq_quantize(jnp.asarray(z, jnp.float32), levels)
  sure = np.abs(values - np.floor(values) - 0.5) > 1e-4
  assert sure.mean() > 0.99
  expected = np.round(values) / unit
  np.testing.assert_allclose(codes[sure], expected[sure], atol=1e-6)


def test_bfloat16_latents_have_float32_codes():
  z = jax.random.normal(jax.random.key(0), (50, 2)).astype(jnp.bfloat16)
  codes = tokenizers.fsq_quantize(z, (8, 5))
  assert codes.dtype == jnp.float32
  expected = tokenizers.fsq_quantize(z.astype(jnp.float32), (8, 5))
  np.testing.assert_array_equal(codes, expected)


def linear_tokenizer(levels):
  """Frames `[2, 2, 1]`, a latent of two levels' worth a pixel row."""

  def encode(params, obs):
    return obs.reshape(*obs.shape[:-3], 2, 2) * params["gain"]

  def decode(params, codes):
    return codes.reshape(*codes.shape[:-2], 2, 2, 1) + params["bias"]

  params = {"gain": jnp.float32(2.0), "bias": jnp.float32(0.25)}
  return params, tokenizers.fsq(encode, decode, levels)


def test_fsq_joins_its_parts():
  params, tokenizer = linear_tokenizer((5, 4))
  obs = jax.random.normal(jax.random.key(2), (3, 4, 2, 2, 1))
  tokens = jax.jit(tokenizer.encode)(params, obs)
  assert tokens.shape == (3, 4, 2) and tokens.dtype == jnp.int32
  assert tokenizer.num_tokens == 20 and len(np.unique(tokens)) > 10
  shown, same = jax.jit(tokenizer.reconstruct)(params, obs)
  np.testing.assert_array_equal(same, tokens)
  np.testing.assert_allclose(tokenizer.decode(params, tokens), shown, atol=1e-6)
  # One frame alone is what it is in a batch.
  np.testing.assert_array_equal(
    tokenizer.encode(params, obs[1, 2]), tokens[1, 2]
  )
  grad = jax.grad(lambda p: jnp.sum(tokenizer.reconstruct(p, obs)[0] ** 2))
  assert all(abs(g) > 0 for g in grad(params).values())


@pytest.mark.parametrize("sizes", [(5,), (3, 4, 2)])
def test_symbolic_loses_nothing(sizes):
  tokenizer = tokenizers.symbolic(sizes, grid=(4, 6))
  cells = np.array(list(itertools.product(*map(range, sizes))))
  rng = np.random.default_rng(3)
  obs = cells[rng.integers(len(cells), size=(3, 5, 4, 6))]
  tokens = jax.jit(tokenizer.encode)(None, obs)
  assert tokens.shape == (3, 5, 24) and tokens.dtype == jnp.int32
  np.testing.assert_array_equal(jax.jit(tokenizer.decode)(None, tokens), obs)
  radix = np.cumprod([1, *sizes[:-1]])
  np.testing.assert_array_equal(tokens, (obs @ radix).reshape(3, 5, 24))
  assert tokenizer.num_tokens == len(cells)


def tile_frames(seed, num_frames, num_kinds, *, side=4, grid=(5, 3)):
  """Frames of random tiles, `[E, H, W, 3]`, their kinds, the tiles."""
  rng = np.random.default_rng(seed)
  tiles = rng.uniform(size=(num_kinds, side, side, 3)).astype(np.float32)
  kinds = rng.integers(num_kinds, size=(num_frames, *grid))
  frames = tiles[kinds].swapaxes(2, 3)
  return frames.reshape(num_frames, *(side * n for n in grid), 3), kinds, tiles


def test_patch_table_is_exact_on_tiles():
  frames, kinds, tiles = tile_frames(0, 40, 9)
  tokenizer = tokenizers.nearest_patch(
    (20, 12, 3), patch_size=4, capacity=16, threshold=0.1
  )
  table = jax.jit(tokenizer.fit)(tokenizer.init(), frames)
  assert table.size == len(tiles) and table.num_missed == 0
  tokens = jax.jit(tokenizer.encode)(table, frames.reshape(8, 5, 20, 12, 3))
  assert tokens.shape == (8, 5, 15) and tokens.dtype == jnp.int32
  shown = jax.jit(tokenizer.decode)(table, tokens)
  np.testing.assert_array_equal(shown, frames.reshape(8, 5, 20, 12, 3))
  # Codes are in order of appearance.
  flat = kinds.reshape(-1)
  order = flat[np.sort(np.unique(flat, return_index=True)[1])]
  np.testing.assert_array_equal(order[np.asarray(tokens).reshape(-1)], flat)


def walk(patches, table, capacity, threshold):
  """The table as its definition has it, a patch at a time."""
  codes, missed = list(table), 0
  for patch in patches:
    gaps = [np.linalg.norm(patch - code) for code in codes]
    if min(gaps, default=np.inf) > threshold:
      if len(codes) < capacity:
        codes.append(patch)
      else:
        missed += 1
  return codes, missed


@pytest.mark.parametrize(("capacity", "missed"), [(40, False), (6, True)])
def test_fit_is_a_walk_through_the_patches(capacity, missed):
  # Patches of one pixel, so that the frame itself lists them.
  obs = np.random.default_rng(4).uniform(size=(6, 5, 7, 2)).astype(np.float32)
  tokenizer = tokenizers.nearest_patch(
    (5, 7, 2), patch_size=1, capacity=capacity, threshold=0.2
  )
  fit = jax.jit(tokenizer.fit)
  table, codes = tokenizer.init(), []
  lost = 0
  # In two halves: the second one keeps the codes of the first.
  for part in (obs[:3], obs[3:]):
    table = fit(table, part)
    codes, more = walk(part.reshape(-1, 2), codes, capacity, 0.2)
    lost += more
  assert table.size == len(codes) and table.num_missed == lost
  assert (lost > 0) == missed
  np.testing.assert_array_equal(table.patches[: table.size], codes)
  np.testing.assert_array_equal(table.patches[table.size :], 0)
  gaps = np.linalg.norm(
    obs.reshape(-1, 1, 2) - np.asarray(codes)[None], axis=-1
  )
  tokens = tokenizer.encode(table, obs)
  np.testing.assert_array_equal(tokens.reshape(-1), gaps.argmin(axis=1))
  if not missed:
    assert gaps.min(axis=1).max() <= 0.2


def test_patch_table_takes_bytes():
  frames, _, _ = tile_frames(1, 4, 5)
  frames = (255 * frames).astype(np.uint8)
  tokenizer = tokenizers.nearest_patch((20, 12, 3), patch_size=4, capacity=5)
  table = tokenizer.fit(tokenizer.init(), frames)
  shown = tokenizer.decode(table, tokenizer.encode(table, frames))
  np.testing.assert_array_equal(shown, frames)


SYMBOLIC = tokenizers.symbolic((3, 2), grid=(2, 2))
TABLE = tokenizers.nearest_patch((4, 4, 1), patch_size=2, capacity=3)


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (
      lambda: tokenizers.fsq(None, None, (8, 2)),
      ValueError,
      r"levels must each be >= 3, got \(8, 2\)",
    ),
    (
      lambda: tokenizers.fsq_quantize(jnp.zeros(1), (1,)),
      ValueError,
      r"levels must each be >= 3, got \(1,\)",
    ),
    (lambda: tokenizers.fsq_codes(jnp.zeros(1, int), ()), ValueError, "levels"),
    (
      lambda: tokenizers.fsq_codes(jnp.zeros(1, int), (8.0,)),
      TypeError,
      "levels must be an integer",
    ),
    (
      lambda: tokenizers.fsq(None, None, (1000,) * 4),
      ValueError,
      "product of levels must be at most 2147483647",
    ),
    (
      lambda: tokenizers.fsq_quantize(jnp.zeros((2, 3)), (5, 5)),
      ValueError,
      r"z must have shape \[\*, 2\], got \[2, 3\]",
    ),
    (
      lambda: tokenizers.fsq_quantize(jnp.zeros(2, int), (5, 5)),
      TypeError,
      "z must be floating",
    ),
    (
      lambda: tokenizers.fsq_codes(jnp.array([25]), (5, 5)),
      ValueError,
      "tokens must lie in",
    ),
    (
      lambda: linear_tokenizer((5, 5, 5))[1].encode(
        {"gain": 1.0}, jnp.zeros((2, 2, 1))
      ),
      ValueError,
      "encoder_apply's answer must have shape",
    ),
    (lambda: tokenizers.symbolic((), grid=(2, 2)), ValueError, "sizes"),
    (lambda: tokenizers.symbolic((2, 0), grid=(2, 2)), ValueError, "sizes"),
    (lambda: tokenizers.symbolic((2,), grid=(2,)), ValueError, "grid"),
    (
      lambda: SYMBOLIC.encode(None, jnp.zeros((2, 3, 2), int)),
      ValueError,
      r"obs must have shape \[2, 2, 2\], got \[2, 3, 2\]",
    ),
    (
      lambda: SYMBOLIC.encode(None, jnp.full((2, 2, 2), 2)),
      ValueError,
      r"obs must lie in \[0, n\) with n in \(3, 2\)",
    ),
    (
      lambda: SYMBOLIC.encode(None, jnp.zeros((2, 2, 2))),
      TypeError,
      "obs must be integers",
    ),
    (
      lambda: SYMBOLIC.decode(None, jnp.zeros((5, 3), int)),
      ValueError,
      r"tokens must have shape \[\*, 4\]",
    ),
    (
      lambda: SYMBOLIC.decode(None, jnp.full(4, -1)),
      ValueError,
      "tokens must lie in",
    ),
    (
      lambda: tokenizers.nearest_patch((4, 6, 1), patch_size=4, capacity=3),
      ValueError,
      r"patch_size must divide H and W, got patch_size=4 and shape=\(4, 6, 1\)",
    ),
    (
      lambda: tokenizers.nearest_patch((4, 4), patch_size=4, capacity=3),
      ValueError,
      "shape must be",
    ),
    (
      lambda: tokenizers.nearest_patch((4, 4, 1), patch_size=4, capacity=0),
      ValueError,
      "capacity must be >= 1",
    ),
    (
      lambda: tokenizers.nearest_patch(
        (4, 4, 1), patch_size=4, capacity=3, threshold=-1.0
      ),
      ValueError,
      "threshold must be >= 0",
    ),
    (
      lambda: TABLE.fit(TABLE.init(), jnp.zeros((7, 4, 6, 1))),
      ValueError,
      r"obs must have shape \[\*, 4, 4, 1\], got \[7, 4, 6, 1\]",
    ),
    (
      lambda: TABLE.encode(TABLE.init(), jnp.zeros((4, 4, 1))),
      ValueError,
      "call fit first",
    ),
    (
      lambda: TABLE.decode(TABLE.init(), jnp.full(4, 3)),
      ValueError,
      "tokens must lie in",
    ),
  ],
)
def test_bad_input(call, error, message):
  with pytest.raises(error, match=message):
    call()


def test_tokenizers_map_over_frames():
  frames, _, _ = tile_frames(2, 6, 5)
  tokenizer = tokenizers.nearest_patch((20, 12, 3), patch_size=4, capacity=8)
  table = tokenizer.fit(tokenizer.init(), frames)
  encode = functools.partial(tokenizer.encode, table)
  np.testing.assert_array_equal(jax.vmap(encode)(frames), encode(frames))
