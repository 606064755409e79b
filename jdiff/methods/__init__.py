"""Methods: losses and update rules, one module a paper."""

from jdiff.methods import (
  consistency,
  diffu_grpo,
  dmpo,
  flow_matching,
  gdpo,
  mdns,
  meanflow,
  score_matching,
  shortcut,
  wdce,
)

__all__ = [
  "consistency",
  "diffu_grpo",
  "dmpo",
  "flow_matching",
  "gdpo",
  "mdns",
  "meanflow",
  "score_matching",
  "shortcut",
  "wdce",
]
