"""The loop whose model is a Gaussian fitted by maximum likelihood.

No network and no training: every chain is one loop on numbers, and what is
expected of their variance is known.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from scipy import special

from experiments.collapse import arms as arms_lib
from experiments.collapse import figures
from experiments.common import fields as fields_lib
from experiments.common import metrics as metrics_lib
from jdiff import training
from jdiff.core import checks
from jdiff.methods import collapse

NORMAL_ENTROPY = 0.5 * np.log(2 * np.pi * np.e)
"""Of the standard normal law, nats."""


def build(config: ml_collections.ConfigDict) -> training.Study:
  """The study: all chains of every arm, from standard normal rows.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others.
  """
  fields_lib.check(config)
  arms = arms_lib.parse_all(config.arms)
  checks.check_int("config.num_train", config.num_train, 2)
  programs = {arm: _program(arm, config) for arm in arms}

  def run(workdir: pathlib.Path, progress: bool) -> dict[str, Any]:
    del progress
    key = jax.random.key(config.seed)
    measured, curves = {}, {}
    for arm, program in programs.items():
      keys = training.example_keys(key, config.num_chains)
      variance = np.asarray(training.fetch(program(keys)), np.float64)
      table = _measure(arm, config, variance)
      measured |= {f"{arm.name}/{name}": value for name, value in table.items()}
      curves[arm.name] = table
    if not jax.process_index():
      _draw(workdir / "figures" / "variance.png", config, curves)
    return measured

  return training.Study(run)


def expected_variance(
  paradigm: str,
  *,
  num: int,
  num_generations: int,
  fresh_share: float | None = None,
) -> np.ndarray:
  """`E v_n` of the fitted variances, in units of the truth's: `[generations]`.

  Second moments of the pool obey a linear recursion. Of `D_n` each source has
  a known number of rows, chosen at random, so that the moments of one row
  (`squares`) and of two different ones (`products`) of each source are enough.
  For `"replace"` the answer is `(1 - 1/N)^n`, for `"accumulate"`
  `prod_k (1 - 1 / (k^2 N))`, which stays above zero.

  Args:
    paradigm: As in `collapse.next_dataset`, as are the others.
    num: Rows `N` of a training set.
    num_generations: Fits.
    fresh_share: For `"fresh"`.
  """
  squares, products = np.ones(1), np.zeros((1, 1))
  sizes, variances = [num], []
  counts = np.array([num])
  options = dict(num=num, paradigm=paradigm, fresh_share=fresh_share)
  if paradigm == "fresh":
    # Real rows are independent, so that it does not matter which are fresh.
    sizes = [num + num_generations * round(fresh_share * num)]
  for _ in range(num_generations):
    share = counts / counts.sum()
    # Whether a row of a source that is looked at again is itself in the set.
    same = (squares - np.diag(products)) / np.array(sizes)
    if paradigm == "fresh":
      same[0] = 0
    mean_times = products @ share + share * same
    within = share @ (squares - np.diag(products)) / counts.sum()
    mean_square = share @ products @ share + within
    square = share @ squares
    variances.append(square - mean_square)
    squares = np.append(squares, square)
    products = np.block(
      [
        [products, mean_times[:, None]],
        [mean_times[None], np.full((1, 1), mean_square)],
      ]
    )
    sizes.append(num)
    rows = collapse.next_dataset(jax.random.key(0), sizes, **options)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    counts = np.bincount(labels[np.asarray(rows)], minlength=len(sizes))
  return np.array(variances)


def expected_log_variance(num: int, num_generations: int) -> np.ndarray:
  """`E log v_n` of `"replace"`: `n (digamma((N - 1) / 2) + log(2 / N))`."""
  one = special.digamma((num - 1) / 2) + np.log(2 / num)
  return one * np.arange(1, num_generations + 1)


def _fit(key, data):
  """Mean and variance, the sum of squares divided by `N`."""
  del key
  return data.mean(), data.var()


def _sample(params, key, num_samples):
  mean, variance = params
  return mean + jnp.sqrt(variance) * jax.random.normal(key, (num_samples, 1))


def _program(arm, config):
  """`keys [C] -> [C, generations]` fitted variances, one chain a key."""
  kernel = arms_lib.kernel(arm, config, fit=_fit, sample=_sample)
  num_real = arms_lib.num_real([arm], config)

  def chain(key):
    key_real, key_loop = jax.random.split(key)
    state = kernel.init(jax.random.normal(key_real, (num_real, 1)))
    variances = []
    for _ in range(config.num_generations):
      state, info = kernel.step(key_loop, state)
      variances.append(info.params[1])
    return jnp.stack(variances)

  program = jax.jit(jax.vmap(chain))
  # Bad options are found now.
  jax.eval_shape(program, jax.eval_shape(jax.random.split, jax.random.key(0)))
  return program


def _measure(arm, config, variance):
  """Means over chains, with standard errors and what they should be."""
  generations = variance.shape[1]
  mean = log_mean = [None] * generations
  if arm.selector is None:
    mean = expected_variance(
      arm.paradigm,
      num=config.num_train,
      num_generations=generations,
      fresh_share=config.fresh_share if arm.paradigm == "fresh" else None,
    )
    if arm.paradigm == "replace":
      log_mean = expected_log_variance(config.num_train, generations)
  log_variance = np.log(variance)
  entropy = NORMAL_ENTROPY + 0.5 * log_variance
  table = {}
  for i in range(generations):
    exact = log_mean[i]
    table[f"variance_{i + 1}"] = metrics_lib.mean(variance[:, i], mean[i])
    table[f"log_variance_{i + 1}"] = metrics_lib.mean(log_variance[:, i], exact)
    if exact is not None:
      exact = NORMAL_ENTROPY + 0.5 * exact
    table[f"entropy_{i + 1}"] = metrics_lib.mean(entropy[:, i], exact)
  return table


def _draw(path, config, curves):
  panels: dict[str, dict[str, Any]] = {}
  for name in ("variance", "log_variance"):
    panel = panels.setdefault(f"{name.replace('_', ' ')}, dashed: exact", {})
    for arm, table in curves.items():
      rows = [table[f"{name}_{n + 1}"] for n in range(config.num_generations)]
      exact = [row["exact"] for row in rows]
      panel[arm] = (
        [row["value"] for row in rows],
        None if None in exact else exact,
      )
  figures.lines(path, panels)
