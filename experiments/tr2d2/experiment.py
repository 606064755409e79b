"""Fine-tunes a masked policy on what tree search and its own rollouts find.

A round is `search.num_expansions` steps of the loop: each proposes
`num_roots * num_children` sequences and has them scored, the last one fits the
policy to the round's rows. The first `num_tree_rounds` rounds search, the
others roll out. So a host's reward stands between two jitted functions, and a
run that is stopped in the middle of a search goes on there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from experiments.common import fields as fields_lib
from experiments.masked_lm import base
from experiments.tr2d2 import parts, problems, report
from jdiff import ctmc, search, training
from jdiff.core import pareto, replay
from jdiff.core import reward as reward_lib
from jdiff.methods import tr2d2, wdce


class Stage(NamedTuple):
  """What a run carries beside its parameters.

  Attributes:
    trees: One for each root, of this round.
    rows: `[T R M, ...]`, this round's.
    asked: `[T R M]` bool: which of them a reward was asked for.
    buffer: `[C, ...]`, what the last search round was fitted to.
    num_calls: Scalar int32, rewards asked for so far.
    num_unique: Scalar int32, of distinct sequences, each round by itself: what
      a reward that remembers its answers is asked for.
    best: `[K]`, the best of each objective so far.
    metrics: Of the last round.
  """

  trees: search.Tree
  rows: tr2d2.Rows
  asked: jax.Array
  buffer: tr2d2.Rows
  num_calls: jax.Array
  num_unique: jax.Array
  best: jax.Array
  metrics: dict[str, jax.Array]


def build(
  config: ml_collections.ConfigDict,
  reward: Callable | reward_lib.Reward | None = None,
  base_params: Any = None,
  problem: problems.Problem | None = None,
) -> training.Experiment:
  """Joins policy, search, reward and fit into one experiment.

  Args:
    config: A config of this folder.
    reward: In place of the config's: a function of a list of decoded sequences
      that answers a number for each, NaN for invalid ones, or a carrier of
      `core.reward`.
    base_params: Parameters to start from and to stay near, or a function that
      makes them; by default those that `config.base` describes are loaded, or
      trained when the run begins.
    problem: In place of all that the config describes.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others.
  """
  fields_lib.check(config)
  parts.check(config)
  if problem is None:
    problem = problems.make(config, reward, base_params)
  elif reward is not None or base_params is not None:
    raise ValueError(
      "problem has a reward and a base of its own; pass it alone, or reward "
      "and base_params without it."
    )
  shared = dict(
    logits_fn=problem.network.apply,
    length=problem.length,
    mask_id=problem.num_tokens,
    num_steps=config.sampler.num_steps or None,
    temperature=config.sampler.temperature,
  )
  scalarise = parts.scalarise(config, problem.names)
  searcher = parts.make_search(config, problem)
  num_roots, num_children = config.search.num_roots, config.search.num_children
  num_expansions = config.search.num_expansions
  size = num_roots * num_children
  num_objectives = problem.reward.num_objectives
  on_device = isinstance(problem.reward, reward_lib.JaxReward)
  optimizer = optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm),
    optax.adam(
      optax.cosine_decay_schedule(
        config.learning_rate,
        max(1, config.num_steps // num_expansions) * config.inner_steps,
        config.final_rate,
      )
    ),
  )

  def no_rows(num):
    return tr2d2.Rows(
      jnp.zeros((num, problem.length), jnp.int32),
      jnp.zeros(num),
      jnp.zeros(num),
      jnp.full((num, num_objectives), jnp.nan),
      jnp.zeros(num, jnp.int32),
      jnp.zeros(num, bool),
    )

  def no_trees():
    return jax.vmap(lambda _: searcher.init())(jnp.arange(num_roots))

  def init(key, ref):
    rows = no_rows(num_expansions * size)
    metrics = {
      name: jnp.zeros(())
      for name in (
        "loss",
        "grad_norm",
        *tr2d2.summary(rows, jnp.zeros(rows.valid.shape)),
        *front_names(problem),
      )
    }
    stage = Stage(
      no_trees(),
      rows,
      jnp.zeros(rows.valid.shape, bool),
      no_rows(config.buffer.capacity),
      jnp.int32(0),
      jnp.int32(0),
      # Not -inf, which a guard would take for a run that has diverged.
      jnp.full(num_objectives, -1e9),
      metrics,
    )
    params = base.cast(ref, jnp.float32)
    return training.create(key, params, optimizer, stage)

  def is_search(state):
    return state.step // num_expansions < config.num_tree_rounds

  def collect(state):
    key, _, _ = jax.random.split(training.step_key(state), 3)
    stage = state.extra

    def by_search():
      keys = training.example_keys(key, num_roots)
      return jax.vmap(searcher.ask, in_axes=(None, 0, 0, None))(
        state.ema, keys, stage.trees, state.frozen
      )

    def alone():
      keys = training.example_keys(key, size)
      rollout = ctmc.rollout(
        state.ema, keys, num_samples=size, ref_params=state.frozen, **shared
      )
      return _as_proposals(
        rollout, jax.eval_shape(by_search), (num_roots, num_children)
      )

    return state, jax.lax.cond(is_search(state), by_search, alone)

  def host(proposals):
    return parts.score(problem.reward, proposals)

  def step(state, batch):
    proposals, rewards = batch
    if rewards is None:
      rewards = problem.reward(proposals.samples)
    searched = is_search(state)
    stage = state.extra
    # Rollouts belong to no tree.
    told = proposals._replace(valid=proposals.valid & searched)
    trees = jax.vmap(searcher.tell)(stage.trees, told, rewards)
    new = tr2d2.from_proposals(proposals, rewards)
    turn = state.step % num_expansions
    asked = jnp.repeat(proposals.valid, num_children)
    rows, asked = jax.tree.map(
      lambda old, x: jax.lax.dynamic_update_slice_in_dim(
        old, x.astype(old.dtype), turn * size, 0
      ),
      (stage.rows, stage.asked),
      (new, asked),
    )
    best = jnp.where(new.valid[:, None], new.rewards, -1e9).max(axis=0)
    calls = stage.num_calls + num_children * proposals.valid.sum()
    stage = stage._replace(
      trees=trees,
      rows=rows,
      asked=asked,
      num_calls=calls.astype(jnp.int32),
      best=jnp.maximum(stage.best, best),
    )
    count = state.step
    state = jax.lax.cond(
      turn == num_expansions - 1,
      fit,
      lambda state, searched: state,
      state._replace(extra=stage),
      searched,
    )
    stage = state.extra
    metrics = {
      **stage.metrics,
      "num_calls": stage.num_calls,
      "num_unique": stage.num_unique,
      **{f"best_{name}": stage.best[k] for k, name in enumerate(problem.names)},
    }
    return state._replace(step=count + 1), metrics

  def fit(state, searched):
    """One round's optimiser steps; begins the next round's trees."""
    stage = state.extra
    _, key_draw, key_loss = jax.random.split(training.step_key(state), 3)

    def from_search():
      pool = stage.rows
      if config.buffer.keep:
        # Older rows first: the first copy of a duplicate stands.
        pool = jax.tree.map(
          lambda a, b: jnp.concatenate([a, b]), stage.buffer, pool
        )
      options = dict(
        reward_temperature=config.reward_temperature,
        weighting=parts.WEIGHTINGS[config.buffer.weighting],
        scalarise=scalarise,
        min_ess_fraction=config.buffer.min_ess_fraction or None,
      )
      if config.buffer.admission != "all":
        admit = parts.admission(config, scalarise)
        weights = tr2d2.log_weights(pool, **options)
        pool = admit(pool, weights, config.buffer.capacity)
      weights = tr2d2.log_weights(pool, **options)
      buffer = stage.buffer if config.buffer.admission == "all" else pool
      return drawn(pool, weights), buffer

    def from_rollouts():
      weights = tr2d2.log_weights(
        stage.rows,
        reward_temperature=config.reward_temperature,
        scalarise=scalarise,
        min_ess_fraction=config.rollouts.min_ess_fraction or None,
      )
      return drawn(stage.rows, weights), stage.buffer

    def drawn(rows, weights):
      num = config.inner_steps * config.batch_size
      samples = wdce.draw(key_draw, rows.samples, weights, num)
      # Systematic draws ascend: shuffled, each batch is of the whole.
      samples = jax.random.permutation(jax.random.fold_in(key_draw, 1), samples)
      samples = samples.reshape(config.inner_steps, config.batch_size, -1)
      return samples, tr2d2.summary(rows, weights, scalarise)

    (samples, metrics), buffer = jax.lax.cond(
      searched, from_search, from_rollouts
    )

    def inner(state, xs):
      number, tokens = xs
      keys = training.example_keys(
        jax.random.fold_in(key_loss, number), config.batch_size
      )

      def objective(params):
        # Drawn by their weights, they have none left.
        per_example, _ = wdce.wdce(
          params,
          keys,
          training.shard_batch(tokens),
          jnp.zeros(config.batch_size),
          logits_fn=problem.network.apply,
          mask_id=problem.num_tokens,
          draw_masks=ctmc.count_masks(config.num_masks),
        )
        return per_example.mean()

      loss, grads = jax.value_and_grad(objective)(state.params)
      state = training.apply_gradients(
        state, grads, optimizer, ema_decay=config.ema_decay
      )
      return state, (loss, optax.tree.norm(grads))

    count = state.step
    # Inside, optimiser steps are counted: the average is corrected by them.
    rounds = count // num_expansions
    state = state._replace(step=rounds * config.inner_steps)
    # Without a single valid reward there is nothing to learn from.
    usable = metrics["num_rows"] > 0
    fitted, (loss, norm) = jax.lax.scan(
      inner, state, (jnp.arange(config.inner_steps), samples)
    )
    state = jax.tree.map(lambda a, b: jnp.where(usable, a, b), fitted, state)
    distinct = replay.first_copies(stage.rows.samples, stage.asked).sum()
    stage = stage._replace(
      trees=no_trees(),
      buffer=buffer,
      num_unique=stage.num_unique + distinct.astype(jnp.int32),
      metrics={
        "loss": loss.mean(),
        "grad_norm": norm.mean(),
        **front(stage.rows, problem),
        **{name: jnp.float32(value) for name, value in metrics.items()},
      },
    )
    return state._replace(step=count, extra=stage)

  evaluator = report.Evaluator(config, problem, shared)
  return training.Experiment(
    init=init,
    step=step,
    evaluate=evaluator.evaluate,
    apply=problem.network.apply,
    sample=evaluator.sample,
    collect=collect,
    host=None if on_device else host,
    figures=evaluator.figures,
    frozen=problem.frozen,
    axes=problem.network.axes,
  )


FRONT_POINTS = 8
"""Of a round's Pareto front, in the records."""


