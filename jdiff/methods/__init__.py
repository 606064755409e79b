"""Methods: losses and update rules, one module a paper."""

from jdiff.methods import (
  consistency,
  flow_matching,
  mdns,
  meanflow,
  score_matching,
  shortcut,
  wdce,
)

__all__ = [
  "consistency",
  "flow_matching",
  "mdns",
  "meanflow",
  "score_matching",
  "shortcut",
  "wdce",
]
