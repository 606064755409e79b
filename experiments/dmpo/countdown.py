"""DMPO on countdown; see `experiments/masked_lm/systems.py`.

  python -m experiments.main --config=experiments/dmpo/countdown.py:VARIANT \
      --workdir=W

| variant | what |
|---|---|
| smoke | a short base and 20 iterations: the parts, no result |
| cpu | the whole run on two cores; not measured |
| pod | 24 layers of width 2048 with adapters; compiled for v5e:4x4 |
"""

from experiments.masked_lm import defaults, systems


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return systems.get_config("countdown", variant, defaults.dmpo)
