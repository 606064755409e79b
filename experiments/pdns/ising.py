"""PDNS on the square-lattice Ising model.

  python -m experiments.main --config=experiments/pdns/ising.py:VARIANT \
      --workdir=W

| variant | target | hardware, time |
|---|---|---|
| smoke | 4x4, beta 0.6, MLP | 2 cores, 20 s |
| cpu, cpu_plain, cpu_annealed | 5x5, beta 0.6: stages, none, a fixed ramp | 2 cores, 1 min |
| cpu8, cpu16 | 8x8, 16x16, beta 0.6, site-centred network | 2 cores |
| cpu_glass, cpu_glass_ramp | 8x8 spin glass, beta 1, structured order: stages, a ramp | 2 cores, 2 min |
| cpu_field, cpu_field_ramp | 8x8, beta 0.6, field 0.02, structured order | 2 cores, 2 min |
| paper, paper_high, paper_critical | 24x24 at beta 0.6, 0.28, 0.4407, ViT | 1 GPU |
| pod | 24x24, beta 0.6, ViT, bf16 | v5e:4x4 |
"""  # noqa: E501

import functools

from experiments.common import config as config_lib
from experiments.pdns import defaults
from jdiff.targets.ising import CRITICAL_BETA


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def lattice(size: int, beta: float):
  """A config of the Ising model, and where its disorder would go."""
  config = defaults.masked("ising")
  config.target.size = size
  config.target.beta = beta
  config.target.field = 0.0
  # "sign" or "normal" couplings, times `coupling`, by their own seed.
  config.target.disorder = ""
  config.target.disorder_seed = 0
  return config


def _cpu(rule: str = "anchored"):
  config = lattice(5, 0.6)
  config.stages.rule = rule
  config.num_masks = 2
  config.schedule = "cosine"
  config.ema_decay = 0.99
  return config


def _smoke():
  config = lattice(4, 0.6)
  config.net.hidden = (64, 64)
  config.buffer.num_samples = config.batch_size = 256
  defaults.stages(config, num_stages=8, inner_steps=25)
  config.num_eval, config.eval_chunk = 4096, 2048
  return config


def site(config, *, num_steps: int) -> None:
  """The site-centred network with the path loss: large lattices on a CPU."""
  config.net.kind = "site"
  config.net.hidden = (128, 128)
  config.net.local_field = True
  config.loss = "rerf"
  config.num_terms = 8
  config.max_log_weight = 8.0
  config.schedule = "cosine"
  config.warmup_steps = 50
  config.final_rate = 2e-2
  config.ema_decay = 0.99
  _on_policy(config, num_steps)


def _on_policy(config, num_steps: int) -> None:
  """Short stages, by the KL: no weight is ever trained on.

  At 16x16 a KL of 2 or 4 halts before the critical point, and one of 8 goes
  through it and loses a phase.
  """
  config.stages.max_kl = 2.0
  config.buffer.num_samples = 1024
  config.num_reference = 1024
  defaults.stages(config, num_stages=num_steps // 10, inner_steps=10)


def chain(config, *, num_steps: int) -> None:
  """The structured order of MDNS with one network a block."""
  config.order = "chain"
  config.net.kind = "blocks"
  config.net.hidden = (64, 64)
  config.loss = "rerf"
  config.learning_rate = 3e-3
  config.schedule = "cosine"
  config.ema_decay = 0.99
  _on_policy(config, num_steps)


def _glass(rule: str):
  """A spin glass, stages beside a ramp, which does no worse."""
  config = lattice(8, 1.0)
  config.target.disorder = "sign"
  chain(config, num_steps=1000)
  config.stages.rule = rule
  return config


def _field(rule: str):
  """Two phases of unequal mass."""
  config = lattice(8, 0.6)
  config.target.field = 0.02
  chain(config, num_steps=1000)
  config.stages.rule = rule
  return config


def _site(size: int, num_steps: int):
  config = lattice(size, 0.6)
  site(config, num_steps=num_steps)
  return config


def _paper(beta: float):
  config = lattice(24, beta)
  defaults.paper(config)
  return config


def _pod():
  config = _paper(0.6)
  defaults.pod(config)
  return config


VARIANTS = {
  "smoke": _smoke,
  "cpu": _cpu,
  "cpu_plain": functools.partial(_cpu, "plain"),
  "cpu_annealed": functools.partial(_cpu, "annealed"),
  "cpu8": functools.partial(_site, 8, 1000),
  "cpu16": functools.partial(_site, 16, 2000),
  "cpu_glass": functools.partial(_glass, "anchored"),
  "cpu_glass_ramp": functools.partial(_glass, "annealed"),
  "cpu_field": functools.partial(_field, "anchored"),
  "cpu_field_ramp": functools.partial(_field, "annealed"),
  "paper": functools.partial(_paper, 0.6),
  "paper_high": functools.partial(_paper, 0.28),
  "paper_critical": functools.partial(_paper, CRITICAL_BETA),
  "pod": _pod,
}
