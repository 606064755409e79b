"""Rows of JSON lines, and the tokenizer of characters."""

import json

import numpy as np
import pytest

from experiments.common import rewards, text


def write(path, *rows):
  path.write_text("\n".join(rows) + "\n", encoding="utf-8")
  return str(path)


def test_rows_are_read(tmp_path):
  good = {"puzzle": "0" * 16, "solution": "1" * 16, "more": ["ü"]}
  path = write(tmp_path / "a.jsonl", json.dumps(good), "", json.dumps(good))
  assert text.read("sudoku", path) == [good, good]
  row = {"numbers": [1, 2], "target": 3.0}
  path = write(tmp_path / "b.jsonl", json.dumps(row))
  found = text.read("countdown", path)
  assert rewards.countdown([""], ["<answer>1+2</answer>"], found) == [1]


@pytest.mark.parametrize(
  "line, message",
  [
    (
      '{"numbers": [1]}',
      r"a.jsonl, line 2 must hold numbers \(list\), target \(int or float\), "
      r"got no 'target' among \['numbers'\]",
    ),
    ('{"numbers": 1, "target": 1}', "line 2: numbers must be list, got int"),
    ('{"numbers": [1], "target": true}', "target must be .*got bool"),
    ("[1]", "line 2 must be an object, got list"),
    ("{", "line 2 must be JSON, got Expecting"),
  ],
)
def test_lines_that_will_not_do(tmp_path, line, message):
  path = write(tmp_path / "a.jsonl", '{"numbers": [1], "target": 1}', line)
  with pytest.raises(ValueError, match=message):
    text.read("countdown", path)


def test_absent_rows_say_what_to_prepare(tmp_path):
  with pytest.raises(
    FileNotFoundError,
    match=r"JSON object a line, each with question \(str\), answer \(str\)",
  ):
    text.read("gsm8k", str(tmp_path / "none.jsonl"))
  with pytest.raises(ValueError, match="must hold rows with .*got none"):
    text.read("gsm8k", write(tmp_path / "empty.jsonl", ""))
  with pytest.raises(ValueError, match="task must be one of gsm8k.*got 'x'"):
    text.read("x", "y")


def test_hold_out():
  train, test = text.hold_out(range(20), 5, seed=1)
  assert len(test) == 5 and sorted([*train, *test]) == list(range(20))
  assert (train, test) == text.hold_out(range(20), 5, seed=1)
  assert test != text.hold_out(range(20), 5, seed=2)[1]
  with pytest.raises(ValueError, match="num_test must be less than 5"):
    text.hold_out(range(5), 5)


def test_characters():
  tokenizer = text.characters(["cab", "bad"])
  assert tokenizer == text.Characters("abcd")
  assert (tokenizer.eos_id, tokenizer.vocab_size, tokenizer.mask_id) == (
    4,
    5,
    5,
  )
  assert tokenizer.encode("dab").tolist() == [3, 0, 1]
  assert tokenizer.decode(np.array([3, 5, 0, 4, 1])) == "d_a"
  tokens, valid = tokenizer.pack(["ab", "", "abc"], 3)
  assert tokens.tolist() == [[0, 1, 4], [4, 4, 4], [0, 1, 2]]
  np.testing.assert_array_equal(valid, tokens != 4)
  tokens, valid = tokenizer.pack(["ab", "", "abc"], 3, left=True)
  assert tokens.tolist() == [[4, 0, 1], [4, 4, 4], [0, 1, 2]]
  assert tokens.dtype == np.int32 and valid[0].tolist() == [False, True, True]
  with pytest.raises(ValueError, match="text must be made of 'abcd', got 'x'"):
    tokenizer.encode("ax")
  with pytest.raises(ValueError, match="at most length = 2 long, got 3 in row"):
    tokenizer.pack(["a", "abc"], 2)
  with pytest.raises(ValueError, match="texts must hold a character"):
    text.characters(["", ""])
