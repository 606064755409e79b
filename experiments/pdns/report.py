"""Evaluates a sampler on fresh draws, beside what is known exactly."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import estimates
from experiments.common import metrics as metrics_lib
from experiments.pdns import chains, figures
from jdiff import training
from jdiff.core import weights
from jdiff.methods import pdns


class Evaluator:
  """Fresh rollouts, their weights, and distances to samples of the target."""

  def __init__(self, config, process):
    self.config, self.process = config, process
    self.target = process.target
    chunk = min(config.eval_chunk, config.num_eval)
    self.chunk, self.num_chunks = chunk, -(-config.num_eval // chunk)

    def rollouts(policy, key):
      keys = training.example_keys(key, chunk)
      buffer = process.sampler.collect(policy, keys, chunk)
      observed = jax.vmap(self.target.observables)(buffer.samples)
      return buffer.samples, pdns.log_weights(buffer), observed

    self._rollouts = jax.jit(rollouts)
    self._upper = jax.jit(process.sampler.eubo)
    self._found = None

  def evaluate(self, params, key, *, final: bool):
    """Estimates by self-normalised weights, each beside its exact value."""
    samples, log_w, observed = self._draw(params, key, self.num_chunks)
    exact = estimates.known(self.target)
    metrics = estimates.of_weights(log_w, exact)
    metrics |= estimates.of_observables(log_w, observed, exact)
    if "cut" in observed:
      # The largest that was drawn, beside the largest that there is.
      metrics["best_cut"] = estimates.entry(
        observed["cut"].max(), None, exact.get("max_cut")
      )
    metrics["remaining"] = estimates.entry(1 - params["scale"], None, 0.0)
    if not final:
      return {k: v for k, v in metrics.items() if not k.endswith("_raw")}
    reference = self._reference(key)
    if reference is not None:
      metrics |= self._distances(samples, log_w, reference)
      upper = self._upper(
        params, jax.random.fold_in(key, 2**30 + 1), jnp.asarray(reference[0])
      )
      metrics["eubo"] = metrics_lib.mean(upper)
    stages = -(-self.config.num_steps // self.config.stages.inner_steps)
    draws = stages * self.config.buffer.num_samples
    if self.process.path_method is not None:
      draws += self.config.num_steps * self.config.batch_size
    if self.process.first is not None:
      draws += (self.process.nfe + 1) * self.config.buffer.num_samples
    # All that training has asked of the target, to compare at equal cost.
    metrics["energy_evaluations"] = float(draws)
    metrics["nfe"] = self.process.nfe
    return metrics

  def sample(self, params, key, num_samples):
    """`[num_samples, ...]` draws of the sampler, unweighted."""
    chunks = -(-num_samples // self.chunk)
    return self._draw(params, key, chunks)[0][:num_samples]

  def figures(self, params, key, directory, history):
    """The stages, the modes, and draws beside reference samples."""
    directory = pathlib.Path(directory)
    samples, log_w, observed = self._draw(params, key, 1)
    figures.stages(
      directory / "stages.png",
      history,
      log_z=estimates.known(self.target).get("log_z"),
      log_z_at=self.process.log_z_at,
    )
    figures.modes(
      directory / "modes.png", log_w, observed, estimates.known(self.target)
    )
    reference = self._reference(key)
    figures.draws(
      directory / "samples.png",
      self.target,
      samples,
      log_w,
      None if reference is None else reference[0],
    )

  def _draw(self, params, key, num_chunks):
    """Samples, log-weights and observables of fresh rollouts, on the host."""
    chunks = [
      training.fetch(self._rollouts(params, jax.random.fold_in(key, i)))
      for i in range(num_chunks)
    ]
    return jax.tree.map(lambda *x: np.concatenate(x), *chunks)

  def _distances(self, samples, log_w, reference):
    """Of resampled draws and of plain ones, with the distance of two exact."""
    num = self.config.num_reference
    if self.target.length is not None:
      return {}
    first, second = (np.asarray(x) for x in reference)
    weight = np.asarray(weights.normalise(jnp.asarray(log_w)), np.float64)
    found = {}
    if self.target.particles is None:
      index = np.random.default_rng(0).choice(
        len(samples), num, p=weight / weight.sum()
      )
      sets = {"": samples[index], "_raw": samples[:num], "_floor": second}
      few = min(self.config.num_sinkhorn, num)
      for suffix, x in sets.items():
        found[f"w2{suffix}"] = estimates.entry(metrics_lib.w2(x, first))
        found[f"mmd{suffix}"] = estimates.entry(metrics_lib.mmd(x, first))
        if few:
          result = metrics_lib.sinkhorn(x[:few], first[:few])
          # One that has not converged is no result.
          value = result.value if result.converged else np.nan
          found[f"sinkhorn{suffix}"] = estimates.entry(value)
      return found | self._torsions(samples, weight, first, second)
    for name, function in (
      ("energy_w2", self._energy),
      ("distance_w2", metrics_lib.distances),
    ):
      values, want, again = (function(x) for x in (samples, first, second))
      columns = values.reshape(len(values), -1).shape[1]
      shares = np.repeat(weight, columns)
      distance = functools.partial(metrics_lib.energy_w2, b=want.ravel())
      found[name] = estimates.entry(distance(values.ravel(), a_weights=shares))
      found[f"{name}_raw"] = estimates.entry(distance(values.ravel()))
      found[f"{name}_floor"] = estimates.entry(distance(again.ravel()))
    return found

  def _torsions(self, samples, weight, first, second):
    """KL of the marginal law of each torsion, for molecules."""
    observe = jax.jit(jax.vmap(self.target.observables))
    seen = observe(jnp.asarray(samples))
    if not {"phi", "psi"} <= set(seen):
      return {}
    want, again = (observe(jnp.asarray(x)) for x in (first, second))
    found = {}
    for name in sorted(set(want) - {"energy"}):
      kl = functools.partial(
        metrics_lib.histogram_kl, reference=np.asarray(want[name])
      )
      values = np.asarray(seen[name])
      found[f"kl_{name}"] = estimates.entry(kl(values, weights=weight))
      found[f"kl_{name}_raw"] = estimates.entry(kl(values))
      found[f"kl_{name}_floor"] = estimates.entry(kl(np.asarray(again[name])))
    return found

  def _energy(self, x):
    observed = jax.jit(jax.vmap(self.target.observables))(jnp.asarray(x))
    return np.asarray(observed["energy"])

  def _reference(self, key):
    """Two sets `[num_reference, ...]` of exact or long-chain samples, or None.

    Made once, by the first key: distances, figures and EUBO share them.
    """
    if self._found is None:
      num = self.config.num_reference
      key = jax.random.fold_in(key, 2**30)
      if self.target.sample is not None:
        draws = np.asarray(self.target.sample(key, 2 * num))
      elif self.target.length is None:
        draws = chains.sample(self.target, key, 2 * num)
      else:
        return None
      self._found = draws[:num], draws[num:]
    return self._found
