"""What masked language models are trained on: tasks, text and sequences."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.common import sequence_sets, tasks
from experiments.common import text as text_lib
from jdiff.core import checks


class Corpus(NamedTuple):
  """Token sequences of one length.

  Attributes:
    num_prompt: Sites at the front that are given, never learnt.
    length: Canvas length `T`, the prompt included.
    num_tokens: Size of the vocabulary; the mask id is that number.
    batch: `(seed, step, size) -> [size, T]` int32, a pure function.
    held_out: `(size) -> [size, T]`, not trained on.
    decode: `[T] -> str`.
    entropy: Nats a sequence of the law of `held_out`, the least loss, or None.
    task: The generated task, or None.
  """

  num_prompt: int
  length: int
  num_tokens: int
  batch: Callable[[int, int, int], np.ndarray]
  held_out: Callable[[int], np.ndarray]
  decode: Callable[[np.ndarray], str]
  entropy: float | None = None
  task: tasks.Task | None = None


def load(kind: str, **options: Any) -> Corpus:
  """A corpus by its kind, with that one's options.

  Args:
    kind: `"task"`, `"text"` or `"sequences"`.
    **options: Those of `tasks.load`, of `text`, or of `sequence_sets.load`.
  """
  known = {"task": _task, "text": text, "sequences": _sequences}
  if kind not in known:
    raise ValueError(
      f"config.data.kind must be one of {sorted(known)}, got {kind!r}."
    )
  return known[kind](**options)


def _task(name: str, **options: Any) -> Corpus:
  """Noisy right answers of `experiments.common.tasks`."""
  task = tasks.load(name, **options)
  # Streams are told apart by their seed; runs have small ones.
  held_out = 2**31 - 1

  def entropy():
    log_prob = task.log_prob(task.pretraining(held_out, 0, 8192))
    return -float(log_prob.mean())

  return Corpus(
    task.num_prompt,
    task.length,
    len(task.vocab),
    task.pretraining,
    lambda size: task.pretraining(held_out, 1, size),
    task.decode,
    entropy(),
    task,
  )


def _sequences(**options: Any) -> Corpus:
  """Biological sequences or molecules, of a named set or the user's own."""
  return of(sequence_sets.load(**options))


def of(data: sequence_sets.SequenceSet) -> Corpus:
  """The corpus of a set of sequences that is loaded already."""
  return Corpus(
    0,
    data.length,
    data.alphabet.size,
    data.batch,
    data.held_out,
    lambda tokens: data.alphabet.decode(tokens[None])[0],
    data.entropy,
  )


def text(
  *, path: str = "", length: int = 128, test_share: float = 0.05
) -> Corpus:
  """Windows of a text, one token a character.

  Args:
    path: A UTF-8 text file, or a `.jsonl` whose rows have a field `"text"`; by
      default the reference manual that comes with Python, half a megabyte of
      English.
    length: Characters a window.
    test_share: Share at the end that is held out.
  """
  content = _read(path)
  checks.check_int("length", length, 2)
  if not 0 < test_share < 1:
    raise ValueError(f"test_share must lie in (0, 1), got {test_share}.")
  tokenizer = text_lib.characters([content])
  tokens = tokenizer.encode(content)
  cut = int(len(tokens) * (1 - test_share))
  if min(cut, len(tokens) - cut) < length:
    raise ValueError(
      f"the text of {len(tokens)} characters is too short for windows of "
      f"{length} with test_share={test_share}; pass a shorter length."
    )

  def windows(part, seed, step, size):
    rng = np.random.default_rng([int(seed), int(step)])
    start = rng.integers(0, len(part) - length + 1, size)
    return part[start[:, None] + np.arange(length)]

  return Corpus(
    0,
    length,
    tokenizer.vocab_size,
    lambda seed, step, size: windows(tokens[:cut], seed, step, size),
    lambda size: windows(tokens[cut:], 0, 0, size),
    tokenizer.decode,
  )


def _read(path: str) -> str:
  if not path:
    # A large table of strings that few runs need.
    from pydoc_data import topics

    return "\n".join(topics.topics[name] for name in sorted(topics.topics))
  if pathlib.Path(path).suffix == ".jsonl":
    rows = text_lib.read_jsonl(path, {"text": str})
    return "\n".join(row["text"] for row in rows)
  if not pathlib.Path(path).exists():
    raise FileNotFoundError(
      f"no file at {path}; pass data.path of a UTF-8 text file, or of a .jsonl "
      'whose rows have a field "text".'
    )
  return pathlib.Path(path).read_text(encoding="utf-8")
