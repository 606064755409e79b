"""The empirical score and nearest neighbours: time and memory, streamed.

  python -m benchmarks.empirical [dense] [million] [linear]

`dense`: against a softmax over all rows at once. `million`: a million training
rows, with the process's peak of memory. `linear`: time against their number.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from jdiff import sde, selection

ALPHA, SIGMA = 0.8, 0.6


def dense_score(x, data):
  """What one writes first: every squared distance, then softmax."""
  squares = jnp.sum((x[:, None] - ALPHA * data[None]) ** 2, axis=-1)
  weights = jax.nn.softmax(-squares / (2 * SIGMA**2), axis=1)
  return (ALPHA * weights @ data - x) / SIGMA**2


def product_score(x, data):
  """The same by one product, still with every weight."""
  squares = (
    jnp.sum(x**2, axis=1)[:, None]
    - 2 * ALPHA * x @ data.T
    + ALPHA**2 * jnp.sum(data**2, axis=1)[None]
  )
  weights = jax.nn.softmax(-squares / (2 * SIGMA**2), axis=1)
  return (ALPHA * weights @ data - x) / SIGMA**2


def streamed_score(x, data):
  """The library's."""
  return sde.empirical_score(x, data, ALPHA, SIGMA)[1]


def problem(num_queries, num_rows, dim):
  """Noised points and training rows."""
  key_x, key_data = jax.random.split(jax.random.key(0))
  data = jax.random.normal(key_data, (num_rows, dim))
  noise = jax.random.normal(key_x, (num_queries, dim))
  return ALPHA * data[:num_queries] + SIGMA * noise, data


def dense(num_queries=64, dim=64):
  """Times of the three, and how far they are apart."""
  print(f"\n{num_queries} queries of dimension {dim}; {timing.where()}")
  functions = {
    "dense": dense_score,
    "dense, by a product": product_score,
    "streamed": streamed_score,
  }
  for num_rows in (1000, 10_000, 50_000):
    args = problem(num_queries, num_rows, dim)
    compiled = {
      name: jax.jit(f).lower(*args).compile() for name, f in functions.items()
    }
    times = timing.measure(
      {name: functools.partial(f, *args) for name, f in compiled.items()}
    )
    base, want = times["dense"][0], compiled["dense"](*args)
    for name, f in compiled.items():
      seconds = times[name][0]
      timing.keep(f"score, {num_rows} rows", name, base / seconds, "dense")
      error = float(jnp.abs(f(*args) - want).max() / jnp.abs(want).max())
      temporary = f.memory_analysis().temp_size_in_bytes / 2**20
      print(
        f"{num_rows:6d} rows  {name:20}  {1e3 * seconds:8.2f} ms  ratio "
        f"{base / seconds:6.2f}  temporaries {temporary:8.1f} MiB  relative "
        f"difference {error:.1g}",
        flush=True,
      )


def million(num_queries=256, num_rows=1_000_000, dim=64):
  """One call against a million rows, and what memory it took."""
  args = jax.block_until_ready(problem(num_queries, num_rows, dim))
  nearest = functools.partial(selection.nearest, k=5)
  for name, function in (("score", streamed_score), ("5 nearest", nearest)):
    compiled = jax.jit(function).lower(*args).compile()
    seconds, _, peak = timing.memory(lambda f=compiled: f(*args))
    print(
      f"\n{name}, {num_queries} queries, {num_rows} rows of dimension {dim} "
      f"({args[1].nbytes / 2**20:.0f} MiB): {seconds:.2f} s, peak "
      f"{peak / 2**20:.0f} MiB above what was held; every weight would take "
      f"{4 * num_queries * num_rows / 2**20:.0f} MiB",
      flush=True,
    )


def linear(num_queries=64, dim=64):
  """Milliseconds against rows, and the slope of their logarithms."""
  sizes = (10_000, 30_000, 100_000, 300_000, 1_000_000)
  score = jax.jit(streamed_score)
  times = timing.measure(
    {n: functools.partial(score, *problem(num_queries, n, dim)) for n in sizes},
    rounds=3,
  )
  millis = [1e3 * times[n][0] for n in sizes]
  slope = np.polyfit(np.log(sizes), np.log(millis), 1)[0]
  print(f"\nms for {num_queries} queries of dimension {dim}")
  cells = zip(sizes, millis, strict=True)
  print("  ".join(f"N = {n:,}: {ms:.1f}" for n, ms in cells))
  print(f"time goes as N ** {slope:.3f}", flush=True)


TABLES = {"dense": dense, "million": million, "linear": linear}


if __name__ == "__main__":
  for chosen in sys.argv[1:] or TABLES:
    TABLES[chosen]()
