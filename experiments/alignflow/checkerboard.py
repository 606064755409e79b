"""Flows to 2000 points of a checkerboard, by coupling and loss.

  python -m experiments.main \
      --config=experiments/alignflow/checkerboard.py:VARIANT --workdir=W

Couplings and losses are fields: `--config.coupling.kind=independent`,
`--config.loss=meanflow`.

| variant | hardware, time | expect |
|---|---|---|
| smoke | 2 cores, 50 s | W2 at one step below 1 (independent pairs: above 3) |
| cpu | 2 cores, not timed | W2 at one step near its floor |
| independent, minibatch | as cpu | the same with other pairs |
| paper | 1 GPU | MLP 4 x 512, batch 4096, 5000 steps, as released; not run |
| pod | v5e:4x4 | batch 65536; compiled only |
"""

from experiments.alignflow import defaults
from experiments.common import config as config_lib

_LARGE = {
  "net.hidden": (512, 512, 512, 512),
  "batch_size": 4096,
  "num_steps": 5000,
  "learning_rate": 1e-2,
}
VARIANTS = {
  "smoke": {
    "data.num_points": 400,
    "net.hidden": (64, 64),
    "batch_size": 256,
    "num_steps": 500,
    "num_eval": 400,
  },
  "cpu": {},
  "independent": {"coupling.kind": "independent"},
  "minibatch": {"coupling.kind": "minibatch"},
  "paper": _LARGE,
  "pod": {**_LARGE, "batch_size": 65536},
}


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS, base=_base)


def _base():
  return defaults.base("checkerboard", num_points=2000)
