"""Figures of proximal samplers."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.common import metrics, plots
from jdiff.core import weights


def stages(path, history, *, log_z=None, log_z_at=None):
  """The way to the target, stage by stage.

  Args:
    path: File to write.
    history: Records of `metrics.jsonl`, one a stage.
    log_z: The exact log partition function, or None.
    log_z_at: `remaining -> ` exact normaliser of a stage's law, or None.
  """
  rows = [row for row in history if "remaining" in row]
  if not rows:
    return
  figure, axes = plt.subplots(1, 3, figsize=(10, 3))
  step = [row["step"] for row in rows]

  def column(name):
    return np.array([row[name] for row in rows], float)

  axes[0].plot(step, column("remaining"))
  axes[0].set_title("remaining")
  axes[1].plot(step, column("stage_ess_fraction"), label="to the stage's law")
  axes[1].plot(step, column("ess_fraction"), label="to the target")
  axes[1].set_title("ESS fraction of the buffer")
  axes[1].legend(fontsize=7)
  if log_z_at is not None:
    want = np.array([log_z_at(float(r)) for r in column("remaining")])
    axes[2].errorbar(
      step,
      column("stage_log_z") - want,
      yerr=2 * column("stage_log_z_se"),
      fmt=".",
      ms=3,
    )
    axes[2].axhline(0, color="k", ls="--", lw=0.8)
    axes[2].set_title("stage's log Z - exact")
  else:
    axes[2].plot(step, column("log_z"), label="log_z")
    axes[2].plot(step, column("elbo"), label="elbo")
    if log_z is not None:
      axes[2].axhline(log_z, color="k", ls="--", lw=0.8, label="exact")
    axes[2].legend(fontsize=7)
  for axis in axes:
    axis.set_xlabel("step")
  plots.save(figure, path)


def modes(path, log_w, observed, exact):
  """Shares of modes: drawn, reweighted, exact."""
  values = observed.get("mode_share")
  if values is None:
    return
  share = np.asarray(weights.normalise(jnp.asarray(log_w)))
  figure, axis = plt.subplots(figsize=(5, 3))
  place = np.arange(values.shape[1])
  axis.bar(place - 0.2, values.mean(axis=0), 0.4, label="drawn")
  axis.bar(place + 0.2, share @ values, 0.4, label="reweighted")
  if exact.get("mode_share") is not None:
    axis.plot(place, exact["mode_share"], "k_", ms=8, label="exact")
  axis.set_xlabel("mode")
  axis.set_ylabel("share")
  axis.legend(fontsize=7)
  plots.save(figure, path)


def draws(path, target, samples, log_w, reference):
  """What draws look like, by the kind of the target."""
  if target.length is not None:
    size = round(target.length**0.5)
    if "even_odd" in target.orders:
      panels = {"jdiff": samples[:16]}
      if reference is not None:
        panels["reference"] = np.asarray(reference[:16])
      plots.lattices(path, panels, size)
    return
  if target.particles is None:
    panels = {"jdiff": samples[:2000, :2]}
    if reference is not None:
      panels["reference"] = np.asarray(reference[:2000, :2])
    plots.points(path, panels)
    return
  _histograms(path, target, samples, log_w, reference)


def _histograms(path, target, samples, log_w, reference):
  """Energies and distances of particles, beside those of long chains."""
  energy = jax.jit(jax.vmap(lambda x: target.observables(x)["energy"]))
  share = np.asarray(weights.normalise(jnp.asarray(log_w)))
  figure, axes = plt.subplots(1, 2, figsize=(8, 3))
  functions = {
    "energy": lambda x: np.asarray(energy(x)),
    "interatomic distance": metrics.distances,
  }
  for axis, (label, function) in zip(axes, functions.items(), strict=True):
    values = function(samples)
    weight = np.repeat(share, values.reshape(len(values), -1).shape[1])
    want = values if reference is None else function(reference)
    low, high = np.quantile(want, [0.001, 0.999])
    margin = 0.3 * (high - low)
    options = dict(
      bins=80,
      range=(low - margin, high + margin),
      density=True,
      histtype="step",
    )
    axis.hist(values.ravel(), label="drawn", **options)
    axis.hist(values.ravel(), weights=weight, label="reweighted", **options)
    if reference is not None:
      axis.hist(want.ravel(), label="long chains", color="k", **options)
    axis.set_xlabel(label)
    axis.locator_params(axis="x", nbins=6)
    axis.legend(fontsize=7)
  plots.save(figure, path)
