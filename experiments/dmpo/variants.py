"""The variants that every task's config file has."""

from experiments.common import config as config_lib
from experiments.masked_lm import defaults, systems


def get_config(system: str, variant: str):
  """The config of a task in `systems.TASKS` and a variant."""

  def make(change=lambda config: None):
    config = systems.tuning(system, defaults.dmpo)
    change(config)
    return config

  return config_lib.parse_variant(
    variant,
    {
      "smoke": lambda: make(systems.smoke),
      "cpu": make,
      "pod": lambda: make(systems.pod),
    },
  )
