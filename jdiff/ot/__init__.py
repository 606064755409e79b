"""Semi-discrete optimal transport: Laguerre cells and their dual."""

from jdiff.ot.laguerre import (
  assign,
  assign_with_gap,
  bias_from_potential,
  histogram,
  potential_from_bias,
)
from jdiff.ot.semidiscrete import Solution, marginal_error, solve

__all__ = [
  "Solution",
  "assign",
  "assign_with_gap",
  "bias_from_potential",
  "histogram",
  "marginal_error",
  "potential_from_bias",
  "solve",
]
