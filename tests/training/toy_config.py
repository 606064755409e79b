"""A config file as `--config` takes it."""

from experiments.common import config as config_lib
from tests.training import toy


def get_config(arg=None):
  return config_lib.parse_variant(
    arg,
    {
      "tiny": {},
      "short": {"num_steps": 4},
      "nan": {"nan_step": 8},
      "bad": {"no_such_field": 1},
    },
    base=toy.config,
  )
