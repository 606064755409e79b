"""A masked world model of the built-in tile world.

  python -m experiments.main --config=experiments/world/tiles.py:VARIANT \
      --workdir=W

A 24 x 24 torus of patchy terrain and walls, seen 7 x 7 cells at a time: 49
tokens a frame, two frames of window, two recalled from a bank.

| variant | what differs | hardware, time |
|---|---|---|
| smoke | 20 steps, tiny | 2 cores, under 1 min |
| cpu | 800 steps, 75k parameters | 2 cores, 4 min |
| cpu_map, cpu_gated, cpu_near, cpu_content | another memory | 2 cores, 4 min |
| cpu_latent | actions told from frames alone, eight codes | 2 cores, 4 min |
| cpu_clean | no noise on the context | 2 cores, 4 min |
| cpu_axial | two streams, every frame a target; 200 steps of 8 clips | 2 cores, 10 min |
"""  # noqa: E501

import functools

from experiments.common import config as config_lib
from experiments.world import defaults


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _cpu(**fields):
  config = defaults.base("tiles")
  config.update_from_flattened_dict(fields)
  return config


def _smoke():
  config = _cpu()
  defaults.smoke(config)
  return config


def _axial():
  config = _cpu()
  config.net.kind = "axial"
  config.net.width = 64
  config.batch_size = 8
  config.num_steps = 200
  config.eval_every = config.checkpoint_every = 100
  return config


VARIANTS = {
  "smoke": _smoke,
  "cpu": _cpu,
  "cpu_map": functools.partial(_cpu, **{"memory.kind": "map"}),
  "cpu_gated": functools.partial(_cpu, **{"memory.kind": "gated"}),
  "cpu_near": functools.partial(_cpu, **{"memory.rank": "near"}),
  "cpu_content": functools.partial(_cpu, **{"memory.rank": "content"}),
  "cpu_latent": functools.partial(_cpu, **{"data.labels": "latent"}),
  "cpu_clean": functools.partial(_cpu, context_noise=0.0),
  "cpu_axial": _axial,
}
