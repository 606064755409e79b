"""Builds the PDNS experiment: a sampler that goes to its target in stages."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from experiments.common import fields as fields_lib
from experiments.mdns import parts
from experiments.pdns import report, samplers
from jdiff import training
from jdiff.core import keys as keys_lib
from jdiff.core import weights
from jdiff.methods import pdns


class Stage(NamedTuple):
  """What a run carries beside its parameters.

  Attributes:
    buffer: The stage's draws.
    log_weights: `[N]`, what they are fitted with.
    progress: Where the stages have come to.
    spread: `[K]`, that of the policy which drew the buffer, or None; see
      `samplers.Process`.
  """

  buffer: pdns.Buffer
  log_weights: jax.Array
  progress: pdns.Progress
  spread: jax.Array | None


def build(config: ml_collections.ConfigDict) -> training.Experiment:
  """Joins target, process, network and stages into one experiment.

  Args:
    config: A config of one of this folder's tasks.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others.
  """
  fields_lib.check(config)
  _check(config)
  process = samplers.make(config)
  rule = samplers.rule(config)
  sampler, optimizer = process.sampler, parts.optimizer(config)
  num_buffer, inner_steps = config.buffer.num_samples, config.stages.inner_steps
  on_policy = process.path_method is not None

  def init(key):
    key_params, key_state = jax.random.split(key)
    params = process.init(key_params)
    # Not an empty array, which no checkpoint can hold.
    spread = jnp.ones(process.num_spread) if process.num_spread else None
    stage = Stage(None, jnp.zeros(num_buffer), pdns.init(), spread)
    draws = jax.eval_shape(
      lambda p: sampler.collect(p, key_params, num_buffer),
      _policy(params, stage),
    )
    buffer = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), draws)
    extra = stage._replace(buffer=buffer)
    return training.create(key_state, params, optimizer, extra)

  def collect(policy, key):
    """A buffer, a chunk after the other: the same whatever their number."""
    num_chunks = config.buffer.num_chunks
    if num_chunks == 1:
      return sampler.collect(
        policy, training.example_keys(key, num_buffer), num_buffer
      )
    size = num_buffer // num_chunks
    keys = keys_lib.per_example(key, num_buffer).reshape(num_chunks, size)
    chunks = jax.lax.map(
      lambda keys: sampler.collect(policy, training.shard_batch(keys), size),
      keys,
    )
    return training.shard_batch(
      jax.tree.map(lambda x: x.reshape(num_buffer, *x.shape[2:]), chunks)
    )

  def refit(stage, net, key_draw, key_fit):
    """The steps' variance, on what the last stage was fitted to."""
    samples = training.shard_batch(
      pdns.draw(key_draw, stage.buffer, stage.log_weights, config.batch_size)
    )
    keys = training.example_keys(key_fit, config.batch_size)
    spread = process.fit_spread(_policy(net, stage), keys, samples)
    return stage._replace(spread=spread)

  def begin(state, key):
    """Draws a buffer with what was learnt, and aims a step further."""
    stage = state.extra
    key_collect, key_draw, key_fit = jax.random.split(key, 3)
    if process.fit_spread is not None:
      stage = jax.lax.cond(
        stage.progress.stage > 0,
        refit,
        lambda stage, *_: stage,
        stage,
        state.ema,
        key_draw,
        key_fit,
      )
    # Losses on the path are of the policy as it is now, not of its average.
    net = state.params if on_policy else state.ema
    before = _policy(net, stage)
    buffer = collect(before, key_collect)
    if process.first is not None:
      keys = training.example_keys(key_collect, num_buffer)
      buffer = jax.lax.cond(
        state.step == 0,
        lambda: process.first(keys, num_buffer),
        lambda: buffer,
      )
    progress, log_w = rule(stage.progress, buffer)
    if config.stages.max_ratio:
      log_w = weights.clip(log_w, config.stages.max_ratio)
    # A stage starts from what drew its buffer.
    extra = Stage(buffer, log_w, progress, stage.spread)
    return state._replace(params=net, extra=extra)

  def step(state, batch):
    del batch
    key_collect, key_loss, key_draw = jax.random.split(
      training.step_key(state), 3
    )
    state = jax.lax.cond(
      state.step % inner_steps == 0,
      begin,
      lambda state, key: state,
      state,
      key_collect,
    )
    stage = state.extra
    loss_keys = training.example_keys(key_loss, config.batch_size)
    if on_policy:
      method = process.path_method(1 - stage.progress.remaining)
      paths = method.collect(
        _policy(state.params, stage),
        training.example_keys(key_draw, config.batch_size),
      )

    def objective(params):
      policy = _policy(params, stage)
      if on_policy:
        per_example, _ = method.loss(policy, loss_keys, paths)
      else:
        samples = training.shard_batch(
          pdns.draw(
            key_draw, stage.buffer, stage.log_weights, config.batch_size
          )
        )
        # Drawn by their weights, they have none left.
        equal = jnp.zeros(config.batch_size)
        per_example, _ = sampler.loss(policy, loss_keys, samples, equal)
      return per_example.mean()

    loss, grads = jax.value_and_grad(objective)(state.params)
    metrics = {
      "loss": loss,
      "grad_norm": optax.tree.norm(grads),
      **pdns.summary(stage.buffer, stage.progress, stage.log_weights),
    }
    state = training.apply_gradients(
      state, grads, optimizer, ema_decay=config.ema_decay
    )
    return state, metrics

  evaluator = report.Evaluator(config, process)
  return training.Experiment(
    init=init,
    step=step,
    evaluate=evaluator.evaluate,
    apply=process.apply,
    params=_evaluated,
    sample=evaluator.sample,
    figures=evaluator.figures,
  )


def _policy(net: Any, stage: Stage) -> dict[str, Any]:
  """A policy's parameters, see `samplers.Process`."""
  scale = 1 - jax.lax.stop_gradient(stage.progress.remaining)
  return {"net": net, "scale": scale, "spread": stage.spread}


def _evaluated(state: training.TrainState) -> dict[str, Any]:
  """The policy that is reported: the average, as far as it has come."""
  return _policy(state.ema, state.extra)


def _check(config) -> None:
  """Raises unless the fields fit one another."""
  if config.buffer.num_samples % config.buffer.num_chunks:
    raise ValueError(
      "config.buffer.num_chunks must divide config.buffer.num_samples="
      f"{config.buffer.num_samples}, got {config.buffer.num_chunks}."
    )
  if config.batch_size > config.buffer.num_samples:
    raise ValueError(
      f"config.buffer.num_samples must be at least config.batch_size="
      f"{config.batch_size}, got {config.buffer.num_samples}."
    )
  if "order" in config:
    parts.check(config)
    return
  if config.num_reference > config.num_eval:
    raise ValueError(
      f"config.num_reference must be at most config.num_eval={config.num_eval}"
      f", got {config.num_reference}."
    )
