"""What sequences are judged by: host functions of strings, some also in JAX.

A host oracle maps n strings to `[n]` or `[n, K]` float32, and what is no
sequence of its kind, `""` above all, to NaN. It calls no JAX, so that JAX may
call it. Oracles of tokens are traced, and answer NaN to masks, and to symbols
after a pad.

A search exploits the errors of the oracle that it climbs. Score its designs by
another that was fitted to other data: for CRP `crp_test_matrix`, for peptides
the classifiers of the part `"eval"`.
"""

import functools
import importlib
import importlib.util
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import sequence_sets
from experiments.common import sequences as sequences_lib
from experiments.common.sequences import AMINO_ACIDS, DNA, RNA, Alphabet
from jdiff.core import checks, files
from jdiff.targets.trees import TreeEnsemble

Oracle = Callable[[Sequence[str]], np.ndarray]
"""`(n strings) -> [n]` or `[n, K]` float32."""

TokenOracle = Callable[[jax.Array], jax.Array]
"""`[n, L]` tokens `-> [n]` or `[n, K]` float32, traced."""

U1 = "CAGGUAAGU"
"""The 5' splice site that pairs with all of the 5' end of U1 snRNA."""


def match_matrix(pattern: str, alphabet: Alphabet) -> np.ndarray:
  """`[L, V]`: one where a site has the pattern's symbol, else zero."""
  tokens = alphabet.encode([pattern], len(pattern))[0]
  return np.eye(alphabet.size, dtype=np.float32)[tokens]


def content_matrix(symbols: str, length: int, alphabet: Alphabet) -> np.ndarray:
  """`[length, V]`: one for each of the symbols, wherever they stand."""
  row = [float(symbol in symbols) for symbol in alphabet.symbols]
  return np.tile(np.array(row, np.float32), (length, 1))


def splice_matrix() -> np.ndarray:
  """`[9, 4, 2]`: matches with `U1` (0 to 9), and how many A and U."""
  parts = [
    match_matrix(U1, Alphabet(RNA)),
    content_matrix("AU", len(U1), Alphabet(RNA)),
  ]
  return np.stack(parts, axis=-1)


def crp_matrix() -> np.ndarray:
  """`[26, 4]`: minus the measured energy of CRP's binding, kcal/mol."""
  return -sequences_lib.crp_energy()


def weight_matrix(
  sites: Sequence[str], symbols: str = DNA, *, pseudocount: float = 1.0
) -> np.ndarray:
  """`[L, V]`: log-odds of the sites' symbols against even ones, in nats.

  Args:
    sites: Aligned sequences of one length.
    symbols: The `V` that they are made of.
    pseudocount: Added to each count; positive keeps log-odds finite.
  """
  checks.check_finite("pseudocount", pseudocount, positive=True)
  if not sites:
    raise ValueError("sites must hold a sequence, got none.")
  alphabet = Alphabet(symbols)
  tokens = alphabet.encode(sites, len(sites[0]))
  counts = np.eye(alphabet.size)[tokens].sum(axis=0) + pseudocount
  shares = counts / counts.sum(axis=1, keepdims=True)
  return np.log(shares * alphabet.size).astype(np.float32)


def crp_test_matrix() -> np.ndarray:
  """`[26, 4]`: log-odds of the CRP sites that models are not trained on."""
  return weight_matrix(sequence_sets.load("crp").test)


def additive(matrix: np.ndarray, alphabet: Alphabet) -> Oracle:
  """The sum over sites of the matrix' entry for the symbol that stands there.

  Args:
    matrix: `[L, V]`, or `[L, V, K]` for K objectives. Strings of another length
      than `L`, or of other symbols, are NaN.
    alphabet: Its `V` symbols, without a pad.
  """
  matrix = np.asarray(matrix, np.float32)
  length, *objectives = matrix.shape[:1] + matrix.shape[2:]
  checks.check_shape("matrix", matrix, (length, alphabet.size, *objectives))
  symbols = set(alphabet.symbols)

  def oracle(sequences):
    values = np.full((len(sequences), *objectives), np.nan, np.float32)
    valid = [
      i
      for i, sequence in enumerate(sequences)
      if len(sequence) == length and symbols.issuperset(sequence)
    ]
    tokens = alphabet.encode([sequences[i] for i in valid], length)
    values[valid] = matrix[np.arange(length), tokens].sum(axis=1)
    return values

  return oracle


