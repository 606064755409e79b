"""OLLA on a Bayesian network that must be fair to two groups, and monotone.

  python -m experiments.main --config=experiments/olla/fair_bnn.py:VARIANT \
      --workdir=W

The diabetes study (442 patients): equal true- and false-positive rates of men
and women on the training rows, log-odds that rise in bmi and blood pressure at
anchor rows. Test likelihood and gaps are of held-out rows. No exact values.

| variant | parameters, equalities, inequalities, chains | hardware, time |
|---|---|---|
| smoke | 59, 2, 8, 16 | 2 cores, 1 min |
| cpu | 305, 2, 16, 64 | 2 cores, 1 min |
| paper | 865, 2, 64, 200 | 1 GPU |
| pod | 865, 2, 64, 4096 | v5e:4x4, compiled only |
"""

from experiments.common import config as config_lib
from experiments.olla import defaults

_LARGE = {"target.hidden": (32, 16), "target.num_anchors": 32}
VARIANTS = {
  "smoke": {
    "target.hidden": (4, 3),
    "target.num_anchors": 4,
    "num_chains": 16,
    "num_steps": 60,
  },
  "cpu": {},
  "paper": {**_LARGE, "num_chains": 200, "num_steps": 2000},
  "pod": {**_LARGE, "num_chains": 4096, "num_steps": 2000},
}


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS, base=_base)


def _base():
  config = defaults.base("fair_bnn", hidden=(16, 8), num_anchors=8)
  config.step_size = 1e-3
  config.num_chains = 64
  config.num_steps = 200
  return config
