"""Tree search over partly revealed sequences, in arrays."""

from jdiff.search import rules
from jdiff.search.rules import COUNT, MAX, MEAN, SUM, puct, tr2d2, uct
from jdiff.search.search import Proposal, Search, tree_search
from jdiff.search.tree import Tree

__all__ = [
  "COUNT",
  "MAX",
  "MEAN",
  "SUM",
  "Proposal",
  "Search",
  "Tree",
  "puct",
  "rules",
  "tr2d2",
  "tree_search",
  "uct",
]
