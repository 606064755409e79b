"""What a fine-tuned generator samples, beside its base and beside search."""

import functools
import json
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import metrics as metrics_lib
from experiments.common import plots
from experiments.tr2d2 import figures, inference
from jdiff import ctmc, elbo, training
from jdiff.core import pareto

ELBO_MASKS = 8
"""Masks a sequence in estimates of its log-likelihood under the base."""

NUM_WRITTEN = 32
"""Sequences that are written with their rewards."""


class Evaluator:
  """One-pass samples and their rewards."""

  def __init__(self, config, problem, shared):
    self.config, self.problem = config, problem
    # What is sampled in the end is the policy itself, at temperature 1.
    self._sampler = functools.partial(
      ctmc.rollout, **{**shared, "temperature": 1.0}
    )
    self._draw = jax.jit(self._rollout, static_argnames="num_samples")
    self._elbo = jax.jit(
      elbo.estimator(
        law=elbo.double_monte_carlo(ELBO_MASKS),
        logits_fn=problem.network.apply,
        mask_id=problem.num_tokens,
      )
    )
    # Rewards may be dear: what was scored is not scored again.
    self._baselines = None
    self._final = None

  def evaluate(self, params, key, *, final: bool):
    """Rewards of one-pass samples; at the end those of the base too.

    `elbo_of_base` is how likely the base finds them, in nats a sequence at
    least: what is lost of its law. `hypervolume` is of the one-pass samples,
    above the problem's reference; with more than four objectives there is none.
    With `config.num_baseline` the best of as many draws of the base, and that
    of tree searches with it, stand beside, each for as many rewards.
    """
    key_sample, key_baseline, key_elbo = jax.random.split(key, 3)
    samples, rewards = self.scored(params, key_sample)
    metrics = self._of_samples(samples, rewards)
    metrics |= self.problem.measures(params, samples, rewards)
    if not final:
      return metrics
    self._final = params, samples, rewards
    metrics["elbo_of_base"] = metrics_lib.mean(
      training.fetch(self._elbo(self.base, key_elbo, jnp.asarray(samples)))
    )
    base, base_rewards = self.of_base
    of_base = self._of_samples(base, base_rewards) | self.problem.measures(
      self.base, base, base_rewards
    )
    for name, value in of_base.items():
      metrics[f"{name}_base"] = {**value, "exact": None}
    if self.config.num_baseline:
      for name, found in self.baselines(key_baseline).items():
        metrics |= self._of_search(name, found)
    metrics["nfe"] = self.config.sampler.num_steps or self.problem.length
    return metrics

  def scored(self, params, key):
    """`num_eval` one-pass samples and their rewards `[N, K]`."""
    samples = self.sample(params, key, self.config.num_eval)
    return samples, np.asarray(self.problem.reward(samples))

  def sample(self, params, key, num_samples):
    """`[num_samples, L]` int32 draws of the policy, one pass each."""
    return training.fetch(self._draw(params, key, num_samples=num_samples))

  @functools.cached_property
  def base(self):
    """Parameters of the base policy."""
    return self.problem.base_params()

  @functools.cached_property
  def of_base(self):
    """Samples of the base and their rewards, the same in all of a run."""
    return self.scored(self.base, jax.random.key(self.config.seed))

  def baselines(self, key):
    """`{name: inference.Found}` with the base alone, made once."""
    if self._baselines is None:
      key_best, key_tree = jax.random.split(key)
      num = self.config.num_baseline
      self._baselines = {
        "best_of_n": inference.best_of_n(
          self.problem, self.base, key_best, num, self.config
        ),
        "tree": inference.tree(
          self.problem, self.base, key_tree, num, self.config
        ),
      }
    return self._baselines

  def figures(self, params, key, directory, history):
    """Histograms, fronts, logos, the best found by calls, and sequences."""
    directory = pathlib.Path(directory)
    key_sample, key_baseline = jax.random.split(key)
    if self._final is None or self._final[0] is not params:
      self._final = params, *self.scored(params, key_sample)
    _, samples, rewards = self._final
    base, base_rewards = self.of_base
    names = self.problem.names
    figures.histograms(
      directory / "rewards.png",
      {"base": base_rewards, "fine-tuned": rewards},
      names,
      self.problem.exact,
    )
    if self.problem.letters:
      figures.logos(
        directory / "logos.png",
        {"base": base, "fine-tuned": samples},
        self.problem.letters,
      )
    baselines = {}
    if self.config.num_baseline:
      baselines = self.baselines(key_baseline)
    figures.best_by_calls(directory / "best.png", history, baselines, names)
    if len(names) > 1:
      figures.fronts(
        directory / "fronts.png",
        {"base": base_rewards, "fine-tuned": rewards}
        | {name: found.rewards for name, found in baselines.items()},
        names,
      )
      figures.fronts_by_round(
        directory / "fronts_by_round.png",
        history,
        names,
        self.config.search.num_expansions,
      )
    plots.curves(
      directory / "training.png",
      history,
      (
        "loss",
        tuple(f"eval/{name}" for name in names),
        "ess",
        "num_rows",
        "eval/kl_target",
        "eval/hypervolume",
      ),
    )
    lines = [
      json.dumps(
        {"text": text, **dict(zip(names, map(float, row), strict=True))}
      )
      for text, row in zip(
        self.problem.decode(samples[:NUM_WRITTEN]), rewards, strict=False
      )
    ]
    (directory / "samples.jsonl").write_text("\n".join(lines) + "\n")

  def _rollout(self, params, key, num_samples):
    keys = training.example_keys(key, num_samples)
    return self._sampler(params, keys, num_samples=num_samples).samples

  def _of_samples(self, samples, rewards):
    """`valid`, `unique`, each objective's mean, and the front's volume."""
    valid = np.isfinite(rewards).all(axis=1)
    metrics = {
      "valid": metrics_lib.mean(valid),
      "unique": {"value": len(np.unique(samples, axis=0)) / len(samples)},
    }
    kept = rewards[valid]
    if not len(kept):
      warnings.warn(
        f"none of {len(rewards)} samples has a finite reward, such as "
        f"{self.problem.decode(samples[:1])[0]!r}: check the reward on samples "
        "of the base, or train the base for longer.",
        stacklevel=2,
      )
    for k, name in enumerate(self.problem.names):
      metrics[name] = {"value": None}
      if len(kept):
        metrics[name] = metrics_lib.mean(
          kept[:, k], self.problem.exact.get(name)
        )
    if self._has_volume():
      metrics["hypervolume"] = {"value": self._hypervolume(rewards)}
    return metrics

  def _of_search(self, name, found):
    """The best that a search of the base has found, of each objective."""
    metrics = {f"num_calls_{name}": {"value": len(found.rewards)}}
    valid = found.rewards[np.isfinite(found.rewards).all(axis=1)]
    for k, objective in enumerate(self.problem.names):
      best = float(valid[:, k].max()) if len(valid) else None
      metrics[f"best_{objective}_{name}"] = {"value": best}
    if self._has_volume():
      metrics[f"hypervolume_{name}"] = {
        "value": self._hypervolume(found.rewards)
      }
    return metrics

  def _has_volume(self):
    return 1 < len(self.problem.names) <= pareto.MAX_OBJECTIVES

  def _reference(self):
    """Where hypervolumes begin, one point for all of a run."""
    if self.problem.reference:
      return np.array(self.problem.reference, np.float32)
    _, rewards = self.of_base
    valid = rewards[np.isfinite(rewards).all(axis=1)]
    least = valid.min(axis=0) if len(valid) else np.zeros(rewards.shape[1])
    return least.astype(np.float32)

  def _hypervolume(self, rewards):
    valid = np.isfinite(rewards).all(axis=1)
    front = pareto.non_dominated(jnp.asarray(rewards), jnp.asarray(valid))
    front = np.asarray(front)
    if not front.any():
      return 0.0
    points = np.unique(rewards[front], axis=0)
    return float(
      pareto.hypervolume(jnp.asarray(points), jnp.asarray(self._reference()))
    )
