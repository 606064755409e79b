"""Builds DMPO."""

import functools

import ml_collections

from experiments.common import fields as fields_lib
from experiments.masked_lm import tuning
from jdiff import training
from jdiff.methods import dmpo, gdpo

RATIOS = ("path", "elbo")


def build(config: ml_collections.ConfigDict, **parts) -> training.Experiment:
  """A DMPO experiment; `parts` as in `tuning.build`.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others.
  """
  fields_lib.check(config)
  if config.ratio not in RATIOS:
    raise ValueError(
      f"config.ratio must be one of {RATIOS}, got {config.ratio!r}."
    )
  if config.ratio == "path" and config.sampler.order != "random":
    raise ValueError(
      "config.ratio='path' needs sampler.order='random', whose paths have "
      f"exact probabilities; got order={config.sampler.order!r}, pass "
      "ratio='elbo'."
    )
  if config.baseline not in dmpo.BASELINES:
    raise ValueError(
      f"config.baseline must be one of {dmpo.BASELINES}, got "
      f"{config.baseline!r}."
    )
  return tuning.build(config, _objective, **parts)


def stand_in(config: ml_collections.ConfigDict) -> training.Experiment:
  """Shapes alone, to be compiled and not run."""
  fields_lib.check(config)
  return tuning.stand_in(config, build)


def _objective(config, policy: tuning.Policy) -> tuning.Objective:
  groups = (config.num_prompts, config.group_size)

  def prepare(old, ref, keys, rollout, rewards):
    elbos = functools.partial(
      gdpo.old_elbos, samples=rollout.samples, elbo_fn=policy.elbo_fn
    )
    log_ratio = rollout.log_ratio
    if config.ratio == "elbo":
      # Averaged over the masks of all inner steps, the same for both models.
      log_ratio = (elbos(ref, keys) - elbos(old, keys)).mean(axis=0)
    batch = dmpo.make_batch(
      rollout.samples,
      log_ratio.reshape(groups),
      rewards.reshape(groups),
      reward_temperature=config.reward_temperature,
      coefficient=config.coefficient,
      min_ess_fraction=config.min_ess_fraction or None,
      skip_tied=config.skip_tied,
    )
    batch = tuning.over_steps(batch, config.inner_steps)
    if config.baseline == "model":
      batch = batch._replace(elbo_old=elbos(old, keys))
    return batch

  loss = functools.partial(
    dmpo.loss,
    elbo_fn=policy.elbo_fn,
    group_size=config.group_size,
    baseline=config.baseline,
    strength=config.baseline_strength,
  )
  return tuning.Objective(prepare, loss)
