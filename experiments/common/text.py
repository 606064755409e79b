"""Text for token models: rows of JSON lines, and a tokenizer of characters.

Nothing is downloaded. `read(task, path)` takes the file that the user has
prepared, and says which fields its rows lack.
"""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jdiff.core import checks, files

FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
  "gsm8k": {"question": str, "answer": str},
  "math": {"problem": str, "answer": str},
  "countdown": {"numbers": list, "target": (int, float)},
  "sudoku": {"puzzle": str, "solution": str},
  # What is asked is `text`, or `prompt` in the sanitised set.
  "mbpp": {"test_list": list},
  "humaneval": {"prompt": str, "test": str, "entry_point": str},
}
"""What `read` wants of each task's rows, beside any other fields."""


def read(task: str, path: str) -> list[dict[str, Any]]:
  """Rows of a task in `FIELDS`, with the fields that its reward looks at.

  Raises:
    ValueError: If there is no such task, or a line will not do.
    FileNotFoundError: If there is no file; says what to prepare.
  """
  if task not in FIELDS:
    raise ValueError(f"task must be one of {', '.join(FIELDS)}, got {task!r}.")
  return read_jsonl(path, FIELDS[task])


def read_jsonl(
  path: str, fields: dict[str, type | tuple[type, ...]]
) -> list[dict[str, Any]]:
  """Reads one JSON object a line; empty lines are passed over.

  Args:
    path: File, UTF-8.
    fields: Types of the fields that each object must have.

  Raises:
    ValueError: With file and line, if a line is no object, or lacks a field, or
      holds one of another type; if there is no line at all.
    FileNotFoundError: If there is no file; says what to prepare.
  """
  file = pathlib.Path(path)
  wanted = ", ".join(
    f"{name} ({_shown(kind)})" for name, kind in fields.items()
  )
  if not file.is_file():
    raise FileNotFoundError(
      f"path is {str(path)!r}, which is no file; prepare one with a JSON "
      f"object a line, each with {wanted}."
    )
  rows = []
  files.check_size(file, files.MAX_TEXT_BYTES)
  with file.open(encoding="utf-8") as lines:
    for number, line in enumerate(lines, 1):
      if not line.strip():
        continue
      place = f"{path}, line {number}"
      try:
        row = json.loads(line)
      except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{place} must be JSON, got {error}.") from error
      if not isinstance(row, dict):
        raise ValueError(f"{place} must be an object, got {_kind(row)}.")
      for name, kind in fields.items():
        if name not in row:
          raise ValueError(
            f"{place} must hold {wanted}, got no {name!r} among {sorted(row)}."
          )
        # JSON's true would pass for the number 1.
        if not isinstance(row[name], kind) or isinstance(row[name], bool):
          raise ValueError(
            f"{place}: {name} must be {_shown(kind)}, got {_kind(row[name])}."
          )
      rows.append(row)
  if not rows:
    raise ValueError(f"{path} must hold rows with {wanted}, got none.")
  return rows


def _shown(kind: type | tuple[type, ...]) -> str:
  kinds = kind if isinstance(kind, tuple) else (kind,)
  return " or ".join(k.__name__ for k in kinds)


def _kind(value: Any) -> str:
  return type(value).__name__


def hold_out(
  rows: Sequence[Any], num_test: int, *, seed: int = 0
) -> tuple[list[Any], list[Any]]:
  """Shuffles rows, and splits off the last `num_test` of them.

  Args:
    rows: More than `num_test`.
    num_test: 500 in the papers' countdown and sudoku.
    seed: Of the shuffle.

  Returns:
    `(train, test)`.
  """
  if checks.check_int("num_test", num_test) >= len(rows):
    raise ValueError(
      f"num_test must be less than {len(rows)}, the number of rows, got "
      f"{num_test}."
    )
  order = np.random.default_rng(seed).permutation(len(rows))
  shuffled = [rows[i] for i in order]
  return shuffled[:-num_test], shuffled[-num_test:]


class Characters(NamedTuple):
  """A tokenizer: one character, one token, and then an end that also pads.

  Attributes:
    symbols: Characters, each once; token `i` is `symbols[i]`.
  """

  symbols: str

  @property
  def eos_id(self) -> int:
    """Ends a text, and fills what is left of the canvas."""
    return len(self.symbols)

  @property
  def vocab_size(self) -> int:
    """Characters and the end."""
    return len(self.symbols) + 1

  @property
  def mask_id(self) -> int:
    """First id past the vocabulary."""
    return self.vocab_size

  def encode(self, text: str) -> np.ndarray:
    """`[len(text)]` int32, without an end.

    Raises:
      ValueError: If a character is no symbol.
    """
    index = {symbol: i for i, symbol in enumerate(self.symbols)}
    for i, symbol in enumerate(text):
      if symbol not in index:
        raise ValueError(
          f"text must be made of {self.symbols!r}, got {symbol!r} at {i}."
        )
    return np.array([index[symbol] for symbol in text], np.int32)

  def decode(self, tokens: np.ndarray) -> str:
    """Text up to the first end; tokens past the vocabulary become `_`."""
    text = []
    for token in np.asarray(tokens).tolist():
      if token == self.eos_id:
        break
      text.append(self.symbols[token] if 0 <= token < self.eos_id else "_")
    return "".join(text)

  def pack(
    self, texts: Sequence[str], length: int, *, left: bool = False
  ) -> tuple[np.ndarray, np.ndarray]:
    """Texts as rows of one length, filled with `eos_id`.

    Args:
      texts: Each at most `length` long.
      length: Of the rows.
      left: Fill to the left, as prompts want, and not to the right.

    Returns:
      `(tokens, valid)`: `[B, length]` int32, and bool, False at the filling
      (which a completion may still learn: it is how length is learnt).
    """
    checks.check_int("length", length)
    tokens = np.full((len(texts), length), self.eos_id, np.int32)
    valid = np.zeros((len(texts), length), bool)
    for i, text in enumerate(texts):
      if len(text) > length:
        raise ValueError(
          f"texts must be at most length = {length} long, got {len(text)} in "
          f"row {i}."
        )
      start = length - len(text) if left else 0
      tokens[i, start : start + len(text)] = self.encode(text)
      valid[i, start : start + len(text)] = True
    return tokens, valid


def characters(texts: Iterable[str]) -> Characters:
  """The tokenizer of all characters in `texts`, in their order."""
  symbols = "".join(sorted(set().union(*texts)))
  if not symbols:
    raise ValueError("texts must hold a character, got none.")
  return Characters(symbols)
