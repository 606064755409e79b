"""Accuracy of a tuned policy, exactly where completions can be enumerated."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import metrics as metrics_lib
from experiments.common import plots, tasks
from jdiff import ctmc, elbo, training
from jdiff.nets import lora

EVAL_SEED = 2**31 - 2
"""Of the prompts that are evaluated on; runs have small ones."""

MAX_ENUMERATED = 8
"""Longest completion whose `2^L` masks are gone through."""

CURVES = (
  ("eval/exact_match", "accuracy"),
  "reward",
  "ess_fraction",
  "clip_fraction",
  "kl",
  "entropy",
)
"""What figures show over steps."""

NUM_WRITTEN = 16
"""Prompts whose completions are written with their rewards."""


def base_of(params, frozen: training.Frozen):
  """The base's parameters: those under adapters, or else loaded again."""
  base, *_ = lora.split(params)
  if base is not params:
    return base
  return frozen.load(jax.tree.map(lambda x: x.sharding, params))


class Evaluator:
  """Samples, scores and, for short completions, sums over all answers."""

  def __init__(self, config, corpus, network, frozen):
    self.config, self.corpus, self.task = config, corpus, corpus.task
    self.frozen = frozen
    shared = dict(
      logits_fn=network.apply,
      mask_id=corpus.mask_id,
      length=corpus.length,
    )

    @jax.jit
    def draw(params, key, prompts):
      keys = training.example_keys(key, prompts.shape[0])
      return ctmc.rollout(
        params,
        keys,
        num_samples=prompts.shape[0],
        prompt=prompts if corpus.num_prompt else None,
        **shared,
      ).samples

    @jax.jit
    def greedy(params, key, prompts):
      return ctmc.decode(
        params,
        key,
        prompts if corpus.num_prompt else None,
        num_samples=prompts.shape[0],
        temperature=0.0,
        **shared,
      ).samples

    self._draw, self._greedy = draw, greedy
    self._log_prob = jax.jit(
      functools.partial(
        elbo.exact_log_prob,
        logits_fn=network.apply,
        mask_id=corpus.mask_id,
        num_prompt=corpus.num_prompt,
      )
    )

  def evaluate(self, params, key, *, final: bool):
    """`exact_match` at temperature 1, of draws and exactly; that of the base.

    Where completions are few enough to enumerate, `exact` is the probability of
    a right answer under the any-order law, averaged over the prompts, and
    `exact_match_target` what the law tilted by `config.reward_temperature`
    would have.
    """
    key_sample, key_base, key_greedy = jax.random.split(key, 3)
    prompts = self._prompts(self.config.num_eval)
    samples = training.fetch(self._draw(params, key_sample, prompts))
    exact = self._success(params)
    metrics = {
      "exact_match": metrics_lib.mean(self.task.exact(samples), exact),
      "reward": metrics_lib.mean(self.task.reward(samples)),
    }
    if not final:
      return metrics
    base = base_of(params, self.frozen)
    before = training.fetch(self._draw(base, key_base, prompts))
    metrics["exact_match_base"] = metrics_lib.mean(
      self.task.exact(before), self._success(base)
    )
    greedy = training.fetch(self._greedy(params, key_greedy, prompts))
    metrics["exact_match_greedy"] = metrics_lib.mean(self.task.exact(greedy))
    tilt = self.config.get("reward_temperature", 0.0)
    if tilt and self._is_small():
      metrics |= self._against_target(params, base, tilt)
    metrics["nfe"] = self.task.num_completion
    return metrics

  def sample(self, params, key, num_samples):
    """`[num_samples, T]` canvases at temperature 1."""
    prompts = self._prompts(num_samples)
    return training.fetch(self._draw(params, key, prompts))

  def figures(self, params, key, directory, history):
    """Curves, and completions with their rewards."""
    directory = pathlib.Path(directory)
    samples = self.sample(params, key, NUM_WRITTEN)
    rewards = self.task.reward(samples)
    lines = [
      json.dumps({"text": self.task.decode(row), "reward": float(reward)})
      for row, reward in zip(samples, rewards, strict=True)
    ]
    (directory / "completions.jsonl").write_text("\n".join(lines) + "\n")
    plots.curves(
      directory / "training.png",
      history,
      CURVES,
    )

  def _prompts(self, num):
    return jnp.asarray(self.task.prompts(EVAL_SEED, num))

  def _is_small(self):
    return self.task.num_completion <= MAX_ENUMERATED

  def _success(self, params):
    """Exact mean probability of a right answer, or None."""
    if not self._is_small() or self.task.all_prompts is None:
      return None
    canvases, owner, num = self._right
    prob = np.exp(self._exact_log_prob(params, canvases))
    return float(np.bincount(owner, prob, num).mean())

  def _against_target(self, params, base, reward_temperature):
    """The tilted law's accuracy, and KL where all outcomes are at hand."""
    canvases, owner, num = self._right
    prob = np.exp(self._exact_log_prob(base, canvases))
    p = np.bincount(owner, prob, num)
    metrics = {}
    if self.task.binary:
      up = p * np.exp(1 / reward_temperature)
      share = up / (up + 1 - p)
      metrics["exact_match_target"] = {"value": float(share.mean())}
    every = self._everything
    if every is not None:
      target = tasks.tilted(
        self._exact_log_prob(base, every),
        self.task.reward(every),
        reward_temperature=reward_temperature,
      )
      for name, model in (("kl_target", params), ("kl_target_base", base)):
        gap = target.log_prob - self._exact_log_prob(model, every)
        metrics[name] = {"value": float(np.exp(target.log_prob) @ gap)}
    return metrics

  @functools.cached_property
  def _right(self):
    """Canvases of right answers, their prompts' numbers, and how many."""
    prompts = self.task.all_prompts
    if len(prompts) > self.config.num_eval:
      prompts = self.task.prompts(EVAL_SEED, self.config.num_eval)
    canvases, owner = [], []
    for number, prompt in enumerate(prompts):
      rows = self.task.canvases(prompt)
      rows = rows[self.task.exact(rows)]
      canvases.append(rows)
      owner += [number] * len(rows)
    return np.concatenate(canvases), np.array(owner), len(prompts)

  @functools.cached_property
  def _everything(self):
    """All canvases of a task of one prompt, if its completions are all."""
    prompts = self.task.all_prompts
    if prompts is None or len(prompts) != 1:
      return None
    canvases = self.task.canvases(prompts[0])
    num_states = len(self.task.vocab) ** self.task.num_completion
    return canvases if len(canvases) == num_states else None

  def _exact_log_prob(self, params, canvases, chunk=64):
    pad = -len(canvases) % chunk
    rows = np.concatenate([canvases, np.repeat(canvases[:1], pad, axis=0)])
    parts = [
      training.fetch(self._log_prob(params, jnp.asarray(part)))
      for part in np.split(rows, len(rows) // chunk)
    ]
    return np.concatenate(parts)[: len(canvases)].astype(np.float64)
