"""Oracles against counts by hand, known molecules, and XGBoost itself."""

import importlib.util
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import sequence_sets, sequences
from experiments.common.sequences import AMINO_ACIDS, DNA, RNA, Alphabet
from experiments.tr2d2 import oracles
from jdiff.targets.trees import TreeEnsemble

PEPTIDE = Alphabet(AMINO_ACIDS, padded=True)


def needs(*packages):
  """Skips without the packages; some are only read."""
  missing = [p for p in packages if importlib.util.find_spec(p) is None]
  return pytest.mark.skipif(bool(missing), reason=f"no {missing}")


def test_splice_objectives_by_hand():
  oracle = oracles.additive(oracles.splice_matrix(), Alphabet(RNA))
  given = ["CAGGUAAGU", "GUCCGCCUC", "AAAAAAAAA", "CAGGUAAG", "CAGGTAAGT", ""]
  found = oracle(given)
  assert found.shape == (6, 2) and found.dtype == np.float32
  np.testing.assert_array_equal(
    found, [[9, 5], [0, 2], [3, 9], *[[np.nan, np.nan]] * 3]
  )
  assert oracle([]).shape == (0, 2)


@needs("logomaker")
def test_splice_objectives_over_the_real_law():
  sites, counts = sequences.splice_sites()
  values = oracles.additive(oracles.splice_matrix(), Alphabet(RNA))(sites)
  shares = counts / counts.sum()
  matches = values[:, 0]
  # Over the law, and over its tilt by exp(matches).
  tilted = shares * np.exp(matches)
  assert abs(shares @ matches - 6.223) < 1e-3
  assert abs(tilted @ matches / tilted.sum() - 7.241) < 1e-3
  points = {tuple(row) for row in values.astype(int).tolist()}
  front = {
    (a, b)
    for a, b in points
    if not any((c, d) != (a, b) and c >= a and d >= b for c, d in points)
  }
  assert front == {(9, 5), (8, 6), (7, 7), (6, 8)}


@needs("logomaker")
def test_tokens_and_strings_score_alike():
  rng = np.random.default_rng(0)
  for matrix, symbols in (
    (oracles.splice_matrix(), RNA),
    (oracles.crp_matrix(), DNA),
  ):
    alphabet = Alphabet(symbols)
    tokens = rng.integers(0, 4, (16, len(matrix)))
    tokens[0, 3] = 4  # the mask
    oracle = jax.jit(oracles.additive_tokens(matrix))
    found = oracle(jnp.asarray(tokens))
    assert found.dtype == jnp.float32
    wanted = oracles.additive(matrix, alphabet)(alphabet.decode(tokens))
    assert np.isnan(wanted[0]).all() and np.isfinite(wanted[1:]).all()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="tokens must have shape"):
      oracle(tokens[:, 1:])


@needs("logomaker")
def test_crp_oracles_know_sites():
  energy = sequences.crp_energy()
  site = "".join(DNA[i] for i in energy.argmin(axis=1))
  (value,) = oracles.additive(oracles.crp_matrix(), Alphabet(DNA))([site])
  assert abs(value + energy.min(axis=1).sum()) < 1e-5
  data = sequence_sets.load("crp")
  rng = np.random.default_rng(0)
  others = data.alphabet.decode(rng.integers(0, 4, (500, 26)))
  measured = oracles.additive(oracles.crp_matrix(), data.alphabet)
  fitted = oracles.additive(oracles.crp_test_matrix(), data.alphabet)
  for oracle in (measured, fitted):
    assert oracle(data.train).mean() > oracle(others).mean() + 5
  # Not the same oracle, nor one at odds with it.
  one, two = measured(data.train), fitted(data.train)
  assert 0.9 < np.corrcoef(one, two)[0, 1] < 0.99


def test_a_weight_matrix_by_hand():
  found = oracles.weight_matrix(["AC", "AG", "AT"], pseudocount=1)
  wanted = np.log([[16 / 7, 4 / 7, 4 / 7, 4 / 7], [4 / 7, 8 / 7, 8 / 7, 8 / 7]])
  np.testing.assert_allclose(found, wanted, rtol=1e-6)
  with pytest.raises(ValueError, match="exactly 2 long, got 3 in row 1"):
    oracles.weight_matrix(["AC", "ACG"])
  with pytest.raises(ValueError, match="sites must hold a sequence"):
    oracles.weight_matrix([])
  with pytest.raises(ValueError, match="pseudocount must be positive"):
    oracles.weight_matrix(["AC"], pseudocount=0)


