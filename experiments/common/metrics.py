"""Diagnostics of chains, from a library."""

from blackjax import diagnostics


def ess(values):
  """Effective sample size of `[C, K]` values of C chains."""
  return diagnostics.effective_sample_size(values)


def r_hat(values):
  """Potential scale reduction of `[C, K]` values of C chains; 1 is mixed."""
  return diagnostics.potential_scale_reduction(values)
