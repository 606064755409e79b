"""Human 5' splice sites that pair with U1: the law aimed at is known.

  python -m experiments.main --config=experiments/tr2d2/splice.py:VARIANT \
      --workdir=W

The base is fitted to 298,479 sites of nine letters, whose counts are a law on
4^9 sequences; the reward counts matches with CAG|GUAAGU. `cpu` searches in its
first round and rolls out in the others, `rollouts` never searches, `search` is
all search, and `fronts` has the A/U content for a second objective.

| variant | hardware, time | expect |
|---|---|---|
| smoke | 2 cores, 30 s | |
| cpu, rollouts | 2 cores, 2 min | matches 7.24, TV of their histogram under 0.03 |
| search | 2 cores, 2 min | more matches than the law has |
| fronts | 2 cores, 2 min | |
"""  # noqa: E501

import functools

from experiments.common import config as config_lib
from experiments.tr2d2 import defaults


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _cpu(*, num_tree: int = 1, **fields):
  config = defaults.tuning("splice", {"kind": "sequences", "name": "splice"})
  config.problem.objectives = ("matches",)
  base = config.base
  base.net.kind, base.net.width, base.net.num_layers = "mlp", 256, 2
  base.batch_size, base.num_steps, base.learning_rate = 512, 3000, 2e-3
  base.num_masks, base.weight_decay = 2, 0.0
  config.final_rate, config.ema_decay = 0.01, 0.95
  defaults.rounds(config, 12, num_tree=num_tree)
  config.num_eval = 16384
  config.num_baseline = 12 * 1024
  config.update_from_flattened_dict(fields)
  return config


def _smoke():
  config = _cpu()
  defaults.smoke(config, base_steps=100)
  config.inner_steps = 20
  return config


VARIANTS = {
  "smoke": _smoke,
  "cpu": _cpu,
  "rollouts": functools.partial(_cpu, num_tree=0),
  "search": functools.partial(
    _cpu,
    num_tree=12,
    **{"buffer.weighting": "path", "buffer.keep": False},
  ),
  "fronts": functools.partial(
    _cpu,
    **{
      "problem.objectives": ("matches", "au_content"),
      "buffer.admission": "pareto",
      "buffer.weighting": "uniform",
      "num_eval": 4096,
      "num_baseline": 12 * 1024 + 4096,
    },
  ),
}
