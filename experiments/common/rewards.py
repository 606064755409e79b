r"""Rewards of the papers' text tasks, by rules: GSM8K, MATH, and others.

Every reward is `(prompts, completions, rows) -> [B] float32`, rows being those
of `text.read`; prompts are not looked at. The rules are the ones released with
d1 and used by GDPO and DMPO, odd corners included, and each docstring states
them. They differ in two places on purpose: countdown expressions are computed
by a small evaluator and not by `eval`, so `**` and `//` are no operations, and
programs run in `sandbox`.

Source:
  Zhao et al., "d1: Scaling Reasoning in Diffusion Large Language Models via
  Reinforcement Learning" (2025); Rojas et al., "Improving Reasoning for
  Diffusion Language Models via Group Diffusion Policy Optimization" (ICLR
  2026), same rewards.
"""

import ast
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.common import boxed, sandbox

Row = dict[str, Any]
Reward = Callable[[Sequence[str], Sequence[str], Sequence[Row]], np.ndarray]

MAX_EXPRESSION = 256
"""Longer countdown answers are not computed."""


def per_row(*fields: str) -> Callable[[Callable[..., float]], Reward]:
  """Makes a reward from `score(completion, row) -> float`.

  Args:
    *fields: What each row must hold.
  """

  def wrap(score):
    @functools.wraps(score)
    def reward(prompts, completions, rows):
      check_rows(prompts, completions, rows, fields)
      pairs = zip(completions, rows, strict=True)
      return np.array([score(*pair) for pair in pairs], np.float32)

    return reward

  return wrap


def check_rows(
  prompts: Sequence[str],
  completions: Sequence[str],
  rows: Sequence[Row],
  fields: Sequence[str],
) -> None:
  """Raises unless there are as many of each, and rows hold the fields."""
  if not len(prompts) == len(completions) == len(rows):
    raise ValueError(
      "prompts, completions and rows must be as many, got "
      f"{len(prompts)}, {len(completions)} and {len(rows)}."
    )
  for i, (completion, row) in enumerate(zip(completions, rows, strict=True)):
    if not isinstance(completion, str):
      raise TypeError(
        f"completions must be strings, got {type(completion).__name__} at {i}."
      )
    missing = [field for field in fields if field not in row]
    if missing:
      raise ValueError(
        f"rows must hold {', '.join(fields)}, got none of the name "
        f"{missing[0]!r} in row {i}."
      )


def total(*parts: Reward) -> Reward:
  """The sum of several rewards."""

  def reward(prompts, completions, rows):
    scores = [part(prompts, completions, rows) for part in parts]
    return np.sum(scores, 0, dtype=np.float32)

  return reward


def last_answer(completion: str) -> str | None:
  """What the last `<answer>...</answer>` holds, stripped, or None."""
  found = re.findall(r"<answer>(.*?)</answer>", completion, re.DOTALL)
  return found[-1].strip() if found else None


def _tagged(completion: str) -> str:
  # What GSM8K calls the answer: without tags, all of the text.
  return completion.split("<answer>")[-1].split("</answer>")[0].strip()


@per_row()
def gsm8k_tags(completion, row):
  r"""0.125 for each of four tags that stands once, on its own line; xmlcount.

  They are `<reasoning>\n`, `\n</reasoning>\n`, `\n<answer>\n` and
  `\n</answer>`. The third loses 0.001 for each character after the last
  `\n</answer>\n`, hence for all of the text where there is none, and the fourth
  0.001 for each after the last `\n</answer>` but one, the newline; with no
  newline there that is a gain of 0.001. So a character after well-formed tags
  costs 0.002 in all.
  """
  del row
  score = 0.125 * (completion.count("<reasoning>\n") == 1)
  score += 0.125 * (completion.count("\n</reasoning>\n") == 1)
  if completion.count("\n<answer>\n") == 1:
    score += 0.125 - 0.001 * len(completion.split("\n</answer>\n")[-1])
  if completion.count("\n</answer>") == 1:
    score += 0.125 - 0.001 * (len(completion.split("\n</answer>")[-1]) - 1)
  return score


@per_row()
def gsm8k_soft_format(completion, row):
  """0.5 if the text begins with reasoning and then an answer, both tagged.

  Neither may hold a newline: `.` does not match one, which a later release of
  the rules changed. Blanks of any kind may stand between the two.
  """
  del row
  pattern = r"<reasoning>.*?</reasoning>\s*<answer>.*?</answer>"
  return 0.5 * bool(re.match(pattern, completion))


