"""Steady-state timing of jitted functions."""

import statistics
import time

import jax


def measure(function, *args, repeats=5):
  """`(compile_seconds, median_seconds)`; outputs are waited for."""
  start = time.perf_counter()
  jax.block_until_ready(function(*args))
  first = time.perf_counter() - start
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    times.append(time.perf_counter() - start)
  median = statistics.median(times)
  return max(first - median, 0.0), median


def header(title):
  """Prints what was measured on what."""
  device = jax.devices()[0]
  print(f"\n{title}\njax {jax.__version__}, {device.platform}, float32")
