r"""1000 of MNIST's digits, with a DiT.

  python -m experiments.main \
      --config=experiments/collapse/mnist.py:VARIANT --workdir=W

| variant | hardware, time | expect |
|---|---|---|
| smoke | 2 cores, not timed | runs |
| cpu | 2 cores, not timed | not known yet |
| pod | v5e:4x4 | N = 4000, DiT of width 384, batch 2048; compiled only |
"""

from experiments.alignflow import defaults as flow_defaults
from experiments.collapse import defaults
from experiments.common import config as config_lib

VARIANTS = {
  "smoke": {
    "arms": ("replace",),
    "num_train": 200,
    "num_generations": 2,
    "net.width": 32,
    "net.num_layers": 2,
    "num_steps": 60,
    "num_eval": 200,
  },
  "cpu": {},
  "pod": {
    "num_train": 4000,
    "net.width": 384,
    "net.num_layers": 12,
    "net.num_heads": 6,
    "net.compute_dtype": "bfloat16",
    "batch_size": 2048,
    "num_steps": 20_000,
    "learning_rate": 1e-4,
    "schedule": "constant",
    "ema_decay": 0.9999,
    "num_eval": 1024,
  },
}


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS, base=_base)


def _base():
  config = defaults.base("mnist", test_share=0.0)
  flow_defaults.dit(config, width=64, num_layers=4, num_heads=4, patch_size=4)
  config.arms = ("replace", "replace+greedy")
  config.num_train = 1000
  config.select.threshold = 30.0
  config.measure.num_components = 50
  config.batch_size = 64
  config.num_steps = 2500
  config.num_eval = 500
  return config
