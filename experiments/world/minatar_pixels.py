"""A masked world model of a MinAtar game, from its pixels.

  python -m experiments.main \
      --config=experiments/world/minatar_pixels.py:VARIANT --workdir=W

Frames of 40 x 40 pixels are 25 patches of 8 x 8, each one of 1,000 codes that
an autoencoder has learnt; the world model plays with these. The package gymnax
is needed: pip install "jdiff-research[worlds]".

| variant | what differs | hardware, time |
|---|---|---|
| smoke | a few steps, tiny | 2 cores, under 1 min |
| cpu | Breakout | 2 cores |
| pod | patches of 4 x 4, clips made in the step | v5e:4x4, compiled only |
"""

import ml_collections

from experiments.common import config as config_lib
from experiments.world import defaults


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _cpu():
  config = defaults.base("minatar_pixels")
  config.experiment = "experiments.world.pixels"
  config.env.name = "minatar"
  # The observer sees everything: nothing to remember but the last frames.
  config.memory.kind = "none"
  config.window = 2
  config.data.num_episodes = 256
  config.data.num_frames = 32
  config.data.num_test = 48
  config.eval.num_prefix = 12
  config.eval.horizon = 16
  config.tokenizer = _tokenizer()
  return config


def _tokenizer():
  tokenizer = ml_collections.ConfigDict()
  tokenizer.patch_size = 8
  tokenizer.levels = (8, 5, 5, 5)
  tokenizer.net = ml_collections.ConfigDict()
  tokenizer.net.width = 64
  # No attention: a patch's token is its own, and changes when it does.
  tokenizer.net.num_layers = 0
  tokenizer.net.num_heads = 1
  # About the mean and the spread of the game's pixels.
  tokenizer.net.center = 0.15
  tokenizer.net.scale = 0.2
  tokenizer.net.compute_dtype = "float32"
  tokenizer.contrast = 20.0
  tokenizer.batch_size = 32
  tokenizer.num_steps = 3000
  tokenizer.num_eval = 512
  tokenizer.learning_rate = 2e-3
  tokenizer.warmup_steps = 100
  tokenizer.max_grad_norm = 1.0
  tokenizer.weight_decay = 0.0
  tokenizer.ema_decay = 0.98
  config_lib.add_loop(tokenizer, log_every=100, eval_every=1000)
  del tokenizer.mesh
  return tokenizer


def _smoke():
  config = _cpu()
  defaults.smoke(config)
  config.eval.num_prefix = 8
  tokenizer = config.tokenizer
  tokenizer.net.width = 16
  tokenizer.batch_size = 16
  tokenizer.num_steps = 40
  tokenizer.warmup_steps = 4
  tokenizer.num_eval = 64
  tokenizer.log_every = 10
  tokenizer.eval_every = tokenizer.checkpoint_every = 20
  return config


def _pod():
  config = _cpu()
  defaults.pod(config)
  config.window = 16
  # Twice as many clips do not fit sixteen chips.
  config.batch_size = 256
  tokenizer = config.tokenizer
  tokenizer.patch_size = 4
  tokenizer.net.width = 256
  tokenizer.batch_size = 512
  tokenizer.num_steps = 20_000
  tokenizer.learning_rate = 1e-3
  return config


VARIANTS = {"smoke": _smoke, "cpu": _cpu, "pod": _pod}
