"""Text rewards against hand-worked examples."""

import numpy as np
import pytest

from experiments.common import boxed, rewards, text

GOOD = "<reasoning>\nadd\n</reasoning>\n<answer>\n42\n</answer>\n"


def score(reward, completion, row=None):
  (value,) = reward([""], [completion], [row or {}])
  return value


# GSM8K.


@pytest.mark.parametrize(
  "completion, tags, soft, strict, integer",
  [
    (GOOD, 0.5, 0, 0.5, 0.5),
    # Two characters after the end, each counted twice.
    (GOOD + "ab", 0.496, 0, 0, 0.5),
    (GOOD + "\n", 0.498, 0, 0.5, 0.5),
    # No newline at the end: all 50 characters count in the third tag, and the
    # missing newline is a gain in the fourth.
    (GOOD[:-1], 0.5 - 0.050 + 0.001, 0, 0, 0.5),
    # '.' matches no newline: reasoning of two lines is no format.
    (GOOD.replace("add", "add\nup"), 0.5, 0, 0, 0.5),
    # On one line it is the soft format, and no tag has its line.
    ("<reasoning>x</reasoning> <answer>42</answer>", 0, 0.5, 0, 0.5),
    ("<reasoning>x</reasoning>\n\t<answer>4.2</answer>zz", 0, 0.5, 0, 0),
    # The soft format must begin the text.
    (" <reasoning>x</reasoning><answer>-4</answer>", 0, 0, 0, 0),
    ("<reasoning>x\ny</reasoning><answer>4</answer>", 0, 0, 0, 0.5),
    # A tag that stands twice does not count, nor does what it would lose.
    ("<reasoning>\n<reasoning>\n\n</reasoning>\n", 0.125, 0, 0, 0),
    ("no tags", 0, 0, 0, 0),
    ("", 0, 0, 0, 0),
    # Closed only: 3 characters less the newline that may follow.
    ("\n</answer>abc", 0.125 - 0.002, 0, 0, 0),
    # Opened only: the whole text of 13 counts.
    ("x\n<answer>\n42", 0.125 - 0.013, 0, 0, 0.5),
  ],
)
def test_gsm8k_format(completion, tags, soft, strict, integer):
  for reward, expected in (
    (rewards.gsm8k_tags, tags),
    (rewards.gsm8k_soft_format, soft),
    (rewards.gsm8k_strict_format, strict),
    (rewards.gsm8k_integer, integer),
  ):
    assert score(reward, completion) == pytest.approx(expected, abs=1e-7)


def test_gsm8k_correctness():
  row = {"answer": "6 * 7 = 42\n#### 42"}
  for completion, expected in (
    (GOOD, 2),
    (GOOD.replace("42", "42.0"), 0),
    ("<answer>1</answer><answer> 42 </answer>", 2),
    ("<answer>42", 2),
    ("42", 2),
    ("it is 42", 0),
  ):
    assert score(rewards.gsm8k_correctness, completion, row) == expected
  assert score(rewards.gsm8k_correctness, "42", {"answer": "42"}) == 2
  # 0.5 + 0 + 0.5 + 0.5 + 2; no text can be soft and strict at once.
  assert score(rewards.load("gsm8k"), GOOD, row) == pytest.approx(3.5)


# MATH.


