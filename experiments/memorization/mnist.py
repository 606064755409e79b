"""Pruning against memorisation, on MNIST digits of 28 x 28 pixels.

  python -m experiments.main \
      --config=experiments/memorization/mnist.py:VARIANT --workdir=W

| variant | hardware | status |
|---|---|---|
| smoke | 2 cores | runs; not timed |
| gpu | 1 GPU | 1000 digits, DiT 6 x 192; not run |
| pod | v5e:4x4 | 2000 digits, DiT 12 x 384, batch 4096; compiled only |
"""

from experiments.common import config as config_lib
from experiments.memorization import defaults

VARIANTS = {
  "smoke": {
    "num_train": 32,
    "net.patch_size": 7,
    "net.width": 32,
    "net.num_layers": 2,
    "batch_size": 16,
    "num_steps": 60,
    "eval_every": 60,
    "finetune.num_steps": 20,
    "prune.num_batches": 2,
    "num_eval": 128,
  },
  "gpu": {},
  "pod": {
    "num_train": 2000,
    "net.width": 384,
    "net.num_layers": 12,
    "net.num_heads": 6,
    "net.compute_dtype": "bfloat16",
    "batch_size": 4096,
    "num_steps": 50_000,
    "learning_rate": 2e-4,
    "ema_decay": 0.9999,
    "finetune.num_steps": 5000,
  },
}


def get_config(variant: str = "gpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS, base=_base)


def _base():
  config = defaults.images("mnist", test_share=0.5)
  config.num_train = 1000
  config.net.width = 192
  config.net.num_layers = 6
  config.batch_size = 256
  config.num_steps = 30_000
  config.learning_rate = 5e-4
  config.ema_decay = 0.999
  config.num_eval = 2048
  config.log_every = 100
  config.eval_every = 5000
  config.checkpoint_every = 5000
  config.finetune.num_steps = 3000
  return config