def additive_tokens(matrix: np.ndarray) -> TokenOracle:
  """`additive` of tokens, traced: `[n, L] -> [n]` or `[n, K]`."""
  entries = jnp.asarray(matrix, jnp.float32)
  sites = jnp.arange(entries.shape[0])

  def oracle(tokens):
    checks.check_shape("tokens", tokens, (None, entries.shape[0]))
    at = entries.at[sites[None], tokens]
    return at.get(mode="fill", fill_value=jnp.nan).sum(axis=1)

  return oracle


def word_counts(
  sequences: Sequence[str], symbols: str = DNA, size: int = 3
) -> np.ndarray:
  """`[len(symbols) ** size]`: how often each word occurs, by their order."""
  words = map("".join, itertools.product(symbols, repeat=size))
  index = {word: i for i, word in enumerate(words)}
  counts = np.zeros(len(index), np.int64)
  for sequence in sequences:
    for start in range(len(sequence) - size + 1):
      word = sequence[start : start + size]
      if word in index:
        counts[index[word]] += 1
  return counts


def word_correlation(
  one: Sequence[str], two: Sequence[str], symbols: str = DNA, size: int = 3
) -> float:
  """Pearson's correlation of two sets' `word_counts`; NaN if one is even."""
  counts = [word_counts(part, symbols, size) for part in (one, two)]
  if min(c.std() for c in counts) == 0:
    return float("nan")
  return float(np.corrcoef(*counts)[0, 1])


# EMBOSS's constants: of side chains, and of the two ends.
_POSITIVE = {"K": 10.8, "R": 12.5, "H": 6.5}
_NEGATIVE = {"D": 3.9, "E": 4.1, "C": 8.5, "Y": 10.1}
_N_END, _C_END = 8.6, 3.6


def _charges(ph: float) -> tuple[np.ndarray, float]:
  """Mean charge of each amino acid's side chain `[20]`, and of both ends."""

  def positive(pka):
    return 1 / (1 + 10 ** (ph - pka))

  def negative(pka):
    return -1 / (1 + 10 ** (pka - ph))

  sides = np.zeros(len(AMINO_ACIDS))
  for acid, pka in _POSITIVE.items():
    sides[AMINO_ACIDS.index(acid)] = positive(pka)
  for acid, pka in _NEGATIVE.items():
    sides[AMINO_ACIDS.index(acid)] = negative(pka)
  return sides, positive(_N_END) + negative(_C_END)


def acid_counts(sequences: Sequence[str]) -> np.ndarray:
  """`[n, 20]` float32 of peptides; NaN for anything else."""
  acids = set(AMINO_ACIDS)
  counts = np.full((len(sequences), len(acids)), np.nan, np.float32)
  for i, sequence in enumerate(sequences):
    if sequence and acids.issuperset(sequence):
      counts[i] = [sequence.count(acid) for acid in AMINO_ACIDS]
  return counts


def acid_counts_of_tokens(tokens: jax.Array) -> jax.Array:
  """`acid_counts` of tokens `[n, L]` of `Alphabet(AMINO_ACIDS, True)`."""
  num_acids = len(AMINO_ACIDS)
  pad = tokens == num_acids
  valid = jnp.all((tokens >= 0) & (tokens <= num_acids), axis=1)
  valid &= jnp.all(pad[:, 1:] >= pad[:, :-1], axis=1) & ~pad[:, 0]
  counts = jax.nn.one_hot(tokens, num_acids).sum(axis=1)
  return jnp.where(valid[:, None], counts, jnp.nan)


def net_charge(sequences: Sequence[str], *, ph: float = 7.0) -> np.ndarray:
  """Net charge of peptides `[n]`, by Henderson and Hasselbalch.

  Each group is charged on its own, with free ends and EMBOSS's pK values;
  cysteines are reduced.
  """
  sides, ends = _charges(ph)
  return (acid_counts(sequences) @ sides + ends).astype(np.float32)


