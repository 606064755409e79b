"""PDNS on the square-lattice Potts model with four states.

  python -m experiments.main --config=experiments/pdns/potts.py:VARIANT \
      --workdir=W

| variant | target | hardware, time |
|---|---|---|
| smoke | 3x3, beta 1.3, MLP | 2 cores, 20 s |
| cpu, cpu_critical | 6x6 at beta 1.3 and log 3, site-centred network, uniform order | 2 cores |
| cpu_chain, cpu_chain_ramp | 6x6, beta 1.3, structured order: stages, and a ramp alone | 2 cores |
| cpu_chain_critical | the same stages at log 3 | 2 cores |
| paper, paper_critical | 16x16 at beta 1.3 and log 3, ViT | 1 GPU |
| pod | 16x16, beta 1.3, ViT, bf16 | v5e:4x4 |
"""  # noqa: E501

import functools
import math

from experiments.common import config as config_lib
from experiments.pdns import defaults, ising

CRITICAL_BETA = math.log(3)


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _base(size: int, beta: float):
  config = defaults.masked("potts")
  config.target.size = size
  config.target.beta = beta
  config.target.num_states = 4
  return config


def _smoke():
  config = _base(3, 1.3)
  config.net.hidden = (64, 64)
  config.buffer.num_samples = config.batch_size = 256
  defaults.stages(config, num_stages=8, inner_steps=25)
  config.num_eval, config.eval_chunk = 4096, 2048
  return config


def _site(beta: float):
  config = _base(6, beta)
  ising.site(config, num_steps=1000)
  return config


def _chain(rule: str, beta: float = 1.3):
  config = _base(6, beta)
  ising.chain(config, num_steps=1000)
  config.stages.rule = rule
  return config


def _paper(beta: float):
  config = _base(16, beta)
  defaults.paper(config)
  config.net.width, config.net.num_layers = 128, 4
  return config


def _pod():
  config = _paper(1.3)
  defaults.pod(config)
  return config


VARIANTS = {
  "smoke": _smoke,
  "cpu": functools.partial(_site, 1.3),
  "cpu_critical": functools.partial(_site, CRITICAL_BETA),
  "cpu_chain": functools.partial(_chain, "anchored"),
  "cpu_chain_ramp": functools.partial(_chain, "annealed"),
  "cpu_chain_critical": functools.partial(_chain, "anchored", CRITICAL_BETA),
  "paper": functools.partial(_paper, 1.3),
  "paper_critical": functools.partial(_paper, CRITICAL_BETA),
  "pod": _pod,
}
