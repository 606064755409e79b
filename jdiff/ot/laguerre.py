"""Laguerre cells: which point a noise vector is matched to.

Semi-discrete optimal transport sends `x` to the point with the largest score
`s_j(x) = <x, y_j> + b_j` (arXiv:2509.25519, arXiv:2510.15038). The bias `b` is
in score units; potentials `g` of the cost `|x - y|^2` are `g = 2 b + |y|^2`
(`potential_from_bias`). Scores are streamed over chunks of points: `[B, M]` is
never held.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jdiff.core import carries, checks

CHUNK_SIZE = 2048
"""Points a chunk: with a thousand rows its scores stay in a CPU's cache."""


def assign(
  noise: jax.Array,
  points: jax.Array,
  bias: jax.Array,
  *,
  chunk_size: int | None = None,
) -> jax.Array:
  """The cell of each noise vector, `[B]` int32; the lowest index wins ties.

  Args:
    noise: `[B, D]`.
    points: `[M, D]`.
    bias: `[M]`, in score units; `-inf` for points that must not be chosen.
    chunk_size: Points a chunk; the answer does not depend on it beyond
      rounding.

  Raises:
    ValueError: If the shapes do not fit.
  """
  return assign_with_gap(noise, points, bias, chunk_size=chunk_size)[0]


def assign_with_gap(
  noise: jax.Array,
  points: jax.Array,
  bias: jax.Array,
  *,
  chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """`assign`, and by how much the best score exceeds the second, `[B]`."""
  _check(noise, points, bias)
  chunks = _chunks(points, bias, chunk_size)

  def body(carry, chunk):
    best, index, second = carry
    start, points, bias = chunk
    scores = _scores(noise, points, bias)
    top = scores.max(axis=1)
    # A maximum and where it stands: twice as fast as argmax on a CPU.
    rank = jnp.arange(scores.shape[1])
    at = jnp.where(scores >= top[:, None], rank[None], scores.shape[1])
    place = at.min(axis=1)
    others = jnp.where(rank[None] == place[:, None], -jnp.inf, scores)
    runner = others.max(axis=1)
    better = top > best
    second = jnp.maximum(
      jnp.maximum(second, runner), jnp.where(better, best, top)
    )
    index = jnp.where(better, start + place, index)
    return (jnp.maximum(best, top), index, second), None

  low = jnp.full(noise.shape[0], -jnp.inf, jnp.float32)
  carry = (low, jnp.zeros(noise.shape[0], jnp.int32), low)
  carry = carries.anchor(carry, (noise, points, bias))
  (best, index, second), _ = lax.scan(body, carry, chunks)
  return index, best - second


def histogram(
  noise: jax.Array,
  points: jax.Array,
  bias: jax.Array,
  *,
  chunk_size: int | None = None,
) -> jax.Array:
  """Share of the noise in each cell, `[M]` float32, ties split evenly.

  Equal points then have equal shares, where `assign` gives all to the first.
  With more than one chunk scores are computed twice.
  """
  _check(noise, points, bias)
  num_points = points.shape[0]
  chunks = _chunks(points, bias, chunk_size)

  def top(best, chunk):
    return jnp.maximum(best, _scores(noise, *chunk[1:]).max(axis=1)), None

  low = jnp.full(noise.shape[0], -jnp.inf, jnp.float32)
  low = carries.anchor(low, (noise, points, bias))
  best, _ = lax.scan(top, low, chunks)

  def ties(count, chunk):
    hits = _scores(noise, *chunk[1:]) >= best[:, None]
    return count + hits.sum(axis=1), None

  count, _ = lax.scan(ties, jnp.zeros_like(best), chunks)

  def shares(_, chunk):
    hits = _scores(noise, *chunk[1:]) >= best[:, None]
    return None, jnp.sum(jnp.where(hits, 1 / count[:, None], 0), axis=0)

  _, share = lax.scan(shares, None, chunks)
  return share.ravel()[:num_points] / noise.shape[0]


def bias_from_potential(potential: jax.Array, points: jax.Array) -> jax.Array:
  """`b = (g - |y|^2) / 2`: from cost to score units."""
  return (potential - jnp.sum(points**2, axis=1)) / 2


def potential_from_bias(bias: jax.Array, points: jax.Array) -> jax.Array:
  """`g = 2 b + |y|^2`: the dual potential of the cost `|x - y|^2`."""
  return 2 * bias + jnp.sum(points**2, axis=1)


def _chunks(points, bias, chunk_size):
  """`(start [n], points [n, C, D], bias [n, C])`, padded at `-inf`."""
  num_points = points.shape[0]
  size = CHUNK_SIZE if chunk_size is None else chunk_size
  size = min(checks.check_int("chunk_size", size), num_points)
  num = -(-num_points // size)
  pad = num * size - num_points
  points = jnp.pad(points, ((0, pad), (0, 0)))
  bias = jnp.pad(bias, (0, pad), constant_values=-jnp.inf)
  start = size * jnp.arange(num, dtype=jnp.int32)
  return start, points.reshape(num, size, -1), bias.reshape(num, size)


def _scores(noise, points, bias):
  products = jnp.einsum(
    "bd,md->bm", noise, points, preferred_element_type=jnp.float32
  )
  return products + bias[None].astype(jnp.float32)


def _check(noise, points, bias):
  checks.check_shape("points", points, (None, None))
  checks.check_shape("noise", noise, (None, points.shape[1]))
  checks.check_shape("bias", bias, points.shape[:1])
