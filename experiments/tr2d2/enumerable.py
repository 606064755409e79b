"""Problems of 4096 sequences, whose every law is a sum: what buys what.

  python -m experiments.main --config=experiments/tr2d2/enumerable.py:VARIANT \
      --workdir=W

`pairs` is sharp: uniform on 4^6, the reward the share of three pairs that hold
their letters, at a temperature of 0.1. `markov` is soft: a Markov chain, at a
temperature of 0.5. Each as the hybrid (search, then rollouts), with rollouts
alone, and with search alone under several weightings. A round asks for 1040
and 1024 rewards.

| variant | hardware, time |
|---|---|
| smoke | 2 cores, a few seconds |
| pairs, pairs_rollouts, pairs_tree, pairs_tree_path | 2 cores, 30 s |
| markov, markov_rollouts, markov_top, markov_tree, markov_tree_path | 2 cores, 30 s |
"""  # noqa: E501

import functools

from experiments.common import config as config_lib
from experiments.tr2d2 import defaults


def get_config(variant: str = "pairs"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _pairs(num_rounds: int = 14, num_tree: int = 1, **fields):
  config = defaults.tuning("pairs", {})
  config.reward_temperature = 0.1
  config.learning_rate = 3e-3
  config.search.num_roots, config.search.num_children = 4, 10
  config.search.num_expansions = 26
  config.inner_steps = 40
  # Few rows, for reward early: the law comes with the rollouts.
  config.buffer.capacity = 16
  config.search.backup, config.search.exploration = "count", 0.15
  config.update_from_flattened_dict(fields)
  defaults.rounds(config, num_rounds, num_tree=num_tree, evaluations=14)
  return config


def _markov(num_rounds: int = 12, num_tree: int = 1, **fields):
  config = defaults.tuning("markov", {})
  config.reward_temperature = 0.5
  config.learning_rate = 3e-3
  config.search.num_roots, config.search.num_children = 4, 16
  config.search.num_expansions = 16
  config.update_from_flattened_dict(fields)
  defaults.rounds(config, num_rounds, num_tree=num_tree, evaluations=12)
  return config


def _smoke():
  config = _pairs(3, 1)
  config.num_eval = 512
  config.num_baseline = 256
  return config


# All the calls of a round in one expansion of each of many roots: independent
# draws, in a buffer of unique rows, with the weights that need duplicates.
_TOP = {
  "num_tree": 12,
  "search.num_roots": 64,
  "search.num_expansions": 1,
  "buffer.weighting": "path",
  "buffer.keep": False,
}

VARIANTS = {
  "smoke": _smoke,
  "pairs": _pairs,
  "pairs_rollouts": functools.partial(_pairs, num_tree=0),
  "pairs_tree": functools.partial(
    _pairs, num_tree=14, **{"buffer.capacity": 256}
  ),
  "pairs_tree_path": functools.partial(
    _pairs,
    num_tree=14,
    **{
      "buffer.weighting": "path",
      "buffer.keep": False,
      "buffer.capacity": 256,
    },
  ),
  "markov": _markov,
  "markov_rollouts": functools.partial(_markov, num_tree=0),
  "markov_top": functools.partial(_markov, **_TOP),
  "markov_tree": functools.partial(_markov, num_tree=12),
  "markov_tree_path": functools.partial(
    _markov,
    num_tree=12,
    **{"buffer.weighting": "path", "buffer.keep": False},
  ),
}
