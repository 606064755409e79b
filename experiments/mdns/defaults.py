"""Settings shared by the lattice configs."""

import ml_collections

from experiments.common import config as config_lib


def base(name: str) -> ml_collections.ConfigDict:
  """Every field of an MDNS config, at its default value."""
  config = ml_collections.ConfigDict()
  config.experiment = "experiments.mdns.experiment"
  config.name = name
  config.variant = ""
  config.seed = 0

  config.target = ml_collections.ConfigDict()
  config.target.kind = name
  config.target.size = 4
  config.target.beta = 0.28
  config.target.coupling = 1.0
  config.target.periodic = True

  # The order law: "chain" (coarse to fine), "even_odd" or "random" (MDNS's
  # own). num_blocks cuts a random order into blocks; 0 is one site a step.
  config.order = "chain"
  config.num_blocks = 0

  config.net = ml_collections.ConfigDict()
  config.net.kind = "blocks"
  config.net.hidden = (64, 64)
  config.net.num_neighbours = 64
  config.net.symmetric = True
  config.net.local_field = True
  config.net.width = 64
  config.net.num_layers = 6
  config.net.num_heads = 4
  config.net.compute_dtype = "float32"
  config.net.remat = False

  # "rerf", "lv", "ce", "ce_cv" differentiate the path; "wdce" denoises.
  config.loss = "rerf"
  config.batch_size = 512
  # Terms of a path's log-probability that are differentiated; 0 is all.
  config.num_terms = 0
  # Clips log-weights around their mean; 0 leaves them.
  config.max_log_weight = 0.0
  config.num_masks = 8
  config.mask_law = "count"
  config.antithetic = False
  config.buffer = ml_collections.ConfigDict()
  config.buffer.capacity = 256
  config.buffer.num_samples = 256
  config.buffer.refresh_every = 10

  config.num_steps = 1000
  config.learning_rate = 3e-3
  config.schedule = "cosine"
  config.warmup_steps = 0
  config.final_rate = 1e-2
  config.ema_decay = 0.99
  # Beta rises linearly from this share of itself over this share of training.
  config.ramp_start = 0.3
  config.ramp_share = 0.3

  config.num_eval = 32768
  config.eval_chunk = 4096
  config.num_reference = 1024
  config_lib.add_loop(config, log_every=50, eval_every=500)
  return config


def uniform_order(config, *, num_steps: int) -> None:
  """The paper's order law, with the site-centred network."""
  config.order = "random"
  config.net.kind = "site"
  config.net.hidden = (128, 128)
  config.num_terms = 8
  config.max_log_weight = 8.0
  config.learning_rate = 2e-3
  config.warmup_steps = 50
  config.final_rate = 2e-2
  config.ramp_start = 0.5
  config.num_steps = num_steps
  config.num_eval = 16384


def vit(config, *, compute_dtype: str = "bfloat16") -> None:
  """The paper's training: a ViT, WDCE, random orders, EMA rollouts."""
  config.order = "random"
  config.loss = "wdce"
  config.net.kind = "transformer"
  config.net.compute_dtype = compute_dtype
  config.batch_size = 256
  config.buffer.num_samples = 256
  config.buffer.capacity = 256
  config.learning_rate = 1e-4
  config.schedule = "constant"
  config.ema_decay = 0.9999
  config.num_steps = 100_000
  config.ramp_share = 0.2
  config.log_every = 100
  config.eval_every = 5000
  config.checkpoint_every = 1000
