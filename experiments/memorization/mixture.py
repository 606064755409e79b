"""What is copied of a mixture of eight Gaussians, by width and rows.

  python -m experiments.main \
      --config=experiments/memorization/mixture.py:VARIANT --workdir=W

| variant | hardware, time | expect |
|---|---|---|
| smoke | 2 shared cores, 1 min | runs |
| cpu | 2 shared cores, 9 min | copies rise with width and fall with rows |
| dims | three times cpu, not run | dimensions 8, 16 and 32 |
| pod | v5e:4x4 | widths up to 4096, up to 100k rows; compiled only |

`cpu`, seed 0: of 250 rows widths 32, 128 and 512 copy 0.0, 6.1 and 45.7 % of
their samples, of 1000 rows 0.1, 0.05 and 2.3 %, of 4000 none beyond the 0.02 %
of fresh draws that count as copies by chance.
"""

import ml_collections

from experiments.common import config as config_lib
from experiments.memorization import defaults

VARIANTS = {
  "smoke": {
    "sweep.widths": (16, 64),
    "sweep.sizes": (20, 100),
    "num_steps": 100,
    "eval_every": 100,
    "num_eval": 512,
    "data.num_test": 512,
  },
  "cpu": {},
  "dims": {"sweep.dims": (8, 16, 32)},
  "pod": {
    "sweep.widths": (256, 1024, 4096),
    "sweep.sizes": (1000, 10_000, 100_000),
    "sweep.dims": (8, 16, 32, 64),
    "sweep.num_layers": 4,
    "batch_size": 4096,
    "num_steps": 100_000,
    "learning_rate": 3e-4,
    "ema_decay": 0.9999,
    "num_eval": 10_000,
  },
}


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS, base=_base)


def _base():
  config = defaults.base(
    "experiments.memorization.sweep",
    "mixture",
    num_components=8,
    dim=8,
    # Neighbouring centres are two deviations times the root of `dim` apart.
    separation=1.0,
    variance=0.25,
    num_test=4096,
    seed=0,
  )
  config.sweep = ml_collections.ConfigDict()
  config.sweep.widths = (32, 128, 512)
  config.sweep.sizes = (250, 1000, 4000)
  config.sweep.dims = (8,)
  # Hidden layers of each network.
  config.sweep.num_layers = 3
  config.net.kind = "mlp"
  config.batch_size = 256
  config.num_steps = 3000
  config.schedule = "cosine"
  config.num_eval = 4096
  config.eval_every = 1500
  config.checkpoint_every = 1500
  return config
