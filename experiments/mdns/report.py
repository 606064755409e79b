"""Evaluates a sampler of a lattice model beside the exact answers."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import estimates, plots
from experiments.common import metrics as metrics_lib
from jdiff import training
from jdiff.core import weights
from jdiff.methods import mdns


class Evaluator:
  """Fresh rollouts, their weights, and what they say of the target."""

  def __init__(self, config, target, sampler, logits_fn, law, causal, mask_id):
    self.config, self.target, self.law = config, target, law
    chunk = min(config.eval_chunk, config.num_eval)
    self.chunk, self.num_chunks = chunk, -(-config.num_eval // chunk)

    def rollouts(params, key):
      keys = training.example_keys(key, chunk)
      rollout = sampler(params, keys, num_samples=chunk)
      observed = jax.vmap(target.observables)(rollout.samples)
      return rollout.samples, mdns.log_weights(rollout, target), observed

    def upper(params, key, samples):
      return mdns.eubo(
        params,
        key,
        samples,
        target,
        logits_fn=logits_fn,
        mask_id=mask_id,
        order=law,
        causal=causal,
      )

    self._rollouts = jax.jit(rollouts)
    self._upper = jax.jit(upper)
    self._reference = None

  def evaluate(self, params, key, *, final: bool):
    """Estimates by self-normalised weights, each beside its exact value.

    Names ending in `_raw` are plain averages of the sampler's own draws: they
    show what reweighting repaired.
    """
    chunks = [
      training.fetch(self._rollouts(params, jax.random.fold_in(key, i))[1:])
      for i in range(self.num_chunks)
    ]
    log_w = jnp.asarray(np.concatenate([c[0] for c in chunks]))
    exact = estimates.known(self.target)
    metrics = estimates.of_weights(log_w, exact)
    observed = {
      name: np.concatenate([c[1][name] for c in chunks])
      for name in chunks[0][1]
    }
    metrics |= estimates.of_observables(log_w, observed, exact)
    if final and self.target.sample is not None:
      key_sample, key_order = jax.random.split(jax.random.fold_in(key, 2**30))
      samples = self._samples(key_sample)
      upper = self._upper(params, key_order, samples)
      metrics["eubo"] = metrics_lib.mean(upper)
    if not final:
      return {k: v for k, v in metrics.items() if not k.endswith("_raw")}
    metrics["nfe"] = self.law.num_steps
    return metrics

  def sample(self, params, key, num_samples):
    """`[num_samples, L]` int32 draws of the sampler, unweighted."""
    draws = []
    for i in range(-(-num_samples // self.chunk)):
      key_i = jax.random.fold_in(key, i)
      draws.append(training.fetch(self._rollouts(params, key_i)[0]))
    return np.concatenate(draws)[:num_samples]

  def figures(self, params, key, directory, history):
    """Spins beside reference draws, correlations, and training curves."""
    directory = pathlib.Path(directory)
    size, count = self.config.target.size, 16
    samples, log_w, observed = training.fetch(self._rollouts(params, key))
    panels = {"jdiff": samples[:count]}
    curves = {}
    if "correlation" in observed:
      mean, se = weights.expectation(
        log_w, jnp.asarray(observed["correlation"])
      )
      curves["reweighted estimate"] = (mean, se)
    exact = estimates.known(self.target)
    if exact.get("correlation") is not None:
      curves["exact"] = (np.asarray(exact["correlation"]), None)
    if self.target.sample is not None:
      reference = self._samples(jax.random.fold_in(key, 2**30))
      panels["reference"] = np.asarray(reference[:count])
      if "exact" not in curves and "correlation" in observed:
        values = np.asarray(
          jax.vmap(self.target.observables)(reference)["correlation"]
        )
        se = values.std(0) / len(values) ** 0.5
        curves["cluster Monte Carlo"] = (values.mean(0), se)
    plots.lattices(directory / "samples.png", panels, size)
    if curves:
      plots.correlations(directory / "correlation.png", curves)
    ramp_end = 0.0
    if self.config.ramp_start < 1:
      ramp_end = self.config.ramp_share * self.config.num_steps
    plots.training(
      directory / "training.png",
      history,
      log_z=exact.get("log_z"),
      ramp_end=ramp_end,
    )

  def _samples(self, key):
    """Reference draws, made once, by the first key: figures and EUBO share."""
    if self._reference is None:
      self._reference = self.target.sample(key, self.config.num_reference)
    return self._reference
