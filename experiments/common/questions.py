r"""The papers' text tasks as canvases of tokens: prompts, and what they earn.

GSM8K, MATH, countdown and 4x4 sudoku, asked in the words of d1 and scored by
its rules (`rewards`), for models of LLaDA's kind. Rows are the user's own JSON
lines, or are made up here from a fixed seed; nothing is downloaded. A canvas is
a prompt, filled to the left, and a completion, filled to the right.

The code tasks are left out.

Source:
  Zhao et al., "d1: Scaling Reasoning in Diffusion Large Language Models via
  Reinforcement Learning" (2025), prompts of the released trainer; the same in
  GDPO (ICLR 2026) and DMPO.
"""

import fractions
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.common import boxed, generated, puzzles, rewards, text
from experiments.common import tokenizer as tokenizer_lib
from jdiff.core import checks

Row = dict[str, Any]

NAMES = ("gsm8k", "math", "countdown", "sudoku")

SYSTEM_PROMPT = (
  "\nRespond in the following format:\n<reasoning>\n...\n</reasoning>\n"
  "<answer>\n...\n</answer>\n"
)
_PAPER = {
  "gsm8k": SYSTEM_PROMPT + "\n\n%(question)s",
  "math": SYSTEM_PROMPT
  + "\n\nYou are a math expert. You will be given a question to solve. Solve "
  "it step by step. Wrap the final answer in a \\boxed{}. \n\n%(problem)s",
  "countdown": SYSTEM_PROMPT
  + "\nUsing only the numbers %(numbers)s, create an arithmetic expression "
  "that evaluates to exactly %(target)s. You must use all numbers from the "
  "list, and each number must be used exactly once. You may use the operations "
  "+, -, *, and / as needed. After reasoning, provide only your final "
  "expression inside <answer></answer> tags without including an equals sign "
  "or the target number. For example, if the numbers are [2, 3, 4] and the "
  "target is 5, a valid answer is: <answer>\n2*4-3\n</answer>",
  "sudoku": "\nPlease solve the following 4x4 Sudoku puzzle. The puzzle is "
  "provided as a 16-character string reading left-to-right, top-to-bottom, "
  "where '0' represents empty cells.\n\nRules:\n"
  "- Fill empty cells with digits 1-4\n"
  "- Each row must contain digits 1-4 exactly once\n"
  "- Each column must contain digits 1-4 exactly once\n"
  "- Each 2x2 box must contain digits 1-4 exactly once\n\n"
  "Important: Your solution must be a COMPLETE 16-character string with only "
  "the digits 1-4, representing your final solved grid.\n\n"
  "Respond in this exact format:\n<reasoning>\nYour step-by-step solving "
  "process\n</reasoning>\n<answer>\n[16-character solution string with no "
  "spaces or separators]\n</answer>\n\n\n"
  "Solve the following Sudoku puzzle: %(puzzle)s\n",
}
_SHORT = {
  "gsm8k": "%(question)s",
  "math": "%(problem)s",
  "countdown": "Make %(target)s of %(numbers)s.",
  "sudoku": "%(puzzle)s",
}
STYLES = {"paper": _PAPER, "short": _SHORT}
"""What `ask` says, by style and task."""

MAX_NUMBER, MAX_TARGET = 10**6, 10**15
"""In size, in countdown: products of three numbers stay below 2^63."""


