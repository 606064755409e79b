"""Where an observer's cells lie in the world: poses, moves, distances.

A pose is `(row, col, heading)`, int32. The heading counts quarter turns
clockwise from facing the top of the map. Where no move turns, it is not looked
at, and taken as 0.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks, frames


@dataclasses.dataclass(frozen=True)
class View:
  """A rectangular window of cells that an observer carries along.

  Attributes:
    rows: Rows of the window.
    cols: Columns of the window.
    origin: `(row, col)` in the window at which the observer stands; it may lie
      outside.
    moves: `(rows ahead is negative, cols to the right, quarter turns)` of each
      way to move, in the observer's own frame. The first is `(0, 0, 0)`.
    period: `(rows, cols)` of a world that is a torus; None is an open plane.
  """

  rows: int
  cols: int
  origin: tuple[int, int]
  moves: tuple[tuple[int, int, int], ...] = ((0, 0, 0),)
  period: tuple[int, int] | None = None

  def __post_init__(self):
    checks.check_int("rows", self.rows)
    checks.check_int("cols", self.cols)
    if not self.moves or tuple(self.moves[0]) != (0, 0, 0):
      raise ValueError(
        f"moves must begin with (0, 0, 0), to stay; got {self.moves}."
      )
    if any(len(move) != 3 for move in self.moves):
      raise ValueError(
        f"moves must be (rows, cols, quarter turns), got {self.moves}."
      )
    if len(self.origin) != 2:
      raise ValueError(f"origin must be (row, col), got {self.origin}.")
    if self.period is not None:
      self._check_period(self.period)

  def _check_period(self, period):
    if len(period) != 2:
      raise ValueError(f"period must be (rows, cols), got {period}.")
    for name, size in zip(("rows", "cols"), period, strict=True):
      checks.check_int(f"period's {name}", size)
    ways = range(4 if self._turns else 1)
    for axis in range(2):
      # Further away than half way round, a cell would be taken for another.
      seen = np.stack([_turned(self.offsets, way)[:, axis] for way in ways])
      size = period[axis]
      if seen.min() < -(size // 2) or seen.max() >= size - size // 2:
        raise ValueError(
          "period must be so large that every cell in view is nearest that "
          f"way round: got {period}, with cells from {seen.min()} to "
          f"{seen.max()} along axis {axis}."
        )

  @property
  def _turns(self) -> bool:
    return any(turn for _, _, turn in self.moves)

  @property
  def num_cells(self) -> int:
    """Cells `N` of a frame."""
    return self.rows * self.cols

  @property
  def num_moves(self) -> int:
    """Ways to move."""
    return len(self.moves)

  @property
  def offsets(self) -> np.ndarray:
    """`[N, 2]` int32, cells from the observer, in its own frame."""
    cells = np.indices((self.rows, self.cols)).reshape(2, -1).T
    return (cells - np.array(self.origin)).astype(np.int32)

  def cells(self, pose: jax.Array) -> jax.Array:
    """World coordinates `[..., N, 2]` of what `pose [..., 3]` sees.

    Not wrapped on a torus: see `nearest`.
    """
    offsets = jnp.broadcast_to(
      self.offsets, (*pose.shape[:-1], self.num_cells, 2)
    )
    heading = jnp.broadcast_to(pose[..., None, 2], offsets.shape[:-1])
    place = jnp.broadcast_to(pose[..., None, :2], offsets.shape)
    return place + self._turn(offsets, heading)

  def move(self, pose: jax.Array, move: jax.Array) -> jax.Array:
    """The pose `[..., 3]` after moves `[...]` of the given index."""
    step = jnp.asarray(self.moves, jnp.int32)[move]
    place = pose[..., :2] + self._turn(step[..., :2], pose[..., 2])
    if self.period is not None:
      place = jnp.stack(
        [place[..., i] % self.period[i] for i in range(2)], axis=-1
      )
    heading = (pose[..., 2] + step[..., 2]) % 4
    return jnp.concatenate([place, heading[..., None]], axis=-1)

  def move_between(self, before: jax.Array, after: jax.Array) -> jax.Array:
    """Index `[...]` of the move between poses `[..., 3]`; -1 if there is none.

    A move that leads nowhere else than an earlier one is never answered.
    """
    num = self.num_moves
    before = jnp.broadcast_to(
      before[..., None, :], (*before.shape[:-1], num, 3)
    )
    after = jnp.broadcast_to(after[..., None, :], before.shape)
    index = jnp.broadcast_to(jnp.arange(num), before.shape[:-1])
    reached = self.move(before, index)
    same = jnp.all(
      self.nearest(reached[..., :2] - after[..., :2]) == 0, axis=-1
    ) & ((reached[..., 2] - after[..., 2]) % 4 == 0)
    return jnp.where(same.any(-1), jnp.argmax(same, -1), -1).astype(jnp.int32)

  def nearest(self, step: jax.Array) -> jax.Array:
    """Displacements `[..., 2]` the short way round a torus."""
    return frames.shortest(step, self.period)

  def relative(self, pose: jax.Array, cells: jax.Array) -> jax.Array:
    """World cells `[..., N, 2]` as `pose [..., 3]` sees them, in its frame."""
    place = jnp.broadcast_to(pose[..., None, :2], cells.shape)
    heading = jnp.broadcast_to(pose[..., None, 2], cells.shape[:-1])
    return self._turn(self.nearest(cells - place), -heading)

  def visible(self, pose: jax.Array, cells: jax.Array) -> jax.Array:
    """Whether each of world cells `[..., N, 2]` is in view: `[..., N]` bool."""
    seen = self.relative(pose, cells)
    at = [seen[..., i] + self.origin[i] for i in range(2)]
    inside = [(x >= 0) & (x < n) for x, n in zip(at, self.shape, strict=True)]
    return inside[0] & inside[1]

  @property
  def shape(self) -> tuple[int, int]:
    """`(rows, cols)` of a frame."""
    return (self.rows, self.cols)

  def _turn(self, offsets: jax.Array, quarters: jax.Array) -> jax.Array:
    """`offsets [..., 2]` turned clockwise by `quarters [...]`."""
    if not self._turns:
      return offsets
    return jnp.select(
      [(quarters % 4 == way)[..., None] for way in range(3)],
      [_turned(offsets, way) for way in range(3)],
      _turned(offsets, 3),
    )


def check_pose(name: str, pose: Any, lead: tuple[int | None, ...] = ()) -> None:
  """Raises unless poses are integers `[*lead, 3]`."""
  checks.check_integers(name, pose)
  checks.check_shape(name, pose, (*lead, 3))


def _turned(offsets: Any, quarters: int) -> Any:
  """`offsets [..., 2]` turned clockwise, an array of the same kind."""
  row, col = offsets[..., 0], offsets[..., 1]
  pairs = ((row, col), (col, -row), (-row, -col), (-col, row))
  stack = np.stack if isinstance(offsets, np.ndarray) else jnp.stack
  return stack(pairs[quarters], axis=-1)
