"""Weights, keys, buffers, order laws and the shared types."""

from jdiff.core import checks, ema, keys, orders, replay, types, weights

__all__ = ["checks", "ema", "keys", "orders", "replay", "types", "weights"]
