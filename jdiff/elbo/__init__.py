"""Denoising estimates of a masked model's log-likelihood."""

from jdiff.elbo import denoising
from jdiff.elbo.denoising import masked_cross_entropy

__all__ = ["denoising", "masked_cross_entropy"]
