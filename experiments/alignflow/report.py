"""Few-step samples beside data, and pictures of them."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import features as features_lib
from experiments.common import metrics as metrics_lib
from experiments.common import plots
from jdiff import ot, sde, selection, training
from jdiff.core import keys as keys_lib

PATH_STEPS = 32
"""Euler steps of the paths that straightness is measured on."""

TWO_TIMES = ("shortcut", "meanflow", "consistency")
"""Losses that ask the network for an average velocity over two times."""


class Reporter:
  """Generates at each number of steps with the same noise."""

  def __init__(self, config, dataset, network, solution):
    self.config, self.dataset, self.network = config, dataset, network
    self.solution = solution
    self.two_times = config.loss in TWO_TIMES

  def evaluate(self, params, key, *, final: bool):
    """Distances to data at each number of steps, and how straight paths are.

    `w2` (vectors) is exact between samples of `num_eval` points, `frechet`
    (images with labels) on the hidden layer of a classifier of the training
    images. `_floor` is the same distance between two samples of the data, the
    noise of the measurement; where they are of the training rows, a model that
    repeats those can come out below it.
    """
    real, other = self._real()
    name, distance = self._distance()
    table = {f"{name}_floor": distance(other, real)}
    noise, label = self._noise(key, self.config.num_eval)
    for steps in self.config.eval_steps:
      samples = training.fetch(self._generate(params, noise, label, steps))
      table[f"{name}_nfe{steps}"] = distance(samples, real)
    table["nfe"] = max(self.config.eval_steps)
    # A consistency model knows jumps to data, no velocity.
    if final and self.config.loss != "consistency":
      path, times = self._path(params, noise, label)
      lines = sde.straightness(path, times)
      for field, values in lines._asdict().items():
        table[field] = metrics_lib.mean(values)
    if self.solution is not None:
      error = np.asarray(self.solution.marginal_error)
      table["marginal_error"] = float(error.mean())
      table["marginal_tv"] = float(np.asarray(self.solution.tv).mean())
    return table

  def sample(self, params, key, num_samples):
    """`[num_samples, ...]` at the largest number of steps of the config."""
    size, drawn = self.config.num_eval, []
    for index in range(-(-num_samples // size)):
      noise, label = self._noise(jax.random.fold_in(key, index), size)
      steps = max(self.config.eval_steps)
      samples = self._generate(params, noise, label, steps)
      drawn.append(training.fetch(samples))
    return np.concatenate(drawn)[:num_samples]

  def figures(self, params, key, directory, history):
    """Samples at each number of steps; in the plane paths and cells too."""
    directory = pathlib.Path(directory)
    plots.losses(directory / "training.png", history)
    planar = self.dataset.train.shape[1:] == (2,)
    count = 2000 if planar else 16
    noise, label = self._noise(key, max(count, self.config.num_eval))
    panels = {"data": self._real()[0][:count]}
    for steps in self.config.eval_steps:
      samples = training.fetch(self._generate(params, noise, label, steps))
      panels[f"{steps} step{'s' * (steps > 1)}"] = samples[:count]
    if self.dataset.image_shape is not None:
      plots.images(directory / "samples.png", panels)
    elif planar:
      plots.points(directory / "samples.png", panels)
      if self.config.loss != "consistency":
        path, _ = self._path(params, noise, label)
        plots.paths(directory / "paths.png", training.fetch(path)[:, :200])
      if self.solution is not None and self.solution.classes is None:
        cells = functools.partial(ot.transport, solution=self.solution)
        points = np.asarray(self.solution.points)
        plots.cells(directory / "cells.png", points, cells)

  def _field(self):
    apply = self.network.apply
    if self.config.loss != "consistency":
      return apply
    # It knows one jump alone, from t to 0; shorter ones go along its line.
    return lambda params, x, t, s, **label: apply(
      params, x, t, jnp.zeros_like(s), **label
    )

  @functools.cached_property
  def _run(self):
    @functools.partial(jax.jit, static_argnames="steps")
    def run(params, noise, label, steps):
      noise = training.shard_batch(noise)
      if self.two_times:
        return sde.sample_flow_map(
          params,
          noise,
          flow_map_fn=self._field(),
          num_steps=steps,
          label=label,
        ).samples
      return sde.sample_ode(
        params,
        noise,
        velocity_fn=self.network.apply,
        num_steps=steps,
        label=label,
      ).samples

    return run

  def _generate(self, params, noise, label, steps):
    return self._run(params, noise, label, steps=steps)

  def _path(self, params, noise, label):
    """`([K + 1, n, ...], times)` of Euler paths by the velocity itself."""

    @jax.jit
    def run(params, noise, label):
      return sde.sample_ode(
        params,
        noise,
        velocity_fn=self.network.apply,
        num_steps=PATH_STEPS,
        label=label,
        return_path=True,
      ).path

    if label is not None:
      label = label[:512]
    path = run(params, noise[:512], label)
    return path, jnp.linspace(1.0, 0.0, PATH_STEPS + 1)

  def _noise(self, key, num):
    """Noise, and labels with the data's shares where the network wants any."""
    keys = keys_lib.per_example(key, num)
    shape = self.dataset.train.shape[1:]
    noise = jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
    if not self.config.conditional:
      return noise, None
    count = np.bincount(self.dataset.train_labels)
    logits = jnp.log(jnp.asarray(count, jnp.float32))
    draw = jax.vmap(lambda k: jax.random.categorical(k, logits))
    return noise, draw(keys_lib.fold(keys, 1)).astype(jnp.int32)

  @functools.cache  # noqa: B019  (one reporter a run)
  def _real(self):
    """Two disjoint samples of the data: to compare with, and for the floor.

    Fresh draws of a known law; else test rows, and training rows for the floor;
    else two halves of the training rows.
    """
    num = self.config.num_eval
    if self.dataset.fresh is not None:
      draws = [self.dataset.fresh(seed, num)[0] for seed in (0, 1)]
      return tuple(np.asarray(x, np.float32) for x in draws)
    rng = np.random.default_rng(0)
    size = len(self.dataset.train)
    if self.dataset.test is not None and len(self.dataset.test):
      real = np.asarray(self.dataset.test[:num], np.float32)
      rows = np.sort(rng.permutation(size)[: len(real)])
      return real, np.asarray(self.dataset.train[rows], np.float32)
    order = rng.permutation(size)[: 2 * num]
    rows = np.asarray(self.dataset.train[np.sort(order)], np.float32)
    rows = rows[rng.permutation(len(rows))]
    half = len(rows) // 2
    return rows[:half], rows[half:]

  def _distance(self):
    data = self.dataset
    if data.image_shape is not None and data.train_labels is not None:
      rows = np.asarray(data.train[: 2**14], np.float32)
      features, _ = features_lib.classifier(rows, data.train_labels[: 2**14])
      return "frechet", lambda x, y: float(
        selection.frechet(features(x), features(y))
      )

    def w2(x, y):
      num = min(len(x), len(y))
      x, y = (z[:num].reshape(num, -1) for z in (x, y))
      return metrics_lib.w2(x, y)

    return "w2", w2
