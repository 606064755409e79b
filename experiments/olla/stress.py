"""OLLA on a sphere cut by planes, with obstacles: any dimension and number.

  python -m experiments.main --config=experiments/olla/stress.py:VARIANT \
      --workdir=W

| variant | d, equalities, obstacles, chains | hardware, time | expect |
|---|---|---|---|
| smoke | 20, 3, 1, 128 | 2 cores, 20 s | E u within 4 SE |
| cpu | 100, 10, 10, 256 | 2 cores, 15 s | E |x|^2 = 25 within 0.2 |
| paper | 1000, 10, 10, 64 (the released run has 1 chain) | 1 GPU | the same |
| pod | 1000, 10, 40, 4096 | v5e:4x4, compiled only | the same |
"""

from experiments.common import config as config_lib
from experiments.olla import defaults

VARIANTS = {
  "smoke": {
    "target.dim": 20,
    "target.num_eq": 3,
    "target.num_ineq": 1,
    "num_chains": 128,
    "num_steps": 100,
  },
  "cpu": {"num_steps": 200},
  "paper": {"target.dim": 1000, "num_chains": 64, "num_steps": 1000},
  "pod": {
    "target.dim": 1000,
    "target.num_ineq": 40,
    "num_chains": 4096,
    "num_steps": 2000,
  },
}


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS, base=_base)


def _base():
  config = defaults.base("stress", dim=100, num_eq=10, num_ineq=10)
  config.step_size = 2e-3
  config.num_chains = 256
  return config