@per_row()
def gsm8k_strict_format(completion, row):
  r"""0.5 if the whole text is the two tagged parts, each tag on its own line.

  Between the tags of a part stands one line, as `.` does not match a newline.
  The text ends with `</answer>\n`, or with one more newline.
  """
  del row
  pattern = r"^<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n$"
  return 0.5 * bool(re.match(pattern, completion))


@per_row()
def gsm8k_integer(completion, row):
  """0.5 if the answer is digits alone, so neither signed nor with commas."""
  del row
  return 0.5 * _tagged(completion).isdigit()


@per_row("answer")
def gsm8k_correctness(completion, row):
  """2 if the answer is the row's, as a string.

  The answer is what follows the last `<answer>` up to a closing tag, stripped:
  all of the text where there are no tags. Of the row's answer only what follows
  `####` counts, where that stands.
  """
  answer = row["answer"].split("####")[-1].strip()
  return 2.0 * (_tagged(completion) == answer)


gsm8k = total(
  gsm8k_tags,
  gsm8k_soft_format,
  gsm8k_strict_format,
  gsm8k_integer,
  gsm8k_correctness,
)
"""All five; 3.5 at most, as no text meets both formats."""


@per_row("answer")
def math_correctness(completion, row):
  """2 if the last box holds the row's answer, as `boxed.equal` has it.

  The row's answer may itself be boxed, in a whole solution. A completion
  without a box is compared whole.
  """
  answer, expected = (boxed.extract(x) for x in (completion, row["answer"]))
  return 2.0 * boxed.equal(answer, expected)


@per_row()
def math_format(completion, row):
  r"""0.5 (tag + box), with tag 1 or 0, and box 1 or 0.5; so 0.25 at least.

  The tag is an `<answer>`, closed or not, and the box a `\boxed` between it and
  the next closing tag; without the tag, anywhere. (The released rule spells the
  box with an escape that no text holds, so there it is never found.)
  """
  del row
  head, tag, rest = completion.partition("<answer>")
  part = rest.split("<answer>")[0].split("</answer>")[0] if tag else head
  return 0.5 * (bool(tag) + (1.0 if boxed.BOX in part else 0.5))


math = total(math_correctness, math_format)
"""Both; 3 at most."""


def evaluate(expression: str) -> float | None:
  """Value of a sum, difference, product or quotient; None if it is none.

  Digits, `+ - * / ( ) .` and blanks alone, at most `MAX_EXPRESSION` of them,
  and no `**` nor `//`. Nothing is handed to `eval`.
  """
  if len(expression) > MAX_EXPRESSION or not re.fullmatch(
    r"[0-9+\-*/().\s]+", expression
  ):
    return None
  try:
    return _value(ast.parse(expression.strip(), mode="eval").body)
  except (
    ArithmeticError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
  ):
    return None


def _value(node: ast.AST) -> float:
  match node:
    case ast.Constant(value=int() | float() as number):
      return number
    case ast.UnaryOp(op=ast.UAdd(), operand=x):
      return _value(x)
    case ast.UnaryOp(op=ast.USub(), operand=x):
      return -_value(x)
    case ast.BinOp(left=x, op=ast.Add(), right=y):
      return _value(x) + _value(y)
    case ast.BinOp(left=x, op=ast.Sub(), right=y):
      return _value(x) - _value(y)
    case ast.BinOp(left=x, op=ast.Mult(), right=y):
      return _value(x) * _value(y)
    case ast.BinOp(left=x, op=ast.Div(), right=y):
      return _value(x) / _value(y)
  raise ValueError(f"{type(node).__name__} is no arithmetic.")


@per_row("numbers", "target")
def countdown(completion, row):
  """1 for an expression that gives the target, 0.1 for another answer, else 0.

  The answer is in the last pair of answer tags; without one the reward is 0.
  Its whole numbers (runs of digits, so `1.5` is a 1 and a 5) must be the row's,
  each as often, and its value within 1e-5 of the target.
  """
  answer = last_answer(completion)
  if answer is None:
    return 0.0
  if len(answer) > MAX_EXPRESSION:
    return 0.1
  used = [int(number) for number in re.findall(r"[0-9]+", answer)]
  if sorted(used) != sorted(row["numbers"]):
    return 0.1
  value = evaluate(answer)
  try:
    close = value is not None and abs(value - row["target"]) < 1e-5
  except OverflowError:
    close = False
  return 1.0 if close else 0.1


