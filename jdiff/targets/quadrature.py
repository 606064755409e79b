"""Exact expectations on the host, in float64, for constrained targets."""

import jax
import jax.numpy as jnp
import numpy as np


def angles(num: int) -> np.ndarray:
  """`[num]` midpoints of a circle: spectrally accurate if smooth."""
  return 2 * np.pi * (np.arange(num) + 0.5) / num


def average(points: np.ndarray, weight: np.ndarray, observables):
  """Expectations of the observables over weighted points, in float64."""
  with jax.enable_x64(True):
    values = jax.vmap(observables)(jnp.asarray(points, jnp.float64))
  share = weight / weight.sum()
  return {name: float(share @ np.asarray(v)) for name, v in values.items()}


def on_interval(low: float, high: float, density, name: str):
  """First two moments of a density on an interval, by Gauss-Legendre."""
  nodes, weight = np.polynomial.legendre.leggauss(200)
  x = low + (high - low) * (nodes + 1) / 2
  share = weight * density(x)
  share = share / share.sum()
  return {name: float(share @ x), f"{name}_squared": float(share @ x**2)}
