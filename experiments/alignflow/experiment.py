"""Builds the flow experiment: a data set, a coupling, a loss, a network."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from experiments.alignflow import couplings, report
from experiments.common import data as data_lib
from experiments.common import fields as fields_lib
from jdiff import nets, ot, training
from jdiff.core import keys as keys_lib
from jdiff.methods import (
  consistency,
  flow_matching,
  meanflow,
  shortcut,
)

LOSSES = ("flow_matching", "live_reflow", *report.TWO_TIMES)


def build(
  config: ml_collections.ConfigDict,
  dataset: data_lib.Dataset | None = None,
  table: ot.table.Table | None = None,
) -> training.Experiment:
  """Joins data, coupling, network and loss into one experiment.

  Args:
    config: A config of `experiments/alignflow/`.
    dataset: Rows to train on; by default those that `config.data` names.
    table: Stored pairs; by default those of `config.coupling.table`, if set.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others.
    FileNotFoundError: If the data must be prepared first.
  """
  fields_lib.check(config)
  _check(config)
  if dataset is None:
    options = config.data.to_dict()
    dataset = data_lib.load(options.pop("name"), **options)
  if config.conditional and dataset.train_labels is None:
    raise ValueError(
      f"config.conditional needs labels, and {dataset.name!r} has none."
    )
  coupling = couplings.make(config, dataset, table)
  network = make_network(config, dataset)
  loss_fn = make_loss(config, dataset, network)
  optimizer = make_optimizer(config)

  def init(key):
    key_params, key_state = jax.random.split(key)
    params = network.init(key_params)
    return training.create(key_state, params, optimizer)

  def keys_of(state):
    """Keys of the pairs and of the loss, one an example."""
    key_pairs, key_loss = jax.random.split(training.step_key(state))
    return tuple(
      training.shard_batch(keys_lib.per_example(key, config.batch_size))
      for key in (key_pairs, key_loss)
    )

  def collect(state, batch):
    return state, coupling.draw(keys_of(state)[0], batch)

  def step(state, batch):
    key_pairs, key_loss = keys_of(state)
    if coupling.host is None:
      pairs = coupling.draw(key_pairs, batch)
    else:
      pairs, order = batch
      label = pairs.label
      pairs = pairs._replace(
        data=pairs.data[order], label=None if label is None else label[order]
      )
    pairs = training.shard_batch(pairs)

    def objective(params):
      per_example, info = loss_fn(params, state.ema, key_loss, pairs)
      return per_example.mean(), info

    (loss, info), grads = jax.value_and_grad(objective, has_aux=True)(
      state.params
    )
    squares = jnp.sum((pairs.noise - pairs.data) ** 2) / config.batch_size
    metrics = {
      "loss": loss,
      "grad_norm": optax.tree.norm(grads),
      "pair_cost": squares,
      **{name: jnp.mean(value) for name, value in info.items()},
    }
    state = training.apply_gradients(
      state, grads, optimizer, ema_decay=config.ema_decay
    )
    return state, metrics

  reporter = report.Reporter(config, dataset, network, coupling.solution)
  on_host = coupling.host is not None
  return training.Experiment(
    init=init,
    step=step,
    evaluate=reporter.evaluate,
    apply=network.apply,
    sample=reporter.sample,
    collect=collect if on_host else None,
    host=coupling.host,
    batches=coupling.batches,
    figures=reporter.figures,
  )


def stand_in(config: ml_collections.ConfigDict) -> training.Experiment:
  """Shapes alone, on rows made up, whose dual is rough.

  Nothing is solved for a table: its pairs all have the first row.
  """
  fields_lib.check(config)
  config = ml_collections.ConfigDict(config.to_dict())
  config.coupling.samples_per_point = 100
  seed = config.coupling.seed
  table = ot.table.Table(np.zeros(1, np.int32), seed, "stand-in", 0)
  return build(config, data_lib.stand_in(config.data.name), table)


def make_network(config, dataset: data_lib.Dataset) -> nets.Network:
  """The network that `config.net` describes."""
  shape = dataset.train.shape[1:]
  shared = dict(
    num_classes=dataset.num_classes if config.conditional else 0,
    two_times=config.loss in report.TWO_TIMES,
    compute_dtype=jnp.dtype(config.net.compute_dtype),
  )
  if config.net.kind == "mlp":
    if len(shape) != 1:
      raise ValueError(
        f"config.net.kind='mlp' takes vectors, got rows of shape {shape}; pass "
        "net.kind='dit'."
      )
    return nets.velocity_mlp(
      shape[0], hidden=tuple(config.net.hidden), **shared
    )
  if config.net.kind == "dit":
    return nets.dit(
      shape,
      patch_size=config.net.patch_size,
      width=config.net.width,
      num_layers=config.net.num_layers,
      num_heads=config.net.num_heads,
      remat=config.net.remat,
      **shared,
    )
  raise ValueError(
    f"config.net.kind must be 'mlp' or 'dit', got {config.net.kind!r}."
  )


def make_loss(config, dataset: data_lib.Dataset, network: nets.Network):
  """`loss(params, ema, key, pairs) -> (per_example, info)`."""
  apply = network.apply
  shared = {}
  if config.conditional and config.label_dropout:
    shared = dict(
      null_label=dataset.num_classes, label_dropout=config.label_dropout
    )
  if config.loss == "flow_matching":
    loss = functools.partial(flow_matching.flow_matching, velocity_fn=apply)
  elif config.loss == "live_reflow":
    loss = functools.partial(consistency.live_reflow, velocity_fn=apply)
  elif config.loss == "meanflow":
    loss = functools.partial(
      meanflow.meanflow, flow_map_fn=apply, ratio=config.meanflow_ratio
    )
  else:
    function = {
      "shortcut": shortcut.shortcut,
      "consistency": consistency.consistency_training,
    }[config.loss]

    def with_average(params, ema, key, pairs):
      return function(
        params,
        key,
        pairs,
        flow_map_fn=apply,
        ema_params=ema,
        num_steps=config.discrete_steps,
        **shared,
      )

    return with_average
  return lambda params, ema, key, pairs: loss(params, key, pairs, **shared)


def make_optimizer(config) -> optax.GradientTransformation:
  """AdamW with warm-up, a cosine or constant rate, and clipping."""
  if config.schedule == "cosine":
    rate = optax.warmup_cosine_decay_schedule(
      0.0 if config.warmup_steps else config.learning_rate,
      config.learning_rate,
      config.warmup_steps,
      config.num_steps,
    )
  elif config.schedule == "constant":
    rate = optax.warmup_constant_schedule(
      0.0 if config.warmup_steps else config.learning_rate,
      config.learning_rate,
      config.warmup_steps,
    )
  else:
    raise ValueError(
      "config.schedule must be 'cosine' or 'constant', got "
      f"{config.schedule!r}."
    )
  return optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm),
    optax.adamw(rate, b2=config.adam_b2, weight_decay=config.weight_decay),
  )


def _check(config) -> None:
  if config.warmup_steps >= config.num_steps:
    raise ValueError(
      "config.warmup_steps must be less than num_steps, got "
      f"{config.warmup_steps} and {config.num_steps}."
    )
  if config.loss not in LOSSES:
    raise ValueError(
      f"config.loss must be one of {[*LOSSES]}, got {config.loss!r}."
    )
  for steps in config.eval_steps:
    power = steps & (steps - 1) == 0
    if config.loss == "shortcut" and (
      not power or steps >= config.discrete_steps
    ):
      raise ValueError(
        "config.eval_steps must be powers of two below discrete_steps="
        f"{config.discrete_steps} for loss='shortcut', got {steps}."
      )
