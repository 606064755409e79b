"""A masked world model of Navix's four rooms, in the first person.

  python -m experiments.main --config=experiments/world/rooms.py:VARIANT \
      --workdir=W

The observer turns, and its view with it: poses have a heading. Needs the
package navix: pip install 'jdiff-research[navix]'.

| variant | what differs | hardware, time |
|---|---|---|
| smoke | 20 steps, tiny | 2 cores, under 1 min |
| cpu | 600 steps, the network of tiles | 2 cores, 4 min |
"""

from experiments.common import config as config_lib
from experiments.world import defaults


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _cpu():
  config = defaults.base("navix")
  # Episodes end at the goal; those that reach it are left out.
  config.data.num_episodes = 320
  config.data.num_test = 64
  # Only turns can be undone: half round, and back.
  config.eval.loop_steps = 2
  config.num_steps = 600
  config.eval_every = config.checkpoint_every = 300
  return config


def _smoke():
  config = _cpu()
  defaults.smoke(config)
  return config


VARIANTS = {"smoke": _smoke, "cpu": _cpu}
