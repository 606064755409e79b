"""Laguerre cells: which point a noise vector is matched to.

Semi-discrete optimal transport sends `x` to the point with the largest score
`s_j(x) = <x, y_j> + b_j` (arXiv:2509.25519, arXiv:2510.15038). The bias `b` is
in score units; potentials `g` of the cost `|x - y|^2` are `g = 2 b + |y|^2`
(`potential_from_bias`).

Scores are streamed: a block of rows against a chunk of points at a time, so
that memory beyond the arguments does not grow with `M`, and `[B, M]` is never
held. Products are summed in float32. float32 arguments are multiplied as such
on every device; for a matrix unit's full rate pass `noise` and `points` in
bfloat16, which matches about one row in two hundred otherwise if the points are
centred: moving all points by one vector changes no cell, and a common part
costs digits.

With `axis_name`, inside `jax.shard_map`, `points` and `bias` are the local part
of a set that is split over that mesh axis. Indices are global, counted over the
axis in order, and every shard gets them; shards exchange two numbers a row
whatever `M` and `D`. Points that fill up the last shard have bias `-inf`.
`ot.on_mesh` does this for global arrays.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jdiff.core import carries, checks
from jdiff.core.weights import AxisName

CHUNK_SIZE = 2048
"""Points a chunk: with a block of rows its scores stay in a CPU's cache."""

ROW_SIZE = 1024
"""Most rows a block."""

Implementation = Literal["xla", "pallas", "pallas_interpret"]
"""Plain JAX; a fused TPU kernel (`ot.pallas`); the same, run step by step."""


Extra = Literal["second", "two", "count"] | None
"""What to find beside the best: the second best score; that and its index; how
many points share the best."""


class Top(NamedTuple):
  """The best point of each row.

  Attributes:
    best: `[B]` float32, the highest score.
    cell: `[B]` int32, the lowest index that has it.
    extra: `[B]` or a pair of them, or None; see `Extra`.
  """

  best: jax.Array
  cell: jax.Array
  extra: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopTwo:
  """The two best points of each row.

  Attributes:
    index: `[B]` int32, the best point.
    second: `[B]` int32, the second best; the lowest index wins ties.
    gap: `[B]` float32, by how much the best score exceeds the second.
  """

  index: jax.Array
  second: jax.Array
  gap: jax.Array


def assign(
  noise: jax.Array,
  points: jax.Array,
  bias: jax.Array,
  *,
  chunk_size: int | None = None,
  axis_name: AxisName = None,
  implementation: Implementation = "xla",
) -> jax.Array:
  """The cell of each noise vector, `[B]` int32; the lowest index wins ties.

  Args:
    noise: `[B, D]`.
    points: `[M, D]`.
    bias: `[M]`, in score units; `-inf` for points that must not be chosen.
    chunk_size: Most points a chunk of the plain implementation; the answer does
      not depend on it beyond rounding.
    axis_name: Mesh axis that the points are split over, inside `shard_map`.
    implementation: See `Implementation`.

  Raises:
    ValueError: If the shapes do not fit.
  """
  return _search(
    noise, points, bias, None, chunk_size, axis_name, implementation
  ).cell


def assign_with_gap(
  noise: jax.Array,
  points: jax.Array,
  bias: jax.Array,
  *,
  chunk_size: int | None = None,
  axis_name: AxisName = None,
  implementation: Implementation = "xla",
) -> tuple[jax.Array, jax.Array]:
  """`assign`, and by how much the best score exceeds the second, `[B]`."""
  best, index, second = _search(
    noise, points, bias, "second", chunk_size, axis_name, implementation
  )
  return index, best - second


def top_two(
  noise: jax.Array,
  points: jax.Array,
  bias: jax.Array,
  *,
  chunk_size: int | None = None,
  axis_name: AxisName = None,
) -> TopTwo:
  """The two best points of each row; see `assign`. At least two points."""
  check(noise, points, bias)
  checks.check_int("number of points", points.shape[0], 2)
  best, index, (runner, second) = _search(
    noise, points, bias, "two", chunk_size, axis_name, "xla"
  )
  return TopTwo(index, second, best - runner)


