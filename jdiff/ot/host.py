"""Cell masses on a CPU, where reading the scores costs as much as making them.

The same as `laguerre.histogram` of `x` and `-x`, ties apart, in a third of the
time: both signs share one product, `<-x, y> = -<x, y>`, and the best point of a
row is found in a single pass, by the best of each of 64 interleaved lanes
first. Ties go to one of those that have them.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jdiff.core import carries, checks
from jdiff.ot import laguerre

ROWS, LANES = 128, 64
"""A block of rows against a chunk of points stays in a core's cache."""


def masses(
  noise: jax.Array,
  points: jax.Array,
  bias: jax.Array,
  *,
  mirrored: bool,
  chunk_size: int | None = None,
) -> jax.Array:
  """Share of the rows, and of their mirror images, in each cell, as `bias`.

  Args:
    noise: `[B, D]`.
    points: `[M, D]`.
    bias: `[M]`, `-inf` for points that must not be chosen; or `[K, M]`, whose
      problems share the products.
    mirrored: Whether `-x` counts beside every `x`.
    chunk_size: Points a chunk.
  """
  if bias.ndim == 1:
    return masses(
      noise, points, bias[None], mirrored=mirrored, chunk_size=chunk_size
    )[0]
  laguerre.check(noise, points, bias[0])
  num_rows, num_points = noise.shape[0], points.shape[0]
  size = laguerre.CHUNK_SIZE if chunk_size is None else chunk_size
  size = min(checks.check_int("chunk_size", size), num_points)
  size = -(-size // LANES) * LANES
  num_chunks = -(-num_points // size)
  pad = num_chunks * size - num_points
  chunks = (
    size * jnp.arange(num_chunks, dtype=jnp.int32),
    jnp.pad(points, ((0, pad), (0, 0))).reshape(num_chunks, size, -1),
    jnp.pad(bias, ((0, 0), (0, pad)), constant_values=-jnp.inf)
    .reshape(-1, num_chunks, size)
    .swapaxes(0, 1),
  )
  signs = (1, -1) if mirrored else (1,)
  num_searches = len(signs) * len(bias)

  def search(rows):
    def body(carry, chunk):
      start, points, bias = chunk
      scores = jnp.einsum(
        "bd,md->bm",
        rows,
        points,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
      )
      new = [_best(b[None] + sign * scores) for b in bias for sign in signs]
      found = [
        (
          jnp.maximum(old, best),
          jnp.where(best > old, start + place, index),
        )
        for (old, index), (best, place) in zip(carry, new, strict=True)
      ]
      return found, None

    low = jnp.full(rows.shape[0], -jnp.inf, jnp.float32)
    none = jnp.zeros(rows.shape[0], jnp.int32)
    start = carries.anchor([(low, none)] * num_searches, (rows, points, bias))
    found, _ = lax.scan(body, start, chunks)
    return [index for _, index in found]

  rows = jnp.pad(noise, ((0, -num_rows % ROWS), (0, 0)))
  if rows.shape[0] > ROWS:
    found = lax.map(search, rows.reshape(-1, ROWS, noise.shape[1]))
  else:
    found = search(rows)
  index = jnp.stack([i.reshape(-1)[:num_rows] for i in found])
  index = index.reshape(len(bias), -1)
  total = jnp.zeros(bias.shape).at[jnp.arange(len(bias))[:, None], index].add(1)
  return total / index.shape[1]


def _best(scores):
  """The best score of each row, and where it is, `[R]` each."""
  lanes = scores.reshape(scores.shape[0], -1, LANES)
  best_of = lanes.max(axis=1)
  best = best_of.max(axis=1)
  hits = best_of >= best[:, None]
  lane = jnp.where(hits, jnp.arange(LANES)[None], LANES).min(axis=1)
  # A row of NaN has no best; any place will do.
  lane = jnp.minimum(lane, LANES - 1)
  column = jnp.take_along_axis(lanes, lane[:, None, None], axis=2)[..., 0]
  depth = jnp.arange(column.shape[1])[None]
  depth = jnp.where(column >= best[:, None], depth, column.shape[1])
  depth = jnp.minimum(depth.min(axis=1), column.shape[1] - 1)
  return best, (depth * LANES + lane).astype(jnp.int32)
