"""The user's own sequences, and a reward that is any Python function.

  python -m experiments.main --config=experiments/tr2d2/custom.py:VARIANT \
      --workdir=W --config.base.data.path=FILE \
      --config.problem.function=module:function

FILE is FASTA, SMILES (`.smi`) or CSV (with `base.data.column`); the function is
given a list of strings and answers a number for each, or a row of numbers named
by `problem.objectives`, NaN for what is no valid sequence. A base that is
trained already is found again in `base.workdir`.

| variant | hardware |
|---|---|
| cpu | 2 cores |
| gpu | 1 GPU; not run |
"""

from experiments.common import config as config_lib
from experiments.tr2d2 import defaults


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _cpu():
  data = {"kind": "sequences", "path": "", "format": "", "column": ""}
  config = defaults.tuning("custom", {**data, "length": 0})
  base = config.base
  base.net.width, base.net.num_layers, base.net.num_heads = 64, 2, 4
  base.batch_size, base.learning_rate = 64, 2e-3
  config.batch_size, config.num_masks = 128, 2
  config.search.num_expansions = 8
  config.buffer.weighting, config.buffer.keep = "path", False
  config.rollouts.min_ess_fraction = 0.1
  defaults.rounds(config, 12, num_tree=2)
  config.num_eval = 512
  return config


def _gpu():
  config = _cpu()
  net = config.base.net
  net.width, net.num_layers, net.num_heads = 768, 8, 8
  net.compute_dtype = "bfloat16"
  config.base.num_steps = 50_000
  config.base.learning_rate = config.learning_rate = 3e-4
  config.search.num_roots, config.search.num_children = 16, 32
  config.buffer.capacity = config.batch_size = 1024
  defaults.rounds(config, 100, num_tree=10, evaluations=10)
  return config


VARIANTS = {"cpu": _cpu, "gpu": _gpu}
