"""Averages of the chains beside the exact ones, and pictures of the samples."""

import pathlib

import numpy as np

from experiments.common import metrics as metrics_lib
from experiments.common import plots
from jdiff import training


class Reporter:
  """Reads the chains' averages; nothing here is simulated again."""

  def __init__(self, config, target, num_burn_in):
    self.config, self.target = config, target
    self.num_burn_in = num_burn_in
    self._known = None

  def evaluate(self, params, key, *, final: bool):
    """Estimates by averages over chains and time.

    Standard errors are of the chains' averages, which are independent. A
    sampler without a Metropolis test has a bias that they do not show: read the
    exact column.
    """
    del key, final
    _, chains = training.fetch(params)
    if not chains.count:
      return {}
    num_chains = self.config.num_chains
    exact = self._exact()
    table = {}
    for name, total in chains.sums.items():
      means = np.asarray(total, np.float64) / chains.count
      se = means.std(ddof=1) / num_chains**0.5 if num_chains > 1 else None
      table[name] = {
        "value": means.mean(),
        "se": se,
        "exact": exact.get(name),
      }
    for name, total in chains.violation.items():
      table[f"{name}_violation"] = float(np.mean(total) / chains.count)
    table |= self._mixing(chains)
    return table

  def sample(self, params, key, num_samples):
    """`[num_samples, d]`: the chains' last positions, at most one each."""
    del key
    positions = training.fetch(params[0])
    if num_samples > len(positions):
      raise ValueError(
        f"num_samples must be at most the {len(positions)} chains, got "
        f"{num_samples}; the chains' last positions are the samples."
      )
    return positions[:num_samples]

  def figures(self, params, key, directory, history):
    """Positions on the set (in the plane), and estimates against the step."""
    positions, _ = training.fetch(params)
    directory = pathlib.Path(directory)
    if self.target.dim == 2:
      reference = None
      if self.target.sample is not None:
        reference = np.asarray(self.target.sample(key, 2000))
      plots.planar_set(
        directory / "samples.png",
        np.asarray(positions),
        eq_fn=self.target.eq_fn,
        ineq_fn=self.target.ineq_fn,
        reference=reference,
      )
    plots.estimates(directory / "estimates.png", history, self._exact())

  def _mixing(self, chains):
    # A run that stops early has not filled the trace.
    filled = self.num_burn_in + int(chains.count)
    table = {}
    for name, trace in chains.trace.items():
      values = np.asarray(trace[self.num_burn_in : filled], np.float64).T
      if values.shape[0] < 2 or values.shape[1] < 8 or values.std() == 0:
        continue
      share = float(metrics_lib.ess(values)) / values.size
      table[f"{name}_ess_fraction"] = share
      table[f"{name}_r_hat"] = float(metrics_lib.r_hat(values))
    return table

  def _exact(self):
    if self._known is None:
      self._known = self.target.exact()
    return self._known
