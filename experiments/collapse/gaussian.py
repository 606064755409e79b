r"""The loop of Gaussians fitted by maximum likelihood: exact answers.

  python -m experiments.main \
      --config=experiments/collapse/gaussian.py:VARIANT --workdir=W

| variant | hardware, time | expect |
|---|---|---|
| smoke | 2 cores, 7 s | 4000 loops, within errors of exact answers |
| cpu | 2 cores, 7 s | 40,000 loops: E v_5 = 0.590 replaced, 0.859 accumulated |
| select | 2 cores, 7 s | greedy and threshold: the variance grows to 2.6 |

Ten numbers a training set.
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