def test_word_correlation():
  counts = oracles.word_counts(["ACGAC", "AC", ""], size=2)
  words = map("".join, itertools.product(DNA, repeat=2))
  by_word = dict(zip(words, counts, strict=True))
  assert {w: n for w, n in by_word.items() if n} == {"AC": 3, "CG": 1, "GA": 1}
  rng = np.random.default_rng(0)
  uneven = [
    "".join(rng.choice(list(DNA), 30, p=[0.4, 0.1, 0.2, 0.3]))
    for _ in range(200)
  ]
  one, two = uneven[:100], uneven[100:]
  assert oracles.word_correlation(one, one) == pytest.approx(1)
  assert oracles.word_correlation(one, two) > 0.9
  # Complements swap the frequent letters for the rare ones.
  swapped = [s.translate(str.maketrans("ACGT", "CATG")) for s in two]
  assert oracles.word_correlation(one, swapped) < 0
  assert np.isnan(oracles.word_correlation(one, []))


def test_net_charge_by_hand():
  found = oracles.net_charge(["G", "KRH", "DECY", "", "KX", "k"])
  ends = 1 / (1 + 10**-1.6) - 1 / (1 + 10**-3.4)
  basic = sum(1 / (1 + 10 ** (7 - pka)) for pka in (10.8, 12.5, 6.5))
  acid = sum(1 / (1 + 10 ** (pka - 7)) for pka in (3.9, 4.1, 8.5, 10.1))
  wanted = [ends, ends + basic, ends - acid, *[np.nan] * 3]
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  assert found.dtype == np.float32
  # All groups charged, then none.
  assert oracles.net_charge(["KRDDE"], ph=-20) == pytest.approx(3)
  assert oracles.net_charge(["KRDDE"], ph=30) == pytest.approx(-4)
  peptides = ["KRH", "DECYDECY", "G"]
  tokens = jnp.asarray(PEPTIDE.encode(peptides, 8))
  np.testing.assert_allclose(
    oracles.net_charge_tokens(tokens), oracles.net_charge(peptides), rtol=1e-5
  )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
  """`(directory, areas)` of the trained classifiers."""
  directory = tmp_path_factory.mktemp("classifiers")
  return directory, oracles.fit_peptide_classifiers(directory)


NAMES = [*itertools.product(sequences.PEPTIDES, oracles.PARTS)]


@needs("modlamp", "xgboost", "sklearn")
def test_classifiers_are_good_and_kept(fitted):
  directory, areas = fitted
  assert set(areas) == {f"{name}_{part}" for name, part in NAMES}
  # 0.91, 0.91, 0.93 and 0.98: near copies are on one side.
  assert all(0.88 < area < 0.99 for area in areas.values())
  stamp = oracles.classifier_path(directory, "amp", "eval").stat().st_mtime_ns
  assert oracles.fit_peptide_classifiers(directory) == areas
  again = oracles.classifier_path(directory, "amp", "eval").stat().st_mtime_ns
  assert again == stamp
  assert {p.name for p in directory.iterdir()} == {
    "auc.json",
    *(f"{name}_{part}.json" for name, part in NAMES),
  }


@needs("modlamp", "xgboost", "sklearn")
@pytest.mark.parametrize(("name", "part"), NAMES)
def test_three_evaluations_of_a_classifier_agree(fitted, name, part):
  path = oracles.classifier_path(fitted[0], name, part)
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 20, (500, 32))
  tokens[np.arange(32)[None] >= rng.integers(5, 33, 500)[:, None]] = 20
  peptides = [*sequences.peptides(name)[0][:500], *PEPTIDE.decode(tokens)]
  host = oracles.peptide_classifier(path)(peptides)
  assert host.dtype == np.float32 and 0 < host.min() < host.max() < 1
  ensemble = TreeEnsemble.from_xgboost_json(path)
  assert ensemble.left.shape[0] == 100 and ensemble.depth <= 4
  features = oracles.peptide_features(oracles.acid_counts(peptides))
  np.testing.assert_allclose(ensemble(features), host, rtol=0, atol=1e-5)
  traced = jax.jit(oracles.peptide_classifier_tokens(path))
  found = traced(jnp.asarray(PEPTIDE.encode(peptides, 32)))
  np.testing.assert_allclose(found, host, rtol=0, atol=1e-5)


@needs("modlamp", "xgboost", "sklearn")
def test_the_two_parts_are_two_oracles(fitted):
  peptides, labels = sequences.peptides("amp")
  one, two = (
    oracles.peptide_classifier(oracles.classifier_path(fitted[0], "amp", part))
    for part in oracles.PARTS
  )
  p, q = one(peptides), two(peptides)
  assert 0.5 < np.corrcoef(p, q)[0, 1] < 0.95
  assert p[labels == 1].mean() > p[labels == 0].mean() + 0.4


