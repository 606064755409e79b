"""Settings shared by the configs of this folder."""

import ml_collections

from experiments.common import config as config_lib
from experiments.masked_lm import defaults as base_defaults


def tuning(name: str, data: dict) -> ml_collections.ConfigDict:
  """Every field of a config, at its default value.

  Args:
    name: Of the run, and of its problem; see `problems`.
    data: What the base policy is trained on, see `corpora.load`; empty for
      problems whose base is known.
  """
  config = ml_collections.ConfigDict()
  config.experiment = "experiments.tr2d2.experiment"
  config.name = name
  config.variant = ""
  config.seed = 0
  # What the policy starts from and stays near.
  config.base = base_defaults.base(name, data)

  config.problem = ml_collections.ConfigDict()
  config.problem.kind = name
  # Names of objectives, in the order of their columns.
  config.problem.objectives = ()
  # Where classifiers that a problem trains are kept; empty is a temporary one.
  config.problem.directory = ""
  # "module:function" of a reward of the user's own.
  config.problem.function = ""

  config.reward_temperature = 1.0
  # One weight an objective; empty is all ones. The policy is tilted by their
  # weighted sum, or where ideal values are named, minus the largest weighted
  # shortfall from those (Chebyshev).
  config.objective_weights = ()
  config.objective_ideal = ()

  # Rewards asked for in a round: roots times children times expansions.
  config.search = ml_collections.ConfigDict()
  config.search.num_roots = 4
  config.search.num_children = 16
  config.search.num_expansions = 16
  config.search.score = "uct"
  config.search.exploration = 0.1
  config.search.backup = "mean"
  # "best", "softmax", "non_dominated"; "auto" is the last with several
  # objectives and else the first. Searches weigh all objectives alike.
  config.search.pick = "auto"
  # Rounds that search; those that follow roll out. 0 leaves the search out.
  config.num_tree_rounds = 2

  # Rows of search rounds: which are kept, whether over rounds, their weights.
  config.buffer = ml_collections.ConfigDict()
  config.buffer.capacity = 256
  config.buffer.admission = "unique_top"
  config.buffer.keep = True
  config.buffer.weighting = "support"
  # Share of rows that weights are evened out to; 0 leaves them.
  config.buffer.min_ess_fraction = 0.0
  config.rollouts = ml_collections.ConfigDict()
  config.rollouts.min_ess_fraction = 0.0

  config.sampler = ml_collections.ConfigDict()
  # Of rollouts in training; their log-probabilities are of the law it makes.
  config.sampler.temperature = 1.0
  # Steps of a path; 0 is one site a step.
  config.sampler.num_steps = 0

  # Optimiser steps a round, on rows drawn by their weights.
  config.inner_steps = 20
  config.batch_size = 256
  config.num_masks = 4
  config.learning_rate = 1e-3
  config.final_rate = 0.1
  config.max_grad_norm = 1.0
  config.ema_decay = 0.0
  config.num_steps = 16 * 16
  # Samples of an evaluation; their rewards come on top of those of the rounds.
  config.num_eval = 2048
  # Rewards that the comparisons at inference alone may ask for: best-of-N and
  # tree search with the base. 0 leaves them out.
  config.num_baseline = 0
  config_lib.add_loop(config, log_every=16, eval_every=64)
  return config


def fronts(config, num: int, *, num_tree: int) -> None:
  """Rounds of 512 rewards of several objectives, and their comparisons.

  Searches keep their Pareto front. Weights of long strings are those of a few
  rows, and are evened out.
  """
  config.batch_size, config.num_masks = 128, 2
  config.search.num_expansions = 8
  config.buffer.admission, config.buffer.weighting = "pareto", "reward"
  config.buffer.capacity = 64
  config.rollouts.min_ess_fraction = 0.1
  rounds(config, num, num_tree=num_tree)
  # What fine-tuning and one pass of its samples ask for together.
  config.num_baseline = num * 512 + config.num_eval


def smoke(config, *, base_steps: int = 40) -> None:
  """Shortens a run to a test of its parts."""
  config.base.num_steps = config.base.eval_every = base_steps
  config.search.num_expansions, config.inner_steps = 2, 4
  rounds(config, 3, num_tree=1, evaluations=1)
  config.num_eval = 256
  config.num_baseline = 128


def rounds(config, num: int, *, num_tree: int, evaluations: int = 4) -> None:
  """Sets the number of rounds, and what the loop counts in them."""
  turns = config.search.num_expansions
  config.num_steps = num * turns
  config.num_tree_rounds = num_tree
  config.log_every = turns
  config.eval_every = max(1, num // evaluations) * turns
  config.checkpoint_every = config.eval_every
