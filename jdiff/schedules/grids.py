"""Time grids of samplers: `[K + 1]` times from noise down to data.

`time_grid`, uniform from 1 to 0, is the masked process's. A grid in other
units of time (the noise level of EDM) goes with a field in those units.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jdiff.core import checks
from jdiff.schedules.masking import time_grid

__all__ = ["as_grid", "edm", "time_grid"]


def edm(
  num_steps: int,
  sigma_min: float = 2e-3,
  sigma_max: float = 80.0,
  rho: float = 7.0,
) -> jax.Array:
  """Noise levels `[num_steps + 1]` float32, from `sigma_max` down, then 0.

  The first `num_steps` are `sigma_max` to `sigma_min`, uniform in
  `sigma^(1 / rho)`; the last step goes from `sigma_min` to 0.

  Args:
    num_steps: Steps `K`, a Python int >= 1; with one step `sigma_min` is not
      reached.
    sigma_min: Last level before 0.
    sigma_max: First level.
    rho: 1 is uniform in `sigma`; larger values take shorter steps near data.

  Raises:
    ValueError: If a number is not positive, or the levels do not fall.

  Source:
    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
    Models" (NeurIPS 2022, arXiv:2206.00364), eq. 5.
  """
  num_steps = checks.check_int("num_steps", num_steps)
  sigma_min = checks.check_finite("sigma_min", sigma_min, positive=True)
  sigma_max = checks.check_finite("sigma_max", sigma_max, positive=True)
  rho = checks.check_finite("rho", rho, positive=True)
  if sigma_min >= sigma_max:
    raise ValueError(
      f"sigma_min must be < sigma_max={sigma_max}, got {sigma_min}."
    )
  start, end = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
  levels = np.linspace(start, end, num_steps) ** rho
  return jnp.asarray(np.append(levels, 0.0), jnp.result_type(float))


def as_grid(
  num_steps: int | None = None, times: ArrayLike | None = None
) -> jax.Array:
  """The grid that a sampler was asked for, by count or by times.

  Args:
    num_steps: Steps `K` of the uniform grid from 1 to 0, or None.
    times: `[K + 1]` decreasing times, or None.

  Returns:
    `[K + 1]` times, float32 at least; concrete under `jit` too, unless `times`
    are traced.

  Raises:
    ValueError: If not exactly one is given, if `times` is no vector of two or
      more, or if they are seen not to decrease.
  """
  if (num_steps is None) == (times is None):
    raise ValueError(
      "pass exactly one of num_steps and times, got "
      f"num_steps={num_steps}, times={times}."
    )
  with jax.ensure_compile_time_eval():
    if times is None:
      return time_grid(checks.check_int("num_steps", num_steps))
    checks.check_numbers("times", times)
    times = jnp.asarray(times)
    times = times.astype(jnp.promote_types(times.dtype, jnp.float32))
  checks.check_shape("times", times, (None,))
  if times.size < 2:
    raise ValueError(
      f"times must hold both ends of a step at least, got {times.size} of them."
    )
  if checks.is_concrete(times):
    values = jax.device_get(times)
    if not np.all(np.diff(values) < 0):
      raise ValueError(
        f"times must decrease, from noise to data, got {values.tolist()}."
      )
  return times
