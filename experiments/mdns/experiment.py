"""Builds the MDNS experiment: a masked process that learns `exp(log_prob)`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from experiments.common import config as config_lib
from experiments.mdns import report
from jdiff import ctmc, nets, targets, training
from jdiff.core import checks, replay
from jdiff.core.types import Target
from jdiff.methods import mdns

LOSSES = {
  "rerf": mdns.rerf,
  "lv": mdns.log_variance,
  "ce": mdns.cross_entropy,
  "ce_cv": mdns.cross_entropy_cv,
}
MASK_LAWS = {"count": ctmc.count_masks, "bernoulli": ctmc.bernoulli_masks}


def build(config: ml_collections.ConfigDict) -> training.Experiment:
  """Joins target, order law, network and loss into one experiment.

  Args:
    config: A config of `experiments/mdns/ising.py` or `potts.py`.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others.
  """
  _check(config)
  target = _target(config.target)
  law = _law(config, target)
  network, wrap, causal = _network(config, target, law)
  mask_id = target.num_tokens
  logits_fn = functools.partial(wrap, target)(network.apply)
  on_policy = config.loss != "wdce"
  optimizer = _optimizer(config)

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
        loss=LOSSES[config.loss],
        causal=causal,
        num_terms=config.num_terms or None,
        max_log_weight=config.max_log_weight or None,
        **shared,
      )
    return mdns.wdce_method(
      tempered,
      num_samples=config.buffer.num_samples,
      draw_masks=MASK_LAWS[config.mask_law](
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


def _check(config) -> None:
  """Raises unless the fields that no other layer checks are in range."""
  config_lib.check_counts(
    config,
    "batch_size",
    "num_masks",
    "num_eval",
    "eval_chunk",
    "num_reference",
    "buffer.capacity",
    "buffer.num_samples",
    "buffer.refresh_every",
  )
  for name in ("ema_decay", "ramp_start", "ramp_share", "final_rate"):
    config_lib.check_range(config, name, 0, 1)
  for name in ("num_blocks", "num_terms", "warmup_steps"):
    checks.check_int(f"config.{name}", config[name], 0)
  config_lib.check_range(config, "max_log_weight", 0, float("inf"))
  checks.check_finite(
    "config.learning_rate", config.learning_rate, positive=True
  )
  for name, known in (("loss", [*LOSSES, "wdce"]), ("mask_law", [*MASK_LAWS])):
    if config[name] not in known:
      raise ValueError(
        f"config.{name} must be one of {known}, got {config[name]!r}."
      )

  kind, field = config.net.kind, config.target.get("field", 0.0)
  if config.loss == "wdce" and kind == "blocks":
    raise ValueError(
      "config.loss='wdce' masks sites at random, which net.kind='blocks' "
      "cannot tell from absent ones; pass a path loss such as 'rerf', or "
      "another net."
    )
  if config.net.symmetric and field and kind in ("blocks", "site"):
    raise ValueError(
      "config.net.symmetric=True cannot learn a field; pass "
      f"net.symmetric=False with target.field={field}."
    )


def _target(config) -> Target:
  if config.kind == "ising":
    return targets.ising(
      config.size,
      beta=config.beta,
      coupling=config.coupling,
      field=config.field,
      periodic=config.periodic,
    )
  if config.kind == "potts":
    return targets.potts(
      config.size,
      config.num_states,
      beta=config.beta,
      coupling=config.coupling,
      periodic=config.periodic,
    )
  raise ValueError(
    f"config.target.kind must be 'ising' or 'potts', got {config.kind!r}."
  )


def _law(config, target: Target) -> ctmc.Order:
  if config.order not in target.orders:
    raise ValueError(
      f"config.order must be one of {sorted(target.orders)} for this target, "
      f"got {config.order!r}."
    )
  if config.num_blocks:
    if config.order != "random":
      raise ValueError(
        "config.num_blocks cuts the 'random' order; pass 0 with order "
        f"{config.order!r}."
      )
    return ctmc.uniform(target.length, config.num_blocks)
  return target.orders[config.order]


def _network(config, target: Target, law: ctmc.Order):
  """The network, how a target's conditionals enter it, and if it is causal."""
  kind = config.net.kind
  length, num_tokens = target.length, target.num_tokens
  if kind == "blocks":
    return _block_network(config, target, law)

  def wrap(tempered, apply):
    if not config.net.local_field:
      return apply
    return ctmc.precondition(apply, tempered.conditional)

  if kind == "site":
    network = nets.local(
      target.context(None, length - 1),
      np.zeros(length, np.int32),
      num_tokens,
      hidden=tuple(config.net.hidden),
      symmetric=config.net.symmetric,
      see_masks=True,
      activation=jax.nn.gelu,
    )
  elif kind == "mlp":
    network = nets.mlp(length, num_tokens, hidden=tuple(config.net.hidden))
  elif kind == "transformer":
    network = nets.transformer(
      length,
      num_tokens,
      width=config.net.width,
      num_layers=config.net.num_layers,
      num_heads=config.net.num_heads,
      grid=(config.target.size, config.target.size),
      compute_dtype=jnp.dtype(config.net.compute_dtype),
      remat=config.net.remat,
    )
  else:
    raise ValueError(
      "config.net.kind must be 'blocks', 'site', 'mlp' or 'transformer', got "
      f"{kind!r}."
    )
  return network, wrap, False


def _block_network(config, target: Target, law: ctmc.Order):
  """One small network a block; the last sublattice needs none."""
  try:
    step_of_site = law.step_of_site
  except ValueError as error:
    raise ValueError(
      "config.net.kind='blocks' needs an order with fixed blocks such as "
      f"'chain', got {config.order!r}; pass net.kind='site' for random orders."
    ) from error
  last = law.stages[-1].sites
  group = np.array([step_of_site[d] for d in range(target.length)], np.int32)
  exact = _known_when_last(target, last)
  if exact:
    group[list(last)] = -1
  network = nets.local(
    target.context(law, config.net.num_neighbours),
    group,
    target.num_tokens,
    hidden=tuple(config.net.hidden),
    symmetric=config.net.symmetric,
  )

  def wrap(tempered, apply):
    if not exact:
      return apply
    return ctmc.precondition(
      apply, tempered.conditional, exact_sites=last, local_field=False
    )

  return network, wrap, True


def _known_when_last(target: Target, last) -> bool:
  """Whether the last block's conditionals are known when it is revealed."""
  tokens = jnp.zeros((1, target.length), jnp.int32)
  tokens = tokens.at[:, np.asarray(last)].set(target.num_tokens)
  _, known = target.conditional(tokens, np.asarray(last, np.int32))
  return bool(known.all())


def _optimizer(config) -> optax.GradientTransformation:
  if config.schedule == "cosine":
    rate = optax.warmup_cosine_decay_schedule(
      0.0 if config.warmup_steps else config.learning_rate,
      config.learning_rate,
      config.warmup_steps,
      config.num_steps,
      config.learning_rate * config.final_rate,
    )
  elif config.schedule == "constant":
    rate = config.learning_rate
  else:
    raise ValueError(
      f"config.schedule must be 'cosine' or 'constant', got "
      f"{config.schedule!r}."
    )
  return optax.adam(rate)
