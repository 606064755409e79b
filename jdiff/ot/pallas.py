"""The search for the best point as one TPU kernel.

A tile of scores is made in a core's memory, reduced there, and forgotten:
neither `[B, M]` nor a chunk of it reaches HBM. Each of 128 lanes keeps its own
best score and index down the points; lanes are compared at the end.

`D` and `M` may be any and nothing large is copied: tiles that reach over an end
are masked. Points are read once for every `BLOCK_ROWS` rows; rows once if `D`
is at most `BLOCK_DIM`, else once for every `BLOCK_POINTS` points. The default
tiles fit 16 MiB of a core's memory.

XLA's TPU compiler, too, keeps the plain implementation's chunks out of HBM, so
measure before choosing: what the kernel adds is one pass instead of three over
scores, with the second best and the ties counted in it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jdiff.core import checks
from jdiff.ot import laguerre

LANES = 128
BLOCK_ROWS = 512
BLOCK_POINTS = 1024
BLOCK_DIM = 512


def top(
  noise: jax.Array,
  points: jax.Array,
  bias: jax.Array,
  extra: laguerre.Extra = None,
  *,
  block_rows: int = BLOCK_ROWS,
  block_points: int | None = None,
  block_dim: int = BLOCK_DIM,
  interpret: bool = False,
) -> laguerre.Top:
  """The highest score of each row, its lowest index, and `extra`.

  Args:
    noise: `[B, D]`, float32 or bfloat16.
    points: `[M, D]`.
    bias: `[M]`.
    extra: `"second"` for the second best score, `"count"` for how many points
      have the best, or None.
    block_rows: Rows a tile, a multiple of 16.
    block_points: Points a tile, a multiple of 128; `BLOCK_POINTS` by default,
      half of it in float32.
    block_dim: Most features a tile, a multiple of 128.
    interpret: Runs the kernel step by step on any device, for tests.

  Raises:
    ValueError: If `extra` or a tile's size is none of these.
  """
  if extra not in (None, "second", "count"):
    raise ValueError(
      f"extra must be None, 'second' or 'count' in this kernel, got {extra!r}."
    )
  dtype = jnp.result_type(noise.dtype, points.dtype)
  if block_points is None:
    block_points = BLOCK_POINTS * 2 // max(dtype.itemsize, 2)
  for name, value, unit in (
    ("block_rows", block_rows, 16),
    ("block_points", block_points, LANES),
    ("block_dim", block_dim, LANES),
  ):
    if checks.check_int(name, value) % unit:
      raise ValueError(f"{name} must be a multiple of {unit}, got {value}.")
  (rows, dim), num_points = noise.shape, points.shape[0]
  block_rows = min(block_rows, rows)
  block_points = min(block_points, -(-num_points // LANES) * LANES)
  block_dim = _tile_dim(dim, block_dim)
  pad = block_points - num_points
  if pad > 0:
    # Only fewer points than one tile.
    points = jnp.pad(points, ((0, pad), (0, 0)))
    bias = jnp.pad(bias, (0, pad))
  grid = (
    pl.cdiv(rows, block_rows),
    pl.cdiv(points.shape[0], block_points),
    pl.cdiv(dim, block_dim),
  )
  (noise, points, bias), varying = _vary_alike(noise, points, bias)
  kinds: tuple[Any, ...] = (jnp.float32, jnp.int32)
  if extra is not None:
    kinds += (jnp.float32 if extra == "second" else jnp.int32,)
  column = pl.BlockSpec((block_rows, 1), lambda i, j, k: (i, 0))
  outputs = pl.pallas_call(
    functools.partial(_kernel, num_points=num_points, dim=dim, extra=extra),
    grid=grid,
    in_specs=[
      pl.BlockSpec((block_rows, block_dim), lambda i, j, k: (i, k)),
      pl.BlockSpec((block_points, block_dim), lambda i, j, k: (j, k)),
      pl.BlockSpec((1, block_points), lambda i, j, k: (0, j)),
    ],
    out_specs=[column] * len(kinds),
    out_shape=[
      jax.ShapeDtypeStruct((rows, 1), kind, manual_axis_type=varying)
      for kind in kinds
    ],
    scratch_shapes=[
      pltpu.VMEM((block_rows, block_points), jnp.float32),
      *(pltpu.VMEM((block_rows, LANES), kind) for kind in kinds),
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary", "arbitrary")
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * rows * num_points * dim,
      transcendentals=0,
      bytes_accessed=hbm_bytes(noise, points, block_rows, block_points, grid),
    ),
    interpret=interpret,
    name="laguerre_top",
  )(noise, points, bias.astype(jnp.float32)[None])
  best, index, *rest = (x[:, 0] for x in outputs)
  return laguerre.Top(best, index, rest[0] if rest else None)


def hbm_bytes(noise, points, block_rows, block_points, grid):
  """Bytes that the tiles' transfers move, counted from the grid."""
  num_rows, num_points, num_dims = grid
  # Rows that are one tile wide stay where they are from tile to tile.
  again = num_points if num_dims > 1 else 1
  dim = points.shape[1]
  return (
    num_rows * again * block_rows * dim * noise.dtype.itemsize
    + num_rows * num_points * block_points * dim * points.dtype.itemsize
    + num_rows * num_points * block_points * 4
  )


