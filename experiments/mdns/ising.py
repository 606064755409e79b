"""MDNS on the square-lattice Ising model.

  python -m experiments.main --config=experiments/mdns/ising.py:VARIANT \
      --workdir=W

| variant | target | hardware, time | expect |
|---|---|---|---|
| smoke | 4x4, beta 0.28, h 0.1, MLP, WDCE, random order | 2 cores, 20 s | ESS fraction >= 0.85 |
| cpu | 16x16 critical, chain order | 2 cores, 2.5 min | >= 0.90 |
| cpu_long | the same, more steps | 2 cores, 5 min | >= 0.98 |
| cpu_low | 16x16, beta 0.6, chain order | 2 cores, 2.5 min | >= 0.95 |
| cpu_uniform, cpu_uniform6 | 8x8, 6x6 critical, the paper's random order | 2 cores, 1.5 min | >= 0.75, 0.90 |
| paper, paper_high, paper_low | 16x16 at beta 0.4407, 0.28, 0.6, ViT | 1 GPU, 100k steps | 0.933, 0.962, 0.981 (as published) |
| paper24, paper24_high, paper24_low | 24x24 | 1 GPU, 100k steps | not published |
| pod | 24x24 critical, ViT, bf16, batch 1024 | v5e:4x4 | compiled only |
"""  # noqa: E501

import functools

from experiments.common import config as config_lib
from experiments.mdns import defaults
from jdiff.targets.ising import CRITICAL_BETA


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _base(size: int, beta: float, field: float = 0.0):
  config = defaults.base("ising")
  config.target.size = size
  config.target.beta = beta
  config.target.field = field
  return config


def _smoke():
  config = _base(4, 0.28, 0.1)
  config.order = "random"
  config.net.kind = "mlp"
  config.net.hidden = (128, 128)
  config.net.local_field = False
  config.loss = "wdce"
  config.batch_size = 256
  config.learning_rate = 2e-3
  config.ramp_start = 1.0
  config.ema_decay = 0.98
  return config


def _chain(beta: float, num_steps: int):
  config = _base(16, beta)
  config.num_steps = num_steps
  return config


def _uniform(size: int, num_steps: int):
  config = _base(size, CRITICAL_BETA)
  defaults.uniform_order(config, num_steps=num_steps)
  return config


def _paper(size: int, beta: float):
  config = _base(size, beta)
  defaults.vit(config)
  if size > 16:
    config.buffer.num_samples = config.buffer.capacity = 128
    config.batch_size = 128
  return config


def _pod():
  config = _paper(24, CRITICAL_BETA)
  config.buffer.num_samples = config.buffer.capacity = 1024
  config.batch_size = 1024
  config.learning_rate = 4e-4
  config.net.remat = True
  return config


VARIANTS = {
  "smoke": _smoke,
  "cpu": functools.partial(_chain, CRITICAL_BETA, 1400),
  "cpu_long": functools.partial(_chain, CRITICAL_BETA, 2800),
  "cpu_low": functools.partial(_chain, 0.6, 1200),
  "cpu_uniform": functools.partial(_uniform, 8, 700),
  "cpu_uniform6": functools.partial(_uniform, 6, 700),
  "paper": functools.partial(_paper, 16, CRITICAL_BETA),
  "paper_high": functools.partial(_paper, 16, 0.28),
  "paper_low": functools.partial(_paper, 16, 0.6),
  "paper24": functools.partial(_paper, 24, CRITICAL_BETA),
  "paper24_high": functools.partial(_paper, 24, 0.28),
  "paper24_low": functools.partial(_paper, 24, 0.6),
  "pod": _pod,
}
