r"""The loop of Gaussians fitted by maximum likelihood: exact answers.

  python -m experiments.main \
      --config=experiments/collapse/gaussian.py:VARIANT --workdir=W

| variant | hardware, time | expect |
|---|---|---|
| smoke | 2 cores, not timed | 4000 loops |
| cpu | 2 cores, 0.5 min | 40,000 loops, within errors of exact answers |
| select | as cpu, not run | greedy and threshold keep the variance up |
"""

from experiments.collapse import defaults
from experiments.common import config as config_lib

VARIANTS = {
  "smoke": {"num_chains": 4000},
  "cpu": {},
  "select": {
    "arms": ("replace", "replace+greedy", "replace+threshold"),
    "num_chains": 4000,
  },
}


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS, base=defaults.gaussian)
