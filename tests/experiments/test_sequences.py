"""Alphabets, the user's files, splits, and the data inside wheels."""

import collections
import importlib.util

import numpy as np
import pytest

from experiments.common import sequence_sets, sequences
from experiments.common.sequences import Alphabet
from experiments.masked_lm import corpora


def needs(package):
  """Skips without the package, whose files alone are read."""
  return pytest.mark.skipif(
    importlib.util.find_spec(package) is None, reason=f"no {package}"
  )


def write(path, text, encoding="utf-8"):
  path.write_bytes(text.encode(encoding))
  return str(path)


def reverse(site):
  return [sequences.reverse_complement(site)]


def test_an_alphabet_goes_there_and_back():
  alphabet = Alphabet("ACGT", padded=True)
  assert alphabet.size == 5 and Alphabet("ACGT").size == 4
  tokens = alphabet.encode(["GAT", "", "TTTT"], 4)
  assert tokens.dtype == np.int32
  assert tokens.tolist() == [[2, 0, 3, 4], [4] * 4, [3] * 4]
  assert alphabet.decode(tokens) == ["GAT", "", "TTTT"]
  bare = Alphabet("ACGT")
  assert bare.decode(bare.encode(["GATC"], 4)) == ["GATC"]


def test_rows_that_are_no_sequence_decode_to_nothing():
  alphabet = Alphabet("ACGT", padded=True)
  rows = [
    [4, 0, 4, 4],  # a symbol after a pad
    [0, 4, 4, 1],
    [0, 5, 1, 1],  # the mask id
    [0, -1, 1, 1],
    [4, 4, 4, 4],
  ]
  assert alphabet.decode(np.array(rows)) == [""] * 5
  # Without a pad its id is the mask's.
  assert Alphabet("ACGT").decode(np.array([[0, 4], [0, 1]])) == ["", "AC"]


@pytest.mark.parametrize(
  ("padded", "given", "message"),
  [
    (True, ["A", "ACGTA"], "at most 4 long, got 5 in row 1"),
    (False, ["ACGT", "A"], "exactly 4 long, got 1 in row 1"),
    (True, ["ACGU"], "made of 'ACGT', got 'U' in row 0"),
    (True, ["A", "Aé"], "made of 'ACGT', got 'é' in row 1"),
  ],
)
def test_sequences_that_do_not_fit(padded, given, message):
  with pytest.raises(ValueError, match=message):
    Alphabet("ACGT", padded).encode(given, 4)


def test_fasta(tmp_path):
  text = "# by Müller\n\n>a naïve name\nacGT\nAC GT\n>b\nTTT\r\n"
  path = write(tmp_path / "own.fa", text)
  assert sequences.read_fasta(path) == ["ACGTACGT", "TTT"]


def test_smiles(tmp_path):
  path = write(tmp_path / "own.smi", "smiles name\nC#N\tcyanide\nCCO\n\n")
  assert sequences.read_smiles(path) == ["C#N", "CCO"]


def test_csv(tmp_path):
  text = '\ufeffname,sequence\nMüller," KLA "\n"two\nlines",GG\n'
  path = write(tmp_path / "own.csv", text)
  assert sequences.read_csv(path, "sequence") == ["KLA", "GG"]


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("a.fa", "", "must hold sequences, got none"),
    ("a.fa", "ACGT\n", "line 1 must be a header, `>name`"),
    ("a.fa", ">a\nAC\n>b\n>c\nA\n", "line 3 must be followed by a sequence"),
    ("a.fa", ">a\nAC\nAé\n", "line 3 must hold a sequence of ASCII symbols"),
    ("a.smi", "\n\n", "must hold sequences, got none"),
    ("a.smi", "CC\nC\x00C\n", "line 2 must hold a sequence of ASCII symbols"),
    ("a.csv", "s,t\nA,B\n,B\n", "line 3 must hold a sequence, got none"),
    ("a.csv", "s,t\nA A,B\n", "line 2 must hold a sequence of ASCII symbols"),
    ("a.csv", "t\nA\n", r"must have the column 's'.*got \['t'\]"),
    ("a.csv", "", "must have the column 's'.*got None"),
    ("a.csv", "s\n", "must hold sequences, got none"),
    ("a.csv", 's\n"A' + "A" * 2**17 + '"\n', "must be CSV in UTF-8"),
  ],
)
def test_files_that_will_not_do(tmp_path, name, text, message):
  path = write(tmp_path / name, text)
  column = "s" if name.endswith("csv") else ""
  with pytest.raises(ValueError, match=message):
    sequence_sets.load(path=path, column=column)