def net_charge_tokens(tokens: jax.Array, *, ph: float = 7.0) -> jax.Array:
  """`net_charge` of tokens `[n, L]` of `Alphabet(AMINO_ACIDS, True)`."""
  sides, ends = _charges(ph)
  parts = acid_counts_of_tokens(tokens) * jnp.float32(sides)[None]
  return parts.sum(axis=1) + jnp.float32(ends)


NUM_FEATURES = len(AMINO_ACIDS) + 2


def peptide_features(counts: np.ndarray) -> np.ndarray:
  """`[n, 22]` of `acid_counts`; NaN rows stay so.

  Shares of the 20 acids, length / 32, and (K + R - D - E) / 32.
  """
  length = counts.sum(axis=1)
  k, r, d, e = (counts[:, AMINO_ACIDS.index(acid)] for acid in "KRDE")
  scaled = np.stack([length, k + r - d - e], axis=1) / np.float32(32)
  return np.concatenate([counts / length[:, None], scaled], axis=1)


def peptide_features_of_tokens(tokens: jax.Array) -> jax.Array:
  """`peptide_features`, to the last bit: trees split at values of the data."""
  counts = acid_counts_of_tokens(tokens)
  whole = jnp.nan_to_num(counts).astype(jnp.int32)
  length = whole.sum(axis=1)
  # XLA does not round quotients like NumPy; powers of two are safe.
  to = np.arange(tokens.shape[1] + 1, dtype=np.float32)
  shares = jnp.asarray(to[None] / np.maximum(to, 1)[:, None])
  k, r, d, e = (whole[:, AMINO_ACIDS.index(acid)] for acid in "KRDE")
  scaled = jnp.stack([length, k + r - d - e], axis=1) / jnp.float32(32)
  features = jnp.concatenate([shares[length[:, None], whole], scaled], axis=1)
  return jnp.where(jnp.isnan(counts[:, :1]), jnp.nan, features)


PARTS = ("train", "eval")
"""Halves of a labelled set, without near copies across: one classifier each."""


def fit_peptide_classifiers(directory: str | pathlib.Path) -> dict[str, float]:
  """Trains what `peptide_classifier` reads, unless it is there already.

  For both sets in `sequences.PEPTIDES` and both halves, 100 trees of depth 4 on
  `peptide_features` of peptides up to 32 long, in XGBoost's JSON.

  Returns:
    Area under the ROC curve on the half that the classifier has not seen, by
    `"{name}_{part}"`; in `auc.json`, too.
  """
  directory = pathlib.Path(directory)
  report = directory / "auc.json"
  # Written last.
  if report.is_file():
    return files.read_json(report)
  metrics = _needed("sklearn.metrics", "scikit-learn")
  xgboost = _needed("xgboost", "xgboost-cpu")
  directory.mkdir(parents=True, exist_ok=True)
  options = {
    "objective": "binary:logistic",
    "max_depth": 4,
    "eta": 0.1,
    "min_child_weight": 3,
    "seed": 0,
    "nthread": 1,
  }
  areas = {}
  for name in sequences_lib.PEPTIDES:
    peptides, labels = sequences_lib.peptides(name)
    label = dict(zip(peptides, labels, strict=True))
    halves = sequences_lib.split(peptides, 0.5, shared=7)
    data = [
      xgboost.DMatrix(
        peptide_features(acid_counts(half)), [label[p] for p in half]
      )
      for half in halves
    ]
    for i, part in enumerate(PARTS):
      booster = xgboost.train(options, data[i], 100)
      unseen = data[1 - i]
      areas[f"{name}_{part}"] = float(
        metrics.roc_auc_score(unseen.get_label(), booster.predict(unseen))
      )
      path = classifier_path(directory, name, part)
      unfinished = path.with_name(f".{os.getpid()}.{path.name}")
      booster.save_model(unfinished)
      unfinished.replace(path)
  unfinished = directory / f".{os.getpid()}.auc.json"
  unfinished.write_text(json.dumps(areas))
  unfinished.replace(report)
  return areas


def classifier_path(
  directory: str | pathlib.Path, name: str, part: str
) -> pathlib.Path:
  """The file of a classifier, `name` in `PEPTIDES` and `part` in `PARTS`."""
  if name not in sequences_lib.PEPTIDES or part not in PARTS:
    raise ValueError(
      f"name must be one of {', '.join(sequences_lib.PEPTIDES)} and part one "
      f"of {', '.join(PARTS)}, got {name!r} and {part!r}."
    )
  return pathlib.Path(directory, f"{name}_{part}.json")


