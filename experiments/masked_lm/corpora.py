"""What masked language models are trained on: tasks, text and sequences."""

import inspect
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.common import questions as questions_lib
from experiments.common import sequence_sets, tasks
from experiments.common import text as text_lib
from experiments.common import tokenizer as tokenizer_lib
from jdiff.core import checks, files


class Corpus(NamedTuple):
  """Token sequences of one length.

  Attributes:
    num_prompt: Sites at the front that are given, never learnt.
    length: Canvas length `T`, the prompt included.
    num_tokens: Size `V` of the vocabulary.
    mask_id: The mask; `V`, or a token of the vocabulary that is never learnt.
    batch: `(seed, step, size) -> [size, T]` int32, a pure function.
    held_out: `(size) -> [size, T]`, not trained on.
    decode: `[T] -> str`.
    entropy: Nats a sequence of the law of `held_out`, the least loss, or None.
    eos_id: Ends texts, and fills what is left of prompts and completions; None
      where there is no such token.
    task: The generated task, or the questions in text; or None.
  """

  num_prompt: int
  length: int
  num_tokens: int
  mask_id: int
  batch: Callable[[int, int, int], np.ndarray]
  held_out: Callable[[int], np.ndarray]
  decode: Callable[[np.ndarray], str]
  entropy: float | None = None
  eos_id: int | None = None
  task: tasks.Task | questions_lib.Questions | None = None


def load(kind: str, **options: Any) -> Corpus:
  """A corpus by its kind, with that one's options.

  Args:
    kind: `"task"`, `"text"`, `"questions"` or `"sequences"`.
    **options: Those of `tasks.load`, of `text`, of `questions`, or of
      `sequence_sets.load`.
  """
  known = {
    "task": _task,
    "text": text,
    "questions": questions,
    "sequences": _sequences,
  }
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
    task.mask_id,
    task.pretraining,
    lambda size: task.pretraining(held_out, 1, size),
    task.decode,
    entropy(),
    task=task,
  )


BYTES = "bytes"
"""Names the tokenizer of plain bytes."""


def questions(
  name: str,
  *,
  tokenizer: str = BYTES,
  num_tokens: int = 0,
  mask_id: int = 0,
  eos_id: int = 0,
  **options: Any,
) -> Corpus:
  """Questions in text, for models of LLaDA's kind.

  Args:
    name: One of `questions.NAMES`.
    tokenizer: Path of the model's `tokenizer.json`; or `"bytes"`, which has a
      vocabulary of its own.
    num_tokens: Rows of the model's embedding, with a path.
    mask_id: The model's mask, with a path.
    eos_id: The model's end of text, with a path.
    **options: Those of `questions.load`.
  """
  if tokenizer == BYTES:
    codec = tokenizer_lib.byte_level()
  else:
    codec = tokenizer_lib.load(
      tokenizer, vocab_size=num_tokens, mask_id=mask_id, eos_id=eos_id
    )
  task = questions_lib.load(name, codec, **options)
  return Corpus(
    task.num_prompt,
    task.length,
    codec.vocab_size,
    codec.mask_id,
    task.pretraining,
    task.held_out,
    task.decode,
    eos_id=codec.eos_id,
    task=task,
  )


def stand_in(kind: str, **options: Any) -> Corpus:
  """A corpus of the same shapes, where files of the user's would be read.

  Questions are zeros, and worth nothing: what compiling a step needs.
  """
  if kind != "questions":
    return load(kind, **options)
  if options.get("tokenizer", BYTES) == BYTES:
    codec = tokenizer_lib.byte_level()
  else:
    lost = {"num_tokens", "mask_id", "eos_id"} - options.keys()
    if lost:
      raise ValueError(
        f"data.tokenizer is {options['tokenizer']!r}, and a stand-in of it "
        f"must be told data.{', data.'.join(sorted(lost))}."
      )
    ids = (options[name] for name in ("num_tokens", "mask_id", "eos_id"))
    codec = tokenizer_lib.Tokenizer(None, *ids, 0, ())
  defaults = inspect.signature(questions_lib.load).parameters
  sizes = [
    options.get(name, defaults[name].default)
    for name in ("num_prompt", "num_completion")
  ]
  questions_lib.check(options["name"], *sizes)
  length = sum(sizes)

  def zeros(*shape):
    return np.zeros(shape, np.int32)

  def worth(tokens):
    return np.zeros(len(tokens), np.float32)

  task = questions_lib.Questions(
    options["name"],
    codec,
    *sizes,
    prompts=lambda seed, num: zeros(num, sizes[0]),
    held_out_prompts=lambda num: zeros(num, sizes[0]),
    pretraining=lambda seed, step, batch: zeros(batch, length),
    held_out=lambda num: zeros(num, length),
    reward=worth,
    exact=worth,
  )
  return Corpus(
    sizes[0],
    length,
    codec.vocab_size,
    codec.mask_id,
    task.pretraining,
    task.held_out,
    task.decode,
    eos_id=codec.eos_id,
    task=task,
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
    tokenizer.mask_id,
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
  return files.read_text(path)
