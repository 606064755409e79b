"""What samplers of discrete targets are made of, from a config's fields."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdiff import ctmc, nets, targets
from jdiff.core.types import Target
from jdiff.methods import mdns

LOSSES = {
  "rerf": mdns.rerf,
  "lv": mdns.log_variance,
  "ce": mdns.cross_entropy,
  "ce_cv": mdns.cross_entropy_cv,
}
MASK_LAWS = {"count": ctmc.count_masks, "bernoulli": ctmc.bernoulli_masks}


def target(config) -> Target:
  """The lattice model of `config.target`."""
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


def law(config, target: Target) -> ctmc.Order:
  """The order law that `config.order` and `config.num_blocks` name."""
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
    if config.num_blocks > target.length:
      raise ValueError(
        f"config.num_blocks must be at most the target's {target.length} "
        f"sites, got {config.num_blocks}."
      )
    return ctmc.uniform(target.length, config.num_blocks)
  return target.orders[config.order]


def network(config, target: Target, law: ctmc.Order):
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
    size = config.target.get("size")
    network = nets.transformer(
      length,
      num_tokens,
      width=config.net.width,
      num_layers=config.net.num_layers,
      num_heads=config.net.num_heads,
      grid=(size, size) if size else None,
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


def optimizer(config) -> optax.GradientTransformation:
  """Adam, at a rate that is constant or falls like a cosine over the run."""
  if config.schedule == "cosine":
    if config.warmup_steps >= config.num_steps:
      raise ValueError(
        "config.warmup_steps must be less than num_steps, got "
        f"{config.warmup_steps} and {config.num_steps}."
      )
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


def check(config) -> None:
  """Raises unless the fields that choose loss, masks and network fit."""
  for name, known in (
    ("loss", [*LOSSES, "wdce"]),
    ("mask_law", [*MASK_LAWS]),
  ):
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
