"""Sequences of symbols: alphabets, files, and data inside installed wheels.

The user's FASTA, SMILES and CSV files become lists of strings. The other data
are read from the packages that carry them (extra `data`): nothing is downloaded
or kept here. What models are trained on is `sequence_sets.load`.
"""

import csv
import importlib.util
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.cluster import hierarchy

from jdiff.core import checks

RNA = "ACGU"
DNA = "ACGT"
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
SMILES = "#()+-123456=BCFHINOPS[]lr"
"""Of molecules with usual elements, no salts, and at most six open rings."""

MAX_BYTES = 2**28
"""Largest file."""


class Alphabet(NamedTuple):
  """Symbols as tokens; a pad ends sequences that are shorter than the canvas.

  The pad is a token like any other to the model, which learns lengths by it.

  Attributes:
    symbols: ASCII characters, each once; token `i` is `symbols[i]`.
    padded: Whether there is a pad, the last token.
  """

  symbols: str
  padded: bool = False

  @property
  def size(self) -> int:
    """Tokens `V`, the pad included; the mask id is that number."""
    return len(self.symbols) + self.padded

  def encode(self, sequences: Sequence[str], length: int) -> np.ndarray:
    """`[n, length]` int32.

    Raises:
      ValueError: If a sequence holds another symbol, is longer, or is shorter
        where there is no pad; names its row.
    """
    checks.check_int("length", length)
    table = np.full(128, -1, np.int32)
    table[list(self.symbols.encode("ascii"))] = np.arange(len(self.symbols))
    tokens = np.full((len(sequences), length), len(self.symbols), np.int32)
    for i, sequence in enumerate(sequences):
      size = len(sequence)
      if size > length or (size < length and not self.padded):
        rule = "at most" if self.padded else "exactly"
        raise ValueError(
          f"sequences must be {rule} {length} long, got {size} in row {i}."
        )
      wrong = sorted(set(sequence) - set(self.symbols))
      if wrong:
        raise ValueError(
          f"sequences must be made of {self.symbols!r}, got {wrong[0]!r} in "
          f"row {i}."
        )
      tokens[i, :size] = table[list(sequence.encode("ascii"))]
    return tokens

  def decode(self, tokens: np.ndarray) -> list[str]:
    """Strings of `[n, L]` tokens, up to the first pad.

    A row with a token outside the vocabulary (a mask, say), or with anything
    but pads after a pad, is no sequence: it becomes `""`, and so does one of
    pads alone. Oracles answer NaN to it.
    """
    tokens = np.asarray(tokens)
    checks.check_shape("tokens", tokens, (None, None))
    valid = ((tokens >= 0) & (tokens < self.size)).all(axis=1)
    pad = tokens == len(self.symbols)
    valid &= (pad[:, 1:] >= pad[:, :-1]).all(axis=1)
    table = np.frombuffer(self.symbols.encode("ascii") + b"\0", np.uint8)
    text = table[np.where(valid[:, None], tokens, len(self.symbols))]
    return [row.tobytes().decode("ascii").rstrip("\0") for row in text]


def split(
  sequences: Sequence[str],
  test_share: float,
  *,
  shared: int = 0,
  relatives: Callable[[str], Sequence[str]] | None = None,
) -> tuple[list[str], list[str]]:
  """Splits distinct sequences in two, the same way whatever their order.

  Args:
    sequences: Two or more.
    test_share: Share of the second part, which comes out smaller where no group
      fits any more.
    shared: Sequences with that many consecutive symbols in common stay
      together, so that near copies are on one side; 0 lets all be apart.
    relatives: Other forms of a sequence (its reverse complement, say) whose
      symbols count as its own.

  Returns:
    `(train, test)`, neither of them empty.
  """
  distinct = sorted(set(sequences))
  checks.check_int("shared", shared, 0)
  if not 0 < test_share < 1:
    raise ValueError(f"test_share must lie in (0, 1), got {test_share}.")
  related = hierarchy.DisjointSet(distinct)
  first: dict[str, str] = {}
  for sequence in distinct if shared else []:
    for form in [sequence, *(relatives(sequence) if relatives else [])]:
      for start in range(len(form) - shared + 1):
        other = first.setdefault(form[start : start + shared], sequence)
        related.merge(sequence, other)
  groups = sorted(sorted(group) for group in related.subsets())
  if len(groups) < 2:
    raise ValueError(
      f"sequences must fall into two groups or more with shared={shared}, got "
      f"{len(groups)} of {len(distinct)} sequences; pass a larger number."
    )
  quota = max(1, test_share * len(distinct))
  train: list[str] = []
  test: list[str] = []
  for i in np.random.default_rng(0).permutation(len(groups)):
    fits = len(test) + len(groups[i]) <= quota
    (test if fits else train).extend(groups[i])
  if not test:
    test = min(groups, key=len)
    train = [s for s in train if s not in set(test)]
  return train, test


