"""Langevin sampling under equality and inequality constraints."""

from jdiff.core.types import Kernel
from jdiff.langevin.baselines import (
  constrained_hmc,
  mala,
  projected_langevin,
  slack,
  ula,
)
from jdiff.langevin.constraints import conditioned, newton_retract, stack
from jdiff.langevin.kernel import State, Status, Summary, run_chains
from jdiff.langevin.landing import OLLAInfo, auto_epsilon, olla

__all__ = [
  "Kernel",
  "OLLAInfo",
  "State",
  "Status",
  "Summary",
  "auto_epsilon",
  "conditioned",
  "constrained_hmc",
  "mala",
  "newton_retract",
  "olla",
  "projected_langevin",
  "run_chains",
  "slack",
  "stack",
  "ula",
]
