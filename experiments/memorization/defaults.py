"""Settings shared by the configs of both studies."""

import ml_collections

from experiments.alignflow import defaults as flow_defaults
from experiments.common import config as config_lib


def base(experiment: str, name: str, **data) -> ml_collections.ConfigDict:
  """The fields of a run, at their default values.

  Args:
    experiment: Module of the study.
    name: A data set of `experiments.memorization.data`.
    **data: Its options.
  """
  config = ml_collections.ConfigDict()
  config.experiment = experiment
  config.name = name
  config.variant = ""
  config.seed = 0

  config.data = ml_collections.ConfigDict({"name": name, **data})
  # Rows that are learnt; the others of `data` are not seen.
  config.num_train = 32

  # See `clock`: the paper's time, and its law in training.
  config.time = ml_collections.ConfigDict()
  config.time.law = "log_uniform"
  config.time.t_min = 0.02
  config.time.t_max = 5.0

  # The prediction whose squared error is averaged: "noise", "score" (the
  # paper's loss), "data" or "velocity".
  config.loss = "noise"

  flow_defaults.learner(config)
  flow_defaults.dit(config, width=96, num_layers=2, num_heads=8, patch_size=4)
  config.batch_size = 64
  config.num_steps = 2000
  config.learning_rate = 2e-3
  config.schedule = "constant"
  config.warmup_steps = 0
  config.ema_decay = 0.99

  config.sampler = ml_collections.ConfigDict({"num_steps": 40})
  config.num_eval = 1024
  config_lib.add_loop(config, log_every=50, eval_every=500)
  return config


def images(name: str, **data) -> ml_collections.ConfigDict:
  """The five arms of pruning, on a set of images."""
  config = base("experiments.memorization.arms", name, **data)

  config.prune = ml_collections.ConfigDict()
  # A criterion of `methods.pruning.CRITERIA`, at Beta times of the paper's.
  config.prune.criterion = "taylor"
  config.prune.beta = (0.8, 2.0)
  config.prune.num_batches = 16
  # Share of the heads that are closed: the lowest of all, or of each layer.
  config.prune.fraction = 0.2
  config.prune.scope = "global"
  config.prune.keep_one = True

  # Starts at this share of the learning rate and falls to zero.
  config.finetune = ml_collections.ConfigDict()
  config.finetune.num_steps = 300
  config.finetune.rate = 1 / 3
  return config