def front_names(problem: problems.Problem) -> list[str]:
  """Names of `front`'s numbers, in the order of its points."""
  if len(problem.names) == 1:
    return []
  points = range(FRONT_POINTS)
  return [f"front_{i}_{name}" for i in points for name in problem.names]


def front(rows: tr2d2.Rows, problem: problems.Problem) -> dict[str, jax.Array]:
  """Points of the front of rows, spread over it by the first objective.

  Points are repeated where there are fewer, and -1e9 where there are none.
  """
  names = front_names(problem)
  if not names:
    return {}
  valid = pareto.non_dominated(rows.rewards, rows.valid)
  order = jnp.argsort(jnp.where(valid, rows.rewards[:, 0], jnp.inf))
  last = jnp.maximum(valid.sum() - 1, 0)
  place = jnp.round(jnp.linspace(0, 1, FRONT_POINTS) * last).astype(jnp.int32)
  points = jnp.where(valid.any(), rows.rewards[order[place]], -1e9)
  return dict(zip(names, points.ravel(), strict=True))


def _as_proposals(rollout, like, lead):
  """Independent rollouts in the form of a search's proposals."""
  empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
  num_roots = lead[0]
  return empty._replace(
    samples=rollout.samples.reshape(*lead, -1),
    log_policy=rollout.log_policy.reshape(lead),
    log_ref=(rollout.log_policy + rollout.log_ratio).reshape(lead),
    step=jnp.full(num_roots, tr2d2.INDEPENDENT, jnp.int32),
    valid=jnp.ones(num_roots, bool),
  )
