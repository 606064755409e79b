"""Tunes a masked language model by a reward; GDPO and DMPO differ in the loss.

One iteration: roll out `group_size` completions of each of `num_prompts`
prompts on the device, have the host score them, and make `inner_steps`
optimiser steps on them. The prompts of a group are consecutive rows, so that a
group lies on one device.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from experiments.common import fields as fields_lib
from experiments.common import questions
from experiments.masked_lm import answers, base, corpora, report
from experiments.masked_lm import experiment as base_lib
from jdiff import ctmc, elbo, nets, training
from jdiff.core import checks
from jdiff.core.types import Rollout
from jdiff.nets import lora

LAWS = ("mid", "round", "floor", "bernoulli", "count")


class Policy(NamedTuple):
  """The model, as losses see it.

  Attributes:
    options: Of ELBO estimates: `logits_fn`, `mask_id` and the like.
    elbo_fn: `(params, key, tokens, valid=None) -> [B]`.
    num_prompt: Sites of the prompt.
    num_completion: Sites of the completion.
  """

  options: dict[str, Any]
  elbo_fn: Callable[..., jax.Array]
  num_prompt: int
  num_completion: int


class Objective(NamedTuple):
  """A method: what its inner steps share, and the loss of one.

  Attributes:
    prepare: `(old, ref, keys [mu, B], rollout, rewards [B]) -> batches`: a
      pytree with a leading axis of inner steps. `old` and `ref` are parameters;
      `keys` are those of the inner steps, or others if masks are not shared.
    loss: `(params, key [B], batch) -> (per_example [B], info)`.
  """

  prepare: Callable[..., Any]
  loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def build(
  config: ml_collections.ConfigDict,
  make_objective: Callable[[Any, Policy], Objective],
  corpus: corpora.Corpus | None = None,
  base_params: Any = None,
) -> training.Experiment:
  """Joins base policy, sampler, reward and method into one experiment.

  Args:
    config: A config of `experiments/gdpo/` or `experiments/dmpo/`.
    make_objective: `(config, policy) -> Objective`.
    corpus: With a task, by default the one that `config.base.data` names.
    base_params: Parameters to start from and to stay near, or a function that
      makes them; by default those that `config.base` describes are loaded, or
      trained when the run begins.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others.
  """
  _check(config)
  corpus = corpora.load(**config.base.data) if corpus is None else corpus
  task = corpus.task
  if task is None:
    raise ValueError(
      "config.base.data must be a task with a reward, got "
      f"kind={config.base.data.kind!r}."
    )
  network = base_lib.make_network(config.base, corpus)
  options = base_lib.network_options(config.base, network, corpus)
  num_completion = corpus.length - corpus.num_prompt
  policy = Policy(
    options,
    elbo.estimator(
      law=_law(config.elbo),
      num_prompt=corpus.num_prompt,
      implementation=config.elbo.implementation,
      **options,
    ),
    corpus.num_prompt,
    num_completion,
  )
  objective = make_objective(config, policy)
  sampler = _sampler(config.sampler, network, corpus)
  size = config.num_prompts * config.group_size
  optimizer = optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm),
    optax.adamw(
      optax.cosine_decay_schedule(
        config.learning_rate,
        config.num_steps * config.inner_steps,
        config.final_rate,
      ),
      b2=config.adam_b2,
      weight_decay=config.weight_decay,
    ),
  )
  frozen = base.frozen(config, corpus, network, base_params)

  def full(params, ref):
    """Parameters of the whole policy."""
    if not config.lora.rank:
      return params
    return lora.attach(ref, params, alpha=config.lora.alpha)

  def init(key, ref):
    key_adapters, key_state = jax.random.split(key)
    params = base.cast(ref, jnp.float32)
    if config.lora.rank:
      params = lora.init(
        key_adapters,
        ref,
        rank=config.lora.rank,
        targets=config.lora.targets,
      )
    return training.create(key_state, params, optimizer)

  def batches(step):
    prompts = task.prompts((config.seed, step), config.num_prompts)
    return np.repeat(prompts, config.group_size, axis=0)

  def collect(state, prompts):
    key, _, _ = jax.random.split(training.step_key(state), 3)
    keys = training.example_keys(key, size)
    params = full(state.params, state.frozen)
    return state, sampler(params, keys, prompts, state.frozen)

  def host(rollout):
    # A user's function may answer anything, and inside a step is too late.
    reward = np.asarray(task.reward(rollout.samples), np.float32)
    checks.check_shape("the task's reward", reward, (size,))
    if not np.isfinite(reward).all():
      raise ValueError(
        "the task's reward must be finite, got "
        f"{np.count_nonzero(~np.isfinite(reward))} of {size} NaN or infinite."
      )
    exact = task.exact(rollout.samples).astype(np.float32)
    return {"reward": reward, "exact": exact}

  def step(state, batch):
    rollout, scores = batch
    _, key_inner, key_old = jax.random.split(training.step_key(state), 3)
    ref = state.frozen

    def inner_keys(key):
      each = [key] * config.inner_steps
      if config.elbo.fresh_masks:
        each = list(jax.random.split(key, config.inner_steps))
      return jnp.stack([training.example_keys(k, size) for k in each])

    keys = inner_keys(key_inner)
    old_keys = keys if config.elbo.shared_masks else inner_keys(key_old)
    old = full(state.params, ref)
    inner_batches = objective.prepare(
      old, ref, old_keys, rollout, scores["reward"]
    )

    def inner(state, xs):
      keys, batch = xs

      def mean_loss(params):
        per_example, info = objective.loss(full(params, ref), keys, batch)
        return per_example.mean(), info

      (loss, info), grads = jax.value_and_grad(mean_loss, has_aux=True)(
        state.params
      )
      info = {"loss": loss, "grad_norm": optax.tree.norm(grads), **info}
      state = training.apply_gradients(
        state, grads, optimizer, ema_decay=config.ema_decay
      )
      return state, info

    count = state.step
    # Inside, optimiser steps are counted: the average is corrected by them.
    state = state._replace(step=count * config.inner_steps)
    state, info = jax.lax.scan(inner, state, (keys, inner_batches))
    metrics = {
      "reward": scores["reward"].mean(),
      "accuracy": scores["exact"].mean(),
      "entropy": -rollout.log_policy.mean() / num_completion,
      # The first step's ratios are one; the last shows how far they went.
      **{name: value[-1] for name, value in info.items()},
      "tokens": jnp.int32(size * num_completion),
    }
    return state._replace(step=count + 1), metrics

  make_evaluator = report.Evaluator
  if isinstance(task, questions.Questions):
    make_evaluator = answers.Evaluator
  evaluator = make_evaluator(config, corpus, network, frozen)
  experiment = training.Experiment(
    init=init,
    step=step,
    evaluate=evaluator.evaluate,
    apply=network.apply,
    sample=evaluator.sample,
    collect=collect,
    host=host,
    batches=batches,
    figures=evaluator.figures,
    frozen=frozen,
    axes=network.axes,
  )
  if not config.lora.rank:
    return experiment
  return experiment._replace(params=lambda state: full(state.ema, state.frozen))


def stand_in(
  config: ml_collections.ConfigDict, build: Callable[..., training.Experiment]
) -> training.Experiment:
  """Shapes alone: no base is loaded or trained, and nothing is worth more.

  Args:
    config: As in `build` of a method.
    build: That function.
  """
  fields_lib.check(config)
  config = ml_collections.ConfigDict(config.to_dict())
  config.base.workdir, config.base.checkpoint = "", base.RANDOM
  experiment = build(config, corpus=corpora.stand_in(**config.base.data))
  size = config.num_prompts * config.group_size
  scores = {"reward": np.zeros(size, np.float32)}
  scores["exact"] = scores["reward"]
  return experiment._replace(host=lambda rollout: scores)


def over_steps(batch, num_steps: int):
  """Each leaf once for every inner step, on a new leading axis."""
  return jax.tree.map(
    lambda x: jnp.broadcast_to(x[None], (num_steps, *x.shape)), batch
  )


def _law(config):
  if config.law not in LAWS:
    raise ValueError(
      f"config.elbo.law must be one of {', '.join(LAWS)}, got {config.law!r}."
    )
  if config.law == "count":
    return elbo.double_monte_carlo(config.num_nodes * config.num_masks)
  return elbo.node_masks(config.num_nodes, config.num_masks, law=config.law)


def _sampler(config, network: nets.Network, corpus: corpora.Corpus):
  """`(params, keys, prompts, ref) -> Rollout`; no gradient."""
  shared: dict[str, Any] = dict(
    logits_fn=network.apply,
    length=corpus.length,
    mask_id=corpus.mask_id,
    num_steps=config.num_steps or None,
    temperature=config.temperature,
  )

  def any_order(params, keys, prompts, ref):
    return ctmc.rollout(
      params,
      keys,
      num_samples=keys.shape[0],
      prompt=prompts if corpus.num_prompt else None,
      ref_params=ref,
      **shared,
    )

  def by_confidence(params, keys, prompts, ref):
    del ref
    decoded = ctmc.decode(
      params,
      keys,
      prompts if corpus.num_prompt else None,
      num_samples=keys.shape[0],
      block_size=config.block_size or None,
      cache=None if config.cache == "none" else config.cache,
      cached_fn=network.apply_cached,
      init_cache=network.init_cache,
      **shared,
    )
    # Its order depends on the network: there is no exact ratio.
    return Rollout(
      decoded.samples, decoded.log_policy, None, None, None, decoded.nfe
    )

  if config.cache not in answers.CACHES:
    raise ValueError(
      f"config.sampler.cache must be one of {', '.join(answers.CACHES)}, got "
      f"{config.cache!r}."
    )
  _check_steps(config, corpus.length - corpus.num_prompt)
  if config.order == "confidence":
    return by_confidence
  if config.order != "random":
    raise ValueError(
      "config.sampler.order must be 'random' or 'confidence', got "
      f"{config.order!r}."
    )
  if config.block_size or config.cache != "none":
    raise ValueError(
      "config.sampler.block_size and cache need order='confidence', got "
      f"block_size={config.block_size} and cache={config.cache!r} with "
      "order='random'."
    )
  return any_order


def _check_steps(config, num_sites: int) -> None:
  """Raises unless blocks and steps fill a completion of `num_sites`.

  The sampler would say so too, but only after the base has been trained.
  """
  block_size = config.block_size or num_sites
  if num_sites % block_size:
    raise ValueError(
      "config.sampler.block_size must divide the completion of "
      f"{num_sites} sites, got {block_size}."
    )
  num_blocks = num_sites // block_size
  num_steps = config.num_steps or num_sites
  if num_steps % num_blocks or num_steps > num_sites:
    raise ValueError(
      f"config.sampler.num_steps must be a multiple of the {num_blocks} blocks "
      f"and at most the {num_sites} sites, got {num_steps}."
    )


def _check(config) -> None:
  checks.check_int("config.group_size", config.group_size, 2)
  if config.elbo.implementation not in ("batch", "scan"):
    raise ValueError(
      "config.elbo.implementation must be 'batch' or 'scan', got "
      f"{config.elbo.implementation!r}."
    )
  if not config.sampler.temperature:
    raise ValueError("config.sampler.temperature must be positive, got 0.")
