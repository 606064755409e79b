"""Flows to 1797 handwritten digits of 8 x 8 pixels, with a DiT.

  python -m experiments.main \
      --config=experiments/alignflow/digits.py:VARIANT --workdir=W

| variant | hardware, time | expect |
|---|---|---|
| smoke | 2 cores, not timed | digits can be told at 8 steps |
| cpu | 2 cores, 3.5 min | Frechet 6.2, 2.0, 1.3, 1.1 at 1, 2, 4, 8 steps |
| independent, minibatch | as cpu | the same with other pairs |
| meanflow, shortcut | 2 cores, not timed | few-step losses |
| conditional | 2 cores, not timed | one problem a digit, labels seen |
| pod | v5e:4x4 | DiT of width 384, batch 4096; compiled only |
"""

from experiments.alignflow import defaults
from experiments.common import config as config_lib

VARIANTS = {
  "smoke": {
    "coupling.samples_per_point": 50,
    "net.width": 32,
    "net.num_layers": 2,
    "num_steps": 150,
    "num_eval": 512,
  },
  "cpu": {},
  "independent": {"coupling.kind": "independent"},
  "minibatch": {"coupling.kind": "minibatch"},
  "meanflow": {"loss": "meanflow"},
  "shortcut": {"loss": "shortcut"},
  "conditional": {"conditional": True},
  "pod": {
    "conditional": True,
    "net.width": 384,
    "net.num_layers": 12,
    "net.num_heads": 6,
    "net.compute_dtype": "bfloat16",
    "batch_size": 4096,
    "num_steps": 100_000,
    "learning_rate": 1e-4,
    "schedule": "constant",
    "ema_decay": 0.9999,
  },
}


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS, base=_base)


def _base():
  config = defaults.base("digits", test_share=0.0)
  defaults.dit(config, width=64, num_layers=4, num_heads=4)
  config.batch_size = 128
  config.num_steps = 1200
  config.learning_rate = 2e-3
  config.ema_decay = 0.99
  config.num_eval = 898  # two disjoint samples of the 1797
  config.eval_every = 600
  return config
