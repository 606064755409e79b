"""CRP binding sites of E. coli that bind more strongly, and stay sites.

  python -m experiments.main --config=experiments/tr2d2/dna.py:VARIANT \
      --workdir=W

The base is fitted to sites of RegulonDB, 26 bp, on both strands. The reward is
minus the binding energy that Kinney et al. (2010) measured, in kcal/mol. What
judges the designs is another oracle, log-odds of sites that no model has seen,
with the correlation of 3-mers to those sites and the base's own ELBO: more
reward for less of these is over-optimisation.

| variant | network | hardware, time |
|---|---|---|
| smoke | as cpu, shorter | 2 cores, 1 min |
| cpu | 5 dilated convolutions of width 64 | 2 cores, 3 min |
| rollouts, search | as cpu, without or with nothing but search | 2 cores, 3 min |
| paper | 4 stacks of width 128, the published sizes of search and buffer | 1 GPU; not run |
| pod | as paper, 64 roots and batches of 4096 | v5e:4x4, compiled only |
"""  # noqa: E501

import functools

from experiments.common import config as config_lib
from experiments.tr2d2 import defaults


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _cpu(*, num_tree: int = 2, **fields):
  config = defaults.tuning("dna", {"kind": "sequences", "name": "crp"})
  config.reward_temperature = 1.0
  base = config.base
  base.net.kind, base.net.width, base.net.num_layers = "dilated", 64, 1
  base.batch_size, base.num_steps, base.learning_rate = 128, 250, 1e-3
  base.eval_every = 250
  config.batch_size, config.num_masks = 128, 2
  config.search.num_expansions = 8
  config.buffer.weighting = "path"
  config.buffer.keep = False
  config.buffer.capacity = 512
  # Weights of 26 sites are a few rows' else.
  config.buffer.min_ess_fraction = config.rollouts.min_ess_fraction = 0.1
  defaults.rounds(config, 16, num_tree=num_tree)
  config.num_baseline = 16 * 512
  config.update_from_flattened_dict(fields)
  return config


def _smoke():
  config = _cpu()
  config.base.net.width = 16
  defaults.smoke(config)
  return config


def _paper():
  """The released script's sizes: 160 rows, refreshed every five steps."""
  config = _cpu(num_tree=0)
  config.reward_temperature = 0.1
  config.base.net.width, config.base.net.num_layers = 128, 4
  config.base.num_steps = 20_000
  config.search.num_roots, config.search.num_children = 1, 32
  config.search.num_expansions = 5
  config.buffer.capacity = config.batch_size = 160
  config.buffer.min_ess_fraction = config.rollouts.min_ess_fraction = 0.0
  config.num_masks, config.inner_steps = 16, 5
  config.num_baseline = 0
  config.learning_rate, config.final_rate = 1e-4, 1.0
  defaults.rounds(config, 12_000, num_tree=12_000, evaluations=20)
  return config


def _pod():
  config = _paper()
  config.base.net.compute_dtype = "bfloat16"
  config.search.num_roots = 64
  config.buffer.capacity = config.batch_size = 4096
  return config


VARIANTS = {
  "smoke": _smoke,
  "cpu": _cpu,
  "rollouts": functools.partial(_cpu, num_tree=0),
  "search": functools.partial(_cpu, num_tree=16),
  "paper": _paper,
  "pod": _pod,
}
