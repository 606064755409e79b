"""PDNS on particles: double wells and Lennard-Jones clusters.

  python -m experiments.main --config=experiments/pdns/particles.py:VARIANT \
      --workdir=W

| variant | target | hardware, time |
|---|---|---|
| smoke | 3 particles in the plane | 2 cores, 30 s |
| cpu | DW-4: 4 particles in the plane | 2 cores |
| cpu_lj13 | LJ-13, small network | 2 cores |
| paper, paper_lj13, paper_lj55 | DW-4, LJ-13, LJ-55 at full size | 1 GPU |
| pod | LJ-55, buffer of 131072 | v5e:4x4 |

References are long Markov chains (experiments/pdns/chains.py).
"""

from experiments.common import config as config_lib
from experiments.pdns import defaults


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _wells(num_particles: int):
  config = defaults.gaussian("double_well_particles")
  config.target.num_particles = num_particles
  config.target.dim = 2
  config.target.beta = 1.0
  config.reference.scale = 2.5
  config.net.kind = "egnn"
  config.net.width = 32
  config.net.num_layers = 2
  config.net.length = 2.0
  config.batch_size = 256
  config.buffer.num_samples = 2048
  config.learning_rate = 1e-3
  config.schedule = "cosine"
  config.reference.num_steps = 100
  return config


def _smoke():
  config = _wells(3)
  config.net.width = 16
  config.reference.num_steps = 20
  config.buffer.num_samples = 512
  config.batch_size = 128
  defaults.stages(config, num_stages=4, inner_steps=25)
  config.num_eval, config.eval_chunk = 1024, 1024
  config.num_reference = 256
  return config


def _cpu():
  config = _wells(4)
  config.num_eval, config.eval_chunk = 8192, 2048
  defaults.stages(config, num_stages=40, inner_steps=100)
  return config


def _clusters(num_particles: int):
  config = _wells(num_particles)
  config.target = {
    "kind": "lennard_jones",
    "num_particles": num_particles,
    "epsilon": 1.0,
    "oscillator": 1.0,
    "beta": 1.0,
  }
  config.name = "lennard_jones"
  config.reference.scale = 1.0
  config.net.length = 1.0
  config.net.width = 32
  config.net.num_layers = 3
  return config


def _lj13():
  config = _clusters(13)
  config.num_eval, config.eval_chunk = 4096, 1024
  defaults.stages(config, num_stages=40, inner_steps=100)
  return config


def _large(config):
  config.reference.num_steps = 200
  config.net.width = 128
  config.net.num_layers = 4
  config.buffer.num_samples = 10_000
  config.batch_size = 512
  config.learning_rate = 1e-4
  config.ema_decay = 0.999
  config.stages.max_kl = 1.0
  config.stages.max_ratio = 100.0
  defaults.stages(config, num_stages=100, inner_steps=500)
  return config


def _lj55():
  config = _large(_clusters(55))
  config.buffer.num_samples, config.buffer.num_chunks = 100_000, 100
  return config


def _pod():
  config = _lj55()
  config.buffer.num_samples, config.buffer.num_chunks = 131072, 64
  config.batch_size = 2048
  return config


VARIANTS = {
  "smoke": _smoke,
  "cpu": _cpu,
  "cpu_lj13": _lj13,
  "paper": lambda: _large(_wells(4)),
  "paper_lj13": lambda: _large(_clusters(13)),
  "paper_lj55": _lj55,
  "pod": _pod,
}