class Questions(NamedTuple):
  """Prompts of text, completions, and what they are worth; see `load`.

  Stands for a `generated.Task` whose law is not known: `log_prob`,
  `completions` and `all_prompts` are None. The mask is in the vocabulary.

  Attributes:
    name: One of `NAMES`.
    tokenizer: Of prompts and completions.
    num_prompt: P.
    num_completion: L.
    prompts: `(seed, num) -> [num, P]` int32. A seed `(..., step)` goes on where
      the step before, of as many prompts, has ended, through all rows in an
      order that each pass draws anew; a single integer is a seed at step 0.
    held_out_prompts: `(num) -> [min(num, those there are), P]`, no others'.
    pretraining: `(seed, step, batch) -> [batch, P + L]`: each a question of
      `prompts` and a right answer, in the tags that are asked for.
    held_out: `(num) -> [min(num, those there are), P + L]`: the same, of the
      questions held out.
    reward: `(tokens [B, P + any]) -> [B]` float32, the paper's.
    exact: `(tokens [B, P + any]) -> [B]` bool, the paper's accuracy: the answer
      is right, whatever the format.
  """

  name: str
  tokenizer: tokenizer_lib.Tokenizer
  num_prompt: int
  num_completion: int
  prompts: Callable[[generated.Seed, int], np.ndarray]
  held_out_prompts: Callable[[int], np.ndarray]
  pretraining: Callable[[int, int, int], np.ndarray]
  held_out: Callable[[int], np.ndarray]
  reward: Callable[[np.ndarray], np.ndarray]
  exact: Callable[[np.ndarray], np.ndarray]
  log_prob: None = None
  completions: None = None
  all_prompts: None = None
  binary: bool = False

  @property
  def length(self) -> int:
    """Tokens on the canvas, P + L."""
    return self.num_prompt + self.num_completion

  @property
  def vocab(self) -> range:
    """The ids, which are many and have no names to be printed by."""
    return range(self.tokenizer.vocab_size)

  @property
  def mask_id(self) -> int:
    """The tokenizer's, inside the vocabulary."""
    return self.tokenizer.mask_id

  def decode(self, tokens: np.ndarray) -> str:
    """One canvas as text: all of the prompt, the completion up to its end."""
    checks.check_shape("tokens", tokens, (None,))
    prompt, completion = np.split(np.asarray(tokens), [self.num_prompt])
    start = np.argmax(prompt != self.tokenizer.pad_id)
    asked = self.tokenizer.decode(prompt[start:], whole=True)
    return asked + self.tokenizer.decode(completion)