@pytest.mark.parametrize(
  "full, expected",
  [
    (r"so $\boxed{5}$ and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
    (r"\boxed{a_{b_{c}}} }", "a_{b_{c}}"),
    (r"$\boxed 7$ then", "7"),
    (r"\boxed{1", r"\boxed{1"),
    ("no box", "no box"),
    (r"\boxed", r"\boxed"),
  ],
)
def test_boxes(full, expected):
  assert boxed.extract(full) == expected


@pytest.mark.parametrize(
  "first, second, same",
  [
    (r"\dfrac{1}{2}", r"\frac12", True),
    (r"\tfrac1{72}", r"\frac{1}{72}", True),
    ("1/2", r"\frac{1}{2}", True),
    ("0.5", r"\frac{1}{2}", True),
    (".5", "1/2", True),
    ("-3/4", r"\frac{-3}{4}", True),
    ("03/4", r"\frac{3}{4}", False),
    ("a/b", r"\frac{a}{b}", False),
    (r"\sqrt3", r"\sqrt{3}", True),
    (r"x = 5", "5", True),
    (r"xyz = 5", "5", False),
    (r"12 \text{ cm}", "12", True),
    (r"90^\circ", "90", True),
    (r"90^{\circ}", "90", True),
    (r"50\%", "50", True),
    (r"\$5", "5", True),
    (r"\left(1, 2\right)", "(1,2)", True),
    ("1\\!000", "1000", True),
    (r"{.5}", "{0.5}", True),
    ("x+1", "1+x", False),
    ("", "", True),
    (r"\frac", r"\frac", True),
    (r"\frac1", r"\frac{1}", False),
  ],
)
def test_equality_of_answers(first, second, same):
  assert boxed.equal(first, second) == boxed.equal(second, first) == same


@pytest.mark.parametrize(
  "completion, correct, style",
  [
    (r"<answer>\boxed{0.5}</answer>", 2, 1.0),
    (r"<answer>\boxed{0.4}", 0, 1.0),
    (r"<answer>1/2</answer>", 0, 0.75),
    (r"\boxed{0.4} <answer>1</answer>", 0, 0.75),
    (r"\boxed{1/2}", 2, 0.5),
    ("1/2", 2, 0.25),
    (r"<answer>a</answer> \boxed{\frac12}", 2, 0.75),
    ("", 0, 0.25),
  ],
)
def test_math(completion, correct, style):
  for answer in (r"\frac{1}{2}", r"Hence \boxed{\frac{1}{2}}."):
    row = {"answer": answer}
    assert score(rewards.math_correctness, completion, row) == correct
    assert score(rewards.math_format, completion) == style
    assert score(rewards.load("math"), completion, row) == correct + style


# Countdown.


@pytest.mark.parametrize(
  "completion, expected",
  [
    ("<answer>(3 + 5) * 2</answer>", 1),
    ("<answer>2*(5+3)\n</answer>", 1),
    ("<answer>9</answer><answer>2 * (5 - -3)</answer>", 1),
    ("<answer>(3+5)*2</answer> <answer>3</answer>", 0.1),
    ("<answer>(3 + 5) * 2 = 16</answer>", 0.1),
    ("<answer>(3 + 5 * 2</answer>", 0.1),
    ("<answer>3 + 5 + 2</answer>", 0.1),
    ("<answer>(3 + 5) * 2 * 1</answer>", 0.1),
    ("<answer>8 * 2</answer>", 0.1),
    ("<answer></answer>", 0.1),
    ("<answer>3 / (5 - 5) + 2</answer>", 0.1),
    ("(3 + 5) * 2", 0),
    ("<answer>(3 + 5) * 2", 0),
    ("", 0),
  ],
)
def test_countdown(completion, expected):
  row = {"numbers": [5, 3, 2], "target": 16}
  value = score(rewards.countdown, completion, row)
  assert value == np.float32(expected)


def test_countdown_corners():
  def value(answer, numbers, target):
    row = {"numbers": numbers, "target": target}
    return score(rewards.countdown, f"<answer>{answer}</answer>", row)

  # Python computes these, and the rules do not.
  assert value("2**3", [2, 3], 8) == np.float32(0.1)
  assert value("7//2", [7, 2], 3) == np.float32(0.1)
  assert value("7/2", [7, 2], 3.5) == 1
  # Within 1e-5, where 1/3 has no exact value.
  assert value("1/3*3*7", [1, 3, 3, 7], 7) == 1
  assert value("1/3", [1, 3], 0.33334) == 1
  assert value("1/3", [1, 3], 0.33335) == np.float32(0.1)
  # Digits count in runs: 1.5 is a 1 and a 5.
  assert value("1.5+2", [1, 5, 2], 3.5) == 1
  assert value("1.5+2", [1.5, 2], 3.5) == np.float32(0.1)
  assert value("0" * 400, [0], 0) == np.float32(0.1)


@pytest.mark.parametrize(
  "expression",
  [
    "2**3",
    "9**9**9",
    "7//2",
    "__import__('os')",
    "1if 1else 2",
    "(1)(2)",
    "1,2",
    "1e5",
    "1j",
    "...",
    "()",
    "",
    "1 2",
    "007",
    "1/0",
    "1+" * 200 + "1",
    "\u0661+1",
  ],
)
def test_what_is_no_arithmetic_has_no_value(expression):
  assert rewards.evaluate(expression) is None


def test_arithmetic_is_what_python_computes():
  assert rewards.evaluate("(" * 120 + "1" + ")" * 120) == 1
  assert rewards.evaluate(" -(+3.5)\n") == -3.5
  rng = np.random.default_rng(0)
  for _ in range(200):
    numbers = rng.integers(1, 30, 4)
    a, b, c = rng.choice(list("+-*/"), 3)
    shape = rng.choice(["({}{}{}){}({}{}{})", "{}{}({}{}-{}){}{}"])
    x, y, z, w = numbers
    expression = shape.format(x, a, y, b, z, c, w)
    if shape.startswith("{"):
      # A unary minus before the third number.
      expression = f"{x}{a}({y}{b}-{z}){c}{w}"
    try:
      expected = eval(expression)
    except ZeroDivisionError:
      expected = None
    assert rewards.evaluate(expression) == expected


# Sudoku.


@pytest.mark.parametrize(
  "answer, expected",
  [
    ("1234341221434321", 1),
    ("12 34\n34 12\n21 43\n43 21", 1),
    # At 1, 2, 14 and 15 stand the blanks.
    ("1334341221434321", 0.75),
    # Clues do not matter.
    ("9234999999999921", 1),
    # Padded with zeros, and cut.
    ("123", 0.5),
    ("12343412214343219999", 1),
    ("no digits", 0),
    ("", 0),
  ],
)
def test_sudoku(answer, expected):
  row = {"puzzle": "1004341221434300", "solution": "1234341221434321"}
  assert score(rewards.sudoku, f"<answer>{answer}</answer>", row) == expected
  assert score(rewards.sudoku, answer, row) == 0
  twice = f"<answer>x</answer><answer>{answer}</answer>"
  assert score(rewards.sudoku, twice, row) == expected


def test_sudoku_rows():
  whole = {"puzzle": "1234341221434321", "solution": "1234341221434321"}
  answer = "<answer>1234341221434321</answer>"
  assert score(rewards.sudoku, answer, whole) == 0
  with pytest.raises(ValueError, match="must be 16 characters each"):
    score(rewards.sudoku, answer, {"puzzle": "0", "solution": "1"})


# All rewards.


def test_rewards_check_what_they_are_given():
  row = {"numbers": [1], "target": 1}
  with pytest.raises(ValueError, match="as many, got 1, 2 and 1"):
    rewards.countdown([""], ["", ""], [row])
  with pytest.raises(ValueError, match="of the name 'target' in row 1"):
    rewards.countdown(["", ""], ["", ""], [row, {"numbers": [1]}])
  with pytest.raises(TypeError, match="completions must be strings"):
    rewards.countdown([""], [3], [row])
  with pytest.raises(ValueError, match="one of gsm8k, math, .*got 'gsm'"):
    rewards.load("gsm")
  with pytest.raises(ValueError, match="takes no options"):
    rewards.load("gsm8k", num_workers=2)
  values = rewards.gsm8k(["", ""], [GOOD, ""], [{"answer": "1"}] * 2)
  assert values.dtype == np.float32 and values.shape == (2,)
  for name in rewards.NAMES:
    empty = rewards.load(name)([], [], [])
    assert empty.shape == (0,) and empty.dtype == np.float32
  assert set(rewards.NAMES) == set(text.FIELDS)
