"""Generated tasks on tokens, with rewards that are checked and not learnt.

Small enough for a CPU, and exact where a text benchmark is not: pretraining
data are noisy right answers whose law is known (`log_prob`), and what can be
completed is enumerable (`completions`), so a policy can be compared with the
tilted law that it should reach. `load(name, **options)` is the way in.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.common import generated, puzzles
from jdiff.core import checks

Task = generated.Task
Tilted = generated.Tilted
tilted = generated.tilted


def load(name: str, **options: Any) -> Task:
  """Makes a task by its name in `TASKS`.

  Raises:
    ValueError: If there is no such task or option, or a value is out of range.
  """
  if name not in TASKS:
    raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}.")
  signature = inspect.signature(TASKS[name])
  try:
    signature.bind(**options)
  except TypeError as error:
    shown = signature.replace(return_annotation=inspect.Signature.empty)
    raise ValueError(
      f"task {name!r} takes {shown}, got {options}: {error}."
    ) from error
  return TASKS[name](**options)


def modular(*, modulus: int = 7, noise: float = 0.45) -> Task:
  """`(a, b)` is asked, `(a + b, a - b, a + 2b, 2a + b)` mod p is right.

  Reward 1 where all four are right, else 0. In pretraining each token of the
  completion is replaced with probability `noise` by any of the p, the right one
  included. `completions` are all `p^4`.
  """
  checks.check_int("modulus", modulus, 2)
  generated.check_share("noise", noise)

  def right(prompts):
    a, b = prompts[:, 0], prompts[:, 1]
    return np.stack([a + b, a - b, a + 2 * b, 2 * a + b], 1) % modulus

  def exact(tokens):
    return (tokens[:, 2:] == right(tokens)).all(1)

  def pretraining(seed, step, batch):
    uniform = generated.uniform((seed, step), generated.PRETRAINING, batch, 10)
    prompts = generated.pick(uniform[:, :2], modulus)
    symbols = np.arange(modulus)
    return generated.join(
      prompts, generated.noisy(right(prompts), uniform[:, 2:], noise, symbols)
    )

  def log_prob(tokens):
    symbols = np.arange(modulus)
    return generated.noisy_log_prob(
      tokens[:, 2:], right(tokens), noise, symbols
    )

  return generated.make(
    "modular",
    2,
    4,
    tuple(str(i) for i in range(modulus)),
    prompts=lambda seed, num: generated.pick(
      generated.uniform(seed, generated.PROMPTS, num, 2), modulus
    ),
    pretraining=pretraining,
    reward=exact,
    exact=exact,
    log_prob=log_prob,
    completions=lambda prompt: np.indices((modulus,) * 4).reshape(4, -1).T,
    all_prompts=np.indices((modulus,) * 2).reshape(2, -1).T,
  )


def sudoku(
  *,
  blanks: Sequence[int] = (10, 11, 12),
  pretraining_blanks: Sequence[int] = (6,),
  noise: float = 0.1,
) -> Task:
  """A 4x4 sudoku puzzle is asked, 0 at blanks; the whole grid is the answer.

  Every puzzle has one solution: the number of blanks is drawn evenly, and then
  one of all such puzzles (`puzzles.unique_puzzles`). Reward is the share of
  blanks that are filled rightly, as in the papers, whatever stands at the
  clues; `exact` wants all 16 cells. In pretraining each cell of the completion
  is replaced with probability `noise` by any of 1 to 4. `completions` are the
  288 grids.

  Args:
    blanks: Numbers of blanks in prompts, each from 1 to 12.
    pretraining_blanks: The same, in pretraining.
    noise: In [0, 1).
  """
  generated.check_share("noise", noise)
  for name, numbers in (
    ("blanks", blanks),
    ("pretraining_blanks", pretraining_blanks),
  ):
    if not len(numbers) or not all(1 <= n <= 12 for n in numbers):
      raise ValueError(f"{name} must hold numbers of 1 to 12, got {numbers}.")
  digits = np.arange(1, 5)

  def draw(numbers, uniform):
    which = generated.pick(uniform[:, 0], len(numbers))
    prompts = np.zeros((len(uniform), puzzles.NUM_CELLS), np.int32)
    for i, num_blanks in enumerate(numbers):
      grid, given = puzzles.unique_puzzles(int(num_blanks))
      rows = which == i
      index = generated.pick(uniform[rows, 1], len(grid))
      prompts[rows] = puzzles.puzzle(grid[index], given[index])
    return prompts

  def right(tokens):
    prompts = tokens[:, : puzzles.NUM_CELLS]
    solution, num_solutions = puzzles.solve(prompts)
    if (num_solutions != 1).any():
      row = int(np.argmax(num_solutions != 1))
      raise ValueError(
        "tokens must begin with puzzles that have one solution, got "
        f"{prompts[row].tolist()} with {num_solutions[row]} in row {row}."
      )
    return solution

  def reward(tokens):
    asked = tokens[:, : puzzles.NUM_CELLS] == 0
    hits = (tokens[:, puzzles.NUM_CELLS :] == right(tokens)) & asked
    return hits.sum(1) / np.maximum(asked.sum(1), 1)

  def pretraining(seed, step, batch):
    cells = puzzles.NUM_CELLS
    uniform = generated.uniform(
      (seed, step), generated.PRETRAINING, batch, 2 + 2 * cells
    )
    prompts = draw(pretraining_blanks, uniform[:, :2])
    answers = generated.noisy(right(prompts), uniform[:, 2:], noise, digits)
    return generated.join(prompts, answers)

  def log_prob(tokens):
    completion = tokens[:, puzzles.NUM_CELLS :]
    return generated.noisy_log_prob(completion, right(tokens), noise, digits)

  return generated.make(
    "sudoku",
    puzzles.NUM_CELLS,
    puzzles.NUM_CELLS,
    tuple("01234"),
    prompts=lambda seed, num: draw(
      blanks, generated.uniform(seed, generated.PROMPTS, num, 2)
    ),
    pretraining=pretraining,
    reward=reward,
    exact=lambda t: (t[:, puzzles.NUM_CELLS :] == right(t)).all(1),
    log_prob=log_prob,
    completions=lambda prompt: puzzles.grids(),
  )


def countdown(*, noise: float = 0.5) -> Task:
  """`a,b,c=ttt` is asked, an expression `x?y?z` of those numbers is right.

  Numbers are 1 to 9, operations `+ - *` with products first, targets positive;
  numbers are drawn evenly and then one of their 54 expressions that is
  positive, so that every prompt can be solved. Reward 1 where each number is
  used once and the value is the target, 0.1 for any other `digit?digit?digit`,
  else 0: the papers' rule, where an answer that cannot be read earns nothing.

  In pretraining the expression is, with probability `noise`, any of the 54, and
  else any that is right. `completions` are the different ones of the 54.
  """
  generated.check_share("noise", noise)
  symbols = "0123456789" + puzzles.OPERATIONS + ",="
  code = {symbol: i for i, symbol in enumerate(symbols)}
  separators = np.array([code[","], code[","], code["="]])

  def ask(numbers, targets):
    digits = targets[:, None] // np.array([100, 10, 1]) % 10
    prompts = np.zeros((len(numbers), 9), np.int32)
    prompts[:, 0:6:2], prompts[:, 1:6:2] = numbers, separators
    prompts[:, 6:] = digits
    return prompts

  def read(tokens):
    numbers, digits = tokens[:, 0:6:2], tokens[:, 6:9]
    good = (tokens[:, 1:6:2] == separators).all(1)
    good &= ((numbers >= 1) & (numbers <= 9)).all(1)
    good &= ((digits >= 0) & (digits <= 9)).all(1)
    if not good.all():
      row = int(np.argmin(good))
      raise ValueError(
        "tokens must begin with prompts 'a,b,c=ttt', got ids "
        f"{tokens[row, :9].tolist()} in row {row}."
      )
    return numbers, digits @ np.array([100, 10, 1])

  # All 729 triples are written out once, and looked up after that.
  triples = 1 + np.indices((9, 9, 9)).reshape(3, -1).T
  forms, values = puzzles.expressions(triples)
  forms[..., 1::2] += code["+"]

  def look_up(numbers):
    return (numbers - 1) @ np.array([81, 9, 1])

  def draw(uniform):
    numbers = 1 + generated.pick(uniform[:, :3], 9)
    triple = look_up(numbers)
    form = generated.pick_where(uniform[:, 3], values[triple] > 0)
    return numbers, values[triple, form]

  def pretraining(seed, step, batch):
    uniform = generated.uniform((seed, step), generated.PRETRAINING, batch, 6)
    numbers, targets = draw(uniform)
    triple, wild = look_up(numbers), uniform[:, 4] < noise
    allowed = (values[triple] == targets[:, None]) | wild[:, None]
    form = generated.pick_where(uniform[:, 5], allowed)
    return generated.join(ask(numbers, targets), forms[triple, form])

  def score(tokens):
    numbers, targets = read(tokens)
    answer = tokens[:, 9:]
    digits, operations = answer[:, 0::2], answer[:, 1::2] - code["+"]
    readable = ((digits >= 0) & (digits <= 9)).all(1)
    readable &= ((operations >= 0) & (operations <= 2)).all(1)
    one, two = np.where(readable[:, None], operations, 0).T
    x, y, z = digits.T
    solved = readable & (puzzles.combine(x, one, y, two, z) == targets)
    solved &= (np.sort(digits, 1) == np.sort(numbers, 1)).all(1)
    return readable, solved

  def reward(tokens):
    readable, solved = score(tokens)
    return np.where(solved, 1.0, np.where(readable, 0.1, 0.0))

  def log_prob(tokens):
    numbers, targets = read(tokens)
    triple = look_up(numbers)
    same = (forms[triple] == tokens[:, None, 9:]).all(-1)
    right = values[triple] == targets[:, None]
    hits = (same & right).sum(1) / np.maximum(right.sum(1), 1)
    return generated.log((1 - noise) * hits + noise * same.mean(1))

  def completions(prompt):
    (triple,) = look_up(read(prompt[None])[0])
    return np.unique(forms[triple], axis=0)

  row, form = np.nonzero(values > 0)
  everything = ask(triples[row], values[row, form])
  return generated.make(
    "countdown",
    9,
    5,
    tuple(symbols),
    prompts=lambda seed, num: ask(
      *draw(generated.uniform(seed, generated.PROMPTS, num, 4))
    ),
    pretraining=pretraining,
    reward=reward,
    exact=lambda tokens: score(tokens)[1],
    log_prob=log_prob,
    completions=completions,
    all_prompts=np.unique(everything, axis=0),
  )


def parity(*, length: int = 8, first: float = 0.3, stay: float = 0.8) -> Task:
  """Bits without a prompt; an even number of ones is right, and worth 1.

  Pretraining draws from a Markov chain: a one comes first with probability
  `first`, and each bit repeats the one before with probability `stay`.
  `completions` are all `2^length`.
  """
  if checks.check_int("length", length) > 20:
    raise ValueError(f"length must be at most 20, to enumerate, got {length}.")
  for name, value in (("first", first), ("stay", stay)):
    if not 0 < value < 1:
      raise ValueError(f"{name} must lie in (0, 1), got {value}.")

  def exact(tokens):
    return ((tokens == 0) | (tokens == 1)).all(1) & (tokens.sum(1) % 2 == 0)

  def pretraining(seed, step, batch):
    uniform = generated.uniform(
      (seed, step), generated.PRETRAINING, batch, length
    )
    changes = uniform >= stay
    changes[:, 0] = uniform[:, 0] < first
    return np.cumsum(changes, 1) % 2

  def log_prob(tokens):
    bits = ((tokens == 0) | (tokens == 1)).all(1)
    start = np.where(tokens[:, 0] == 1, first, 1 - first)
    same = tokens[:, 1:] == tokens[:, :-1]
    rest = np.log(np.where(same, stay, 1 - stay)).sum(1)
    return np.where(bits, np.log(start) + rest, -np.inf)

  return generated.make(
    "parity",
    0,
    length,
    ("0", "1"),
    prompts=lambda seed, num: generated.uniform(
      seed, generated.PROMPTS, num, 0
    ),
    pretraining=pretraining,
    reward=exact,
    exact=exact,
    log_prob=log_prob,
    completions=lambda prompt: np.indices((2,) * length).reshape(length, -1).T,
    all_prompts=np.zeros((1, 0)),
  )


TASKS: dict[str, Callable[..., Task]] = {
  "modular": modular,
  "sudoku": sudoku,
  "countdown": countdown,
  "parity": parity,
}
