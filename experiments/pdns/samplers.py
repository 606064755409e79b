"""The samplers that a config names: target, process, network."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.mdns import parts
from experiments.pdns import laws
from jdiff import nets, sde, targets
from jdiff.core.types import Target
from jdiff.methods import flow_matching, mdns, pdns
from jdiff.schedules import gaussian
from jdiff.sde import references

MIN_TIME = 1e-3
"""Losses leave out times whose root of the clock's power is below this."""


class Process(NamedTuple):
  """A target and what is to sample it.

  Attributes:
    target: The target.
    sampler: Its policy's parameters are `{"net": params, "scale": share,
      "spread": [K]}`. The share of the target's log-density reached so far
      scales the conditionals that enter a masked network; the spread is that of
      `sde.rollout`, None for a masked process.
    init: `key -> params` of the network.
    apply: The network with a policy for parameters.
    path_method: `scale -> Method` of an on-policy path loss, or None.
    nfe: Network evaluations a sample.
    log_z_at: `remaining -> ` exact normaliser of a stage's law, or None.
    num_spread: Length `K` of the spread.
    fit_spread: `(policy, key, samples) -> [K]`, or None.
    first: `(key, num_samples) -> Buffer`, the first one, or None.
  """

  target: Target
  sampler: pdns.Sampler
  init: Any
  apply: Any
  path_method: Any
  nfe: int
  log_z_at: Any
  num_spread: int = 0
  fit_spread: Any = None
  first: Any = None


def make(config) -> Process:
  """The process of a config."""
  return masked(config) if "order" in config else controlled(config)


def masked(config) -> Process:
  """Unmasks a lattice or a graph."""
  target = laws.discrete(config.target)
  law = parts.law(config, target)
  network, wrap, causal = parts.network(config, target, law)
  mask_id = target.num_tokens

  def logits_fn(policy, tokens, t, sites=None):
    tempered = targets.temper(target, policy["scale"])
    return wrap(tempered, network.apply)(policy["net"], tokens, t, sites)

  sampler = pdns.masked(
    target,
    logits_fn=logits_fn,
    mask_id=mask_id,
    order=law,
    draw_masks=parts.MASK_LAWS[config.mask_law](
      config.num_masks, antithetic=config.antithetic
    ),
    causal=causal,
  )
  path_method = None
  if config.loss != "wdce":

    def path_method(scale):
      return mdns.path_method(
        targets.temper(target, scale),
        logits_fn=logits_fn,
        mask_id=mask_id,
        num_samples=config.batch_size,
        loss=parts.LOSSES[config.loss],
        order=law,
        causal=causal,
        num_terms=config.num_terms or None,
        max_log_weight=config.max_log_weight or None,
      )

  return Process(
    target,
    sampler,
    network.init,
    logits_fn,
    path_method,
    law.num_steps,
    laws.stage_normaliser(config.target),
  )


def controlled(config) -> Process:
  """Steers a Gaussian process."""
  target = laws.continuous(config.target)
  reference = _reference(config.reference, target)
  sde.check_tails(target, reference)
  network = _network(config.net, target)
  # The network of particles has a length of its own.
  unit = 1.0 if config.net.kind == "egnn" else config.reference.scale

  def residual_fn(policy, x, t):
    return network.apply(policy["net"], x / unit, t)

  times = np.linspace(1, 0, config.reference.num_steps + 1)
  times = jnp.asarray(times**config.reference.power, jnp.float32)
  shared = dict(reference=reference, times=times)
  sampler = pdns.gaussian(
    target,
    residual_fn=residual_fn,
    spread=lambda policy: policy["spread"],
    draw_time=_draw_time(config.reference.power),
    **shared,
  )
  fit_spread = None
  if config.reference.fit_spread:
    fit_spread = functools.partial(
      sde.fit_spread, residual_fn=residual_fn, **shared
    )
  first = None
  if config.langevin_start:
    langevin = sde.langevin(
      target.log_prob, reference, max_norm=config.max_force
    )

    def first(key, num_samples):
      rollout = sde.rollout(
        None,
        key,
        residual_fn=langevin,
        num_samples=num_samples,
        shape=target.shape,
        **shared,
      )
      return pdns.weigh(rollout, sampler.reward)

  return Process(
    target,
    sampler,
    network.init,
    residual_fn,
    None,
    config.reference.num_steps,
    None,
    config.reference.num_steps,
    fit_spread,
    first,
  )


def _draw_time(power: float) -> flow_matching.DrawTime:
  """The law of `u^power`, which has the density of the steps."""
  law = flow_matching.beta(1 / power, 1.0)
  return flow_matching.within(law, MIN_TIME**power)


def _reference(config, target: Target) -> sde.Reference:
  centred = target.particles is not None
  if config.kind == "vp":
    schedule = gaussian.vp(config.beta_min, config.beta_max)
    return references.vp(schedule, scale=config.scale, centred=centred)
  if config.kind == "brownian":
    return references.brownian(scale=config.scale, centred=centred)
  raise ValueError(
    f"config.reference.kind must be 'vp' or 'brownian', got {config.kind!r}."
  )


def _network(config, target: Target) -> nets.Network:
  dtype = jnp.dtype(config.compute_dtype)
  if config.kind == "egnn":
    if target.particles is None:
      raise ValueError(
        "config.net.kind='egnn' is for particles; pass net.kind='mlp'."
      )
    return nets.egnn(
      *target.particles,
      width=config.width,
      num_layers=config.num_layers,
      length=config.length,
      compute_dtype=dtype,
      remat=config.remat,
    )
  if config.kind == "mlp":
    if target.particles is not None:
      raise ValueError(
        "config.net.kind='mlp' is for vectors; pass net.kind='egnn' for "
        "particles."
      )
    return nets.velocity_mlp(
      target.dim,
      hidden=tuple(config.hidden),
      skip=True,
      compute_dtype=dtype,
    )
  raise ValueError(
    f"config.net.kind must be 'mlp' or 'egnn', got {config.kind!r}."
  )


def rule(config) -> pdns.Rule:
  """The rule that `config.stages` names."""
  stages = config.stages
  limit = {"min_fraction": stages.min_fraction}
  if stages.max_kl:
    limit = {"max_kl": stages.max_kl}
  num_stages = -(-config.num_steps // stages.inner_steps)
  annealed_over = max(int(stages.annealed_share * num_stages), 1)
  rules = {
    "anchored": functools.partial(
      pdns.anchored, confirm=stages.confirm, **limit
    ),
    "relative": functools.partial(
      pdns.relative, min_remaining=stages.min_remaining, **limit
    ),
    "annealed": functools.partial(
      pdns.scheduled, jnp.linspace(1, 0, annealed_over + 1)[1:]
    ),
    "plain": functools.partial(pdns.scheduled, jnp.zeros(1)),
  }
  if stages.rule not in rules:
    raise ValueError(
      f"config.stages.rule must be one of {[*rules]}, got {stages.rule!r}."
    )
  return rules[stages.rule]()
