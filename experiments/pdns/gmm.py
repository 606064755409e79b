"""PDNS on mixtures whose log Z and modes are known, and on the funnel.

  python -m experiments.main --config=experiments/pdns/gmm.py:VARIANT \
      --workdir=W

| variant | target | hardware, time |
|---|---|---|
| smoke | 4 Gaussians in 4 dimensions | 2 cores, 20 s |
| cpu, cpu_plain, cpu_annealed | 4 Gaussians of unequal weight in 16 dimensions | 2 cores, 1 min |
| cpu_funnel | Neal's funnel in 10 dimensions | 2 cores |
| paper | 40 Gaussians in 50 dimensions | 1 GPU |
| paper_student | 10 products of Student's t in 50 dimensions | 1 GPU |
| pod | 40 Gaussians in 50 dimensions, large buffer | v5e:4x4 |
"""  # noqa: E501

import functools

from experiments.common import config as config_lib
from experiments.pdns import defaults


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _gmm(dim: int = 16, rule: str = "relative"):
  config = defaults.gaussian("gmm")
  config.target.dim = dim
  config.target.distance = 6.0
  config.target.weights = (0.4, 0.3, 0.2, 0.1)
  config.target.log_z = 3.0
  config.stages.rule = rule
  return config


def _smoke():
  config = _gmm(4)
  config.net.hidden = (64, 64)
  config.reference.num_steps = 20
  config.buffer.num_samples = 1024
  config.batch_size = 256
  defaults.stages(config, num_stages=6, inner_steps=50)
  config.num_eval, config.eval_chunk = 4096, 2048
  config.num_reference = 500
  return config


def _funnel():
  config = defaults.gaussian("funnel")
  config.target.dim = 10
  config.target.scale = 3.0
  config.stages.max_ratio = 100.0
  defaults.stages(config, num_stages=40, inner_steps=150)
  return config


def _paper():
  config = defaults.gaussian("gmm40")
  config.target.dim = 50
  config.target.box = 40.0
  config.target.target_seed = 0
  config.reference.scale = 30.0
  defaults.large(config, inner_steps=1000)
  return config


def _student():
  config = defaults.gaussian("student")
  config.target.dim = 50
  config.target.box = 10.0
  config.target.num_modes = 10
  config.target.degrees = 2.0
  config.target.target_seed = 0
  config.reference.scale = 15.0
  defaults.large(config, inner_steps=1000)
  return config


def _pod():
  config = _paper()
  defaults.large_pod(config)
  return config


VARIANTS = {
  "smoke": _smoke,
  "cpu": _gmm,
  "cpu_plain": functools.partial(_gmm, 16, "plain"),
  "cpu_annealed": functools.partial(_gmm, 16, "annealed"),
  "cpu_funnel": _funnel,
  "paper": _paper,
  "paper_student": _student,
  "pod": _pod,
}
