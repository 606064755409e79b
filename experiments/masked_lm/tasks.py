"""Base policies of generated tasks: right answers with noise.

  python -m experiments.main --config=experiments/masked_lm/tasks.py:VARIANT \
      --workdir=W

| variant | task | hardware, time |
|---|---|---|
| smoke | modular arithmetic, 300 steps | 2 cores |
| arithmetic, sudoku, countdown, parity | what `experiments/gdpo` starts from | 2 cores |
| pod | arithmetic mod 97, 12 layers of width 768 | v5e:4x4, compiled only |
"""  # noqa: E501

import functools

from experiments.common import config as config_lib
from experiments.masked_lm import defaults, systems


def get_config(variant: str = "arithmetic"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _base(system: str):
  return systems.pretraining(system)


def _smoke():
  config = _base("arithmetic")
  config.num_steps = 300
  config.num_eval = 256
  return config


def _pod():
  config = defaults.pretraining(
    "modular", {"kind": "task", "name": "modular", "modulus": 97}
  )
  defaults.network(config, width=768, num_layers=12, num_heads=12)
  config.net.compute_dtype = "bfloat16"
  config.batch_size = 4096
  config.num_steps = 20_000
  config.learning_rate = 3e-4
  return config


VARIANTS = {
  "smoke": _smoke,
  **{name: functools.partial(_base, name) for name in systems.TASKS},
  "pod": _pod,
}
