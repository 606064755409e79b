"""OLLA on a chain of atoms with rigid bonds and angles.

  python -m experiments.main --config=experiments/olla/polymer.py:VARIANT \
      --workdir=W

| variant | atoms, chains | hardware, time | expect |
|---|---|---|---|
| smoke | 4, 128 | 2 cores, 30 s | exact by quadrature |
| cpu | 5, 500 | 2 cores, 1 min | exact by quadrature |
| paper | 10, 64 | 1 GPU | no exact value |
| pod | 30, 4096 | v5e:4x4, compiled only | no exact value |
"""

from experiments.common import config as config_lib
from experiments.olla import defaults

VARIANTS = {
  "smoke": {"target.num_atoms": 4, "num_chains": 128, "num_steps": 150},
  "cpu": {},
  "paper": {"target.num_atoms": 10, "num_chains": 64, "num_steps": 2000},
  "pod": {"target.num_atoms": 30, "num_chains": 4096, "num_steps": 2000},
}


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS, base=_base)


def _base():
  config = defaults.base("polymer", num_atoms=5)
  config.step_size = 4e-3
  config.num_chains = 500
  config.num_steps = 300
  config.thinning = 20
  return config