def histogram(
  noise: jax.Array,
  points: jax.Array,
  bias: jax.Array,
  *,
  chunk_size: int | None = None,
  axis_name: AxisName = None,
  rows_axis_name: AxisName = None,
  implementation: Implementation = "xla",
) -> jax.Array:
  """Share of the noise in each cell, `[M]` float32, ties split evenly.

  Equal points then have equal shares, where `assign` gives all to the first.
  Scores are computed a second time only if some row has a tie.

  Args:
    noise: See `assign`; so are `points`, `bias`, `chunk_size`, `axis_name` and
      `implementation`.
    points: `[M, D]`; under `axis_name` the answer is for the local points.
    bias: `[M]`.
    chunk_size: Most points a chunk.
    axis_name: Mesh axis that the points are split over.
    rows_axis_name: Mesh axis that the rows are split over: the shares are then
      those among all rows.
    implementation: See `Implementation`.
  """
  best, index, count = _search(
    noise, points, bias, "count", chunk_size, axis_name, implementation
  )
  num_points, size = points.shape[0], _chunk_size(points, chunk_size)
  if axis_name is not None:
    index = index - lax.axis_index(axis_name) * num_points
  mine = (count == 1) & (index >= 0) & (index < num_points)
  share = carries.anchor(jnp.zeros(num_points, jnp.float32), (noise, points))
  share = share.at[jnp.where(mine, index, num_points)].add(1, mode="drop")

  def add_ties(share, rows):
    noise, best, part = rows

    def body(share, start):
      start, scores = _scores(noise, points, bias, start, size)
      hits = jnp.where(scores >= best[:, None], part[:, None], 0).sum(axis=0)
      old = lax.dynamic_slice_in_dim(share, start, size)
      return lax.dynamic_update_slice_in_dim(share, old + hits, start, 0), None

    return lax.scan(body, share, _starts(points, size))[0]

  part = jnp.where(count > 1, 1 / count, 0)
  blocks = _blocks((noise, best, part))
  num_blocks = blocks[0].shape[0]
  # A loop of no or all blocks: under vmap a cond would compute both branches.
  share = lax.fori_loop(
    0,
    jnp.where((count > 1).any(), num_blocks, 0),
    lambda i, share: add_ties(share, jax.tree.map(lambda x: x[i], blocks)),
    share,
  )
  share = share / noise.shape[0]
  if rows_axis_name is not None:
    share = lax.pmean(share, rows_axis_name)
  return share


def bias_from_potential(potential: jax.Array, points: jax.Array) -> jax.Array:
  """`b = (g - |y|^2) / 2`: from cost to score units."""
  _check_dual("potential", potential, points)
  return (potential - jnp.sum(points**2, axis=1)) / 2


def potential_from_bias(bias: jax.Array, points: jax.Array) -> jax.Array:
  """`g = 2 b + |y|^2`: the dual potential of the cost `|x - y|^2`."""
  _check_dual("bias", bias, points)
  return 2 * bias + jnp.sum(points**2, axis=1)


def check(noise: jax.Array, points: jax.Array, bias: jax.Array) -> None:
  """Raises unless the shapes are `[B, D]`, `[M, D]` and `[M]`."""
  for name, array in (("noise", noise), ("points", points), ("bias", bias)):
    checks.check_numbers(name, array)
  checks.check_shape("points", points, (None, None))
  checks.check_shape("noise", noise, (None, points.shape[1]))
  checks.check_shape("bias", bias, points.shape[:1])


def _check_dual(name, dual, points):
  for what, array in ((name, dual), ("points", points)):
    checks.check_numbers(what, array)
  checks.check_shape("points", points, (None, None))
  checks.check_shape(name, dual, points.shape[:1])


def _search(noise, points, bias, extra, chunk_size, axis_name, implementation):
  """The one search behind everything: `Top` over all shards."""
  check(noise, points, bias)
  size = _chunk_size(points, chunk_size)
  if implementation == "xla":
    find = functools.partial(
      _stream, points=points, bias=bias, extra=extra, size=size
    )
    if noise.shape[0] <= ROW_SIZE:
      top = find(noise)
    else:
      top = lax.map(find, _blocks(noise))
      top = jax.tree.map(lambda x: x.ravel()[: noise.shape[0]], top)
  elif implementation in ("pallas", "pallas_interpret"):
    # Loading Pallas takes a third of a second that few need.
    from jdiff.ot import pallas

    interpret = implementation == "pallas_interpret"
    top = pallas.top(noise, points, bias, extra, interpret=interpret)
  else:
    raise ValueError(
      "implementation must be 'xla', 'pallas' or 'pallas_interpret', got "
      f"{implementation!r}."
    )
  return top if axis_name is None else _join(top, extra, points, axis_name)