def peptide_classifier(path: str | pathlib.Path) -> Oracle:
  """Probability `[n]` that a peptide is active, by XGBoost on the host."""
  xgboost = _needed("xgboost", "xgboost-cpu")
  # Checks the file: XGBoost's own errors do not name it.
  TreeEnsemble.from_xgboost_json(path, NUM_FEATURES)
  booster = xgboost.Booster({"nthread": 1})
  booster.load_model(path)

  def oracle(sequences):
    features = peptide_features(acid_counts(sequences))
    valid = np.isfinite(features).all(axis=1)
    values = np.full(len(sequences), np.nan, np.float32)
    if valid.any():
      values[valid] = booster.predict(xgboost.DMatrix(features[valid]))
    return values

  return oracle


def peptide_classifier_tokens(path: str | pathlib.Path) -> TokenOracle:
  """`peptide_classifier` of tokens `[n, L]`, as `acid_counts_of_tokens`."""
  ensemble = TreeEnsemble.from_xgboost_json(path, NUM_FEATURES)

  def oracle(tokens):
    features = peptide_features_of_tokens(tokens)
    # To trees NaN is a missing value, and no reason to answer NaN.
    return jnp.where(jnp.isnan(features[:, 0]), jnp.nan, ensemble(features))

  return oracle


LOGP = (1.0, 3.0)
"""The window of log P that scores one; two units outside score zero."""


def _qed(molecule) -> float:
  return _needed("rdkit.Chem.QED", "rdkit").qed(molecule)


def _accessibility(molecule) -> float:
  return (10 - _sascorer().calculateScore(molecule)) / 9


def _logp(molecule) -> float:
  low, high = LOGP
  value = _needed("rdkit.Chem.Crippen", "rdkit").MolLogP(molecule)
  return float(np.clip(1 - max(low - value, value - high, 0) / 2, 0, 1))


MOLECULE_SCORES: dict[str, Callable[[Any], float]] = {
  "qed": _qed,
  "accessibility": _accessibility,
  "logp": _logp,
}
"""Scores of RDKit molecules in [0, 1], higher is better: QED; synthetic
accessibility, 10 (hard) to 1 (easy) of Ertl and Schuffenhauer's score; and
Crippen's log P within the window `LOGP`."""


def molecule_scores(names: Sequence[str] = tuple(MOLECULE_SCORES)) -> Oracle:
  """Scores `[n, K]` of SMILES by their names; NaN where RDKit cannot read one.

  Its warnings are kept quiet.
  """
  unknown = sorted(set(names) - set(MOLECULE_SCORES))
  if unknown or not names:
    raise ValueError(
      f"names must be among {', '.join(MOLECULE_SCORES)}, got {list(names)}."
    )
  chem = _needed("rdkit.Chem", "rdkit")
  # Else "C anything" would be methane of that name.
  params = chem.SmilesParserParams()
  params.parseName = params.allowCXSMILES = False

  def scores(sequence):
    try:
      molecule = chem.MolFromSmiles(sequence, params)
      if molecule is None or not molecule.GetNumAtoms():
        return np.nan
      return [MOLECULE_SCORES[name](molecule) for name in names]
    except Exception:
      # RDKit raises many kinds, and one molecule must not end a run.
      return np.nan

  def oracle(sequences):
    values = np.empty((len(sequences), len(names)), np.float32)
    with _needed("rdkit.rdBase", "rdkit").BlockLogs():
      for i, sequence in enumerate(sequences):
        values[i] = scores(sequence)
    return values

  return oracle


@functools.cache
def _sascorer() -> Any:
  """RDKit carries the score as a script, outside its modules."""
  path = sequences_lib.installed("rdkit", "Contrib", "SA_Score", "sascorer.py")
  spec = importlib.util.spec_from_file_location("sascorer", path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _needed(module: str, package: str) -> Any:
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ImportError(
      f"this oracle needs the package {package}: "
      'pip install "jdiff-research[data]".'
    ) from error
