"""The mathematics of two puzzles, by enumeration: 4x4 sudoku and countdown.

There are 288 sudoku grids of side four, so whether a puzzle has one solution is
looked up and never guessed; three numbers and two operations make 54
expressions. `tasks` turns both into tasks on tokens.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from jdiff.core import checks

NUM_CELLS = 16
OPERATIONS = "+-*"

MAX_SOLVED = 4
"""Of more numbers than this `make` makes nothing."""


@functools.cache
def grids() -> np.ndarray:
  """All 4x4 sudoku grids, `[288, 16]` int32 of 1 to 4, in reading order.

  Every row, column and 2x2 box of a grid holds 1 to 4.
  """
  # Four numbers of 1 to 4 are all different where their bits add up to 30.
  rows = np.array(list(itertools.permutations(range(1, 5))))
  pairs = np.stack([rows[i] for i in np.indices((24, 24)).reshape(2, -1)], 1)
  boxes = (1 << pairs).reshape(-1, 2, 2, 2).sum((1, 3))
  bands = pairs[(boxes == 30).all(1)]
  top, bottom = np.indices((len(bands),) * 2).reshape(2, -1)
  squares = np.concatenate([bands[top], bands[bottom]], 1)
  right = ((1 << squares).sum(1) == 30).all(1)
  found = squares[right].reshape(-1, NUM_CELLS).astype(np.int32)
  found.setflags(write=False)
  return found


@functools.cache
def _ambiguous() -> np.ndarray:
  """`[288, 2^16]` bool: does another grid agree on these cells?

  Bit `i` of the second index says that cell `i` is given.
  """
  cells = grids()
  agree = cells[:, None] == cells[None]
  sets = (agree << np.arange(NUM_CELLS)).sum(-1)
  table = np.zeros((len(cells), 1 << NUM_CELLS), bool)
  first = np.broadcast_to(np.arange(len(cells))[:, None], sets.shape)
  table[first, sets] = True
  # A grid agrees with itself everywhere, which does not count; no other does.
  table[:, -1] = False
  # Whoever agrees on a set agrees on its subsets: hand it down bit by bit.
  for i in range(NUM_CELLS):
    pairs = table.reshape(len(cells), -1, 2, 1 << i)
    pairs[:, :, 0] |= pairs[:, :, 1]
  table.setflags(write=False)
  return table


@functools.cache
def unique_puzzles(num_blanks: int) -> tuple[np.ndarray, np.ndarray]:
  """Every puzzle with so many blanks and a single solution.

  Args:
    num_blanks: From 0 to 12: four clues are the fewest that can do.

  Returns:
    `(grid, given)`: `[N]` rows of `grids()`, and `[N]` sets of given cells, bit
    `i` for cell `i`.

  Raises:
    ValueError: If no puzzle has so many blanks and one solution.
  """
  checks.check_int("num_blanks", num_blanks, 0)
  sets = np.arange(1 << NUM_CELLS)
  given = sets[np.bitwise_count(sets) == NUM_CELLS - num_blanks]
  grid, index = np.nonzero(~_ambiguous()[:, given])
  if not len(grid):
    raise ValueError(
      "num_blanks must be at most 12, for one solution to be left, got "
      f"{num_blanks}."
    )
  return grid.astype(np.int32), given[index].astype(np.int32)


def puzzle(grid: np.ndarray, given: np.ndarray) -> np.ndarray:
  """`[B, 16]` int32, 0 at blanks, from what `unique_puzzles` returns."""
  shown = (np.asarray(given)[:, None] >> np.arange(NUM_CELLS)) & 1
  return (grids()[grid] * shown).astype(np.int32)


def solve(puzzles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Solves puzzles by comparing them with all grids.

  Args:
    puzzles: `[B, 16]` integers, 0 at blanks.

  Returns:
    `(solution, num_solutions)`: `[B, 16]` int32, the first in the order of
    `grids()` (meaningless where there is none), and `[B]`.
  """
  digits = np.arange(1, 5)
  # Counting agreements by one product needs no [B, 288, 16] array.
  shown = (puzzles[..., None] == digits).reshape(len(puzzles), -1)
  wanted = (grids()[..., None] == digits).reshape(len(grids()), -1)
  hits = shown.astype(np.float32) @ wanted.astype(np.float32).T
  fits = hits == (puzzles != 0).sum(1)[:, None]
  return grids()[fits.argmax(1)], fits.sum(1)


def combine(
  first: np.ndarray,
  one: np.ndarray,
  second: np.ndarray,
  two: np.ndarray,
  third: np.ndarray,
) -> np.ndarray:
  """Value of `first one second two third`, products before sums.

  `one` and `two` index `OPERATIONS`; everything broadcasts, integers exact.
  """

  def apply(operation, x, y):
    return np.choose(operation, [x + y, x - y, x * y])

  late = (two == 2) & (one != 2)
  inner = np.where(late, second * third, apply(one, first, second))
  return np.where(late, apply(one, first, inner), apply(two, inner, third))


def expressions(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Every `a?b?c` over the numbers, each used once.

  Args:
    numbers: `[..., 3]` integers.

  Returns:
    `(forms, values)`: `[..., 54, 5]`, numbers at even places and indices into
    `OPERATIONS` at odd ones, and `[..., 54]`. Equal numbers make equal forms,
    which are kept: a form then counts as often as it arises.
  """
  orders = np.array(list(itertools.permutations(range(3))))
  pairs = np.array(list(itertools.product(range(3), repeat=2)))
  order, pair = (x.ravel() for x in np.indices((len(orders), len(pairs))))
  a, b, c = np.moveaxis(np.asarray(numbers)[..., orders[order]], -1, 0)
  one, two = (np.broadcast_to(x, a.shape) for x in pairs[pair].T)
  forms = np.stack([a, one, b, two, c], -1)
  return forms, combine(a, one, b, two, c)


def make(numbers: Sequence[int], target: float) -> str | None:
  """An expression of all the numbers, each once, that gives the target.

  The first of `expressions` that does, for three numbers, and then any
  with `/` and brackets; None if there is none, or more numbers than
  `MAX_SOLVED`.
  """
  if len(numbers) == 3:
    forms, values = expressions(np.array(numbers))
    for a, one, b, two, c in forms[values == target]:
      return f"{a}{OPERATIONS[one]}{b}{OPERATIONS[two]}{c}"
  if not 1 <= len(numbers) <= MAX_SOLVED:
    return None
  terms = [(str(number), float(number)) for number in numbers]
  for expression, value in _results(terms):
    if abs(value - target) < 1e-6:
      return expression.removeprefix("(").removesuffix(")")
  return None


def _results(
  terms: Sequence[tuple[str, float]],
) -> Iterator[tuple[str, float]]:
  """Everything that two at a time make of the terms, in brackets."""
  if len(terms) == 1:
    yield terms[0]
    return
  for i, j in itertools.permutations(range(len(terms)), 2):
    (x, a), (y, b) = terms[i], terms[j]
    rest = [term for k, term in enumerate(terms) if k not in (i, j)]
    made = [(f"({x}-{y})", a - b)]
    if b != 0:
      made.append((f"({x}/{y})", a / b))
    if i < j:
      made += [(f"({x}+{y})", a + b), (f"({x}*{y})", a * b)]
    for term in made:
      yield from _results([term, *rest])
