"""Cells of frames sorted by their places: one place has one slot in all frames.

A slot is a place's remainder by a tile at least as large as the view, so no two
cells of a frame share one. Frames then match cell by cell without a search.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core.frames import Seen, shortest

AGES = tuple(
  int(age) for age in (*range(1, 16), *np.round(16 * 2 ** np.arange(0, 8, 0.5)))
)
"""Ages, in frames, from which on the bias of an age is another one."""


class Sorter(NamedTuple):
  """What is needed to sort a view's cells into slots.

  Attributes:
    offsets: `[N][2]` of the cells.
    cols: Columns of the view; if there is but one, neighbours are below.
    tile: Rows and columns of slots; their product is `S`.
    period: Of a torus, or None.
  """

  offsets: tuple[tuple[int, int], ...]
  cols: int
  tile: tuple[int, int]
  period: tuple[int, int] | None


def make_sorter(
  offsets: np.ndarray, period: tuple[int, int] | None, turns: bool
) -> Sorter:
  """What sorts a view's cells; arguments as those of `nets.axial`.

  Raises:
    ValueError: If the offsets are no rectangle of at least 2 cells, or the
      period does not fit them.
  """
  rows, cols = (int(n) for n in np.ptp(offsets, axis=0) + 1)
  grid = np.indices((rows, cols)).reshape(2, -1).T + offsets[:1]
  if len(offsets) != rows * cols or np.any(offsets != grid):
    raise ValueError(
      "offsets must be those of a rectangle of cells, row by row; got "
      f"{len(offsets)} cells within {rows} x {cols}."
    )
  if rows * cols < 2:
    raise ValueError("offsets must be of at least 2 cells, got 1.")
  tile = (max(rows, cols),) * 2 if turns else (rows, cols)
  if period is not None:
    if period[0] < max(rows, 3) or period[1] < max(cols, 3):
      raise ValueError(
        f"period must be at least 3 and the view's {(rows, cols)}, got "
        f"{period}."
      )
    if turns and period[0] != period[1]:
      raise ValueError(
        "turns must be False on a torus whose sides differ, got period="
        f"{period}."
      )
    # Places on a torus have one remainder where the tile divides it, only.
    down, across = (
      next(n for n in range(min(size, around), around + 1) if around % n == 0)
      for size, around in zip(tile, period, strict=True)
    )
    tile = (down, across)
  return Sorter(
    tuple((int(row), int(col)) for row, col in offsets),
    cols,
    tile,
    period,
  )


class Window(NamedTuple):
  """Finished frames, sorted, and what each query may look at.

  Attributes:
    query: `[B, Q, S, N]`, 1 where a slot holds a cell of the query.
    key: `[B, F, S, N]`, of the frames.
    same: `[B, Q, F, S]` bool: both show the slot's place, and it is seen.
    age: `[B, Q, F, E]`, which of `AGES` have passed.
  """

  query: jax.Array
  key: jax.Array
  same: jax.Array
  age: jax.Array


class Recalled(NamedTuple):
  """What a memory answers, at the slots of the queries.

  Attributes:
    kinds: `[B, Q, S, F, V]`, the token or its probabilities.
    valid: `[B, Q, S, F]` bool.
    age: `[B, Q, S, F, E]`.
  """

  kinds: jax.Array
  valid: jax.Array
  age: jax.Array


def sort(sorter: Sorter, seen: Seen, dtype: Any) -> tuple[Window, jax.Array]:
  """Sorts finished frames, and those that look at them.

  Slots are named after places as the observer of the first frame sees them,
  whichever that is in a ring: all that matters is that it is one for all.

  Returns:
    A `Window`, and `[B, Q, S, 2]` the queries' own places by slot, seen by
    themselves.
  """
  cells = jnp.round(seen.cells).astype(jnp.int32)
  offsets = jnp.asarray(sorter.offsets, jnp.int32)
  own = jnp.broadcast_to(offsets, (*cells.shape[:2], *offsets.shape))
  turn, start = _first_frame(sorter, cells[:, :, 0])
  query_places = _as_first(own, turn, start)
  # One query tells where all frames lie, and any does.
  key_places = _as_first(cells[:, 0], turn[:, :1], start[:, :1])
  query, key = _slots(sorter, query_places), _slots(sorter, key_places)
  holds = query.any(axis=-1)
  gap = shortest(
    _in_slots(query, query_places)[:, :, None]
    - _in_slots(key, key_places)[:, None],
    sorter.period,
  )
  valid = jnp.einsum(
    "bqfn,bfsn->bqfs", seen.valid.astype(dtype), key.astype(dtype)
  )
  same = (gap[..., 0] == 0) & (gap[..., 1] == 0) & (valid > 0.5)
  window = Window(
    query.astype(dtype),
    key.astype(dtype),
    same & holds[:, :, None],
    _ages(seen.age[..., 0], dtype),
  )
  # An empty slot is far from all cells.
  return window, jnp.where(holds[..., None], _in_slots(query, own), 2**20)


def _first_frame(sorter, cells):
  """How the first frame lies, of which `[B, Q, N, 2]` are the cells.

  Returns:
    `(sin, cos) [B, Q, 2]` of its turn, and `[B, Q, 2]` where its observer is.
  """
  # Turned by h, a step right is (sin h, cos h), and one down (cos h, -sin h).
  step = shortest(cells[:, :, 1] - cells[:, :, 0], sorter.period)
  sin, cos = step[..., 0], step[..., 1]
  if sorter.cols == 1:
    sin, cos = -cos, sin
  row, col = sorter.offsets[0]
  turned = jnp.stack([cos * row + sin * col, cos * col - sin * row], axis=-1)
  return jnp.stack([sin, cos], axis=-1), cells[:, :, 0] - turned


def _as_first(places, turn, start):
  """Where the first frame's observer sees `places [B, X, N, 2]`."""
  away = places - start[:, :, None]
  row, col = away[..., 0], away[..., 1]
  sin, cos = turn[:, :, None, 0], turn[:, :, None, 1]
  return jnp.stack([cos * row - sin * col, cos * col + sin * row], axis=-1)


