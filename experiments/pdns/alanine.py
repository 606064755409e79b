"""PDNS on alanine dipeptide in vacuum, in 60 internal coordinates.

  python -m experiments.main --config=experiments/pdns/alanine.py:VARIANT \
      --workdir=W

Needs the extra `molecules`: parameters are read from the package openmm.

| variant | target | hardware, time |
|---|---|---|
| smoke | 300 K, a few steps | 2 cores, 1 min |
| cpu | 300 K, small network | 2 cores |
| paper | 300 K, the paper's sizes | 1 GPU |
| pod | 300 K, large buffer | v5e:4x4 |
"""

from experiments.common import config as config_lib
from experiments.pdns import defaults


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _base():
  config = defaults.gaussian("alanine")
  config.target.temperature = 300.0
  # Bonds and angles are standardised; torsions need the circle's width.
  config.reference.scale = 1.5
  # Weights to the whole target stay too uneven to be closed with.
  config.stages.min_remaining = 0.0
  config.stages.max_ratio = 100.0
  return config


def _smoke():
  config = _base()
  config.net.hidden = (64, 64)
  config.reference.num_steps = 10
  config.buffer.num_samples = 256
  config.batch_size = 128
  defaults.stages(config, num_stages=3, inner_steps=10)
  config.num_eval, config.eval_chunk = 512, 512
  config.num_reference = 128
  return config


def _cpu():
  config = _base()
  config.net.hidden = (256, 256)
  config.buffer.num_samples = 4096
  config.num_eval = 8192
  defaults.stages(config, num_stages=60, inner_steps=150)
  return config


def _paper():
  config = _base()
  defaults.large(config, num_stages=200)
  config.net.hidden = (1024, 1024, 1024)
  config.num_sinkhorn = 0
  return config


def _pod():
  config = _paper()
  defaults.large_pod(config)
  return config


VARIANTS = {"smoke": _smoke, "cpu": _cpu, "paper": _paper, "pod": _pod}
