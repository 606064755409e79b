"""Generative models trained on the samples of their predecessors."""
