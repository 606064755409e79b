"""The paper's clock, and the laws of a time on it.

arXiv:2511.03202 noises by `X_s = exp(-s / 2) X_0 + (1 - exp(-s))^(1/2) eps`, an
Ornstein-Uhlenbeck process of unit rate, at times `s` from `t_min` to `t_max`.
Networks here see the straight path `x_t = (1 - t) X_0 + t eps` of
`schedules.gaussian.linear`, whose Euler steps are those of DDIM. The two are
one process where noise over data is the same,

  t / (1 - t) = (exp(s) - 1)^(1/2),

and `x_t` is `X_s` times `(t^2 + (1 - t)^2)^(1/2)`. So `s` in `[0.02, 5]` is `t`
in `[0.124, 0.924]`. Laws are those of `s`: log-uniform on `[0.02, 5]` is what
memorises a few digits within minutes.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.methods import flow_matching
from jdiff.methods.flow_matching import DrawTime

LAWS = ("log_uniform", "uniform", "beta", "logit_normal")


def house_time(time):
  """`t` of the straight path at a time `s >= 0` of the paper's."""
  # Host numbers stay on the host: grids of samplers must be known.
  xp = jnp if isinstance(time, jax.Array) else np
  odds = xp.sqrt(xp.expm1(time))
  return odds / (1 + odds)


def draw_time(
  law: str,
  t_min: float,
  t_max: float,
  beta: tuple[float, float] = (0.8, 2.0),
) -> DrawTime:
  """The law of a training example's `t`.

  Args:
    law: One of `LAWS`, of the paper's time; all but `"log_uniform"` are laws on
      `[0, 1]`, stretched over the interval.
    t_min: Earliest of the paper's times, positive.
    t_max: Latest.
    beta: Parameters of `"beta"`; the default is the one that heads are scored
      with.

  Raises:
    ValueError: If the law is unknown or the interval is none.
  """
  t_min = checks.check_finite("config.time.t_min", t_min, positive=True)
  t_max = checks.check_finite("config.time.t_max", t_max, positive=True)
  if t_min >= t_max:
    raise ValueError(f"config.time.t_min must be < t_max={t_max}, got {t_min}.")
  start = t_min / t_max
  if law == "log_uniform":
    draw = flow_matching.log_uniform(start)
  elif law == "uniform":
    draw = flow_matching.within(flow_matching.uniform, start)
  elif law == "beta":
    draw = flow_matching.within(flow_matching.beta(*beta), start)
  elif law == "logit_normal":
    draw = flow_matching.within(flow_matching.logit_normal(), start)
  else:
    raise ValueError(
      f"config.time.law must be one of {', '.join(LAWS)}, got {law!r}."
    )
  return lambda key: house_time(t_max * draw(key))


def grid(num_steps: int, t_min: float, t_max: float) -> np.ndarray:
  """`[num_steps + 1]` times from the latest, evenly spaced, to zero.

  The last step starts at `t_min` and ends on the network's denoised point.
  """
  first, last = house_time(t_max), house_time(t_min)
  return np.append(np.linspace(first, last, num_steps), 0.0)


def stationary_scale(t_max: float) -> float:
  """The deviation to draw `x_t` with at the latest time, by one for `X_s`."""
  t = house_time(t_max)
  return float(np.hypot(t, 1 - t))