def load(
  name: str,
  tokenizer: tokenizer_lib.Tokenizer,
  *,
  path: str = "",
  eval_path: str = "",
  num_prompt: int = 256,
  num_completion: int = 256,
  num_test: int = 500,
  style: str = "paper",
  num_generated: int = 4096,
  truncate: bool = False,
) -> Questions:
  """A text task of rows that each count once, and are held out or trained on.

  Args:
    name: One of `NAMES`.
    tokenizer: Of the model.
    path: JSON lines as `text.read` wants them; by default rows of `generate`.
    eval_path: JSON lines that are held out; by default `num_test` of the rows.
    num_prompt: Tokens of a prompt; 200 in the released trainers.
    num_completion: Tokens of a completion; 256 in the papers.
    num_test: Rows held out where there is no `eval_path`.
    style: `"paper"`, or `"short"` for the question alone, for small models.
    num_generated: Rows to make where there is no `path`.
    truncate: Keep the last `num_prompt` tokens of longer prompts, as the
      released trainers do, and do not raise.

  Raises:
    ValueError: If an argument or a row will not do, a prompt is too long, or
      rows with equal prompts have different answers.
    FileNotFoundError: If there is no such file.
  """
  check(name, num_prompt, num_completion)
  table: dict[bytes, Row] = {}

  def read(source: str) -> list[bytes]:
    """Prompts of a file, each once, in its order; their rows are in `table`."""
    rows = text.read(name, source) if source else generate(name, num_generated)
    keys = []
    for i, row in enumerate(rows):
      place = f"row {i} of {source or 'what is generated'}"
      _check_row(name, row, tokenizer, place)
      ids = tokenizer.encode(tokenizer.chat(ask(name, row, style)))
      if len(ids) > num_prompt and not truncate:
        raise ValueError(
          f"prompts must be at most num_prompt = {num_prompt} tokens long, got "
          f"{len(ids)} in {place}; pass a larger num_prompt, or truncate=True "
          "to keep the end."
        )
      pad = np.full(num_prompt, tokenizer.pad_id, np.int32)
      key = np.concatenate([pad, ids])[-num_prompt:].tobytes()
      known = table.setdefault(key, row)
      for field in text.FIELDS[name]:
        if known[field] != row[field]:
          raise ValueError(
            f"rows with equal prompts must be equal, got {field} "
            f"{row[field]!r} in {place}, and {known[field]!r} before."
          )
      keys.append(key)
    return list(dict.fromkeys(keys))

  if eval_path:
    test = read(eval_path)
    train = [*dict.fromkeys(test + read(path))][len(test) :]
    if not train:
      raise ValueError(f"path must hold rows that {eval_path} does not.")
  else:
    train, test = text.hold_out(read(path), num_test)

  @functools.lru_cache(maxsize=4)
  def order(run: tuple[int, ...], epoch: int) -> np.ndarray:
    seed = (*run, epoch)
    noise = generated.uniform(seed, generated.PROMPTS, len(train), 1)
    return np.argsort(noise[:, 0], kind="stable")

  def prompts(seed: generated.Seed, num: int) -> np.ndarray:
    run = (seed,) if np.ndim(seed) == 0 else tuple(seed)
    run, step = (run[:-1], run[-1]) if len(run) > 1 else (run, 0)
    checks.check_int("num", num, 0)
    place = checks.check_int("step", step, 0) * num
    where = [divmod(i, len(train)) for i in range(place, place + num)]
    return stack([train[order(run, epoch)[i]] for epoch, i in where])

  def stack(keys: Sequence[bytes]) -> np.ndarray:
    flat = np.frombuffer(b"".join(keys), np.int32)
    return flat.reshape(len(keys), num_prompt).copy()

  @functools.cache
  def answered(is_test: bool) -> list[tuple[bytes, np.ndarray]]:
    """Prompts, and right answers to them that fit."""
    keys = test if is_test else train
    texts = {key: answer(name, table[key]) for key in keys}
    ids = {k: tokenizer.encode(t) for k, t in texts.items() if t}
    found = [pair for pair in ids.items() if len(pair[1]) < num_completion]
    if not found:
      shortest = min((len(x) + 1 for x in ids.values()), default="none")
      raise ValueError(
        "pretraining needs answers that are known and, with their end, at most "
        f"num_completion = {num_completion} tokens long; of {len(keys)} rows "
        f"{len(ids)} have one, the shortest of {shortest}."
      )
    return found

  def canvases(pairs: Sequence[tuple[bytes, np.ndarray]]) -> np.ndarray:
    shape = (len(pairs), num_completion)
    completions = np.full(shape, tokenizer.eos_id, np.int32)
    for row, (_, ids) in zip(completions, pairs, strict=True):
      row[: len(ids) + 1] = [*ids, tokenizer.end_id]
    return generated.join(stack([key for key, _ in pairs]), completions)

  def pretraining(seed: int, step: int, batch: int) -> np.ndarray:
    pairs = answered(False)
    noise = generated.uniform((seed, step), generated.PRETRAINING, batch, 1)
    index = generated.pick(noise[:, 0], len(pairs))
    return canvases([pairs[i] for i in index])

  def scored(rule: rewards.Reward, tokens: np.ndarray) -> np.ndarray:
    tokens = np.asarray(tokens)
    if tokens.dtype.kind not in "iu":
      raise TypeError(f"tokens must be integers, got dtype {tokens.dtype}.")
    checks.check_shape("tokens", tokens, (None, None))
    rows = []
    for i, prompt in enumerate(tokens[:, :num_prompt].astype(np.int32)):
      key = prompt.tobytes()
      if key not in table:
        raise ValueError(
          f"tokens must begin with prompts of {name!r} as they are loaded, got "
          f"another in row {i}: {tokenizer.decode(prompt, whole=True)!r}."
        )
      rows.append(table[key])
    texts = [tokenizer.decode(x) for x in tokens[:, num_prompt:]]
    return rule([""] * len(texts), texts, rows)

  return Questions(
    name,
    tokenizer,
    num_prompt,
    num_completion,
    prompts=prompts,
    held_out_prompts=lambda num: stack(test[: checks.check_int("num", num, 0)]),
    pretraining=pretraining,
    held_out=lambda num: canvases(
      answered(True)[: checks.check_int("num", num, 0)]
    ),
    reward=functools.partial(scored, rewards.load(name)),
    exact=lambda tokens: scored(_CORRECT[name], tokens) >= 1,
  )


