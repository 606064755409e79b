"""Whether samples are copies of the training rows, and what else they are."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import features as features_lib
from experiments.common import metrics as metrics_lib
from experiments.common import plots
from experiments.memorization import clock
from jdiff import sde, selection, training
from jdiff.core import keys as keys_lib
from jdiff.core.types import Pairs
from jdiff.schedules import gaussian
from jdiff.targets import mixtures

BLOCK = 1024
"""Most samples made, or losses evaluated, at once."""

PICTURES = 12
"""Samples that are drawn."""

GAP_TIME = 0.1
"""Where the loss gap is measured, on the paper's clock."""

OF_THE_ROWS = (
  "memorised_floor",
  "train_loss_least",
  "test_loss_true",
  "loss_gap_true",
)
"""Measurements that are no network's; the same in all runs on the same rows."""


class Reporter:
  """Generates with one deterministic sampler, and compares.

  Args:
    config: The config of a run.
    rows: A `data.Rows`.
    velocity_fn: The network.
    loss_of: The training loss of any `VelocityFn`.
  """

  def __init__(self, config, rows, velocity_fn, loss_of):
    self.config, self.rows, self.velocity_fn = config, rows, velocity_fn
    self.size = min(BLOCK, config.num_eval)
    self.train = jnp.asarray(rows.dataset.train)
    self.test = np.asarray(rows.dataset.test, np.float32)
    schedule = gaussian.linear()
    self.true_score_fn = mixtures.score_fn(schedule.alpha, schedule.sigma)

    def true_velocity(law, x, t):
      return sde.velocity_from_score(self.true_score_fn(law, x, t), x, t)

    def on_noise(velocity_fn):
      loss = loss_of(velocity_fn)

      @jax.jit
      def run(params, keys, rows):
        noise = _normal(keys_lib.fold(keys, 0), rows.shape[1:])
        pairs = training.shard_batch(Pairs(noise, rows))
        return loss(params, keys_lib.fold(keys, 1), pairs)

      return run

    self.loss = on_noise(velocity_fn)
    self.least = on_noise(sde.empirical_velocity_fn(schedule))
    self.true_loss = on_noise(true_velocity)

  def evaluate(self, params, key, *, final: bool):
    """Shares of copies, distances and losses.

    `memorised` and `memorised_half` are shares of samples whose nearest
    training row is at most 1/3, or 1/2, as far as the next one, and
    `memorised_floor` that of held-out rows. Distances and fidelity are between
    samples and held-out rows. `train_loss_least` is the loss of the empirical
    score, which no network can beat. Of a known law, `test_loss_true` is that
    of the true score, and `loss_gap` the distance of the network's score from
    the empirical one at a small time, over its largest expectation;
    `loss_gap_true` is the true score's.
    """
    key_draw, key_train, key_test, key_gap = jax.random.split(key, 4)
    samples = self.sample(params, key_draw, self.config.num_eval)
    table = self._copies(samples)
    train, test = self.train, self.test
    table["train_loss"] = self._mean(self.loss, params, key_train, train)
    table["test_loss"] = self._mean(self.loss, params, key_test, test)
    table["nfe"] = self.config.sampler.num_steps
    if not final:
      return table
    table |= self._fidelity(samples)
    least = self._mean(self.least, train, key_train, train)
    table["train_loss_least"] = least
    if isinstance(params, dict) and "gates" in params:
      table["heads_kept"] = int(np.count_nonzero(params["gates"]))
    floor = self._copies(test)
    table["memorised_floor"] = floor["memorised"]
    if self.rows.law is not None:
      law = self.rows.law
      loss = self._mean(self.true_loss, law, key_test, test)
      table["test_loss_true"] = loss
      table |= self._gaps(params, key_gap)
    return table

  def sample(self, params, key, num_samples):
    """`[num_samples, ...]`, on the host; sample `i` depends on `i` alone."""
    size = min(self.size, num_samples)
    num_blocks = -(-num_samples // size)
    keys = keys_lib.per_example(key, num_blocks * size)
    drawn = [
      training.fetch(self._run(params, block))
      for block in keys.reshape(num_blocks, size)
    ]
    return np.concatenate(drawn)[:num_samples]

  def figures(self, params, key, directory, history):
    """Curves of training; images beside the training images nearest to them."""
    directory = pathlib.Path(directory)
    names = (
      "loss",
      ("eval/memorised", "eval/memorised_half"),
      ("eval/train_loss", "eval/test_loss"),
    )
    plots.curves(directory / "training.png", history, names)
    # All processes sample, though the first alone draws what it keeps.
    samples = self.sample(params, key, PICTURES)
    if self.rows.dataset.image_shape is not None:
      panels = {"sample": samples, "nearest": nearest(samples, self.train)}
      plots.images(directory / "samples.png", panels)

  @functools.cached_property
  def _run(self):
    time = self.config.time
    times = clock.grid(self.config.sampler.num_steps, time.t_min, time.t_max)
    scale = clock.stationary_scale(time.t_max)

    @jax.jit
    def run(params, keys):
      noise = scale * _normal(keys, self.train.shape[1:])
      return sde.sample_ode(
        params,
        training.shard_batch(noise),
        velocity_fn=self.velocity_fn,
        times=times,
      ).samples

    return run

  def _copies(self, samples):
    ratio, distance = jax.device_get(_nearness(samples, self.train))
    num = len(samples)

    def share(limit):
      value = float(np.mean(ratio <= limit))
      return {"value": value, "se": (value * (1 - value) / num) ** 0.5}

    return {
      "memorised": share(1 / 3),
      "memorised_half": share(1 / 2),
      "nearest_distance": metrics_lib.mean(distance),
    }

  def _fidelity(self, samples):
    test = jnp.asarray(self.test)
    found = _precision_recall(samples, test)
    table = {
      "frechet": _frechet(samples, test),
      "precision": found.precision,
      "recall": found.recall,
    }
    if self.rows.labelled is not None:
      features, _ = features_lib.classifier(*self.rows.labelled)
      table["frechet_features"] = _frechet(features(samples), features(test))
    return table

  def _mean(self, loss, params, key, rows):
    """A loss over `num_eval` draws, every row as often as every other."""
    num_blocks = -(-self.config.num_eval // self.size)
    num, rows = num_blocks * self.size, np.asarray(rows)
    keys = keys_lib.per_example(key, num).reshape(num_blocks, self.size)
    index = np.arange(num).reshape(num_blocks, self.size) % len(rows)
    values = [
      training.fetch(loss(params, block, rows[i]))
      for block, i in zip(keys, index, strict=True)
    ]
    return metrics_lib.mean(np.concatenate(values))

  def _gaps(self, params, key):
    schedule, law = gaussian.linear(), self.rows.law
    t = clock.house_time(GAP_TIME)
    ceiling = float(
      sde.loss_gap_ceiling(
        law.means.shape[1],
        law.variances.mean(),
        schedule.alpha(t),
        schedule.sigma(t),
      )
    )

    def score_fn(params, x, t):
      return sde.score_from_velocity(self.velocity_fn(params, x, t), x, t)

    def gap(params, score_fn):
      found = jax.jit(
        functools.partial(
          sde.loss_gap,
          score_fn=score_fn,
          schedule=schedule,
          num_samples=self.config.num_eval,
        )
      )(params, key, self.train, t)
      # Of the two estimates of one number, the one with less noise.
      return {
        "value": float(found.fisher) / ceiling,
        "se": float(found.fisher_se) / ceiling,
      }

    return {
      "loss_gap": gap(params, score_fn),
      "loss_gap_true": gap(law, self.true_score_fn),
    }


def nearest(samples, data):
  """The row of `data` `[N, ...]` that is nearest to each sample, `[B, ...]`."""
  index = _nearest(jnp.asarray(samples), jnp.asarray(data)).index
  return np.asarray(data)[np.asarray(index[:, 0])]


_nearest = jax.jit(functools.partial(selection.nearest, k=1))
_frechet = jax.jit(selection.frechet)
_precision_recall = jax.jit(selection.precision_recall)


@jax.jit
def _nearness(samples, data):
  """Ratios of two distances, and distances, `[B]` each."""
  return (
    selection.memorised(samples, data).ratio,
    selection.generalisation_score(samples, data),
  )


def _normal(keys, shape):
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
