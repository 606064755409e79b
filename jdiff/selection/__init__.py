"""Nearest neighbours and what rests on them: entropy, subsets, copies."""

from jdiff.selection.entropy import Entropy, kl_entropy
from jdiff.selection.fidelity import (
  PrecisionRecall,
  frechet,
  precision_recall,
)
from jdiff.selection.memorisation import (
  Memorised,
  generalisation_score,
  memorised,
)
from jdiff.selection.neighbours import Neighbours, nearest
from jdiff.selection.subset import (
  Filtered,
  Selection,
  greedy,
  threshold_decay,
)

__all__ = [
  "Entropy",
  "Filtered",
  "Memorised",
  "Neighbours",
  "PrecisionRecall",
  "Selection",
  "frechet",
  "generalisation_score",
  "greedy",
  "kl_entropy",
  "memorised",
  "nearest",
  "precision_recall",
  "threshold_decay",
]