def _slots(sorter, places):
  """`[B, X, S, N]` bool, which cell of `places [B, X, N, 2]` a slot holds."""
  rows, cols = sorter.tile
  slot = (places[..., 0] % rows) * cols + places[..., 1] % cols
  return slot[:, :, None] == jnp.arange(rows * cols)[None, None, :, None]


def _in_slots(held, places):
  """`places [B, X, N, 2]` by slot, 0 where there is no cell: `[B, X, S, 2]`."""
  return jnp.sum(jnp.where(held[..., None], places[:, :, None], 0), axis=3)


def _ages(age, dtype):
  """Which of `AGES` have passed, `[..., E]`."""
  edges = jnp.asarray(AGES, age.dtype)
  edges = edges.reshape(*(1,) * age.ndim, -1)
  return (age[..., None] >= edges).astype(dtype)


def at_slots(seen: Seen, places: jax.Array, vocab: int, dtype: Any) -> Recalled:
  """What a memory recalls, at `places [B, Q, S, 2]`, of `vocab` kinds."""
  cells = jnp.round(seen.cells).astype(jnp.int32)[:, :, None]
  places = places[:, :, :, None, None]
  found = (cells[..., 0] == places[..., 0]) & (cells[..., 1] == places[..., 1])
  found = (found & seen.valid[:, :, None]).astype(dtype)
  assert seen.kv is not None
  kinds = seen.kv.key
  if jnp.issubdtype(kinds.dtype, jnp.integer):
    kinds = jax.nn.one_hot(kinds, vocab, dtype=dtype)
  # Ages must not be rounded: their bias is what is gathered.
  age = jnp.max(jnp.where(found > 0, seen.age[:, :, None], 0.0), axis=-1)
  return Recalled(
    jnp.einsum("bqsfn,bqfnv->bqsfv", found, kinds.astype(dtype)),
    found.max(axis=-1) > 0,
    _ages(age, dtype),
  )
