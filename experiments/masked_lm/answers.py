"""Accuracy of a policy that answers questions in text, by length."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import metrics as metrics_lib
from experiments.common import plots
from experiments.masked_lm import report
from jdiff import ctmc, training
from jdiff.core import checks

CACHES = ("none", "prefix", "dual")


class Evaluator:
  """Answers held-out questions as the papers do, and scores the answers.

  Temperature 0, by confidence, in blocks, half as many steps as tokens; each of
  `config.eval.lengths` by itself, so that a policy trained at one length is
  measured at others.
  """

  def __init__(self, config, corpus, network, frozen):
    self.config, self.corpus, self.task = config, corpus, corpus.task
    self.frozen = frozen
    options = config.eval
    self.trained = corpus.length - corpus.num_prompt
    longest = config.base.net.max_length - corpus.num_prompt
    for length in (*options.lengths, self.trained):
      checks.check_int("config.eval.lengths", length)
      if length > longest:
        raise ValueError(
          "config.eval.lengths must fit base.net.max_length behind prompts of "
          f"{corpus.num_prompt}, so be at most {longest}, got {length}."
        )
      if length % options.block_size:
        raise ValueError(
          "config.eval.block_size must divide the training length and "
          f"eval.lengths, got block_size={options.block_size} and "
          f"length={length}."
        )
    checks.check_int("config.eval.tokens_per_step", options.tokens_per_step)
    if options.block_size % options.tokens_per_step:
      raise ValueError(
        "config.eval.tokens_per_step must divide eval.block_size, got "
        f"{options.tokens_per_step} and {options.block_size}."
      )
    if options.cache not in CACHES:
      raise ValueError(
        f"config.eval.cache must be one of {', '.join(CACHES)}, got "
        f"{options.cache!r}."
      )
    checks.check_int("config.eval.batch_size", options.batch_size)
    cache = None if options.cache == "none" else options.cache

    @functools.partial(jax.jit, static_argnames=("length", "temperature"))
    def decode(params, key, prompts, *, length, temperature):
      return ctmc.decode(
        params,
        training.example_keys(key, prompts.shape[0]),
        prompts,
        logits_fn=network.apply,
        mask_id=corpus.mask_id,
        length=corpus.num_prompt + length,
        block_size=options.block_size,
        num_steps=length // options.tokens_per_step,
        temperature=temperature,
        cache=cache,
        cached_fn=network.apply_cached,
        init_cache=network.init_cache,
        eos_id=corpus.eos_id,
        stop_at_eos=True,
      )

    self._decode = decode

  def evaluate(self, params, key, *, final):
    """`exact_match` and `reward` at the training length, or at all if final.

    In the end the base's too, `exact_match_base`, and `nfe`, the most that an
    answer of the training length takes: one that ends sooner stops.
    """
    trained = self.trained
    lengths = {trained, *self.config.eval.lengths} if final else {trained}
    num = len(self.task.held_out_prompts(self.config.num_eval))
    metrics = {}
    for length in sorted(lengths):
      of = "" if length == trained else f"_{length}"
      samples = self.answers(params, key, num, length)
      exact = metrics_lib.mean(self.task.exact(samples))
      metrics[f"exact_match{of}"] = exact
      metrics[f"reward{of}"] = metrics_lib.mean(self.task.reward(samples))
    if final:
      base = report.base_of(params, self.frozen)
      samples = self.answers(base, key, num, trained)
      metrics["exact_match_base"] = metrics_lib.mean(self.task.exact(samples))
      metrics["nfe"] = trained // self.config.eval.tokens_per_step
    return metrics

  def answers(self, params, key, num, length, temperature=0.0):
    """`[num, P + length]` canvases; questions come again if they are fewer."""
    prompts = self.task.held_out_prompts(num)
    size = self.config.eval.batch_size
    # Whole batches, so that one program does for all.
    index = np.arange(-(-num // size) * size) % len(prompts)
    batches = prompts[index].reshape(-1, size, prompts.shape[1])
    parts = [
      training.fetch(
        self._decode(
          params,
          jax.random.fold_in(key, i),
          training.shard_batch(jnp.asarray(batch)),
          length=length,
          temperature=temperature,
        ).samples
      )
      for i, batch in enumerate(batches)
    ]
    return np.concatenate(parts)[:num]

  def sample(self, params, key, num_samples):
    """Answers at the training length and the sampler's temperature."""
    temperature = self.config.sampler.temperature
    return self.answers(params, key, num_samples, self.trained, temperature)

  def figures(self, params, key, directory, history):
    """Curves, and answers with their rewards."""
    directory = pathlib.Path(directory)
    samples = self.sample(params, key, report.NUM_WRITTEN)
    rewards = self.task.reward(samples)
    lines = [
      json.dumps({"text": self.task.decode(row), "reward": float(reward)})
      for row, reward in zip(samples, rewards, strict=True)
    ]
    (directory / "completions.jsonl").write_text("\n".join(lines) + "\n")
    plots.curves(directory / "training.png", history, report.CURVES)
