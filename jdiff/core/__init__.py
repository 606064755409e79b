"""Weights, keys, buffers, Pareto fronts, order laws, rewards, files, types."""

from jdiff.core import (
  checks,
  ema,
  files,
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
  "files",
  "keys",
  "orders",
  "pareto",
  "replay",
  "reward",
  "types",
  "weights",
]
