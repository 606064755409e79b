"""A masked world model of Craftax-Classic, from symbols.

  python -m experiments.main --config=experiments/world/craftax.py:VARIANT \
      --workdir=W

A procedural 64 x 64 map with mobs, seen 7 x 9 cells at a time. Needs the
package craftax: pip install 'jdiff-research[worlds]'.

| variant | what differs | hardware, time |
|---|---|---|
| smoke | 20 steps, tiny | 2 cores, under 2 min |
| cpu | 800 steps, the network of tiles | 2 cores, 5 min |
"""

from experiments.common import config as config_lib
from experiments.world import defaults


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _cpu():
  config = defaults.base("craftax")
  # A tenth of the episodes end within 64 frames, and are left out.
  config.data.num_episodes, config.data.num_frames = 310, 64
  config.data.num_test = 56
  config.eval.num_prefix = 47
  return config


def _smoke():
  config = _cpu()
  defaults.smoke(config)
  return config


VARIANTS = {"smoke": _smoke, "cpu": _cpu}
