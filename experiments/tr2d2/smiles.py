"""Small molecules, scored by RDKit on the host: QED, accessibility, log P.

  python -m experiments.main --config=experiments/tr2d2/smiles.py:VARIANT \
      --workdir=W

The base is a masked model of characters, fitted to 3270 molecules of NCI's
collection. Strings that are no molecule are NaN, and cost their reward.

| variant | hardware, time |
|---|---|
| smoke | 2 cores, 1 min |
| cpu | 2 cores, 35 min, 15 of them for the base |
"""

from experiments.common import config as config_lib
from experiments.tr2d2 import defaults


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _cpu():
  config = defaults.tuning("smiles", {"kind": "sequences", "name": "smiles"})
  config.problem.objectives = ("qed", "accessibility")
  config.reward_temperature = 0.1
  base = config.base
  base.net.width, base.net.num_layers, base.net.num_heads = 128, 3, 4
  base.batch_size, base.num_steps, base.learning_rate = 64, 4000, 2e-3
  config.learning_rate = 3e-4
  config.num_eval = 512
  defaults.fronts(config, 12, num_tree=3)
  return config


def _smoke():
  config = _cpu()
  config.base.net.width = 32
  defaults.smoke(config)
  return config


VARIANTS = {"smoke": _smoke, "cpu": _cpu}