def read_fasta(path: str | pathlib.Path) -> list[str]:
  """Sequences of a FASTA file, in upper case.

  Lower case marks repeats and is dropped. Lines before the first `>` that start
  with `#` are comments.

  Raises:
    ValueError: With file and line, if one will not do; if there is none.
    FileNotFoundError: If there is no file.
  """
  records: list[tuple[str, list[str]]] = []
  for place, line in _lines(path):
    if line.startswith(b">"):
      records.append((place, []))
    elif records:
      text = b"".join(line.split())
      records[-1][1].append(_checked(text, place).upper())
    elif not line.startswith(b"#"):
      raise ValueError(
        f"{place} must be a header, `>name`, before any sequence, got "
        f"{line[:40]!r}."
      )
  for place, parts in records:
    if not parts:
      raise ValueError(f"{place} must be followed by a sequence, got none.")
  return _some(["".join(parts) for _, parts in records], path)


def read_smiles(path: str | pathlib.Path) -> list[str]:
  """The first column of a `.smi` file: one molecule a line, and its name.

  A first line whose column is called `smiles` is a header. Errors are those of
  `read_fasta`.
  """
  first = [(place, line.split()[0]) for place, line in _lines(path)]
  if first and first[0][1].lower() == b"smiles":
    del first[0]
  return _some([_checked(text, place) for place, text in first], path)


def read_csv(path: str | pathlib.Path, column: str) -> list[str]:
  """One column of a CSV file with a header, UTF-8.

  Errors are those of `read_fasta`, and a ValueError if there is no such column.
  """
  file = _sized(path)
  found = []
  with file.open(encoding="utf-8-sig", newline="") as lines:
    reader = csv.DictReader(lines)
    try:
      if column not in (reader.fieldnames or []):
        raise ValueError(
          f"{path} must have the column {column!r} in its first line, got "
          f"{reader.fieldnames}."
        )
      for row in reader:
        place = f"{path}, line {reader.line_num}"
        text = (row[column] or "").strip()
        found.append(_checked(text.encode(), place))
    except (csv.Error, UnicodeDecodeError) as error:
      raise ValueError(
        f"{path}, line {reader.line_num + 1} must be CSV in UTF-8, got {error}."
      ) from error
  return _some(found, path)


def _sized(path: str | pathlib.Path) -> pathlib.Path:
  file = pathlib.Path(path)
  if not file.is_file():
    raise FileNotFoundError(f"no file at {path}; pass the path of one.")
  if file.stat().st_size > MAX_BYTES:
    raise ValueError(
      f"{path} must have at most {MAX_BYTES} bytes, got {file.stat().st_size}; "
      "pass a part of it."
    )
  return file


def _lines(path: str | pathlib.Path) -> Iterator[tuple[str, bytes]]:
  """`(place, line)` of lines that are not empty, stripped."""
  with _sized(path).open("rb") as lines:
    for number, line in enumerate(lines, 1):
      if line.strip():
        yield f"{path}, line {number}", line.strip()


def _checked(text: bytes, place: str) -> str:
  symbols = text.decode("ascii", "replace")
  if not symbols.isascii() or not symbols.isprintable() or " " in symbols:
    raise ValueError(
      f"{place} must hold a sequence of ASCII symbols, got {text[:40]!r}."
    )
  if not symbols:
    raise ValueError(f"{place} must hold a sequence, got none.")
  return symbols


def _some(sequences: list[str], path) -> list[str]:
  if not sequences:
    raise ValueError(f"{path} must hold sequences, got none.")
  return sequences


