"""Builds the study of the loop: every arm, one generation after another.

In a workdir `W`, `W/generation_1/` is the training that all arms share,
`W/<arm>/generation_<n>/` a later one and what is kept of it (`history`). A
study that was cut off goes on where it was, with the same bits.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.collapse import arms as arms_lib
from experiments.collapse import generation as generation_lib
from experiments.collapse import history, report
from experiments.common import data as data_lib
from experiments.common import features as features_lib
from experiments.common import fields as fields_lib
from jdiff import training
from jdiff.core import checks
from jdiff.methods import collapse
from jdiff.training import workdir as workdir_lib

PICTURES = 10
"""Samples of each generation that are drawn."""


def build(
  config: ml_collections.ConfigDict,
  dataset: data_lib.Dataset | None = None,
  embedding: Callable[[np.ndarray], Any] | None = None,
) -> training.Study:
  """Joins data, arms, spaces and measurements into one study.

  Args:
    config: A config of `experiments/collapse/` with a network.
    dataset: Rows to begin with; by default those that `config.data` names.
    embedding: A frozen feature map of yours, `[b, ...]` rows (pictures
      `[b, H, W, C]`) to features: one more space to measure in, and with
      `config.select.space = "embedding"` to select in.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others, or
      the data set is too small.
    FileNotFoundError: If the data must be prepared first.
  """
  fields_lib.check(config)
  arms = arms_lib.parse_all(config.arms)
  _check(config)
  if dataset is None:
    options = config.data.to_dict()
    dataset = data_lib.load(options.pop("name"), **options)
  real, held_out = _split(config, dataset, arms)
  shape = dataset.image_shape or real.shape[1:]
  if config.net.kind == "mlp":
    real, held_out = (x.reshape(len(x), -1) for x in (real, held_out))
  first = real[: config.num_train]
  spaces = {
    report.PIXELS: _pixels,
    report.PCA: features_lib.pca(first, config.measure.num_components),
  }
  if embedding is not None:
    spaces[report.EMBEDDING] = features_lib.embedding(embedding, shape=shape)
  if config.select.space not in spaces:
    raise ValueError(
      f"config.select.space must be one of {', '.join(spaces)} (embedding: "
      f"pass one to build), got {config.select.space!r}."
    )
  return training.Study(_Loop(config, arms, real, held_out, spaces, shape).run)


def stand_in(config: ml_collections.ConfigDict) -> training.Experiment:
  """The training of a generation, on rows made up."""
  fields_lib.check(config)
  # Batches are what is compiled: their shape does not depend on how many.
  rows = data_lib.stand_in(config.data.name).train
  if config.net.kind == "mlp":
    rows = rows.reshape(len(rows), -1)
  fields = generation_lib.make_config(config, "stand_in", 0, rows.shape[1:])
  return generation_lib.build(fields, rows)


class _Loop:
  """One study: what its arms share."""

  def __init__(self, config, arms, real, held_out, spaces, shape):
    self.config, self.arms, self.shape = config, arms, shape
    self.real, self.spaces = real, spaces
    self.measures = report.Measures(
      config,
      jnp.asarray(real[: config.num_train]),
      jnp.asarray(held_out),
      spaces,
    )
    # Of no generation: it samples for all of them, compiled once.
    fields = generation_lib.make_config(config, "sampler", 0, real.shape[1:])
    self.sampler = generation_lib.build(fields)
    for arm in arms:
      # What does not fit must be known before hours of training.
      self.kernel(arm, pathlib.Path(), "", False).init(self.rows_of(arm))
      choose = arms_lib.selector(arm, config)
      if choose is not None:
        pool = np.zeros((config.oversample * config.num_train, 1), np.float32)
        jax.eval_shape(choose, jax.random.key(0), pool)

  def run(self, workdir: pathlib.Path, progress: bool) -> dict[str, Any]:
    """All arms, and the report."""
    history.keep_real(workdir, self.real)
    show = progress and not jax.process_index()
    histories, pictures = {}, {}
    for arm in self.arms:
      histories[arm.name], pool = self.arm(arm, workdir, progress)
      pictures[arm.name] = self.pictures(pool)
    if not jax.process_index():
      directory = workdir / workdir_lib.FIGURES
      report.draw(directory, histories, pictures, self.spaces)
    if show:
      dim = int(np.prod(self.real.shape[1:]))
      print(report.text(self.config, dim, histories), flush=True)
    return {
      **report.flat(histories),
      **self.measures.reference,
      **report.correlations(histories, self.spaces),
      "nfe": max(self.config.eval_steps),
    }

  def arm(self, arm, workdir, progress):
    """Its measurements by generation, and the state that it ends in."""
    key = jax.random.key(self.config.seed)
    state = self.kernel(arm, workdir, "", progress).init(self.rows_of(arm))
    tables = []
    for n in range(1, self.config.num_generations + 1):
      directory = history.folder(workdir, arm.name, n)
      after = history.extend(directory, state)
      if after is None:
        # The first set is the same for all arms, and so is its training.
        run = f"generation_{n}" if n == 1 else f"{arm.name}/generation_{n}"
        kernel = self.kernel(arm, workdir, run, progress)
        after, _ = kernel.step(key, state)
        history.write(directory, after)
      state = after
      table = history.measures(directory)
      if table is None:
        table = history.keep_measures(directory, self.measure(state, n))
      tables.append(table)
      if progress and not jax.process_index():
        shown = ", ".join(
          f"{name} {table[name]['value']:.4g}"
          for name in ("entropy", "gs", "frechet")
          if table[name]["value"] is not None
        )
        print(f"{arm.name} generation {n}: {shown}", flush=True)
    return tables, state

  def kernel(self, arm, workdir, run, progress):
    """The loop of one arm, whose next training lives in the folder `run`."""

    def fit(key, data):
      config = generation_lib.make_config(
        self.config,
        f"{self.config.name}/{run}",
        int(jax.random.bits(key)) >> 1,
        data.shape[1:],
      )
      experiment = generation_lib.build(config, np.asarray(data))
      training.run(experiment, config, workdir / run, progress=progress)
      mesh = training.config_mesh(config.mesh)
      _, params, _ = training.load(
        workdir / run, build=lambda _: experiment, mesh=mesh
      )
      return params

    def sample(params, key, num_samples):
      return self.sampler.sample(params, key, num_samples)

    return arms_lib.kernel(
      arm,
      self.config,
      fit=fit,
      sample=sample,
      features=self.spaces[self.config.select.space],
    )

  def measure(self, state, generation):
    """Of `D_n` and `G_n`."""
    indices = state.indices[generation - 1]
    return self.measures(
      state.pool[indices],
      state.pool[state.labels == generation],
      collapse.share_of_real(indices, state.labels),
    )

  def rows_of(self, arm):
    """The real rows that an arm begins with."""
    fresh = arm.paradigm == "fresh"
    return self.real if fresh else self.real[: self.config.num_train]

  def pictures(self, state):
    """The first samples of each generation, and real rows."""
    rows = {"real": self.real[:PICTURES]}
    for n in range(1, self.config.num_generations + 1):
      made = np.asarray(state.pool)[np.asarray(state.labels) == n]
      rows[f"generation {n}"] = made[:PICTURES]
    return {k: v.reshape(len(v), *self.shape) for k, v in rows.items()}


def _pixels(x):
  return jnp.asarray(x).reshape(len(x), -1)


def _split(config, dataset, arms):
  """`(real, held_out)`: rows for the loop, and others to measure against."""
  num, train, test = (
    arms_lib.num_real(arms, config),
    dataset.train,
    dataset.test,
  )
  apart = test is not None and len(test) > 0
  wanted = num if apart else num + 2
  if len(train) < wanted:
    use = "" if apart else ", two of them held out"
    raise ValueError(
      f"config.num_train={config.num_train} wants {wanted} real rows{use}, got "
      f"{len(train)} in {dataset.name!r}; lower it."
    )
  held_out = test if apart else train[num : len(train)]
  return np.asarray(train[:num], np.float32), np.asarray(held_out, np.float32)


def _check(config) -> None:
  checks.check_int("config.num_train", config.num_train, 2)
  if config.measure.k >= config.num_train:
    raise ValueError(
      f"config.measure.k must be below num_train={config.num_train}, got "
      f"{config.measure.k}."
    )
  if config.conditional:
    raise ValueError(
      "config.conditional must be False: samples have no labels to train the "
      "next generation on."
    )
