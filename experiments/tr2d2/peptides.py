"""Active peptides of a given charge: three objectives, one pass.

  python -m experiments.main --config=experiments/tr2d2/peptides.py:VARIANT \
      --workdir=W

The base is fitted to 2167 peptides of at most 32 acids. Objectives are the
probabilities of activity against microbes and against cancer cells, under
classifiers that are trained here (XGBoost, in jdiff's own evaluator), and a net
charge near five. Classifiers of the other halves of the data judge. `two`
leaves the cancer cells out: draws of the base then nearly fill the volume.

| variant | hardware, time |
|---|---|
| smoke | 2 cores, 1 min |
| cpu, two | 2 cores, 4 min |
| pod | v5e:4x4, compiled only |
"""

import functools

from experiments.common import config as config_lib
from experiments.tr2d2 import defaults


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _cpu(**fields):
  config = defaults.tuning(
    "peptides", {"kind": "sequences", "name": "peptides"}
  )
  config.problem.objectives = ("amp", "acp", "charge")
  config.reward_temperature = 0.2
  base = config.base
  base.net.width, base.net.num_layers, base.net.num_heads = 64, 2, 4
  base.batch_size, base.num_steps, base.learning_rate = 64, 1500, 2e-3
  config.sampler.num_steps = 16
  config.learning_rate = 5e-4
  config.num_eval = 1024
  defaults.fronts(config, 16, num_tree=4)
  config.update_from_flattened_dict(fields)
  return config


def _smoke():
  config = _cpu()
  config.base.net.width = 32
  defaults.smoke(config)
  return config


def _pod():
  config = _cpu()
  net = config.base.net
  net.width, net.num_layers, net.num_heads = 768, 8, 8
  net.compute_dtype, net.remat = "bfloat16", True
  config.search.num_roots, config.search.num_children = 64, 50
  config.search.num_expansions = 10
  config.buffer.capacity = config.batch_size = 4096
  defaults.rounds(config, 100, num_tree=20, evaluations=10)
  return config


VARIANTS = {
  "smoke": _smoke,
  "cpu": _cpu,
  "two": functools.partial(_cpu, **{"problem.objectives": ("amp", "charge")}),
  "pod": _pod,
}
