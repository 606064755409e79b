"""The four generated tasks, as base policies and as problems of tuning.

`arithmetic`: card T1, four sums of two residues, all to be right. `sudoku`: the
base has seen four to ten blanks, and is tuned on ten to twelve. `countdown`: an
expression of three numbers that reaches a target. `parity`: eight bits with an
even number of ones, the whole law enumerable.
"""

from collections.abc import Callable

import ml_collections

from experiments.common import config as config_lib
from experiments.masked_lm import defaults

TASKS = {
  "arithmetic": "modular",
  "sudoku": "sudoku",
  "countdown": "countdown",
  "parity": "parity",
}
"""Names of config files, and of what `experiments.common.tasks` calls them."""

OPTIONS = {
  "sudoku": {"blanks": (10, 11, 12), "pretraining_blanks": (4, 6, 8, 10)}
}
"""Of the tasks, where a run may want others."""

WIDTHS = {"sudoku": 64, "countdown": 64}
"""Of networks, where 32 is not enough."""

GRIDS = {"sudoku": (8, 4)}
"""Canvases that are pictures: the puzzle above, and its solution below.

Trained on six blanks, a base ended at 0.409 nats a cell after 3000 steps as a
line and at 0.369 after 1000 as a grid; the least is 0.351.
"""

BASE_STEPS = {"sudoku": 1000, "countdown": 3000, "parity": 600}


TUNING = {
  # No prompt: one group, as large as the batch. And every count of masks:
  # parity shows with a single site masked and only then, which two nodes never
  # draw.
  "parity": {"num_prompts": 1, "group_size": 128, "elbo.num_nodes": 8},
  # Rewards are shares of blanks, and groups differ little: small steps.
  "sudoku": {"num_prompts": 16, "group_size": 8, "learning_rate": 2e-4},
}
"""Where a task is tuned by other settings than `defaults`."""

OWN_TUNING = {
  # So large a group needs no baseline.
  ("parity", "dmpo"): {"baseline": "none", "learning_rate": 2e-3},
  # A policy that strays from the base forgets how to solve puzzles.
  ("sudoku", "gdpo"): {"clip": 0.05, "kl_weight": 0.02, "num_steps": 400},
}
"""The same, of one method."""


def pretraining(system: str) -> ml_collections.ConfigDict:
  """The config of a base policy."""
  task = TASKS[system]
  config = defaults.pretraining(
    system, {"kind": "task", "name": task, **OPTIONS.get(system, {})}
  )
  _fit(config, system)
  return config


def get_config(
  system: str, variant: str, make: Callable[..., ml_collections.ConfigDict]
) -> ml_collections.ConfigDict:
  """A variant of one task under `defaults.gdpo` or `defaults.dmpo`."""

  def changed(change):
    config = tuning(system, make)
    change(config)
    return config

  return config_lib.parse_variant(
    variant,
    {
      "smoke": lambda: changed(smoke),
      "cpu": lambda: tuning(system, make),
      "pod": lambda: changed(pod),
    },
  )


def tuning(
  system: str, make: Callable[..., ml_collections.ConfigDict]
) -> ml_collections.ConfigDict:
  """The config of one task under `defaults.gdpo` or `defaults.dmpo`."""
  config = make(TASKS[system], **OPTIONS.get(system, {}))
  config.name = config.base.name = system
  _fit(config.base, system)
  both, own = (
    TUNING.get(system, {}),
    OWN_TUNING.get((system, make.__name__), {}),
  )
  config.update_from_flattened_dict({**both, **own})
  return config


def smoke(config: ml_collections.ConfigDict) -> None:
  """Shortens a run to a test of its parts."""
  config.base.num_steps = 200
  config.base.num_eval = 256
  config.num_steps = 20
  config.num_eval = 256
  config.log_every = 5
  config.eval_every = config.checkpoint_every = 10


def pod(config: ml_collections.ConfigDict) -> None:
  """A transformer and batches for a slice, with adapters."""
  net = config.base.net
  net.width, net.num_layers, net.num_heads = 2048, 24, 16
  net.compute_dtype, net.remat, net.head_chunk = "bfloat16", True, 4
  config.base.batch_size = 1024
  config.base.num_steps = 100_000
  config.base.learning_rate = 3e-4
  config.lora.rank = 128
  config.lora.alpha = 64.0
  # 1024 rollouts; without a prompt they stay one group.
  config.group_size = 1024 if config.num_prompts == 1 else 16
  config.num_prompts = 1024 // config.group_size
  config.elbo.num_nodes = max(3, config.elbo.num_nodes)
  config.elbo.implementation = "scan"
  config.inner_steps = 8
  config.learning_rate = 1e-6


def _fit(config, system: str) -> None:
  width = WIDTHS.get(system, 32)
  config.net.width, config.net.num_heads = width, width // 16
  config.net.grid = GRIDS.get(system, ())
  config.num_steps = BASE_STEPS.get(system, config.num_steps)