def _kernel(noise, points, bias, *refs, num_points, dim, extra):
  """One tile; `refs` are the outputs, the tile's scores, a running state."""
  num = 2 if extra is None else 3
  outputs, (scores, *state) = refs[:num], refs[num:]
  j, k = pl.program_id(1), pl.program_id(2)
  last_k = pl.num_programs(2) - 1
  dtype = jnp.result_type(noise.dtype, points.dtype)
  product = lax.dot_general(
    _features(noise, k, dim).astype(dtype),
    _features(points, k, dim).astype(dtype),
    (((1,), (1,)), ((), ())),
    precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )

  @pl.when(k == 0)
  def _():
    scores[...] = product

  @pl.when(k > 0)
  def _():
    scores[...] += product

  @pl.when((j == 0) & (k == 0))
  def _():
    for ref, low in zip(state, (-jnp.inf, 0, -jnp.inf), strict=False):
      low = low if ref.dtype == jnp.float32 else 0
      ref[...] = jnp.full(ref.shape, low, ref.dtype)

  @pl.when(k == last_k)
  def _():
    best, index, *rest = (ref[...] for ref in state)
    lane = lax.broadcasted_iota(jnp.int32, best.shape, 1)
    for start in range(0, scores.shape[1], LANES):
      part = pl.ds(start, LANES)
      here = lane + (j * scores.shape[1] + start)
      # What lies beyond the last point is undefined.
      score = jnp.where(
        here < num_points, scores[:, part] + bias[:, part], -jnp.inf
      )
      better = score > best
      if extra == "second":
        rest = [jnp.maximum(rest[0], jnp.minimum(score, best))]
      elif extra == "count":
        more = rest[0] + (score == best).astype(jnp.int32)
        rest = [jnp.where(better, 1, more)]
      index = jnp.where(better, here, index)
      best = jnp.maximum(best, score)
    for ref, value in zip(state, (best, index, *rest), strict=True):
      ref[...] = value

  @pl.when((j == pl.num_programs(1) - 1) & (k == last_k))
  def _():
    best, index, *rest = (ref[...] for ref in state)
    peak = best.max(axis=1, keepdims=True)
    # Asked this way round, some lane answers even if scores are NaN.
    top = ~(best < peak)
    beyond = jnp.iinfo(jnp.int32).max
    winner = jnp.where(top, index, beyond).min(axis=1, keepdims=True)
    values = [peak, winner]
    if extra == "second":
      second = jnp.where(index == winner, rest[0], best)
      values += [second.max(axis=1, keepdims=True)]
    elif extra == "count":
      values += [jnp.where(top, rest[0], 0).sum(axis=1, keepdims=True)]
    for ref, value in zip(outputs, values, strict=True):
      ref[...] = value


def _features(ref, k, dim):
  """The tile's features, zero beyond the last one, where they are undefined."""
  tile, size = ref[...], ref.shape[1]
  if dim % size == 0:
    return tile
  feature = lax.broadcasted_iota(jnp.int32, tile.shape, 1) + k * size
  return jnp.where(feature < dim, tile, jnp.zeros_like(tile))


def _tile_dim(dim, block_dim):
  """All features, or as many equal tiles as it takes, in whole lanes."""
  if dim <= block_dim:
    return dim
  num = pl.cdiv(dim, block_dim)
  return pl.cdiv(dim, num * LANES) * LANES


def _vary_alike(*arrays):
  """Arrays made to vary over the mesh axes that any varies over; the type."""
  axes = [jax.typeof(x).manual_axis_type.varying for x in arrays]
  union = frozenset().union(*axes)
  arrays = tuple(
    lax.pcast(x, tuple(union - own), to="varying") if union - own else x
    for x, own in zip(arrays, axes, strict=True)
  )
  return arrays, jax.sharding.ManualAxisType(varying=union)
