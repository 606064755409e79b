"""Memorisation of the training set: pruning heads against it, and its scale."""
