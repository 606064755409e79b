"""Denoising estimates of a masked model's log-likelihood."""

from jdiff.elbo import denoising, estimators, exact, nodes, token_probs
from jdiff.elbo.denoising import masked_cross_entropy
from jdiff.elbo.estimators import Masks, draw_masks, estimate, estimator
from jdiff.elbo.exact import exact_elbo, exact_log_prob
from jdiff.elbo.nodes import double_monte_carlo, node_masks
from jdiff.elbo.token_probs import TokenLogProbs, from_logits, streamed

__all__ = [
  "Masks",
  "TokenLogProbs",
  "denoising",
  "double_monte_carlo",
  "draw_masks",
  "estimate",
  "estimator",
  "estimators",
  "exact",
  "exact_elbo",
  "exact_log_prob",
  "from_logits",
  "masked_cross_entropy",
  "node_masks",
  "nodes",
  "streamed",
  "token_probs",
]
