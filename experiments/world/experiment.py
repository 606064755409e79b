"""Builds the world experiment: a model that plays its environment."""

import functools

import jax
import ml_collections
import optax

from experiments.common import data as data_lib
from experiments.common import fields as fields_lib
from experiments.world import envs, parts, report
from jdiff import training


def build(
  config: ml_collections.ConfigDict, environment: envs.Env | None = None
) -> training.Experiment:
  """Joins environment, network, memory and loss into one experiment.

  Args:
    config: A config of this folder.
    environment: In place of the config's.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others.
    ImportError: If the environment's package is not installed.
  """
  fields_lib.check(config)
  parts.check(config)
  system = parts.system(config, environment)
  env, network = system.env, system.parts.network
  loss_fn = parts.loss(config, system.parts)
  optimizer = parts.optimizer(config)
  online = config.data.source == "online"

  @functools.cache
  def source():
    clips = system.label(parts.recorded(config, env, "train"))
    rows = data_lib.batches(
      len(clips.action), batch_size=config.batch_size, seed=config.seed
    )
    return clips, rows

  def init(key):
    key_params, key_state = jax.random.split(key)
    return training.create(key_state, network.init(key_params), optimizer)

  def step(state, clip):
    key_clip, key_loss = jax.random.split(training.step_key(state))
    if online:
      clip = training.shard_batch(
        envs.record(env, key_clip, config.batch_size, config.data.num_frames)
      )
    keys = training.example_keys(key_loss, config.batch_size)

    def objective(params):
      per_example, info = loss_fn(params, keys, clip)
      return per_example.mean(), jax.tree.map(lambda x: x.mean(), info)

    (loss, info), grads = jax.value_and_grad(objective, has_aux=True)(
      state.params
    )
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **info}
    state = training.apply_gradients(
      state, grads, optimizer, ema_decay=config.ema_decay
    )
    return state, metrics

  def batches(step):
    clips, rows = source()
    return jax.tree.map(lambda x: x[rows(step)], clips)

  evaluator = report.Evaluator(config, system)
  return training.Experiment(
    init=init,
    step=step,
    evaluate=evaluator.evaluate,
    apply=network.logits,
    sample=evaluator.sample,
    batches=None if online else batches,
    figures=evaluator.figures,
  )