def installed(package: str, *parts: str) -> pathlib.Path:
  """A file inside an installed package, which is not imported."""
  spec = importlib.util.find_spec(package)
  if spec is None or not spec.submodule_search_locations:
    raise ImportError(
      f"{parts[-1]} lies inside the package {package}, which is missing: "
      'pip install "jdiff-research[data]".'
    )
  path = pathlib.Path(spec.submodule_search_locations[0], *parts)
  if not path.is_file():
    raise FileNotFoundError(
      f"the installed {package} has no {'/'.join(parts)}; install the version "
      "that constraints/ names."
    )
  return path


def splice_sites() -> tuple[list[str], np.ndarray]:
  """Human 5' splice sites `NNNGYNNNN` in RNA letters, and their counts `[n]`.

  From hg38 by GENCODE's annotation, in the package logomaker: 10,227 distinct
  sites, seen 298,479 times in all.
  """
  path = installed("logomaker", "examples", "datafiles", "ss_sequences.txt")
  rows = [line.split() for _, line in _lines(path) if line[:1] != b"#"]
  sites = [_checked(site, str(path)) for site, _ in rows[1:]]
  return sites, np.array([int(count) for _, count in rows[1:]])


def reverse_complement(site: str) -> str:
  """The other strand of DNA, read in its direction."""
  return site.translate(str.maketrans("ACGT", "TGCA"))[::-1]


def crp_sites() -> list[str]:
  """Binding sites of E. coli's CRP, 26 bp, each once whichever its strand.

  From RegulonDB 8.0, in the package logomaker. A site between two genes is
  listed for both, once for each strand; the first is kept.
  """
  path = installed("logomaker", "examples", "datafiles", "crp_sites.fa")
  distinct: dict[str, str] = {}
  for site in read_fasta(path):
    distinct.setdefault(min(site, reverse_complement(site)), site)
  return list(distinct.values())


def crp_energy() -> np.ndarray:
  """Measured energies of CRP's binding, `[26, 4]` kcal/mol, columns ACGT.

  Of Kinney et al., PNAS 107, 9158 (2010), in the package logomaker; a site's
  energy is the sum of its 26 entries, and lower is tighter.
  """
  path = installed("logomaker", "examples", "matrices", "crp_energy_matrix.txt")
  rows = [line.split() for _, line in _lines(path) if line[:1] != b"#"]
  if b"".join(rows[0][1:]).decode() != DNA:
    raise ValueError(f"{path} must have the columns {DNA}, got {rows[0]}.")
  return np.array([row[1:] for row in rows[1:]], np.float32)


PEPTIDES = {"amp": "AMPvsUniProt.csv", "acp": "ACP_CancPPD_vs_Random.csv"}
"""Labelled sets in the package modlamp: antimicrobial, and anticancer.

No row of the anticancer set, active or not, holds cysteine: a classifier of it
says nothing about that letter.
"""


def peptides(
  name: str, *, max_length: int = 32
) -> tuple[list[str], np.ndarray]:
  """Distinct peptides of the 20 letters, and whether they are active, `[n]`.

  Those under both labels are left out.

  Args:
    name: In `PEPTIDES`.
    max_length: Longer ones are left out.
  """
  if name not in PEPTIDES:
    raise ValueError(f"name must be one of {[*PEPTIDES]}, got {name!r}.")
  path = installed("modlamp", "data", PEPTIDES[name])
  labels: dict[str, set[int]] = {}
  for place, line in [*_lines(path)][1:]:
    text, _, label = line.partition(b",")
    labels.setdefault(_checked(text.strip(), place), set()).add(int(label))
  kept = {
    peptide: min(label)
    for peptide, label in labels.items()
    if len(label) == 1
    and len(peptide) <= max_length
    and set(peptide) <= set(AMINO_ACIDS)
  }
  return list(kept), np.array([*kept.values()])


def molecules(*, max_length: int = 40) -> list[str]:
  """Distinct molecules of the symbols `SMILES`, Kekule form, as written.

  From NCI's open database, in the package rdkit; longer ones are left out.
  """
  path = installed("rdkit", "Data", "NCI", "first_5K.smi")
  return [
    molecule
    for molecule in dict.fromkeys(read_smiles(path))
    if len(molecule) <= max_length and set(molecule) <= set(SMILES)
  ]
