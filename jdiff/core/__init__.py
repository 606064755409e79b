"""Weights, keys, buffers, Pareto fronts, order laws and the shared types."""

from jdiff.core import checks, ema, keys, orders, pareto, replay, types, weights

__all__ = [
  "checks",
  "ema",
  "keys",
  "orders",
  "pareto",
  "replay",
  "types",
  "weights",
]