def test_sizes_and_encodings_are_checked(tmp_path, monkeypatch):
  path = write(tmp_path / "a.csv", "s\nAé\n", "latin-1")
  with pytest.raises(ValueError, match="must be CSV in UTF-8"):
    sequences.read_csv(path, "s")
  with pytest.raises(FileNotFoundError, match="no file at .*none.fa"):
    sequences.read_fasta(tmp_path / "none.fa")
  monkeypatch.setattr(sequences, "MAX_BYTES", 3)
  with pytest.raises(ValueError, match="at most 3 bytes, got 5"):
    sequences.read_csv(path, "s")


def test_a_split_is_one_of_the_set():
  rng = np.random.default_rng(0)
  rows = ["".join(rng.choice(list("ACGT"), 12)) for _ in range(50)]
  train, test = sequences.split(rows, 0.2)
  assert sorted([*train, *test]) == sorted(rows) and len(test) == 10
  assert (train, test) == sequences.split([*reversed(rows), rows[3]], 0.2)
  assert len(sequences.split(["A", "C"], 0.01)[1]) == 1


def test_relatives_stay_together():
  rng = np.random.default_rng(0)
  seeds = ["".join(rng.choice(list("ACGT"), 14)) for _ in range(30)]
  shifted = [reverse("AC" + seed)[0] for seed in seeds]
  side = {}
  for k, part in enumerate(
    sequences.split([*seeds, *shifted], 0.5, shared=14, relatives=reverse)
  ):
    side |= {sequence: k for sequence in part}
  assert all(side[a] == side[b] for a, b in zip(seeds, shifted, strict=True))
  # Negative control: one strand alone does not tell.
  parts = sequences.split([*seeds, *shifted], 0.5, shared=14)
  side = {s: k for k, part in enumerate(parts) for s in part}
  assert any(side[a] != side[b] for a, b in zip(seeds, shifted, strict=True))
  with pytest.raises(ValueError, match="two groups or more with shared=1"):
    sequences.split(seeds, 0.5, shared=1)


def test_groups_too_large_for_the_test_part():
  # Two groups of three, and a test part of less than one sequence.
  rows = ["AAAA", "AAAC", "AAAG", "TTTT", "TTTC", "TTTG"]
  train, test = sequences.split(rows, 0.1, shared=3)
  assert {*train, *test} == {*rows} and len(test) == 3
  assert len({row[0] for row in test}) == 1


def test_the_users_own_file(tmp_path):
  rows = ["KLA", "KLAK", "GG", "KLAKLAKLA", *["GGG"] * 5]
  path = write(tmp_path / "own.smi", "\n".join(rows))
  data = sequence_sets.load(path=path, length=4)
  assert data.alphabet == Alphabet("AGKL", padded=True) and data.length == 4
  assert {*data.train, *data.test} == {"KLA", "KLAK", "GG", "GGG"}
  assert len(data.test) == 1
  drawn = collections.Counter(data.alphabet.decode(data.batch(0, 1, 4000)))
  assert set(drawn) == set(data.train)
  # GGG is five of the seven rows trained on; five standard errors.
  assert abs(drawn["GGG"] / 4000 - 5 / 7) < 5 * 0.0072
  assert sequence_sets.load(path=path).length == 9
  text = write(tmp_path / "own.txt", ">a\nAC\n>b\nGT\n")
  data = sequence_sets.load(path=text, format="fasta")
  assert data.alphabet == Alphabet("ACGT") and data.length == 2


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({}, "either the name of a set or a path"),
    ({"name": "crp", "path": "a.fa"}, "either the name of a set or a path"),
    ({"name": "rna"}, "name must be one of crp, peptides, smiles, splice"),
    ({"name": "crp", "length": 20}, "length must be 26, or 0"),
    ({"name": "crp", "column": "s"}, "describe the user's own file"),
    ({"name": "crp", "length": 10**9}, "length must be at most 4096"),
    ({"name": "peptides", "length": -1}, "length must be >= 0"),
    ({"path": "a.txt"}, "format must be one of csv, fasta, smi"),
    ({"path": "a.csv"}, "column names the column of a CSV file, got ''"),
    ({"path": "a.smi", "column": "s"}, "column of a CSV file, got 's'"),
  ],
)
def test_options_that_will_not_do(options, message):
  with pytest.raises(ValueError, match=message):
    sequence_sets.load(**options)