@per_row("puzzle", "solution")
def sudoku(completion, row):
  """The share of the puzzle's blanks that the answer fills rightly, in [0, 1].

  The answer is the digits, in order, in the last pair of answer tags, padded
  with zeros or cut to 16. 0 without tags or digits. What it writes at the clues
  does not matter.

  Raises:
    ValueError: If puzzle and solution are not 16 characters each.
  """
  puzzle, solution = row["puzzle"], row["solution"]
  if not len(puzzle) == len(solution) == 16:
    raise ValueError(
      "puzzle and solution must be 16 characters each, got "
      f"{puzzle!r} and {solution!r}."
    )
  digits = "".join(filter(str.isdigit, last_answer(completion) or ""))
  blanks = [i for i in range(16) if puzzle[i] == "0"]
  if not digits or not blanks:
    return 0.0
  digits = digits[:16].ljust(16, "0")
  return sum(digits[i] == solution[i] for i in blanks) / len(blanks)


def first_program(completion: str) -> str | None:
  """The first fenced Python block, or None."""
  found = re.search(r"```python\n(.*?)```", completion, re.DOTALL)
  return found[1] if found else None


@per_row()
def code_format(completion, row):
  """0.5 if the first Python block stands in the first pair of answer tags."""
  del row
  answer = re.search(r"<answer>(.*?)</answer>", completion, re.DOTALL)
  program = first_program(completion)
  if not program or not answer:
    return 0.0
  return 0.5 * (f"```python\n{program}```" in answer[1])


def job(completion: str, row: Row) -> tuple[str, list[str]] | None:
  """The program to run for a completion, and its tests; None without one.

  HumanEval rows (`prompt`, `test`, `entry_point`) have their prompt put before
  the program, which may be a function or the rest of the one asked for, and
  one test. MBPP rows have `test_list` and perhaps `test_setup_code` (or the
  lines `test_imports`).

  Raises:
    ValueError: If the row is neither.
  """
  program = first_program(completion)
  if "test_list" in row:
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports", ()))
    tests = list(row["test_list"])
    whole = f"{setup}\n{program}"
  elif {"prompt", "test", "entry_point"} <= set(row):
    tests = [f"{row['test']}\ncheck({row['entry_point']})\n"]
    whole = f"{row['prompt']}\n{program}"
  else:
    raise ValueError(
      "rows must hold test_list, or prompt, test and entry_point, got "
      f"{sorted(row)}."
    )
  return (whole, tests) if program else None


def code_tests(
  *, limits: sandbox.Limits | None = None, num_workers: int | None = None
) -> Reward:
  """The share of a row's tests that the first Python block passes, in [0, 1].

  0 without a block, or if it does not run. Differs from the released rule:
  functions of another name than the tests' are not renamed, and no word is
  forbidden in programs, as `sandbox` is what limits them.

  Args:
    limits: For each process.
    num_workers: Programs run at a time; by default one for each CPU.
  """

  def reward(prompts, completions, rows):
    check_rows(prompts, completions, rows, ())
    jobs = [job(*pair) for pair in zip(completions, rows, strict=True)]
    scores = np.zeros(len(jobs), np.float32)
    with_program = [i for i, found in enumerate(jobs) if found]
    results = sandbox.run_all(
      [jobs[i] for i in with_program], limits=limits, num_workers=num_workers
    )
    for i, result in zip(with_program, results, strict=True):
      scores[i] = result.passed.mean() if len(result.passed) else 0
    return scores

  return reward


def load(name: str, **options: Any) -> Reward:
  """A task's whole reward by name: one of `NAMES`.

  Args:
    name: Which task.
    **options: Of `code_tests`, for the tasks that run programs.

  Raises:
    ValueError: If there is no such task, or it takes no options.
  """
  rules = {"gsm8k": gsm8k, "math": math, "countdown": countdown}
  rules["sudoku"] = sudoku
  if name in ("mbpp", "humaneval"):
    return total(code_format, code_tests(**options))
  if name not in rules:
    raise ValueError(f"task must be one of {', '.join(NAMES)}, got {name!r}.")
  if options:
    raise ValueError(f"task {name!r} takes no options, got {options}.")
  return rules[name]


NAMES = ("gsm8k", "math", "countdown", "sudoku", "mbpp", "humaneval")
