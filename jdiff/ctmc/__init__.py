"""The masked process: mask, roll out, weigh the path."""

from jdiff.core.orders import Order, blocks, uniform
from jdiff.ctmc.branching import Branches, branch
from jdiff.ctmc.decode import CachedFn, Decoded, decode
from jdiff.ctmc.flips import corrupt_uniform, uniform_rollout
from jdiff.ctmc.logits import forbid_mask, precondition, validate
from jdiff.ctmc.masks import DrawMasks, bernoulli_masks, count_masks
from jdiff.ctmc.paths import path_log_prob, path_log_ratio
from jdiff.ctmc.reveal import rollout

__all__ = [
  "Branches",
  "CachedFn",
  "Decoded",
  "DrawMasks",
  "Order",
  "bernoulli_masks",
  "blocks",
  "branch",
  "corrupt_uniform",
  "count_masks",
  "decode",
  "forbid_mask",
  "path_log_prob",
  "path_log_ratio",
  "precondition",
  "rollout",
  "uniform",
  "uniform_rollout",
  "validate",
]
