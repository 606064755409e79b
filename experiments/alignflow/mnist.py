"""Flows to 5000 MNIST digits of 28 x 28 pixels, with a DiT.

  python -m experiments.main \
      --config=experiments/alignflow/mnist.py:VARIANT --workdir=W

| variant | hardware, time | expect |
|---|---|---|
| smoke | 2 cores, not timed | runs |
| cpu | 2 cores, not timed | a Frechet distance at 1 step far below the next |
| independent, minibatch | as cpu | the same with other pairs |
| pod | v5e:4x4 | DiT of width 384, batch 2048; compiled only |
"""

from experiments.alignflow import defaults
from experiments.common import config as config_lib

VARIANTS = {
  "smoke": {
    "data.num_train": 1000,
    "coupling.samples_per_point": 20,
    "net.width": 32,
    "net.num_layers": 2,
    "batch_size": 32,
    "num_steps": 100,
    "warmup_steps": 20,
    "num_eval": 256,
  },
  "cpu": {},
  "independent": {"coupling.kind": "independent"},
  "minibatch": {"coupling.kind": "minibatch", "coupling.minibatch_size": 64},
  "pod": {
    "coupling.samples_per_point": 1000,
    "net.width": 384,
    "net.num_layers": 12,
    "net.num_heads": 6,
    "net.compute_dtype": "bfloat16",
    "batch_size": 2048,
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
  config = defaults.base("mnist", test_share=0.0, num_train=5000)
  config.coupling.samples_per_point = 100
  defaults.dit(config, width=64, num_layers=4, num_heads=4, patch_size=4)
  config.batch_size = 64
  config.num_steps = 2500
  config.learning_rate = 2e-3
  config.ema_decay = 0.99
  config.eval_every = 1250
  return config