def test_canvases_of_own_files_are_bounded(tmp_path, monkeypatch):
  path = write(tmp_path / "own.smi", "CCCC\nC\nCC\n")
  monkeypatch.setattr(sequence_sets, "MAX_LENGTH", 3)
  with pytest.raises(ValueError, match="of 4 symbols, more than 3; pass a len"):
    sequence_sets.load(path=path)
  assert sequence_sets.load(path=path, length=3).length == 3
  with pytest.raises(ValueError, match="two distinct sequences of at most l"):
    sequence_sets.load(path=path, length=1)


def test_a_missing_package_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ImportError, match=r'logomaker.*"jdiff-research\[data\]"'):
    sequence_sets.load("splice")


@needs("logomaker")
def test_splice_sites_are_a_known_law():
  sites, counts = sequences.splice_sites()
  assert len(set(sites)) == 10227 and counts.sum() == 298479
  assert {site[3] for site in sites} == {"G"}
  assert {site[4] for site in sites} == set("CU")
  data = sequence_sets.load("splice")
  assert data.alphabet == Alphabet("ACGU") and data.length == 9
  assert abs(data.entropy - 6.7592) < 1e-4
  shares = dict(zip(sites, counts / counts.sum(), strict=True))
  for drawn in (data.batch(0, 0, 20000), data.held_out(20000)):
    rows = data.alphabet.decode(drawn)
    surprise = -np.log([shares[row] for row in rows])
    # Five standard errors of the mean.
    error = surprise.std() / 20000**0.5
    assert abs(surprise.mean() - data.entropy) < 5 * error
  np.testing.assert_array_equal(data.batch(1, 2, 8), data.batch(1, 2, 8))
  assert (data.batch(1, 2, 8) != data.batch(1, 3, 8)).any()
  assert (data.batch(1, 2, 8) != data.batch(2, 2, 8)).any()


@needs("logomaker")
def test_crp_sites_have_low_energy_and_do_not_leak():
  energy = sequences.crp_energy()
  assert energy.shape == (26, 4) and energy.dtype == np.float32
  # Read by eye from the file.
  assert energy[0, 0] == np.float32(-0.18364197530864196)
  assert energy[25, 3] == np.float32(-0.22993827160493827)
  data = sequence_sets.load("crp")
  assert len(data.train) == 318 and len(data.test) == 212
  for part in (data.train, data.test):
    assert {*part} == {sequences.reverse_complement(s) for s in part}
    tokens = data.alphabet.encode(part, 26)
    energies = energy[np.arange(26), tokens].sum(1)
    # Uniform bases: 0.03 on average, deviation 1.74.
    assert energies.mean() < -5
  words = [
    {s[i : i + 12] for s in part for i in range(15)}
    for part in (data.train, data.test)
  ]
  assert not words[0] & words[1]


@needs("modlamp")
@pytest.mark.parametrize(("name", "active"), [("amp", 1546), ("acp", 413)])
def test_peptides_have_labels(name, active):
  found, labels = sequences.peptides(name)
  assert len(set(found)) == len(found) == len(labels)
  assert labels.sum() == active and set(labels.tolist()) == {0, 1}
  assert max(map(len, found)) <= 32
  # No anticancer peptide has cysteine, nor has any of its controls.
  absent = {"amp": "", "acp": "C"}[name]
  assert set(sequences.AMINO_ACIDS) - set("".join(found)) == set(absent)
  with pytest.raises(ValueError, match="name must be one of"):
    sequences.peptides("tfr")


@needs("modlamp")
@needs("rdkit")
def test_sequences_of_varying_length():
  for name, length in (("peptides", 20), ("smiles", 24)):
    data = sequence_sets.load(name, length=length)
    assert data.length == length and data.alphabet.padded
    assert not {*data.train} & {*data.test}
    rows = data.batch(0, 0, 64)
    assert rows.shape == (64, length) and rows.dtype == np.int32
    assert {*data.alphabet.decode(rows)} <= {*data.train}
    assert {*data.alphabet.decode(data.held_out(64))} <= {*data.test}


@needs("logomaker")
def test_the_corpus_of_sequences():
  options = {"name": "splice", "path": "", "format": "", "column": ""}
  corpus = corpora.load("sequences", length=0, **options)
  assert (corpus.num_prompt, corpus.length, corpus.num_tokens) == (0, 9, 4)
  assert corpus.task is None and abs(corpus.entropy - 6.7592) < 1e-4
  batch = corpus.batch(0, 3, 5)
  assert batch.shape == (5, 9)
  assert all(corpus.decode(row)[3] == "G" for row in batch)
  assert corpus.held_out(7).shape == (7, 9)
  with pytest.raises(ValueError, match=r"'sequences', 'task', 'text'"):
    corpora.load("dna")
