"""MDNS on the square-lattice Potts model with three states.

  python -m experiments.main --config=experiments/mdns/potts.py:VARIANT \
      --workdir=W

| variant | target | hardware, time |
|---|---|---|
| smoke | 4x4 critical, chain order | 2 cores, 15 s |
| cpu | 8x8 critical, chain order | 2 cores, 2 min |
| paper, paper_high, paper_low | 16x16 at beta 1.005, 0.5, 1.2, ViT | 1 GPU |
| pod | 16x16 critical, ViT, bf16, batch 2048 | v5e:4x4, compiled only |
"""

import functools
import math

from experiments.common import config as config_lib
from experiments.mdns import defaults

CRITICAL_BETA = math.log(1 + math.sqrt(3))


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _base(size: int, beta: float):
  config = defaults.base("potts")
  config.target.size = size
  config.target.beta = beta
  config.target.num_states = 3
  return config


def _smoke():
  config = _base(4, CRITICAL_BETA)
  config.batch_size = 256
  config.num_steps = 400
  config.num_eval = 16384
  return config


def _cpu():
  config = _base(8, CRITICAL_BETA)
  config.num_steps = 1500
  return config


def _paper(beta: float):
  config = _base(16, beta)
  defaults.vit(config)
  config.net.width, config.net.num_layers = 128, 4
  return config


def _pod():
  config = _paper(CRITICAL_BETA)
  config.buffer.num_samples = config.buffer.capacity = 2048
  config.batch_size = 2048
  config.learning_rate = 4e-4
  config.net.remat = True
  return config


VARIANTS = {
  "smoke": _smoke,
  "cpu": _cpu,
  "paper": functools.partial(_paper, CRITICAL_BETA),
  "paper_high": functools.partial(_paper, 0.5),
  "paper_low": functools.partial(_paper, 1.2),
  "pod": _pod,
}
