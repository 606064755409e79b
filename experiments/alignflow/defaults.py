"""Settings shared by the flow configs."""

import ml_collections
from ml_collections import config_dict

from experiments.common import config as config_lib


def base(name: str, **data) -> ml_collections.ConfigDict:
  """Every field of a config, at its default value.

  Args:
    name: A data set of `experiments.common.data`.
    **data: Its options.
  """
  config = ml_collections.ConfigDict()
  config.experiment = "experiments.alignflow.experiment"
  config.name = name
  config.variant = ""
  config.seed = 0

  config.data = ml_collections.ConfigDict({"name": name, **data})
  # Whether the network sees labels; each class is then a problem of its own.
  config.conditional = False
  config.label_dropout = 0.1

  config.coupling = ml_collections.ConfigDict()
  # "independent", "minibatch" (OT inside the batch) or "sdot".
  config.coupling.kind = "sdot"
  config.coupling.seed = 0
  # Noise vectors a point for the dual: the marginal error is about its inverse.
  config.coupling.samples_per_point = 400
  # A file of stored pairs, made if missing; unset, pairs are made in the step.
  config.coupling.table = config_dict.placeholder(str)
  config.coupling.pairs_per_point = 64
  config.coupling.minibatch_size = 128

  # "flow_matching", "meanflow", "shortcut", "consistency" or "live_reflow".
  config.loss = "flow_matching"
  # Steps of the grid of "shortcut" (a power of two) and "consistency".
  config.discrete_steps = 32
  # Share of MeanFlow's examples whose two times differ.
  config.meanflow_ratio = 0.25

  learner(config)
  config.num_eval = 1000
  config.eval_steps = (1, 2, 4, 8)
  config_lib.add_loop(
    config, log_every=50, eval_every=1000, checkpoint_every=500
  )
  return config


def learner(config) -> None:
  """Adds the network and its optimiser, at their default values."""
  config.net = ml_collections.ConfigDict()
  config.net.kind = "mlp"
  config.net.hidden = (128, 128, 128)
  config.net.patch_size = 2
  config.net.width = 64
  config.net.num_layers = 4
  config.net.num_heads = 4
  config.net.remat = False
  config.net.compute_dtype = "float32"

  config.batch_size = 512
  config.num_steps = 2500
  config.learning_rate = 3e-3
  config.schedule = "cosine"
  config.warmup_steps = 100
  config.weight_decay = 0.0
  config.adam_b2 = 0.999
  config.max_grad_norm = 1.0
  config.ema_decay = 0.995


def dit(config, *, width, num_layers, num_heads, patch_size=2) -> None:
  """A DiT of that size."""
  config.net.kind = "dit"
  config.net.width = width
  config.net.num_layers = num_layers
  config.net.num_heads = num_heads
  config.net.patch_size = patch_size
