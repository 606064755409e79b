"""PDNS on many wells: 32 modes of equal mass, or tilted pairs.

  python -m experiments.main --config=experiments/pdns/manywell.py:VARIANT \
      --workdir=W

| variant | target | hardware, time |
|---|---|---|
| smoke | 2 wells in 3 dimensions | 2 cores, 20 s |
| cpu, cpu_plain, cpu_annealed | MW54: 5 wells, 32 modes | 2 cores |
| paper | MW54, the paper's sizes | 1 GPU |
| paper_pairs | 16 tilted pairs in 32 dimensions | 1 GPU |
| pod | 16 tilted pairs, large buffer | v5e:4x4 |
"""  # noqa: E501

import functools

from experiments.common import config as config_lib
from experiments.pdns import defaults


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _wells(dim: int, num_wells: int):
  config = defaults.gaussian("many_well")
  config.target.dim = dim
  config.target.num_wells = num_wells
  config.target.delta = 4.0
  config.target.beta = 1.0
  config.reference.scale = 2.0
  return config


def _smoke():
  config = _wells(3, 2)
  config.net.hidden = (64, 64)
  config.reference.num_steps = 20
  config.buffer.num_samples = 1024
  config.batch_size = 256
  defaults.stages(config, num_stages=6, inner_steps=50)
  config.num_eval, config.eval_chunk = 4096, 2048
  config.num_reference = 500
  return config


def _cpu(rule: str = "relative"):
  config = _wells(5, 5)
  config.stages.rule = rule
  config.num_eval = 65536
  defaults.stages(config, num_stages=40, inner_steps=150)
  return config


def _paper():
  config = _wells(5, 5)
  config.num_eval = 65536
  defaults.large(config)
  return config


def _pairs():
  config = defaults.gaussian("many_well_pairs")
  config.target.dim = 32
  config.reference.scale = 2.0
  config.num_eval = 65536
  defaults.large(config)
  return config


def _pod():
  config = _pairs()
  defaults.large_pod(config)
  return config


VARIANTS = {
  "smoke": _smoke,
  "cpu": _cpu,
  "cpu_plain": functools.partial(_cpu, "plain"),
  "cpu_annealed": functools.partial(_cpu, "annealed"),
  "paper": _paper,
  "paper_pairs": _pairs,
  "pod": _pod,
}
