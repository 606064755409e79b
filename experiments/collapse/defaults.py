"""Settings shared by the configs of the loop."""

import ml_collections

from experiments.alignflow import defaults as flow_defaults
from experiments.common import config as config_lib


def loop(config: ml_collections.ConfigDict) -> None:
  """Adds what says how generations follow one another."""
  # "<paradigm>" or "<paradigm>+<selector>": replace, accumulate,
  # accumulate_subsample or fresh, and greedy or threshold.
  config.arms = (
    "replace",
    "replace+greedy",
    "replace+threshold",
    "accumulate_subsample",
    "accumulate+greedy",
  )
  # Rows of a training set, and of the samples that are measured.
  config.num_train = 400
  config.num_generations = 5
  # Samples a generation over num, where an arm selects.
  config.oversample = 2
  # Real rows of each later training set of "fresh", of num.
  config.fresh_share = 0.25
  config.select = ml_collections.ConfigDict()
  # Distances of what is selected: "pixels", "pca" or "embedding".
  config.select.space = "pixels"
  config.select.threshold = 6.0
  config.select.decay = 0.95


def base(name: str, **data) -> ml_collections.ConfigDict:
  """Every field of a study of trained flows, at its default value.

  Those of `experiments.alignflow` are of one generation: `num_steps` is the
  length of one training, `eval_steps` the steps of the sampler.

  Args:
    name: A data set of `experiments.common.data`.
    **data: Its options.
  """
  config = flow_defaults.base(name, **data)
  config.experiment = "experiments.collapse.experiment"
  loop(config)
  config.coupling.kind = "independent"
  config.measure = ml_collections.ConfigDict()
  # The neighbour that entropy looks at.
  config.measure.k = 1
  config.measure.num_components = 20
  config.batch_size = 128
  config.num_steps = 1200
  config.learning_rate = 2e-3
  config.warmup_steps = 50
  config.ema_decay = 0.99
  # Deterministic, Euler's, and nothing is clipped.
  config.eval_steps = (30,)
  # Samples drawn at once.
  config.num_eval = 400
  config.log_every = 100
  config.eval_every = config.num_steps
  config.checkpoint_every = 600
  return config


def gaussian() -> ml_collections.ConfigDict:
  """Every field of the loop of Gaussians, at its default value."""
  config = ml_collections.ConfigDict()
  config.experiment = "experiments.collapse.closed_form"
  config.name = "gaussian"
  config.variant = ""
  config.seed = 0
  loop(config)
  config.arms = ("replace", "accumulate_subsample", "accumulate")
  config.num_train = 10
  config.select.threshold = 1.0
  # Loops, from other real rows each.
  config.num_chains = 40_000
  # Nothing is trained step by step.
  config.num_steps = 1
  config_lib.add_loop(config, log_every=1, eval_every=1)
  return config
