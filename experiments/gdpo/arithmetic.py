"""GDPO on arithmetic; see `experiments/masked_lm/systems.py`.

  python -m experiments.main --config=experiments/gdpo/arithmetic.py:VARIANT \
      --workdir=W

| variant | what |
|---|---|
| smoke | a short base and 20 iterations: the parts, no result |
| cpu | two cores, a base of 1 to 2 min and then 80 s: exact_match 0.95 |
| pod | 24 layers of width 2048 with adapters; compiled for v5e:4x4 |
"""

from experiments.masked_lm import defaults, systems


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return systems.get_config("arithmetic", variant, defaults.gdpo)
