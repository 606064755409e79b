"""Builds the MDNS experiment: a masked process that learns `exp(log_prob)`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from experiments.common import fields as fields_lib
from experiments.mdns import parts, report
from jdiff import ctmc, targets, training
from jdiff.core import replay
from jdiff.methods import mdns


def build(config: ml_collections.ConfigDict) -> training.Experiment:
  """Joins target, order law, network and loss into one experiment.

  Args:
    config: A config of `experiments/mdns/ising.py` or `potts.py`.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others.
  """
  fields_lib.check(config)
  parts.check(config)
  target = parts.target(config.target)
  law = parts.law(config, target)
  network, wrap, causal = parts.network(config, target, law)
  mask_id = target.num_tokens
  logits_fn = functools.partial(wrap, target)(network.apply)
  on_policy = config.loss != "wdce"
  optimizer = parts.optimizer(config)

  def method_at(scale):
    # Tempering inside the step lets beta change with it, and nothing else.
    tempered = targets.temper(target, scale)
    shared: dict[str, Any] = dict(
      logits_fn=wrap(tempered, network.apply),
      mask_id=mask_id,
      order=law,
    )
    if on_policy:
      return mdns.path_method(
        tempered,
        num_samples=config.batch_size,
        loss=parts.LOSSES[config.loss],
        causal=causal,
        num_terms=config.num_terms or None,
        max_log_weight=config.max_log_weight or None,
        **shared,
      )
    return mdns.wdce_method(
      tempered,
      num_samples=config.buffer.num_samples,
      draw_masks=parts.MASK_LAWS[config.mask_law](
        config.num_masks, antithetic=config.antithetic
      ),
      **shared,
    )

  def init(key):
    key_params, key_state = jax.random.split(key)
    extra = None
    if not on_policy:
      example = mdns.Batch(
        jnp.zeros(target.length, jnp.int32), jnp.float32(0), None
      )
      extra = replay.init(example, config.buffer.capacity)
    params = network.init(key_params)
    return training.create(key_state, params, optimizer, extra)

  def step(state, batch):
    del batch
    ramp = state.step / max(config.ramp_share * config.num_steps, 1.0)
    scale = config.ramp_start + (1 - config.ramp_start) * ramp
    method = method_at(jnp.minimum(scale, 1.0))
    key_collect, key_loss, key_draw = jax.random.split(
      training.step_key(state), 3
    )
    extra = state.extra
    if on_policy:
      batch = method.collect(
        state.params, training.example_keys(key_collect, config.batch_size)
      )
    else:
      rollout_keys = training.example_keys(
        key_collect, config.buffer.num_samples
      )
      is_due = state.step % config.buffer.refresh_every == 0
      extra = mdns.refresh(
        method.collect, state.ema, rollout_keys, extra, is_due
      )
      # Resampled globally, hence on every device until it is asked to be split.
      batch = training.shard_batch(
        mdns.draw_weighted(key_draw, extra, config.batch_size)
      )
    loss_keys = training.example_keys(key_loss, config.batch_size)

    def objective(params):
      per_example, info = method.loss(params, loss_keys, batch)
      return per_example.mean(), info

    (loss, info), grads = jax.value_and_grad(objective, has_aux=True)(
      state.params
    )
    if not on_policy:
      # The drawn batch has equal weights: report the buffer's instead.
      info = mdns.buffer_summary(extra)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **info}
    state = training.apply_gradients(
      state, grads, optimizer, ema_decay=config.ema_decay, extra=extra
    )
    return state, metrics

  sampler = functools.partial(
    ctmc.rollout,
    logits_fn=logits_fn,
    length=target.length,
    mask_id=mask_id,
    order=law,
  )
  evaluator = report.Evaluator(
    config, target, sampler, logits_fn, law, causal, mask_id
  )
  return training.Experiment(
    init=init,
    step=step,
    evaluate=evaluator.evaluate,
    apply=logits_fn,
    params=lambda state: state.ema,
    sample=evaluator.sample,
    figures=evaluator.figures,
  )
