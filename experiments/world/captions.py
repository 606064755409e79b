"""Clips of the tile world and their captions, each generated from the other.

  python -m experiments.main --config=experiments/world/captions.py:VARIANT \
      --workdir=W

Three frames of 5 x 5 cells and a line of words for each step between them, 83
sites in one vocabulary; see `events`. Of held-out clips, seeds 0 and 1, with
standard errors of 0.022 or less: from frames 0.96 and 0.99 of the captions are
right to the last word; from captions 0.56 and 0.48 of the clips are of exactly
the events asked for, read back from the frames, and with the first frame given
0.99. The commonest caption is right for 0.03, another clip's for 0.01.

| variant | what differs | hardware, time |
|---|---|---|
| smoke | 20 steps, tiny | 2 cores, 1 min |
| cpu | 333k parameters | 2 cores, 310 s of processor time |
| pod | eight frames of 9 x 9 cells | v5e:4x4, compiled only |
"""

import ml_collections

from experiments.common import config as config_lib


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS, base=_base)


def _base():
  config = ml_collections.ConfigDict()
  config.experiment = "experiments.world.captioned"
  config.name = "captions"
  config.variant = ""
  config.seed = 0

  config.env = ml_collections.ConfigDict()
  config.env.size = 24
  config.env.view = 5
  # Chance that the walker goes on the way it went.
  config.env.repeat = 0.5

  config.data = ml_collections.ConfigDict()
  config.data.num_episodes = 1024
  config.data.num_frames = 24
  config.data.num_test = 512

  # Of a clip.
  config.num_frames = 3
  config.net = ml_collections.ConfigDict()
  config.net.width = 64
  config.net.num_layers = 2
  config.net.num_heads = 4
  config.net.compute_dtype = "float32"
  config.net.remat = False

  # How often examples are of each of `captioned.TASKS`.
  config.task_weights = (1.0, 3.0, 3.0, 1.0)
  config.num_masks = 1

  config.sampler = ml_collections.ConfigDict()
  config.sampler.num_steps = 25
  config.sampler.order = "random"
  config.sampler.temperature = 0.7
  config.sampler.min_p = 0.0

  config.batch_size = 32
  config.num_steps = 1000
  config.learning_rate = 3e-3
  config.warmup_steps = 50
  config.max_grad_norm = 1.0
  config.weight_decay = 1e-4
  config.ema_decay = 0.99

  # Masks a clip in bounds; clips in evaluations before the last.
  config.eval = ml_collections.ConfigDict()
  config.eval.num_masks = 4
  config.eval.num_quick = 128
  config_lib.add_loop(config, log_every=50, eval_every=500)
  return config


VARIANTS = {
  "smoke": {
    "data.num_episodes": 16,
    "data.num_frames": 6,
    "data.num_test": 8,
    "net.width": 16,
    "net.num_layers": 1,
    "net.num_heads": 2,
    "batch_size": 8,
    "num_steps": 20,
    "warmup_steps": 4,
    "sampler.num_steps": 5,
    "eval.num_masks": 1,
    "eval.num_quick": 4,
    "log_every": 5,
    "eval_every": 20,
    "checkpoint_every": 20,
  },
  "cpu": {},
  "pod": {
    "env.size": 64,
    "env.view": 9,
    "num_frames": 8,
    "data.num_episodes": 16384,
    "data.num_frames": 64,
    "net.width": 768,
    "net.num_layers": 12,
    "net.num_heads": 12,
    "net.compute_dtype": "bfloat16",
    "net.remat": True,
    "batch_size": 512,
    "num_steps": 100_000,
    "learning_rate": 3e-4,
    "warmup_steps": 5000,
    "ema_decay": 0.9999,
    "sampler.num_steps": 64,
    "log_every": 100,
    "eval_every": 5000,
    "checkpoint_every": 5000,
  },
}
