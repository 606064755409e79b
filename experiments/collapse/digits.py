r"""400 handwritten digits of 8 x 8 pixels, and five ways to go on from them.

  python -m experiments.main \
      --config=experiments/collapse/digits.py:VARIANT --workdir=W

| variant | hardware, time | expect |
|---|---|---|
| smoke | 2 cores, 18 s | runs; too short to learn digits |
| cpu | 2 shared cores, 3.2 min | replace: entropy falls by 12 nats from |
| | | generation 2 to 5, Frechet 1.1 to 4.0; with greedy 2.2 |
| fresh | as cpu, not run | a quarter of each set is new real rows |
| copying | 2 cores, 1 min | 64 digits: entropy 33 to -45, distance of samples |
| | | to their training set 1.7 to 0.8 |
| pod | v5e:4x4 | DiT of width 384, batch 4096; compiled only |

`num_steps` is the length of one training; `cpu` has 21 of them.
"""

from experiments.collapse import defaults
from experiments.common import config as config_lib

VARIANTS = {
  "smoke": {
    "arms": ("replace", "replace+greedy"),
    "num_generations": 3,
    "num_steps": 300,
    "net.hidden": (128, 128),
  },
  "cpu": {},
  "fresh": {"arms": ("replace", "fresh", "fresh+greedy")},
  "copying": {
    "arms": ("replace",),
    "num_train": 64,
    "num_eval": 128,
    "num_steps": 2500,
  },
  "pod": {
    "net.kind": "dit",
    "net.width": 384,
    "net.num_layers": 12,
    "net.num_heads": 6,
    "net.compute_dtype": "bfloat16",
    "batch_size": 4096,
    "num_steps": 20_000,
    "learning_rate": 1e-4,
    "schedule": "constant",
    "ema_decay": 0.9999,
  },
}


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS, base=_base)


def _base():
  # What is not trained on is held out, to measure distances to.
  config = defaults.base("digits", test_share=0.0)
  config.net.hidden = (384, 384, 384)
  config.learning_rate = 3e-3
  return config