_CORRECT = {
  "gsm8k": rewards.gsm8k_correctness,
  "math": rewards.math_correctness,
  "countdown": rewards.countdown,
  "sudoku": rewards.sudoku,
}
"""At least 1 where the answer is right, and less elsewhere."""


def check(name: str, num_prompt: int, num_completion: int) -> None:
  """Raises a `ValueError` unless they name a task and its sizes."""
  if name not in NAMES:
    raise ValueError(f"task must be one of {', '.join(NAMES)}, got {name!r}.")
  checks.check_int("num_prompt", num_prompt)
  checks.check_int("num_completion", num_completion)


def ask(name: str, row: Row, style: str = "paper") -> str:
  """What the user says: the papers' words, or the question alone.

  Raises:
    ValueError: If there is no such style.
  """
  if style not in STYLES:
    raise ValueError(f"style must be paper or short, got {style!r}.")
  return STYLES[style][name] % row


def answer(name: str, row: Row) -> str:
  """A completion that is right, in the tags asked for; empty if none is known.

  What the row tells of the way there is the reasoning, and else it is an
  ellipsis. A last newline ends the text, as in the prompt: without it GSM8K's
  rules take points off. What fails `exact` of its own row is not known.
  """
  reasoning: Any = ""
  if name == "gsm8k":
    reasoning, _, found = row["answer"].rpartition("####")
  elif name == "math":
    solved = boxed.BOX in row["answer"]
    reasoning = row["answer"] if solved else row.get("solution")
    found = f"{boxed.BOX}{{{boxed.extract(row['answer'])}}}"
  elif name == "countdown":
    found = puzzles.make(row["numbers"], row["target"]) or ""
  else:
    found = row["solution"]
  reasoning = reasoning.strip() if isinstance(reasoning, str) else ""
  completion = (
    f"<reasoning>\n{reasoning or '...'}\n</reasoning>\n"
    f"<answer>\n{found.strip()}\n</answer>\n"
  )
  return completion if _CORRECT[name]([""], [completion], [row]) >= 1 else ""


def _check_row(
  name: str, row: Row, tokenizer: tokenizer_lib.Tokenizer, place: str
) -> None:
  """Raises if a row cannot be asked, or all or nothing is right for it."""
  for special in tokenizer.special:
    if special in str(row):
      raise ValueError(
        f"rows must hold no special token, got {special} in {place}."
      )
  if name == "countdown":
    numbers, target = row["numbers"], row["target"]
    good = all(type(x) is int and 0 <= x <= MAX_NUMBER for x in numbers)
    if not (numbers and good and abs(target) <= MAX_TARGET):
      raise ValueError(
        f"numbers must be whole ones from 0 to {MAX_NUMBER}, and target at "
        f"most {MAX_TARGET} in size, got {numbers} and {target} in {place}."
      )
  elif name == "sudoku":
    puzzle, solution = row["puzzle"], row["solution"]
    good = len(puzzle) == len(solution) == puzzles.NUM_CELLS
    good = good and "0" in puzzle and set(solution) <= set("1234")
    same = (x in ("0", y) for x, y in zip(puzzle, solution, strict=False))
    if not (good and all(same)):
      raise ValueError(
        "puzzle must be 16 digits, 0 at one blank or more, and solution the "
        "same with 1 to 4 at the blanks, got "
        f"{puzzle!r} and {solution!r} in {place}."
      )
  else:
    given = row["answer"]
    value = given.split("####")[-1].strip()
    if name == "math":
      value = boxed.normalise(boxed.extract(given))
    # An empty completion would be right.
    if not value:
      raise ValueError(f"answer must not be blank, got {given!r} in {place}.")


