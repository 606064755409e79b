"""Generated tasks against brute force, their own laws and hand-worked rows."""

import itertools
import math

import numpy as np
import pytest

from experiments.common import puzzles, tasks

NAMES = tuple(tasks.TASKS)


@pytest.fixture(scope="module")
def made():
  return {name: tasks.load(name) for name in NAMES}


def row(task, text):
  """A canvas from its text, the bar left out."""
  return [task.vocab.index(c) if c != "_" else task.mask_id for c in text]


def rows(task, *texts):
  return np.array([row(task, text) for text in texts], np.int32)


# Puzzles.


def test_grids_are_all_the_grids():
  def extend(cells):
    """Counts completions of a grid, one cell after the other."""
    if len(cells) == 16:
      return 1
    i, j = divmod(len(cells), 4)
    count = 0
    for value in (1, 2, 3, 4):
      seen = [
        cells[4 * a + b]
        for a, b in itertools.product(range(4), repeat=2)
        if 4 * a + b < len(cells)
        and (a == i or b == j or (a // 2, b // 2) == (i // 2, j // 2))
      ]
      if value not in seen:
        count += extend([*cells, value])
    return count

  grids = puzzles.grids()
  assert extend([]) == len(grids) == 288
  assert len(np.unique(grids, axis=0)) == 288 and grids.dtype == np.int32
  square = grids.reshape(-1, 4, 4)
  boxes = square.reshape(-1, 2, 2, 2, 2).swapaxes(2, 3).reshape(-1, 4, 4)
  for lines in (square, square.swapaxes(1, 2), boxes):
    assert (np.sort(lines, -1) == np.arange(1, 5)).all()


def test_unique_puzzles_are_all_of_them():
  grids = puzzles.grids()
  grid, given = puzzles.unique_puzzles(12)
  # The number of minimal 4-clue puzzles that the literature counts.
  assert len(grid) == 25728
  for which in (0, 101):
    expected = set()
    for cells in itertools.combinations(range(16), 4):
      same = (grids[:, cells] == grids[which, cells]).all(1).sum()
      if same == 1:
        expected.add(sum(1 << i for i in cells))
    assert expected == set(given[grid == which].tolist())
  with pytest.raises(ValueError, match="num_blanks must be at most 12"):
    puzzles.unique_puzzles(13)
  assert len(puzzles.unique_puzzles(0)[0]) == 288


def test_solve_counts_solutions():
  blank = np.zeros((1, 16), int)
  wrong = blank.copy()
  wrong[0, :2] = 1
  whole = puzzles.grids()[7:8]
  solution, count = puzzles.solve(np.concatenate([blank, wrong, whole]))
  assert count.tolist() == [288, 0, 1]
  np.testing.assert_array_equal(solution[2], whole[0])


def test_expressions_are_what_python_computes():
  numbers = np.array([[3, 7, 2], [9, 9, 1]])
  forms, values = puzzles.expressions(numbers)
  assert forms.shape == (2, 54, 5) and values.shape == (2, 54)
  for given, table, results in zip(numbers, forms, values, strict=True):
    expected = [
      f"{a}{p}{b}{q}{c}"
      for a, b, c in itertools.permutations(given)
      for p, q in itertools.product("+-*", repeat=2)
    ]
    texts = [
      f"{a}{'+-*'[p]}{b}{'+-*'[q]}{c}" for a, p, b, q, c in table.tolist()
    ]
    assert sorted(texts) == sorted(expected)
    assert results.tolist() == [eval(text) for text in texts]


# What holds of every task.


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_a_function_of_seed_step_and_index(made, name):
  task = made[name]
  batch = task.pretraining(3, 5, 8)
  assert batch.dtype == np.int32 and batch.shape == (8, task.length)
  assert batch.min() >= 0 and batch.max() < task.mask_id
  np.testing.assert_array_equal(batch, tasks.load(name).pretraining(3, 5, 8))
  np.testing.assert_array_equal(batch[:3], task.pretraining(3, 5, 3))
  for other in (task.pretraining(3, 6, 8), task.pretraining(4, 5, 8)):
    assert (batch != other).any()
  prompts = task.prompts((2, 9), 6)
  assert prompts.dtype == np.int32 and prompts.shape == (6, task.num_prompt)
  np.testing.assert_array_equal(prompts[:2], task.prompts((2, 9), 2))
  if task.num_prompt:
    assert (prompts != task.prompts((2, 10), 6)).any()
    # Trailing zeros are not swallowed.
    assert (task.prompts(2, 6) != task.prompts((2, 0), 6)).any()


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_is_the_law_of_the_data(made, name):
  task = made[name]
  prompt = task.pretraining(0, 0, 1)[0, : task.num_prompt]
  canvases = task.canvases(prompt)
  assert canvases.dtype == np.int32
  prob = np.exp(task.log_prob(canvases))
  if name != "sudoku":
    # The completions are all that the data can hold.
    assert prob.sum() == pytest.approx(1, abs=1e-12)
    assert len(np.unique(canvases, axis=0)) == len(canvases)
  # E[f] under the data is a mean over prompts of sums over completions; on the
  # data, f = exact has the law of a coin for each row given its prompt.
  data = task.pretraining(1, 0, 2000)
  log_prob = task.log_prob(data)
  assert np.isfinite(log_prob).all()
  if name == "sudoku":
    expected = np.full(2000, (1 - 0.1 + 0.1 / 4) ** 16)
  else:
    expected = np.zeros(2000)
    heads, index = np.unique(
      data[:, : task.num_prompt], axis=0, return_inverse=True
    )
    # Every prompt's law is another; 60 of them are enough.
    for i, head in enumerate(heads[:60]):
      all_of_it = task.canvases(head)
      weight = np.exp(task.log_prob(all_of_it))
      expected[index.ravel() == i] = weight @ task.exact(all_of_it)
    keep = index.ravel() < 60
    data, expected = data[keep], expected[keep]
  hits = task.exact(data)
  error = hits.sum() - expected.sum()
  # Five standard errors of a sum of independent coins.
  assert abs(error) < 5 * np.sqrt((expected * (1 - expected)).sum())


@pytest.mark.parametrize("name", NAMES)
def test_masks_and_strangers_are_never_right(made, name):
  task = made[name]
  prompt = task.prompts(0, 1)[0]
  canvases = task.canvases(prompt)
  right = canvases[task.exact(canvases)][:1]
  assert len(right) == 1 and task.reward(right)[0] == 1
  for place in range(task.num_prompt, task.length):
    for stranger in (task.mask_id, -1, task.mask_id + 7):
      spoilt = right.copy()
      spoilt[0, place] = stranger
      assert not task.exact(spoilt)[0]
      assert task.reward(spoilt)[0] <= 1
      assert task.log_prob(spoilt)[0] == -np.inf
  masked = right.copy()
  masked[:, task.num_prompt :] = task.mask_id
  assert task.reward(masked)[0] == 0
  assert task.reward(right).dtype == np.float32
  assert task.exact(right).dtype == bool


@pytest.mark.parametrize("name", NAMES)
def test_wrong_tokens_are_refused(made, name):
  task = made[name]
  with pytest.raises(ValueError, match=r"tokens must have shape \[\*, "):
    task.reward(np.zeros((2, task.length + 1), int))
  with pytest.raises(TypeError, match="tokens must be integers"):
    task.exact(np.zeros((2, task.length)))
  with pytest.raises(ValueError, match="prompt must have shape"):
    task.completions(np.zeros(task.num_prompt + 1, int))
  with pytest.raises(ValueError, match="seed and step must be >= 0"):
    task.prompts(-1, 2)


# Each task.


def test_modular(made):
  task = made["modular"]
  assert (task.num_prompt, task.num_completion, task.mask_id) == (2, 4, 7)
  assert task.all_prompts.shape == (49, 2)
  assert task.canvases(np.array([5, 3])).shape == (7**4, 6)
  data = task.pretraining(0, 0, 500)
  for a, b, *answer in data.tolist():
    expected = [(a + b) % 7, (a - b) % 7, (a + 2 * b) % 7, (2 * a + b) % 7]
    (exact,) = task.exact(np.array([[a, b, *answer]]))
    assert exact == (answer == expected)
  # 5 + 3 = 1, 5 - 3 = 2, 5 + 6 = 4, 10 + 3 = 6.
  tokens = rows(task, "531246", "531245", "53124_")
  assert task.reward(tokens).tolist() == [1, 0, 0]
  assert task.decode(tokens[2]) == "53 | 124_"
  token = 1 - 0.45 + 0.45 / 7
  log_prob = task.log_prob(tokens)
  assert log_prob[0] == pytest.approx(4 * math.log(token))
  assert log_prob[1] == pytest.approx(3 * math.log(token) + math.log(0.45 / 7))
  # The card's base policy: 0.142 of completions right.
  assert math.exp(log_prob[0]) == pytest.approx(0.142, abs=1e-3)
  assert tasks.load("modular", modulus=5).mask_id == 5


def test_sudoku(made):
  task = made["sudoku"]
  assert (task.length, task.mask_id) == (32, 5)
  grids = puzzles.grids()
  prompts = task.prompts(0, 300)
  for prompt in prompts:
    fits = [(prompt == grid)[prompt > 0].all() for grid in grids]
    assert sum(fits) == 1
  blanks = (prompts == 0).sum(1)
  # Three numbers, each a third: 100 of 300 within five times 8.2.
  assert all(60 < (blanks == n).sum() < 140 for n in (10, 11, 12))
  data = task.pretraining(0, 0, 200)
  assert ((data[:, :16] == 0).sum(1) == 6).all()
  assert data[:, 16:].min() >= 1
  reward, exact = task.reward(data), task.exact(data)
  for i, (prompt, answer) in enumerate(
    zip(data[:, :16], data[:, 16:], strict=True)
  ):
    (solution,) = [g for g in grids if (g == prompt)[prompt > 0].all()]
    right = [answer[j] == solution[j] for j in range(16) if prompt[j] == 0]
    assert reward[i] == pytest.approx(sum(right) / len(right))
    assert exact[i] == (answer == solution).all()
  # Clues that are copied wrongly cost no reward, and the exact match.
  tokens = np.concatenate([data[:1, :16], puzzles.solve(data[:1, :16])[0]], 1)
  assert task.reward(tokens)[0] == 1 and task.exact(tokens)[0]
  log_prob = 16 * math.log(1 - 0.1 + 0.1 / 4)
  assert task.log_prob(tokens)[0] == pytest.approx(log_prob)
  clue = 16 + int(np.argmax(tokens[0, :16] > 0))
  tokens[0, clue] = tokens[0, clue] % 4 + 1
  assert task.reward(tokens)[0] == 1 and not task.exact(tokens)[0]
  log_prob += math.log(0.1 / 4) - math.log(1 - 0.1 + 0.1 / 4)
  assert task.log_prob(tokens)[0] == pytest.approx(log_prob)
  tokens[0, :16] = 0
  with pytest.raises(ValueError, match="one solution, got .* with 288 in row"):
    task.reward(tokens)


def test_countdown(made):
  task = made["countdown"]
  assert (task.length, len(task.vocab)) == (14, 15)
  texts = {
    "3,7,2=0133+7*2": 0.1,  # 17 and not 13.
    "3,7,2=0177*2+3": 1,
    "3,7,2=0173+7*2": 1,
    "3,7,2=0173+7+7": 0.1,  # Another number.
    "7,3,7=0177+7+3": 1,
    "7,3,7=0173+7+3": 0.1,
    "3,7,2=01733*72": 0,  # Cannot be read.
    "3,7,2=0173+7*_": 0,
    "3,7,2=0173+7=2": 0,
    "1,1,3=0031*1*3": 1,
    "9,1,1=0091-1+9": 1,
  }
  tokens = rows(task, *texts)
  np.testing.assert_allclose(task.reward(tokens), list(texts.values()))
  assert task.exact(tokens).tolist() == [x == 1 for x in texts.values()]
  data = task.pretraining(0, 0, 300)
  reward = task.reward(data)
  for i, line in enumerate(data):
    text = "".join(task.vocab[j] for j in line)
    target, answer = int(text[6:9]), text[9:]
    good = eval(answer) == target and sorted(answer[::2]) == sorted(text[0:6:2])
    assert reward[i] == pytest.approx(1 if good else 0.1)
  # Every prompt has a solution, and is among those that are listed.
  known = {tuple(prompt) for prompt in task.all_prompts.tolist()}
  assert len(known) == len(task.all_prompts)
  for prompt in task.prompts(0, 50):
    assert tuple(prompt.tolist()) in known
    assert task.exact(task.canvases(prompt)).any()
  prompt = np.array(row(task, "1,1,1=001"))
  # 1+1-1, 1-1+1, 1*1*1 and the like: nine forms, each arising six times.
  assert len(task.completions(prompt)) == 9
  with pytest.raises(ValueError, match="begin with prompts 'a,b,c=ttt'"):
    task.reward(np.zeros((1, 14), int))


def test_countdown_optimum_by_enumeration(made):
  task = made["countdown"]
  canvases = task.canvases(np.array(row(task, "3,7,2=017")))
  optimum = tasks.tilted(
    task.log_prob(canvases), task.reward(canvases), reward_temperature=0.25
  )
  # Four of 54 forms are 17 (3 + 7 * 2 and its mirrors), each of its own.
  base = 0.5 + 0.5 * 4 / 54
  heavy, light = base * math.exp(4), (1 - base) * math.exp(0.4)
  share = heavy / (heavy + light)
  assert optimum.reward == pytest.approx(share + 0.1 * (1 - share), abs=1e-6)
  assert np.exp(optimum.log_prob).sum() == pytest.approx(1)


def test_parity(made):
  task = made["parity"]
  assert (task.num_prompt, task.length, task.mask_id) == (0, 8, 2)
  assert task.prompts(0, 3).shape == (3, 0) and task.all_prompts.shape == (1, 0)
  canvases = task.canvases(np.zeros(0, int))
  assert len(canvases) == 256
  for line, exact in zip(canvases, task.exact(canvases), strict=True):
    assert exact == (sum(line.tolist()) % 2 == 0)
  # 1, stay, change, stay, ...: by hand.
  (log_prob,) = task.log_prob(rows(task, "11000000"))
  assert log_prob == pytest.approx(
    math.log(0.3) + 6 * math.log(0.8) + math.log(0.2)
  )
  assert task.decode(canvases[5]) == "00000101"
  # Frequencies of all 256 in 40000 draws; the largest of 256 deviations of
  # about a standard error passes 5 with probability 1e-4.
  data = task.pretraining(0, 0, 40000)
  counts = np.bincount(data @ (1 << np.arange(8)[::-1]), minlength=256)
  expected = 40000 * np.exp(task.log_prob(canvases))
  assert (np.abs(counts - expected) < 5 * np.sqrt(expected) + 1).all()


def test_tilted_against_the_closed_form(made):
  task = made["parity"]
  canvases = task.canvases(np.zeros(0, int))
  log_prob, reward = task.log_prob(canvases), task.reward(canvases)
  even = np.exp(log_prob) @ reward
  optimum = tasks.tilted(log_prob + 3, reward, reward_temperature=0.5)
  share = even * math.exp(2) / (even * math.exp(2) + 1 - even)
  assert optimum.reward == pytest.approx(share)
  kl = share * math.log(share / even)
  kl += (1 - share) * math.log((1 - share) / (1 - even))
  assert optimum.kl == pytest.approx(kl)
  # What cannot happen stays so, and costs nothing.
  with_zero = tasks.tilted(
    np.append(log_prob, -np.inf), np.append(reward, 9), reward_temperature=0.5
  )
  assert with_zero.kl == pytest.approx(kl)
  with pytest.raises(ValueError, match="reward_temperature must be positive"):
    tasks.tilted(log_prob, reward, reward_temperature=0)


@pytest.mark.parametrize(
  "name, options, message",
  [
    ("sudok", {}, "task must be one of modular, sudoku, .*got 'sudok'"),
    ("sudoku", {"clues": 4}, r"takes .*blanks.*got \{'clues': 4\}"),
    ("sudoku", {"blanks": (13,)}, "blanks must hold numbers of 1 to 12"),
    ("sudoku", {"pretraining_blanks": ()}, "pretraining_blanks must hold"),
    ("modular", {"noise": 1.0}, r"noise must lie in \[0, 1\), got 1.0"),
    ("modular", {"modulus": 1}, "modulus must be >= 2"),
    ("countdown", {"noise": -1}, "noise must lie"),
    ("parity", {"stay": 1}, r"stay must lie in \(0, 1\)"),
    ("parity", {"length": 21}, "length must be at most 20"),
  ],
)
def test_wrong_options_are_refused(name, options, message):
  with pytest.raises(ValueError, match=message):
    tasks.load(name, **options)
