"""Scales a target's log-density: annealing in the inverse temperature."""

import jax

from jdiff.core import checks
from jdiff.core.types import Target


def temper(target: Target, scale: float | jax.Array) -> Target:
  """The target with `log_prob` and its conditionals' logits times `scale`.

  Args:
    target: Any target.
    scale: Positive; may be traced, so that a jitted step can anneal.

  Returns:
    A target without `log_z`, `exact` and `sample`, which no longer hold.
  """
  if isinstance(scale, jax.Array):
    checks.check_numbers("scale", scale)
    checks.check_shape("scale", scale, ())
  else:
    scale = checks.check_finite("scale", scale, positive=True)
  original = target.conditional

  def conditional(tokens, sites=None):
    assert original is not None
    logits, known = original(tokens, sites)
    return scale * logits, known

  return target._replace(
    log_prob=lambda x: scale * target.log_prob(x),
    conditional=None if original is None else conditional,
    log_z=None,
    exact=None,
    sample=None,
  )