@needs("modlamp")
def test_features_of_tokens_are_exact():
  # A quotient rounded otherwise would cross thresholds, which are data values.
  peptides = sequences.peptides("amp")[0]
  tokens = jnp.asarray(PEPTIDE.encode(peptides, 32))
  found = jax.jit(oracles.peptide_features_of_tokens)(tokens)
  wanted = oracles.peptide_features(oracles.acid_counts(peptides))
  assert found.dtype == wanted.dtype and wanted.shape[1] == oracles.NUM_FEATURES
  np.testing.assert_array_equal(found, wanted)


@needs("modlamp", "xgboost", "sklearn")
def test_what_is_no_peptide_is_nan(fitted):
  path = oracles.classifier_path(fitted[0], "acp", "train")
  host = oracles.peptide_classifier(path)
  found = host(["KLAKLAK", "", "KLAX", "kla"])
  assert np.isfinite(found).tolist() == [True, False, False, False]
  assert np.isnan(host(["", "B"])).all() and host([]).shape == (0,)
  rows = [[8, 9, 0, 20], [8, 20, 9, 20], [20] * 4, [8, 21, 0, 0], [8, -1, 0, 0]]
  found = jax.jit(oracles.peptide_classifier_tokens(path))(jnp.asarray(rows))
  assert np.isfinite(found).tolist() == [True, False, False, False, False]
  with pytest.raises(ValueError, match="name must be one of amp, acp and part"):
    oracles.classifier_path(fitted[0], "amp", "test")
  with pytest.raises(FileNotFoundError):
    oracles.peptide_classifier(fitted[0] / "none.json")


@needs("rdkit")
def test_scores_of_aspirin():
  aspirin = "CC(=O)OC1=CC=CC=C1C(=O)O"
  found = oracles.molecule_scores()([aspirin])
  assert found.shape == (1, 3) and found.dtype == np.float32
  # QED 0.5501, accessibility 1.58, log P 1.3101, which is in the window.
  np.testing.assert_allclose(found, [[0.5501, (10 - 1.58) / 9, 1]], atol=1e-4)
  (swapped,) = oracles.molecule_scores(["logp", "qed"])([aspirin])
  np.testing.assert_array_equal(swapped, found[0, [2, 0]])


@needs("rdkit")
def test_molecules_that_are_none_are_nan_and_quiet(capfd):
  bad = ["", "C(", "C1CC", "CC name", "[H", "c1ccc", None]
  found = oracles.molecule_scores()(["C", *bad, "CCO"])
  valid = np.isfinite(found).all(axis=1)
  assert valid.tolist() == [True, *[False] * len(bad), True]
  assert capfd.readouterr().err == ""
  assert found[valid].min() >= 0 and found[valid].max() <= 1


@needs("rdkit")
def test_the_window_of_log_p():
  # Octane's log P is 3.37, and water's -0.82: 0.37 and 1.82 outside.
  found = oracles.molecule_scores(["logp"])(["CCCCCCCC", "O", "CCCCO"])[:, 0]
  np.testing.assert_allclose(found[:2], [1 - 0.3667 / 2, 0.0875], atol=2e-3)
  with pytest.raises(ValueError, match="among qed, accessibility, logp, got"):
    oracles.molecule_scores(["tpsa"])


@needs("rdkit")
def test_an_error_inside_a_score_is_nan(monkeypatch):
  def broken(molecule):
    if molecule.GetNumAtoms() == 1:
      raise RuntimeError
    return 0.5

  monkeypatch.setitem(oracles.MOLECULE_SCORES, "qed", broken)
  found = oracles.molecule_scores(["qed"])(["C", "CC"])
  np.testing.assert_array_equal(found, [[np.nan], [0.5]])


@needs("rdkit")
def test_the_molecules_to_train_on_are_valid():
  molecules = sequence_sets.load("smiles").test
  found = oracles.molecule_scores(["logp"])(molecules)
  assert np.isfinite(found).mean() > 0.99


def test_a_missing_package_says_what_to_install(monkeypatch):
  def absent(name):
    raise ImportError(name)

  monkeypatch.setattr(oracles.importlib, "import_module", absent)
  message = r'package rdkit: pip install "jdiff-research\[data\]"'
  with pytest.raises(ImportError, match=message):
    oracles.molecule_scores()
