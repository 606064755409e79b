"""Problems on real data: splice sites, binding sites, peptides, molecules."""

import tempfile
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.common import metrics as metrics_lib
from experiments.common import sequence_sets
from experiments.common import sequences as sequences_lib
from experiments.masked_lm import corpora
from experiments.tr2d2 import oracles, problems
from jdiff.core import reward as reward_lib


def make(
  config, reward: Any = None, base_params: Any = None
) -> problems.Problem:
  """The problem of `config.problem.kind`; arguments as in `problems.make`.

  Raises:
    ValueError: If a field is unknown, or a problem of the user's own lacks a
      reward.
    ImportError: If a package of the extra `data` is missing.
  """
  kind = config.problem.kind
  if kind not in KINDS:
    known = ", ".join([*problems.TABLES, *KINDS])
    raise ValueError(
      f"config.problem.kind must be one of {known}, got {kind!r}."
    )
  options = dict(config.base.data)
  if options.pop("kind") != "sequences":
    raise ValueError(
      "config.base.data.kind must be 'sequences' for this problem, got "
      f"{config.base.data.kind!r}."
    )
  data = sequence_sets.load(**options)
  carrier, names, parts = KINDS[kind](config, data)
  if reward is not None:
    carrier, names, parts = _given(config, data, reward)
  if carrier is None:
    raise ValueError(
      "pass build(config, reward=function), or config.problem.function as "
      "'module:function'."
    )
  if not data.alphabet.padded and len(set(data.alphabet.symbols)) <= 20:
    parts = {"letters": data.alphabet.symbols, **parts}
  corpus = corpora.load(**config.base.data)
  return problems.from_corpus(
    config, corpus, carrier, base_params, names=names, **parts
  )


def _given(config, data, reward):
  """A user's function of decoded sequences, or a carrier."""
  names = tuple(config.problem.objectives) or ("reward",)
  if not isinstance(reward, reward_lib.Reward):
    reward = reward_lib.HostReward(
      reward, num_objectives=len(names), decode=data.alphabet.decode
    )
  if reward.num_objectives != len(names):
    raise ValueError(
      "config.problem.objectives must name each of the reward's "
      f"{reward.num_objectives} columns, got {names}."
    )
  return reward, names, {}


def _splice(config, data):
  """Matches with U1, and A/U content: on a law that is all known."""
  columns = {"matches": 0, "au_content": 1}
  names = _names(config, columns)
  picked = [columns[name] for name in names]
  matrix = oracles.splice_matrix()[..., picked]
  sites, counts = sequences_lib.splice_sites()
  alphabet = sequences_lib.Alphabet(sequences_lib.RNA)
  values = oracles.additive(matrix, alphabet)(sites).astype(np.float64)
  weights = np.array(config.objective_weights or (1.0,) * len(names))
  target = problems.tilted(np.log(counts), values @ weights, config)
  probs = np.exp(target.log_prob)

  def measures(params, samples, rewards):
    del params, samples
    return {
      f"{name}_tv": problems.total_variation(rewards[:, k], values[:, k], probs)
      for k, name in enumerate(names)
    }

  carrier = reward_lib.JaxReward(
    oracles.additive_tokens(matrix), num_objectives=len(names)
  )
  exact = dict(zip(names, (probs @ values).tolist(), strict=True))
  return carrier, names, {"measures": measures, "exact": exact}


def _dna(config, data):
  """Minus the measured energy of CRP's binding; another oracle judges."""
  names = _names(config, {"binding": 0})
  judge = oracles.additive(oracles.crp_test_matrix(), data.alphabet)

  def measures(params, samples, rewards):
    del params, rewards
    designs = data.alphabet.decode(samples)
    return {
      "held_out_log_odds": metrics_lib.mean(judge(designs)),
      "word_correlation": {
        "value": oracles.word_correlation(designs, data.test)
      },
    }

  carrier = reward_lib.JaxReward(oracles.additive_tokens(oracles.crp_matrix()))
  return carrier, names, {"measures": measures}


CHARGE = 5.0
"""Net charge at which peptides score one; five off, and they score zero."""


def _peptides(config, data):
  """Activity by classifiers that are trained here, and a charge."""
  folder = config.problem.directory
  if not folder:
    folder = tempfile.mkdtemp(prefix="jdiff-classifiers-")
  oracles.fit_peptide_classifiers(folder)

  def classifier(name, part):
    path = oracles.classifier_path(folder, name, part)
    return oracles.peptide_classifier_tokens(path)

  def charge(tokens):
    off = jnp.abs(oracles.net_charge_tokens(tokens) - CHARGE)
    return jnp.maximum(1 - off / 5, 0)

  known: dict[str, Callable] = {
    "amp": classifier("amp", "train"),
    "acp": classifier("acp", "train"),
    "charge": charge,
  }
  names = _names(config, known)

  def score(tokens):
    return jnp.stack([known[name](tokens) for name in names], axis=1)

  judges = {
    name: oracles.peptide_classifier(
      oracles.classifier_path(folder, name, "eval")
    )
    for name in names
    if name in sequences_lib.PEPTIDES
  }

  def measures(params, samples, rewards):
    del params, rewards
    designs = data.alphabet.decode(samples)
    found = {}
    for name, judge in judges.items():
      values = judge(designs)
      values = values[np.isfinite(values)]
      if len(values):
        found[f"{name}_held_out"] = metrics_lib.mean(values)
    return found

  carrier = reward_lib.JaxReward(score, num_objectives=len(names))
  return carrier, names, {"measures": measures}


def _smiles(config, data):
  """QED, accessibility and log P of molecules, by RDKit on the host."""
  names = _names(config, oracles.MOLECULE_SCORES)
  carrier = reward_lib.HostReward(
    oracles.molecule_scores(names),
    num_objectives=len(names),
    decode=data.alphabet.decode,
  )
  known = set(data.train)

  def measures(params, samples, rewards):
    del params
    designs = data.alphabet.decode(samples[np.isfinite(rewards).all(axis=1)])
    if not designs:
      return {}
    return {"novel": metrics_lib.mean([d not in known for d in designs])}

  return carrier, names, {"measures": measures}


def _custom(config, data):
  """The user's own sequences; the reward comes from the caller."""
  del config, data
  return None, (), {}


KINDS = {
  "splice": _splice,
  "dna": _dna,
  "peptides": _peptides,
  "smiles": _smiles,
  "custom": _custom,
}


def _names(config, known) -> tuple[str, ...]:
  """The objectives asked for, or all there are."""
  names = tuple(config.problem.objectives) or tuple(known)
  unknown = [name for name in names if name not in known]
  if unknown or len(set(names)) < len(names):
    raise ValueError(
      f"config.problem.objectives must be among {', '.join(known)}, each once,"
      f" got {names}."
    )
  return names
