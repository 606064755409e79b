"""Bias-corrected exponential moving average of parameters."""

import jax.numpy as jnp
import optax

from jdiff.core import checks
from jdiff.core.types import Params


def update(ema: Params, params: Params, *, ema_decay: float, count) -> Params:
  """One step of the average, corrected for its start at every step.

  The corrected average obeys `m_t = m_{t-1} + (1 - d) / (1 - d^t) (p_t -
  m_{t-1})`, so it is stored as such: usable at any time, and the value before
  the first update has no weight (an average that starts at a zero-initialised
  head would keep `d^t` of it).

  Args:
    ema: The corrected average so far; any tree of the right shape at
      `count = 1`.
    params: The new parameters.
    ema_decay: Weight `d` of the OLD value, in `[0, 1)`.
    count: How many parameters this update completes, `>= 1`.
  """
  checks.check_range("ema_decay", ema_decay, 0, 1, ends="[)")
  count = jnp.asarray(count, jnp.float32)
  # -expm1 keeps 1 - d^t accurate for decays such as 0.9999 at small t.
  rate = (1 - ema_decay) / -jnp.expm1(count * jnp.log(ema_decay or 1e-38))
  # Exactly one at the first update, or rounding would let the start through.
  rate = jnp.where(count <= 1, 1, rate)
  return optax.incremental_update(params, ema, rate)
