"""Settings shared by the constrained-sampling configs."""

import ml_collections

from experiments.common import config as config_lib


def base(kind: str, **target) -> ml_collections.ConfigDict:
  """Every field of a config, at its default value.

  Args:
    kind: A name of `experiment.TARGETS`.
    **target: Its arguments.
  """
  config = ml_collections.ConfigDict()
  config.experiment = "experiments.olla.experiment"
  config.name = kind
  config.variant = ""
  config.seed = 0

  config.target = ml_collections.ConfigDict({"kind": kind, **target})

  # "olla", "projected" or "hmc".
  config.kernel = "olla"
  # Langevin time a step; for "hmc" a leapfrog step, which moves like a Langevin
  # step of half its square.
  config.step_size = 1e-2
  config.landing = 0.5
  # 0 is "auto": see `langevin.auto_epsilon`.
  config.epsilon = 0.0
  # Hutchinson probes of the curvature drift; 0 is the exact trace.
  config.num_probes = 1

  config.num_chains = 1000
  # Kernel steps in one step of the loop, after which positions are recorded.
  config.thinning = 10
  config.num_steps = 200
  # Share of them that no average counts.
  config.burn_in = 0.3
  # Chains whose records are kept for ESS and R-hat.
  config.num_traced = 16

  config_lib.add_loop(config, log_every=20, eval_every=100)
  return config
