"""The papers' text tasks on canvases: words, padding, rewards, made-up rows."""

import fractions
import hashlib
import json
import math
import re

import numpy as np
import pytest

from experiments.common import puzzles, questions
from experiments.common import tokenizer as tokenizer_lib

pytest.importorskip("tokenizers", exc_type=ImportError)

NAMES = questions.NAMES
MAXIMUM = {"gsm8k": 3.5, "math": 3.0, "countdown": 1.0, "sudoku": 1.0}
SMALL = dict(
  style="short",
  num_prompt=160,
  num_completion=96,
  num_test=16,
  num_generated=64,
)
ROWS = {
  "gsm8k": {"question": "1 + 1?", "answer": "It is two.\n#### 2"},
  "math": {"problem": "Half of $x$?", "answer": "So \\boxed{\\frac{x}{2}}."},
  "countdown": {"numbers": [3, 4, 28], "target": 4},
  "sudoku": {"puzzle": "1234341221434300", "solution": "1234341221434321"},
}


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizer_lib.byte_level()


@pytest.fixture(scope="module")
def made(tokenizer):
  return {name: questions.load(name, tokenizer, **SMALL) for name in NAMES}


def write(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def load(tokenizer, tmp_path, name, *rows, **options):
  """Of a file of rows, and another one, of the task's own, that is held out."""
  path = write(tmp_path / "train.jsonl", *rows)
  eval_path = write(tmp_path / "test.jsonl", ROWS[name])
  options = {"eval_path": eval_path, **SMALL, **options}
  return questions.load(name, tokenizer, path=path, **options)


def asked(task, row):
  """What a canvas asks, its template taken off."""
  prompt = row[: task.num_prompt]
  prompt = prompt[prompt != task.tokenizer.pad_id]
  text = task.tokenizer.decode(prompt, whole=True)
  head, said = text.split("user<|end_header_id|>\n\n")
  said, tail = said.split("<|eot_id|>")
  assert task.tokenizer.chat(said) == text and head and tail
  return said


def canvas(task, prompt, text):
  ids = task.tokenizer.encode(text)
  fill = np.full(task.num_completion, task.tokenizer.eos_id)
  fill[: len(ids)] = ids
  return np.concatenate([prompt, fill])[None]


WORDS = "25ed886f2b2a29062304f465f7789b5b2e445e259a2d41ae80ad33bd05ee91e7"
"""SHA-256 of all that is asked for the row below: no word changes unseen."""


def test_the_words_of_the_papers():
  row = {"question": "Q %s {x}", "problem": "P", "puzzle": "0123" * 4}
  row |= {"numbers": [30, 7, 2], "target": 9}
  words = "".join(questions.ask(name, row) for name in NAMES)
  assert hashlib.sha256(words.encode()).hexdigest() == WORDS
  assert words.startswith(
    "\nRespond in the following format:\n<reasoning>\n...\n</reasoning>\n"
    "<answer>\n...\n</answer>\n\n\nQ %s {x}\nRespond in"
  )
  for part in ("a \\boxed{}. \n\nP\n", "only the numbers [30, 7, 2], create"):
    assert part in words
  with pytest.raises(ValueError, match="style must be paper or short, got 'x'"):
    questions.ask("sudoku", row, "x")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("style", ["paper", "short"])
def test_prompts_are_filled_to_the_left(tokenizer, tmp_path, name, style):
  rows = questions.generate(name, 5)
  options = {"style": style, "num_prompt": 800, "num_completion": 96}
  task = load(tokenizer, tmp_path, name, *rows, **options)
  expected = {questions.ask(name, row, style).strip() for row in rows}
  prompts = task.prompts(0, 5)
  assert prompts.shape == (5, 800) and prompts.dtype == np.int32
  assert {asked(task, prompt) for prompt in prompts} == expected
  for prompt in prompts:
    start = np.argmax(prompt != tokenizer.pad_id)
    assert start > 0 and (prompt[start:] != tokenizer.pad_id).all()
  (held,) = task.held_out_prompts(9)
  assert asked(task, held) == questions.ask(name, ROWS[name], style).strip()


def test_the_record(made, tokenizer):
  task = made["gsm8k"]
  assert (task.length, len(task.vocab), task.mask_id) == (256, 262, 258)
  assert task.log_prob is task.completions is task.all_prompts is None
  assert not task.binary and task.name == "gsm8k"
  prompt = task.prompts(0, 1)[0]
  row = canvas(task, prompt, "a<|mdm_mask|>b<|eot_id|>c")[0]
  assert task.decode(row) == tokenizer.chat(asked(task, row)) + "a_b"
  # Completions may be longer or shorter than in training.
  assert task.decode(row[:162]) == task.decode(row)[:-1]
  with pytest.raises(ValueError, match=r"tokens must have shape \[\*\]"):
    task.decode(row[None])


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_a_function_of_seed_and_step(made, tokenizer, name):
  task = made[name]
  again = questions.load(name, tokenizer, **SMALL)
  again.prompts((0, 0), 3)
  for seed in (5, (5, 2), (1, 5, 2)):
    np.testing.assert_array_equal(task.prompts(seed, 7), again.prompts(seed, 7))
  np.testing.assert_array_equal(task.prompts(5, 3), task.prompts((5, 0), 3))
  np.testing.assert_array_equal(task.prompts(5, 3), task.prompts(5, 7)[:3])
  for other in (task.prompts(6, 7), task.prompts((5, 1), 7)):
    assert (task.prompts(5, 7) != other).any()
  rows = task.pretraining(3, 4, 8)
  assert rows.shape == (8, task.length) and rows.dtype == np.int32
  np.testing.assert_array_equal(rows, again.pretraining(3, 4, 8))
  np.testing.assert_array_equal(rows[:3], task.pretraining(3, 4, 3))
  for other in (task.pretraining(3, 5, 8), task.pretraining(4, 4, 8)):
    assert (rows != other).any()
  assert task.prompts((5, 1), 0).shape == (0, task.num_prompt)
  with pytest.raises(ValueError, match="seed and step must be >= 0, got -1"):
    task.prompts(-1, 2)
  with pytest.raises(ValueError, match="step must be >= 0, got -2"):
    task.prompts((1, -2), 2)


def test_every_pass_goes_through_all_prompts(made):
  task = made["countdown"]
  num = SMALL["num_generated"] - SMALL["num_test"]
  # 20 does not divide 48: batches straddle the passes.
  drawn = np.concatenate([task.prompts((1, step), 20) for step in range(12)])
  passes = drawn.reshape(5, num, -1)
  sets = [np.unique(part, axis=0) for part in passes]
  assert len(sets[0]) == num and (passes[0] != passes[1]).any()
  for part in sets:
    np.testing.assert_array_equal(part, sets[0])


@pytest.mark.parametrize("name", NAMES)
def test_held_out_rows_are_not_trained_on(made, name):
  task = made[name]
  held = task.held_out_prompts(1000)
  assert held.shape == (16, task.num_prompt) and held.dtype == np.int32
  np.testing.assert_array_equal(task.held_out_prompts(3), held[:3])
  np.testing.assert_array_equal(task.held_out(1000)[:, : task.num_prompt], held)
  assert (task.reward(task.held_out(5)) == MAXIMUM[name]).all()
  test = {prompt.tobytes() for prompt in held}
  train = {prompt.tobytes() for prompt in task.prompts(0, 48)}
  fitted = {row[:160].tobytes() for row in task.pretraining(0, 0, 500)}
  assert len(test) == 16 and len(train) == 48 and fitted == train
  assert not test & train


def test_rows_count_once_and_tests_go_first(tokenizer, tmp_path):
  first, second = questions.generate("gsm8k", 2)
  again = {**first, "more": "which is not looked at"}
  task = load(tokenizer, tmp_path, "gsm8k", first, second, again, ROWS["gsm8k"])
  drawn = {asked(task, x) for x in task.prompts(0, 2)}
  assert drawn == {first["question"], second["question"]}
  # All of the file of tests is held out, whatever `num_test`.
  assert task.held_out_prompts(9).shape[0] == 1
  rows = [{"question": str(i), "answer": "1"} for i in range(6)]
  path = write(tmp_path / "a.jsonl", *rows, *rows)
  options = {"path": path, **SMALL}
  task = questions.load("gsm8k", tokenizer, **options | {"num_test": 2})
  drawn = {asked(task, x) for x in task.prompts(0, 4)}
  held = {asked(task, x) for x in task.held_out_prompts(9)}
  assert len(drawn) == 4 and len(held) == 2 and drawn | held == set("012345")
  with pytest.raises(ValueError, match="path must hold rows that .* does not"):
    load(tokenizer, tmp_path, "gsm8k", ROWS["gsm8k"])
  with pytest.raises(ValueError, match="num_test must be less than 6"):
    questions.load("gsm8k", tokenizer, **options)


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_earn_the_most(made, name):
  task = made[name]
  rows = task.pretraining(0, 0, 64)
  reward, exact = task.reward(rows), task.exact(rows)
  assert reward.dtype == np.float32 and exact.dtype == bool
  assert (reward == MAXIMUM[name]).all() and exact.all()
  # Answers of other questions: well formed, and wrong but by chance.
  mixed = rows.copy()
  mixed[:, task.num_prompt :] = np.roll(rows, 1, 0)[:, task.num_prompt :]
  assert task.exact(mixed).mean() < 0.2
  np.testing.assert_array_equal(
    task.reward(mixed) == MAXIMUM[name], task.exact(mixed)
  )
  # Its last token hidden, and an answer is right no more, but for clues.
  hidden, clue = rows.copy(), np.zeros(64, bool)
  for i, row in enumerate(hidden):
    row[np.flatnonzero(row == ord("<"))[-1] - 2] = task.mask_id
    clue[i] = name == "sudoku" and asked(task, row)[-1] != "0"
  np.testing.assert_array_equal(task.exact(hidden), clue)
  assert (task.reward(hidden)[~clue] < MAXIMUM[name]).all()
  assert task.reward(rows[:0]).shape == (0,)
  # Completions may be longer or shorter than in training.
  longer = np.pad(rows, ((0, 0), (0, 9)), constant_values=task.mask_id)
  np.testing.assert_array_equal(task.reward(longer), reward)
  assert not task.exact(rows[:, : task.num_prompt + 20]).any()


RIGHT = "<reasoning>\nx\n</reasoning>\n<answer>\n%s\n</answer>\n"


@pytest.mark.parametrize(
  "name, answer, reward, exact",
  [
    ("gsm8k", "2", 3.5, True),
    ("gsm8k", "3", 1.5, False),
    ("gsm8k", "two", 1.0, False),
    ("math", "\\boxed{\\frac{x}{2}}", 3.0, True),
    ("math", "\\boxed{\\frac{2}{x}}", 1.0, False),
    ("math", "x/2", 0.75, False),
    ("countdown", "(28/4)-3", 1.0, True),
    ("countdown", "28/4-3-1", 0.1, False),
    ("countdown", "4", 0.1, False),
    ("sudoku", "1234341221434321", 1.0, True),
    ("sudoku", "0000000000000021", 1.0, True),
    ("sudoku", "1234341221434312", 0.0, False),
    ("sudoku", "1234341221434322", 0.5, False),
  ],
)
def test_rewards_worked_by_hand(
  tokenizer, tmp_path, name, answer, reward, exact
):
  task = load(tokenizer, tmp_path, name, *questions.generate(name, 1))
  (prompt,) = task.held_out_prompts(1)
  row = canvas(task, prompt, RIGHT % answer)
  np.testing.assert_allclose(task.reward(row), [reward], atol=1e-6)
  assert task.exact(row).tolist() == [exact]
  # What follows an end is not read, be it of a turn or of the text.
  for end in ("<|eot_id|>", "<|endoftext|>"):
    late = canvas(task, prompt, (RIGHT % answer) + end + "<answer>junk")
    np.testing.assert_array_equal(task.reward(late), task.reward(row))
    none = canvas(task, prompt, end + RIGHT % answer)
    assert not task.exact(none).any()


def test_tokens_that_will_not_do(made):
  task = made["sudoku"]
  rows = task.pretraining(0, 0, 3)
  with pytest.raises(TypeError, match="tokens must be integers, got .*float"):
    task.reward(rows * 1.0)
  with pytest.raises(ValueError, match=r"tokens must have shape \[\*, \*\]"):
    task.reward(rows[0])
  rows[1, task.num_prompt - 40] += 1
  for function in (task.reward, task.exact):
    with pytest.raises(
      ValueError, match="begin with prompts of 'sudoku' .* in row 1: '.*<.eot"
    ):
      function(rows)
  for other in (made["countdown"].pretraining(0, 0, 1), rows[:, :100]):
    with pytest.raises(ValueError, match="another in row 0"):
      task.reward(other)


@pytest.mark.parametrize("name", NAMES)
def test_pretraining_rows_end_and_are_filled(made, name):
  task = made[name]
  for row in task.pretraining(0, 1, 32)[:, task.num_prompt :]:
    end = row.tolist().index(task.tokenizer.end_id)
    assert set(row[end + 1 :].tolist()) == {task.tokenizer.eos_id}
    pattern = r"<reasoning>\n.+\n</reasoning>\n<answer>\n.+\n</answer>\n"
    assert re.fullmatch(pattern, task.tokenizer.decode(row))


@pytest.mark.parametrize(
  "name, row, completion",
  [
    ("gsm8k", ROWS["gsm8k"], "It is two.|2"),
    ("gsm8k", {"question": "", "answer": " 7 "}, "...|7"),
    ("math", ROWS["math"], "So \\boxed{\\frac{x}{2}}.|\\boxed{\\frac{x}{2}}"),
    ("math", {"answer": "5", "solution": "By 2+3."}, "By 2+3.|\\boxed{5}"),
    ("math", {"answer": "5", "solution": 5}, "...|\\boxed{5}"),
    ("sudoku", ROWS["sudoku"], "...|1234341221434321"),
    ("countdown", {"numbers": [1, 1, 1], "target": 9}, None),
    # A box that closes not, and a tag in the reasoning that none closes.
    ("math", {"answer": "\\boxed{1"}, None),
    ("math", {"answer": "{1}}{"}, None),
    ("gsm8k", {"answer": "1 <answer> 2"}, None),
  ],
)
def test_answers(name, row, completion):
  found = questions.answer(name, row)
  if completion is None:
    assert found == ""
    return
  reasoning, answer = completion.split("|")
  assert found == (
    f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>\n"
  )


def test_rows_without_an_answer_are_asked_and_not_fitted(tokenizer, tmp_path):
  known = {"numbers": [2, 3, 4], "target": 5}
  # None is known, and one is too long.
  unknown = {"numbers": [1, 1, 1], "target": 9}
  many = {"numbers": [1, 2, 3, 4, 5], "target": 15}
  task = load(tokenizer, tmp_path, "countdown", known, unknown, many)
  assert len(np.unique(task.prompts(0, 3), axis=0)) == 3
  rows = task.pretraining(0, 0, 20)
  assert {asked(task, row) for row in rows} == {"Make 5 of [2, 3, 4]."}
  with pytest.raises(ValueError, match="of 2 rows 0 have one, .* of none"):
    load(tokenizer, tmp_path, "countdown", unknown, many).pretraining(0, 0, 1)
  size = len(tokenizer.encode(questions.answer("countdown", known))) + 1
  fits = load(tokenizer, tmp_path, "countdown", known, num_completion=size)
  assert fits.pretraining(0, 0, 1)[0, -1] == tokenizer.end_id
  size -= 1
  task = load(tokenizer, tmp_path, "countdown", known, num_completion=size)
  message = f"num_completion = {size} .* of 1 rows 1 .* shortest of {size + 1}"
  with pytest.raises(ValueError, match=message):
    task.pretraining(0, 0, 1)


SOLVED = "7=7 3,8=24 2,4=0.5 75,2,3=219 5,5,1=0 3,8,8,3=24 1,5,5,5=24 0,0,4=4"


@pytest.mark.parametrize("case", SOLVED.split())
def test_solve(case):
  numbers, target = case.split("=")
  row = {"numbers": [*map(int, numbers.split(","))], "target": float(target)}
  expression = puzzles.make(**row)
  used = sorted(map(int, re.findall(r"\d+", expression)))
  assert used == sorted(row["numbers"])
  assert math.isclose(eval(expression), row["target"], abs_tol=1e-9)


def test_what_cannot_be_solved():
  for case in (([7], 8), ([1] * 4, 24), ([0, 0], 1), ([], 0), ([1] * 5, 5)):
    assert puzzles.make(*case) is None


def test_generated_rows_are_the_same_and_differ():
  for name in NAMES:
    rows = questions.generate(name, 300)
    assert rows == questions.generate(name, 300)
    assert rows[:10] == questions.generate(name, 10)
    assert len({questions.ask(name, row) for row in rows}) == 300
  with pytest.raises(ValueError, match="num_generated must be >= 1, got 0"):
    questions.generate("math", 0)


def test_too_many_rows_are_not_made_up(monkeypatch):
  monkeypatch.setitem(questions._MAKERS, "math", lambda rng: ROWS["math"])
  with pytest.raises(ValueError, match="of 'math', got 2, and 1 were found"):
    questions.generate("math", 2)


STORIES = {
  "has # bags of # ~, and # more. How many?": "a * b + c",
  "had # ~, lost # and found #. How many now?": "a - b + c",
  "buys # ~ at # each from # coins. What is left?": "c - a * b",
  "# bowls share # ~. One gets # more. How many in it?": "b / a + c",
}
"""The same as in the module, worked out again; # is a number, ~ a word."""


def test_generated_stories_are_right():
  seen = set()
  for row in questions.generate("gsm8k", 200):
    for story, rule in STORIES.items():
      pattern = re.escape(story).replace(r"\#", r"(\d+)").replace(r"\~", r"\w+")
      if found := re.search(pattern + "$", row["question"]):
        seen.add(story)
        numbers = zip("abc", map(int, found.groups()), strict=True)
        value = eval(rule, dict(numbers))
    way, answer = row["answer"].split("\n#### ")
    left, right = way.split(" = ")
    assert value > 0 and int(answer) == int(right) == value == eval(left)
  assert seen == set(STORIES)


def test_generated_problems_are_right():
  seen = set()
  for row in questions.generate("math", 200):
    a, b, *more = (int(x) for x in re.findall(r"-?\d+", row["problem"]))
    kind, answer = row["problem"].split()[0], row["answer"]
    seen.add(kind)
    if kind == "Solve":
      assert a * int(answer) + b == more[0]
    elif kind == "Write":
      p, q = map(int, re.fullmatch(r"\\frac{(\d+)}{(\d+)}", answer).groups())
      total = fractions.Fraction(a, b) + fractions.Fraction(*more)
      assert (p, q) == total.as_integer_ratio()
    elif kind == "What":
      assert int(answer) == a % b
    else:
      assert 2 * int(answer) == a + b
  assert seen == {"Solve", "Write", "What", "If"}


def test_generated_puzzles_are_right():
  blanks = set()
  for row in questions.generate("sudoku", 100):
    cells = [int(x) for x in row["puzzle"]]
    solution, num_solutions = puzzles.solve(np.array([cells]))
    assert num_solutions == [1]
    assert "".join(map(str, solution[0])) == row["solution"]
    blanks.add(cells.count(0))
  assert blanks == {4, 6, 8, 10, 12}
  for row in questions.generate("countdown", 100):
    numbers = row["numbers"]
    assert len(numbers) == 3 and set(numbers) <= set(range(1, 10))
    assert row["target"] > 0
    assert row["target"] in puzzles.expressions(np.array(numbers))[1]


def test_long_prompts(tokenizer, tmp_path):
  rows = [{"question": x, "answer": "1"} for x in ("short", "x" * 40)]
  longest = len(tokenizer.encode(tokenizer.chat("x" * 40)))
  task = load(tokenizer, tmp_path, "gsm8k", *rows, num_prompt=longest)
  assert task.prompts(0, 2).shape == (2, longest)
  with pytest.raises(
    ValueError,
    match=f"num_prompt = {longest - 1} tokens long, got {longest} in row 1 of "
    r".*train.jsonl; pass a larger num_prompt, or truncate=True",
  ):
    load(tokenizer, tmp_path, "gsm8k", *rows, num_prompt=longest - 1)
  task = load(tokenizer, tmp_path, "gsm8k", *rows, num_prompt=30, truncate=True)
  whole = tokenizer.encode(tokenizer.chat("x" * 40))
  assert any((row == whole[-30:]).all() for row in task.prompts(0, 2))
  with pytest.raises(ValueError, match="in row 0 of what is generated"):
    questions.load("sudoku", tokenizer, **SMALL | {"style": "paper"})


def test_equal_prompts_of_different_answers(tokenizer, tmp_path):
  rows = [{"question": "a?", "answer": x} for x in ("1", "2")]
  with pytest.raises(
    ValueError, match="equal, got answer '2' in row 1 of .*, and '1' before"
  ):
    load(tokenizer, tmp_path, "gsm8k", *rows)
  # Truncation can make them equal.
  rows = [{"question": x + "z" * 50, "answer": x} for x in "ab"]
  load(tokenizer, tmp_path, "gsm8k", *rows)
  with pytest.raises(ValueError, match="rows with equal prompts must be equal"):
    load(tokenizer, tmp_path, "gsm8k", *rows, num_prompt=30, truncate=True)
  with pytest.raises(ValueError, match="equal, got answer '#### 2' in row 0"):
    load(tokenizer, tmp_path, "gsm8k", {**ROWS["gsm8k"], "answer": "#### 2"})


@pytest.mark.parametrize(
  "name, change, message",
  [
    ("gsm8k", {"answer": "So.\n#### "}, "answer must not be blank, .* row 1"),
    ("math", {"answer": "\\boxed{ }"}, "answer must not be blank"),
    ("gsm8k", {"question": "a<|mdm_mask|>"}, "rows must hold no special"),
    ("math", {"solution": "<|eot_id|>"}, "no special token, got <.eot_id.> in"),
    ("countdown", {"numbers": [1, 2.0]}, r"whole ones .*got \[1, 2.0\] and"),
    ("countdown", {"numbers": ["1"]}, "numbers must be whole ones from 0"),
    ("countdown", {"numbers": [True]}, "numbers must be whole ones from 0"),
    ("countdown", {"numbers": [-1]}, "numbers must be whole ones from 0"),
    ("countdown", {"numbers": []}, "numbers must be whole ones from 0"),
    ("countdown", {"target": 10**400}, "target at most 10+ in size"),
    ("countdown", {"target": math.nan}, "target at most .* and nan in row 1"),
    ("sudoku", {"puzzle": "0" * 15}, "puzzle must be 16 digits"),
    ("sudoku", {"puzzle": "1234341221434321"}, "0 at one blank or more"),
    ("sudoku", {"puzzle": "4" + "0" * 15}, "solution the same with 1 to 4"),
    ("sudoku", {"solution": "1234341221434320"}, "got .* in row 1 of .*train"),
  ],
)
def test_rows_that_will_not_do(tokenizer, tmp_path, name, change, message):
  (good,) = questions.generate(name, 1)
  with pytest.raises(ValueError, match=message):
    load(tokenizer, tmp_path, name, good, {**ROWS[name], **change})


def test_arguments_that_will_not_do(tokenizer, tmp_path):
  with pytest.raises(ValueError, match="task must be one of gsm8k.*got 'mbpp'"):
    questions.load("mbpp", tokenizer)
  for option in ("num_prompt", "num_completion", "num_generated"):
    with pytest.raises(ValueError, match=f"{option} must be >= 1, got 0"):
      questions.load("math", tokenizer, **SMALL | {option: 0})
  with pytest.raises(FileNotFoundError, match=r"with question \(str\), answer"):
    questions.load("gsm8k", tokenizer, path=str(tmp_path / "none.jsonl"))
  with pytest.raises(ValueError, match="style must be paper or short"):
    questions.load("math", tokenizer, **SMALL | {"style": "long"})
