"""Builds GDPO, and the one-step baseline that it is measured against."""

import functools

import jax
import ml_collections

from experiments.common import fields as fields_lib
from experiments.masked_lm import tuning
from jdiff import training
from jdiff.methods import diffu_grpo, gdpo

LOSSES = ("gdpo", "diffu_grpo")


def build(config: ml_collections.ConfigDict, **parts) -> training.Experiment:
  """A GDPO experiment; `parts` as in `tuning.build`.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others.
  """
  fields_lib.check(config)
  if config.loss not in LOSSES:
    raise ValueError(
      f"config.loss must be one of {LOSSES}, got {config.loss!r}."
    )
  if config.loss == "diffu_grpo" and config.base.data.kind == "questions":
    raise ValueError(
      "config.loss='diffu_grpo' masks prompts, and would take what is left of "
      "their padding for text; pass loss='gdpo' with kind='questions'."
    )
  if config.ratio_norm not in ("length", "none"):
    raise ValueError(
      "config.ratio_norm must be 'length' or 'none', got "
      f"{config.ratio_norm!r}."
    )
  gdpo.check_options(config.clip, config.kl_weight, config.kl, "the base", "")
  make = _gdpo if config.loss == "gdpo" else _diffu_grpo
  return tuning.build(config, make, **parts)


def stand_in(config: ml_collections.ConfigDict) -> training.Experiment:
  """Shapes alone, to be compiled and not run."""
  fields_lib.check(config)
  return tuning.stand_in(config, build)


def _gdpo(config, policy: tuning.Policy) -> tuning.Objective:
  def prepare(old, ref, keys, rollout, rewards):
    num_rows = rewards.shape[0]
    batch = gdpo.Batch(
      rollout.samples,
      _advantages(config, rewards),
      jax.numpy.full(num_rows, policy.num_completion),
      None,
    )
    elbos = functools.partial(
      gdpo.old_elbos,
      keys=keys,
      samples=rollout.samples,
      elbo_fn=policy.elbo_fn,
    )
    return tuning.over_steps(batch, config.inner_steps)._replace(
      elbo_old=elbos(old), elbo_ref=elbos(ref) if config.kl_weight else None
    )

  loss = functools.partial(
    gdpo.loss,
    elbo_fn=policy.elbo_fn,
    clip=config.clip,
    ratio_norm=config.ratio_norm,
    kl_weight=config.kl_weight,
    kl=config.kl,
  )
  return tuning.Objective(prepare, loss)


def _diffu_grpo(config, policy: tuning.Policy) -> tuning.Objective:
  log_probs_fn = diffu_grpo.one_step(
    num_prompt=policy.num_prompt, **policy.options
  )

  def prepare(old, ref, keys, rollout, rewards):
    batch = diffu_grpo.Batch(
      rollout.samples, _advantages(config, rewards, normalise_std=True), None
    )
    log_probs = functools.partial(
      gdpo.old_elbos,
      keys=keys,
      samples=rollout.samples,
      elbo_fn=log_probs_fn,
    )
    return tuning.over_steps(batch, config.inner_steps)._replace(
      log_probs_old=log_probs(old),
      log_probs_ref=log_probs(ref) if config.kl_weight else None,
    )

  loss = functools.partial(
    diffu_grpo.loss,
    log_probs_fn=log_probs_fn,
    clip=config.clip,
    kl_weight=config.kl_weight,
    kl=config.kl,
  )
  return tuning.Objective(prepare, loss)


def _advantages(config, rewards, normalise_std=False):
  groups = rewards.reshape(config.num_prompts, config.group_size)
  return gdpo.group_advantages(
    groups, normalise_std=normalise_std or config.normalise_std
  ).reshape(-1)
