"""Problems on real data: splice sites, binding sites, peptides, molecules."""

import importlib.util
import tempfile
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.common import metrics as metrics_lib
from experiments.common import sequence_sets
from experiments.common import sequences as sequences_lib
from experiments.masked_lm import corpora
from experiments.tr2d2 import oracles, parts, problems
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
  if config.sampler.num_steps > data.length:
    raise ValueError(
      "config.sampler.num_steps must be at most the "
      f"{data.length} sites of a sequence, got {config.sampler.num_steps}."
    )
  make_reward = KINDS[kind]
  if reward is not None:
    carrier, names, more = _given(config, data, reward)
  elif make_reward is None:
    raise ValueError(
      "pass build(config, reward=function), or config.problem.function as "
      "'module:function'."
    )
  else:
    carrier, names, more = make_reward(config, data)
  symbols = data.alphabet.symbols
  drawn = symbols.isalpha() and symbols.isupper() and not data.alphabet.padded
  if drawn and importlib.util.find_spec("logomaker"):
    more = {"letters": symbols, **more}
  corpus = corpora.of(data)
  return problems.from_corpus(
    config, corpus, carrier, base_params, names=names, **more
  )


def _given(config, data, reward):
  """A user's function of decoded sequences, or a carrier."""
  names = tuple(config.problem.objectives) or ("reward",)
  if not isinstance(reward, reward_lib.Reward):
    reward = reward_lib.HostReward(
      _of_sequences(reward, len(names)),
      num_objectives=len(names),
      decode=data.alphabet.decode,
    )
  if reward.num_objectives != len(names):
    raise ValueError(
      "config.problem.objectives must name each of the reward's "
      f"{reward.num_objectives} columns, got {names}."
    )
  return reward, names, {}


def _of_sequences(function, num_objectives):
  """A function that is asked for sequences alone, never for a broken row."""

  def score(sequences):
    present = [i for i, sequence in enumerate(sequences) if sequence]
    answers = np.full((len(sequences), num_objectives), np.nan)
    if present:
      given = np.asarray(function([sequences[i] for i in present]), float)
      if given.shape[:1] != (len(present),) or given.ndim > 2:
        # The carrier says what is wrong with it.
        return given
      answers[present] = given.reshape(len(present), -1)
    return answers

  return score


def _splice(config, data):
  """Matches with U1, and A/U content: on a law that is all known."""
  columns = {"matches": 0, "au_content": 1}
  names = _names(config, columns)
  picked = [columns[name] for name in names]
  matrix = oracles.splice_matrix()[..., picked]
  sites, counts = sequences_lib.splice_sites()
  alphabet = sequences_lib.Alphabet(sequences_lib.RNA)
  values = oracles.additive(matrix, alphabet)(sites).astype(np.float64)
  rewards = parts.scalarise(config, names)(jnp.asarray(values, jnp.float32))
  target = problems.tilted(np.log(counts), rewards, config)
  probs = np.exp(target.log_prob)

  def measures(params, samples, rewards):
    del params, samples
    found = {}
    for k, name in enumerate(names):
      distance = problems.total_variation(rewards[:, k], values[:, k], probs)
      found |= {f"{name}_{key}": {"value": v} for key, v in distance.items()}
    return found

  carrier = reward_lib.JaxReward(
    oracles.additive_tokens(matrix), num_objectives=len(names)
  )
  exact = dict(zip(names, (probs @ values).tolist(), strict=True))
  more = {
    "measures": measures,
    "exact": exact,
    "reference": (0.0,) * len(names),
  }
  return carrier, names, more


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
  if not config.problem.directory:
    # Classifiers are read whole, and need their files no more.
    with tempfile.TemporaryDirectory() as folder:
      return _activity(config, data, folder)
  return _activity(config, data, config.problem.directory)


def _activity(config, data, folder):
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
  more = {"measures": measures, "reference": (0.0,) * len(names)}
  return carrier, names, more


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

  more = {"measures": measures, "reference": (0.0,) * len(names)}
  return carrier, names, more


KINDS: dict[str, Callable | None] = {
  "splice": _splice,
  "dna": _dna,
  "peptides": _peptides,
  "smiles": _smiles,
  # The reward is the caller's.
  "custom": None,
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
