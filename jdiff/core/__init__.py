"""Weights, keys, buffers, Pareto fronts, order laws, rewards, shared types."""

from jdiff.core import (
  checks,
  ema,
  keys,
  orders,
  pareto,
  replay,
  reward,
  types,
  weights,
)

__all__ = [
  "checks",
  "ema",
  "keys",
  "orders",
  "pareto",
  "replay",
  "reward",
  "types",
  "weights",
]
