"""Sets of sequences by name or by file, and how batches are drawn of them."""

import pathlib
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.common import sequences
from experiments.common.sequences import Alphabet
from jdiff.core import checks

MAX_LENGTH = 4096
"""Largest canvas."""

FORMATS = {
  ".csv": "csv",
  ".fa": "fasta",
  ".faa": "fasta",
  ".fasta": "fasta",
  ".fna": "fasta",
  ".smi": "smi",
  ".smiles": "smi",
}
"""Formats by the file's suffix."""

TEST_SHARE = 0.1
"""Share of distinct sequences that are held out, where nothing else is said."""


class SequenceSet(NamedTuple):
  """Distinct sequences of one alphabet, and how batches are drawn of them.

  Attributes:
    alphabet: Its symbols.
    length: Canvas `L`.
    train: Sequences to train on.
    test: Sequences held out; those of `train` where the law is known.
    batch: `(seed, step, size) -> [size, L]` int32, a pure function.
    held_out: `(size) -> [size, L]` int32, always the same.
    entropy: Nats a sequence of the law, where it is known, else None.
  """

  alphabet: Alphabet
  length: int
  train: list[str]
  test: list[str]
  batch: Callable[[int, int, int], np.ndarray]
  held_out: Callable[[int], np.ndarray]
  entropy: float | None = None


def load(
  name: str = "",
  *,
  path: str = "",
  format: str = "",
  column: str = "",
  length: int = 0,
) -> SequenceSet:
  """A set by its name in `SETS`, or the user's own file.

  Args:
    name: Which set; empty with a path.
    path: File; its alphabet is of the symbols that it holds, with a pad if
      lengths differ. Sequences weigh as often as they occur, and a tenth of the
      distinct ones are held out.
    format: `"fasta"`, `"smi"` or `"csv"`; by the file's suffix if empty.
    column: Of a CSV file, the column's name.
    length: Canvas; longer sequences are left out. By default the set's own, or
      that of the file's longest sequence.

  Raises:
    ValueError: If an option or the file's content will not do.
    FileNotFoundError: If there is no file.
    ImportError: If the package that carries the set is missing.
  """
  if checks.check_int("length", length, 0) > MAX_LENGTH:
    raise ValueError(f"length must be at most {MAX_LENGTH}, got {length}.")
  if bool(name) == bool(path):
    raise ValueError(
      f"pass either the name of a set or a path, got name={name!r} and "
      f"path={path!r}."
    )
  if path:
    return _own(path, format, column, length)
  if name not in SETS:
    raise ValueError(
      f"name must be one of {', '.join(SETS)}, or pass the path of a file; got "
      f"{name!r}."
    )
  if format or column:
    raise ValueError(
      f"format and column describe the user's own file, got {format!r} and "
      f"{column!r} with the set {name!r}."
    )
  return SETS[name](length)


def _own(path: str, format: str, column: str, length: int) -> SequenceSet:
  kind = format or FORMATS.get(pathlib.Path(path).suffix.lower(), "")
  readers = {
    "csv": lambda path: sequences.read_csv(path, column),
    "fasta": sequences.read_fasta,
    "smi": sequences.read_smiles,
  }
  if kind not in readers:
    raise ValueError(
      f"format must be one of {', '.join(readers)}, or the suffix one of "
      f"{', '.join(FORMATS)}; got {format!r} with {path}."
    )
  if bool(column) != (kind == "csv"):
    raise ValueError(
      f"column names the column of a CSV file, got {column!r} with {kind!r}."
    )
  found = readers[kind](path)
  longest = max(map(len, found))
  if not length and longest > MAX_LENGTH:
    raise ValueError(
      f"{path} holds a sequence of {longest} symbols, more than {MAX_LENGTH}; "
      "pass a length, and longer ones are left out."
    )
  length = length or longest
  counts = Counter(s for s in found if len(s) <= length)
  if len(counts) < 2:
    raise ValueError(
      f"{path} must hold two distinct sequences of at most length={length} "
      f"symbols, got {len(counts)}."
    )
  alphabet = Alphabet(
    "".join(sorted(set().union(*counts))), {*map(len, counts)} != {length}
  )
  train, test = sequences.split(list(counts), TEST_SHARE)
  return _weighed(
    alphabet,
    length,
    (train, [counts[s] for s in train]),
    (test, [counts[s] for s in test]),
  )


def _weighed(alphabet, length, train, test, entropy=None) -> SequenceSet:
  """A set of two pairs `(sequences, weights)`."""

  def drawing(rows, weights):
    tokens = alphabet.encode(rows, length)
    shares = np.cumsum(weights, dtype=np.float64)
    shares /= shares[-1]

    def draw(seed, step, size):
      rng = np.random.default_rng([int(seed), int(step)])
      return tokens[np.searchsorted(shares, rng.random(size), side="right")]

    return draw

  held_out = drawing(*test)
  return SequenceSet(
    alphabet,
    length,
    list(train[0]),
    list(test[0]),
    drawing(*train),
    # Streams are told apart by their seed; runs have small ones.
    lambda size: held_out(2**31 - 1, 0, size),
    entropy,
  )


def _splice(length: int) -> SequenceSet:
  """The law of the counts, known exactly: nothing has to be held out."""
  sites, counts = sequences.splice_sites()
  shares = counts / counts.sum()
  data = (sites, counts)
  entropy = -float(shares @ np.log(shares))
  return _weighed(
    Alphabet(sequences.RNA), _exactly(9, length), data, data, entropy
  )


def _crp(length: int) -> SequenceSet:
  """Both strands of each site. Overlapping sites stay together."""
  parts = sequences.split(
    sequences.crp_sites(),
    0.4,
    shared=12,
    relatives=lambda s: [sequences.reverse_complement(s)],
  )
  train, test = ([*p, *map(sequences.reverse_complement, p)] for p in parts)
  return _even(Alphabet(sequences.DNA), _exactly(26, length), train, test)


def _peptides(length: int) -> SequenceSet:
  """Antimicrobial and other peptides alike."""
  length = length or 32
  found, _ = sequences.peptides("amp", max_length=length)
  parts = sequences.split(found, TEST_SHARE, shared=7)
  return _even(Alphabet(sequences.AMINO_ACIDS, True), length, *parts)


def _smiles(length: int) -> SequenceSet:
  length = length or 40
  parts = sequences.split(sequences.molecules(max_length=length), TEST_SHARE)
  return _even(Alphabet(sequences.SMILES, True), length, *parts)


def _even(alphabet, length, train, test) -> SequenceSet:
  return _weighed(
    alphabet, length, (train, np.ones(len(train))), (test, np.ones(len(test)))
  )


def _exactly(wanted: int, length: int) -> int:
  if length not in (0, wanted):
    raise ValueError(
      f"length must be {wanted}, or 0, where all sequences have it, got "
      f"{length}."
    )
  return wanted


SETS: dict[str, Callable[[int], SequenceSet]] = {
  "crp": _crp,
  "peptides": _peptides,
  "smiles": _smiles,
  "splice": _splice,
}
"""Named sets: `length -> set`."""
