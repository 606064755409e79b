"""Exact expectations on the host, in float64, for constrained targets."""

import jax
import jax.numpy as jnp
import numpy as np


def angles(num: int) -> np.ndarray:
  """`[num]` midpoints of a circle: spectrally accurate if smooth."""
  return 2 * np.pi * (np.arange(num) + 0.5) / num


def average(points: np.ndarray, observables, log_weight: np.ndarray):
  """Expectations of the observables over weighted points, in float64."""
  with jax.enable_x64(True):
    values = jax.vmap(observables)(jnp.asarray(points, jnp.float64))
  share = np.exp(log_weight - log_weight.max())
  share = share / share.sum()
  return {name: float(share @ np.asarray(v)) for name, v in values.items()}


def on_interval(low: float, high: float, log_density, name: str):
  """First two moments of a density on an interval, by Gauss-Legendre.

  With 200 nodes: the density must not be much narrower than the interval.
  """
  nodes, weight = np.polynomial.legendre.leggauss(200)
  x = low + (high - low) * (nodes + 1) / 2
  log_weight = np.log(weight) + log_density(x)
  share = np.exp(log_weight - log_weight.max())
  share = share / share.sum()
  return {name: float(share @ x), f"{name}_squared": float(share @ x**2)}
