"""Semi-discrete optimal transport: Laguerre cells, their dual, and pairs."""

from jdiff.ot import iteration, table
from jdiff.ot.laguerre import (
  TopTwo,
  assign,
  assign_with_gap,
  bias_from_potential,
  histogram,
  potential_from_bias,
  top_two,
)
from jdiff.ot.marginals import Rebalanced, quotas, rebalance
from jdiff.ot.pairing import Pairing, minibatch, pair, transport
from jdiff.ot.semidiscrete import (
  Solution,
  marginal_error,
  solve,
  solve_classes,
  standard_normal,
)
from jdiff.ot.sharded import on_mesh

__all__ = [
  "Pairing",
  "Rebalanced",
  "Solution",
  "TopTwo",
  "assign",
  "assign_with_gap",
  "bias_from_potential",
  "histogram",
  "iteration",
  "marginal_error",
  "minibatch",
  "on_mesh",
  "pair",
  "potential_from_bias",
  "quotas",
  "rebalance",
  "solve",
  "solve_classes",
  "standard_normal",
  "table",
  "top_two",
  "transport",
]