def _stream(noise, points, bias, extra, size):
  """`Top` of one block of rows, chunk after chunk."""

  def body(carry, start):
    best, index, rest = carry
    start, scores = _scores(noise, points, bias, start, size)
    top = scores.max(axis=1)
    better = top > best
    # A maximum and where it stands: twice as fast as argmax on a CPU.
    hits, rank = scores >= top[:, None], jnp.arange(size)[None]
    place = jnp.where(hits, rank, size).min(axis=1)
    if extra in ("second", "two"):
      others = jnp.where(rank == place[:, None], -jnp.inf, scores)
      runner = others.max(axis=1)
      beaten = jnp.where(better, best, top)
    if extra == "second":
      rest = jnp.maximum(jnp.maximum(rest, runner), beaten)
    elif extra == "two":
      second, at = rest
      # Whom the new best beat, or the chunk's best; then the chunk's second.
      at = jnp.where(better, index, jnp.where(top > second, start + place, at))
      second = jnp.maximum(second, beaten)
      hits = (others >= runner[:, None]) & (rank != place[:, None])
      next_place = start + jnp.where(hits, rank, size).min(axis=1)
      at = jnp.where(runner > second, next_place, at)
      rest = jnp.maximum(second, runner), at
    elif extra == "count":
      count = hits.sum(axis=1, dtype=jnp.int32)
      rest = jnp.where(better, count, rest + jnp.where(top == best, count, 0))
    index = jnp.where(better, start + place, index)
    return (jnp.maximum(best, top), index, rest), None

  low = jnp.full(noise.shape[0], -jnp.inf, jnp.float32)
  index = jnp.zeros(noise.shape[0], jnp.int32)
  rest = {"second": low, "two": (low, index), "count": index}.get(extra)
  carry = carries.anchor((low, index, rest), (noise, points, bias))
  return Top(*lax.scan(body, carry, _starts(points, size))[0])


def _join(top, extra, points, axis_name):
  """The best over shards; indices become global."""
  best, index, rest = top
  first = lax.axis_index(axis_name) * points.shape[0]
  index = index + first
  peak = lax.pmax(best, axis_name)
  # Asked this way round, some shard answers even if scores are NaN.
  beaten, beyond = best < peak, jnp.iinfo(jnp.int32).max
  winner = lax.pmin(jnp.where(beaten, beyond, index), axis_name)
  if extra == "second":
    rest = lax.pmax(jnp.where(index == winner, rest, best), axis_name)
  elif extra == "two":
    mine = index == winner
    own = jnp.where(mine, rest[0], best)
    second = lax.pmax(own, axis_name)
    at = jnp.where(mine, rest[1] + first, index)
    at = lax.pmin(jnp.where(own < second, beyond, at), axis_name)
    rest = second, at
  elif extra == "count":
    rest = lax.psum(jnp.where(beaten, 0, rest), axis_name)
  return Top(peak, winner, rest)


def _chunk_size(points, chunk_size):
  """Points a chunk, the same in all: the last would repeat up to a chunk."""
  size = CHUNK_SIZE if chunk_size is None else chunk_size
  num_points = points.shape[0]
  num = -(-num_points // checks.check_int("chunk_size", size))
  return -(-num_points // num)


def _starts(points, size):
  return jnp.arange(0, points.shape[0], size, dtype=jnp.int32)


def _blocks(rows):
  """`[B, ...]` leaves as `[blocks, rows, ...]`, padded with zeros."""
  total = jax.tree.leaves(rows)[0].shape[0]
  num = max(1, -(-total // ROW_SIZE))
  size = -(-total // num)

  def split(x):
    pad = [(0, num * size - total)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, pad).reshape(num, size, *x.shape[1:])

  return jax.tree.map(split, rows)


def _scores(noise, points, bias, start, size):
  """A chunk's first index and its scores `[rows, size]`.

  The last chunk reaches back instead of over the end, since padding would copy
  all points; what an earlier chunk has had is at `-inf`.
  """
  first = jnp.minimum(start, points.shape[0] - size)
  points = lax.dynamic_slice_in_dim(points, first, size)
  bias = lax.dynamic_slice_in_dim(bias, first, size).astype(jnp.float32)
  bias = jnp.where(first + jnp.arange(size) >= start, bias, -jnp.inf)
  products = jnp.einsum(
    "bd,md->bm",
    noise,
    points,
    precision=lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )
  return first, products + bias[None]
