"""Geometry of the square lattice: neighbours, order laws, contexts.

Everything here is NumPy, made once while a target is built. Site `s` stands at
row `s // size` and column `s % size`.
"""

import numpy as np

from jdiff.core import checks, orders


def neighbours(size: int, *, periodic: bool = True) -> np.ndarray:
  """`[L, 4]` int32: the sites down, up, right and left; -1 beyond an edge.

  On a periodic lattice of side 2 both directions lead to the same site, which
  is then listed twice: its bond counts twice.
  """
  checks.check_int("size", size, 2)
  row, col = np.divmod(np.arange(size * size), size)
  table = np.empty((size * size, 4), np.int32)
  for j, (dr, dc) in enumerate(((1, 0), (-1, 0), (0, 1), (0, -1))):
    r, c = row + dr, col + dc
    inside = (r >= 0) & (r < size) & (c >= 0) & (c < size)
    site = (r % size) * size + c % size
    table[:, j] = site if periodic else np.where(inside, site, -1)
  return table


def checkerboard(size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Sites of even and of odd `row + column`."""
  checks.check_int("size", size, 2)
  row, col = np.divmod(np.arange(size * size), size)
  odd = (row + col) % 2 == 1
  return (
    tuple(int(s) for s in np.flatnonzero(~odd)),
    tuple(int(s) for s in np.flatnonzero(odd)),
  )


def is_bipartite(size: int, periodic: bool) -> bool:
  """Whether the odd checkerboard sites have no bonds among themselves."""
  return not periodic or size % 2 == 0


def even_odd(size: int, *, periodic: bool = True) -> orders.Order:
  """Even sites one at a time in random order, then the odd ones together.

  Given the even sites the odd ones are independent, so that one block loses
  nothing. On an odd periodic lattice they are not, and come one at a time.
  """
  even, odd = checkerboard(size)
  last = 1 if is_bipartite(size, periodic) else len(odd)
  return orders.Order((orders.Stage(even, len(even)), orders.Stage(odd, last)))


def chain(
  size: int, *, periodic: bool = True, num_subsets: int = 8
) -> orders.Order:
  """Coarse to fine: sparse sublattices first, the odd sites last, together.

  On a periodic lattice of side `m 2^p`, `m` odd and `p >= 1`, the `m^2` sites
  of the coarsest sublattice come one at a time. Shifted copies then double the
  sublattice level by level, up to all even sites; a level's new sites are cut
  into `num_subsets` cosets, and a coset, whose sites are far apart and screened
  by revealed ones, is one block (a single site in the first levels). Elsewhere
  the even sites come one at a time, each as far as can be from those before.

  Args:
    size: Lattice side.
    periodic: Whether opposite edges are joined.
    num_subsets: A power of two; more means smaller blocks, more steps.
  """
  checks.check_int("num_subsets", num_subsets)
  if num_subsets & (num_subsets - 1):
    raise ValueError(f"num_subsets must be a power of two, got {num_subsets}.")
  even, odd = checkerboard(size)
  if periodic and size % 2 == 0:
    return orders.blocks([*_dyadic_blocks(size, num_subsets), odd])
  first = [[s] for s in _farthest_first(even, size, periodic)]
  if is_bipartite(size, periodic):
    return orders.blocks([*first, odd])
  return orders.blocks(first + [[s] for s in odd])


def context(
  size: int,
  order: orders.Order | None,
  num_neighbours: int,
  *,
  periodic: bool = True,
) -> np.ndarray:
  """`[L, R]` int32: for each site the nearest ones, -1 where there are fewer.

  Displacements are listed in one order for all sites that see the same ones
  (of a block, or of the whole periodic lattice), so that weights can be shared
  over them.

  Args:
    size: Lattice side.
    order: Only sites revealed in earlier steps of this law, which must have
      fixed blocks; None takes every other site.
    num_neighbours: `R`.
    periodic: Whether distances wrap around.

  Raises:
    ValueError: If the law shuffles sites within a stage.
  """
  checks.check_int("size", size, 2)
  checks.check_int("num_neighbours", num_neighbours)
  num_sites = size * size
  if order is None:
    step = np.zeros(num_sites, np.int64)
  else:
    steps = order.step_of_site
    step = np.array([steps[s] for s in range(num_sites)])
  row, col = np.divmod(np.arange(num_sites), size)
  table = np.full((num_sites, num_neighbours), -1, np.int32)
  for site in range(num_sites):
    dr, dc = row - row[site], col - col[site]
    if periodic:
      dr, dc = _wrap(dr, size), _wrap(dc, size)
    near = np.lexsort((dc, dr, dr * dr + dc * dc))
    allowed = near != site if order is None else step[near] < step[site]
    near = near[allowed][:num_neighbours]
    table[site, : len(near)] = near
  return table


def _wrap(d: np.ndarray, size: int) -> np.ndarray:
  """Displacements in `[-size / 2, size / 2)`."""
  return (d + size // 2) % size - size // 2


def _dyadic_blocks(size: int, num_subsets: int) -> list[list[int]]:
  spacing = size & -size
  row, col = np.divmod(np.arange(size * size), size)
  coarse = np.flatnonzero((row % spacing == 0) & (col % spacing == 0))
  first = _farthest_first(coarse, size, periodic=True)
  blocks = [[s] for s in first]
  levels = [np.stack(np.divmod(first, size), axis=1)]
  depth = num_subsets.bit_length() - 1
  for level in range(2 * spacing.bit_length() - 3):
    half = spacing >> (level // 2 + 1)
    shift = np.array([half, half] if level % 2 == 0 else [0, half])
    fresh = (levels[level] + shift) % size
    levels.append(np.concatenate([levels[level], fresh]))
    group = levels[level - depth] if level >= depth else np.zeros((1, 2), int)
    left = {tuple(q) for q in fresh}
    # The order of earlier levels repeats: each coset starts far from those
    # before it.
    for q in fresh:
      if tuple(q) in left:
        coset = (group + q) % size
        left -= {tuple(site) for site in coset}
        blocks.append([int(r * size + c) for r, c in coset])
  return blocks


def _farthest_first(sites, size: int, periodic: bool) -> list[int]:
  points = np.stack(np.divmod(np.asarray(sites), size), axis=1)
  gaps = np.full(len(points), np.inf)
  picked: list[int] = []
  for _ in range(len(points)):
    i = int(np.argmax(gaps))
    picked.append(int(sites[i]))
    d = points - points[i]
    if periodic:
      d = _wrap(d, size)
    gaps = np.minimum(gaps, (d * d).sum(axis=1))
  return picked
