"""Methods: losses and update rules, one module a paper."""

from jdiff.methods import (
  collapse,
  consistency,
  diffu_grpo,
  dmpo,
  flow_matching,
  gdpo,
  mdns,
  meanflow,
  pdns,
  pruning,
  score_matching,
  shortcut,
  tr2d2,
  wdce,
)

__all__ = [
  "collapse",
  "consistency",
  "diffu_grpo",
  "dmpo",
  "flow_matching",
  "gdpo",
  "mdns",
  "meanflow",
  "pdns",
  "pruning",
  "score_matching",
  "shortcut",
  "tr2d2",
  "wdce",
]