_WHO = ("Ada", "Bruno", "Chen", "Dina", "Emil", "Farah")
_WHAT = ("pears", "beads", "shells", "stamps", "marbles", "buttons")
_STORIES = """
{a} * {b} + {c}: {who} has {a} bags of {b} {what}, and {c} more. How many?
{q} - {a} + {c}: {who} had {q} {what}, lost {a} and found {c}. How many now?
{q} - {b} * {a}: {who} buys {b} {what} at {a} each from {q} coins. What is left?
{p} / {b} + {c}: {b} bowls share {p} {what}. One gets {c} more. How many in it?
"""


def generate(name: str, num: int) -> list[Row]:
  """Rows of a task that are made up, each once; the same ones at each call.

  GSM8K's are stories of two operations, and MATH's equations, fractions and
  remainders, with numbers of 3 to 20. Countdown has three numbers of 1 to 9 and
  a positive value of one of `puzzles.expressions`, and sudoku puzzles have 4 to
  12 blanks and one solution.

  Raises:
    ValueError: If there are not so many.
  """
  checks.check_int("num_generated", num)
  rng = np.random.default_rng(0)
  rows: dict[str, Row] = {}
  misses = 0
  while len(rows) < num:
    row = _MAKERS[name](rng)
    question = ask(name, row, "short")
    misses = misses + 1 if question in rows else 0
    rows.setdefault(question, row)
    # After so many in vain there are all but surely no more.
    if misses > 1000 + 10 * len(rows):
      raise ValueError(
        f"num_generated must be at most what there is of {name!r}, got {num}, "
        f"and {len(rows)} were found."
      )
  return list(rows.values())


def _gsm8k(rng: np.random.Generator) -> Row:
  stories = _STORIES.strip().splitlines()
  way, story = stories[rng.integers(len(stories))].split(": ")
  a, b, c = rng.integers(3, 21, 3).tolist()
  parts = {"a": a, "b": b, "c": c, "p": a * b, "q": a * b + c}
  parts["who"] = _WHO[rng.integers(len(_WHO))]
  parts["what"] = _WHAT[rng.integers(len(_WHAT))]
  way = way.format(**parts)
  value = int(rewards.evaluate(way))
  question = story.format(**parts)
  return {"question": question, "answer": f"{way} = {value}\n#### {value}"}


def _math(rng: np.random.Generator) -> Row:
  a, b, c = rng.integers(3, 21, 3).tolist()
  total = fractions.Fraction(1, a) + fractions.Fraction(1, b)
  options = (
    (f"Solve ${a}x + {b} = {a * c + b}$ for $x$.", f"{c}"),
    (
      f"Write $\\frac{{1}}{{{a}}} + \\frac{{1}}{{{b}}}$ in lowest terms.",
      f"\\frac{{{total.numerator}}}{{{total.denominator}}}",
    ),
    (f"What is the remainder of {a * b + c} divided by {a}?", f"{c % a}"),
    (f"If $x + y = {a + b}$ and $x - y = {a - b}$, what is $x$?", f"{a}"),
  )
  problem, value = options[rng.integers(len(options))]
  return {"problem": problem, "answer": value}


def _countdown(rng: np.random.Generator) -> Row:
  numbers = rng.integers(1, 10, 3)
  _, values = puzzles.expressions(numbers)
  target = rng.choice(values[values > 0])
  return {"numbers": numbers.tolist(), "target": int(target)}


def _sudoku(rng: np.random.Generator) -> Row:
  grid, given = puzzles.unique_puzzles(int(rng.choice((4, 6, 8, 10, 12))))
  which = rng.integers(len(grid), size=1)
  asked = puzzles.puzzle(grid[which], given[which])[0].tolist()
  solution = puzzles.grids()[grid[which[0]]].tolist()
  return {
    "puzzle": "".join(map(str, asked)),
    "solution": "".join(map(str, solution)),
  }


_MAKERS = dict(zip(NAMES, (_gsm8k, _math, _countdown, _sudoku), strict=True))
