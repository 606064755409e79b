"""What weighted draws say of a target, in the form that `evaluate` answers."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.common import metrics
from jdiff.core import weights
from jdiff.core.types import Target

Entry = dict[str, float | None]

MAX_ENTRIES = 8
"""Vectors with more entries are not listed one by one."""


def entry(value, se=None, exact=None) -> Entry:
  """`{"value", "se", "exact"}`; NaN for `exact` means unknown."""
  known = exact is not None and not np.isnan(exact)
  return {
    "value": float(value),
    "se": None if se is None else float(se),
    "exact": float(exact) if known else None,
  }


def known(target: Target) -> dict[str, Any]:
  """All that a target knows of itself exactly, `log_z` included."""
  exact = {} if target.exact is None else dict(target.exact())
  if target.log_z is not None:
    exact.setdefault("log_z", target.log_z)
  return exact


def of_weights(log_w, exact: Mapping[str, Any]) -> dict[str, Entry]:
  """`log_z`, `elbo` and `ess_fraction` of log-weights `[N]`."""
  log_w = jnp.asarray(log_w)
  # A sample of no weight has no part in the bound.
  finite = log_w[np.isfinite(np.asarray(log_w))]
  return {
    "log_z": entry(
      weights.log_z(log_w), weights.log_z_se(log_w), exact.get("log_z")
    ),
    "elbo": metrics.mean(finite),
    "ess_fraction": entry(weights.ess_fraction(log_w)),
  }


def of_observables(
  log_w, observed: Mapping[str, Any], exact: Mapping[str, Any]
) -> dict[str, Entry]:
  """Self-normalised expectations, each beside its exact value.

  Names ending in `_raw` are plain averages of the sampler's own draws: they
  show what reweighting repaired. Vectors are listed by entry (`mean_0`) if they
  have few, `correlation` at the nearest and the farthest distance, `mode_share`
  also by its extremes.

  Args:
    log_w: `[N]`.
    observed: `{name: [N, ...]}`.
    exact: `{name: value}` where known.
  """
  log_w = jnp.asarray(log_w)
  found: dict[str, Entry] = {}
  for name, values in observed.items():
    values = jnp.asarray(values)
    mean, se = weights.expectation(log_w, values)
    raw, raw_se = values.mean(axis=0), values.std(axis=0) / len(values) ** 0.5
    truth = exact.get(name)
    if values.ndim == 1:
      found[name] = entry(mean, se, truth)
      found[f"{name}_raw"] = entry(raw, raw_se, truth)
      continue
    rows = range(values.shape[1])
    if name == "correlation":
      found |= {
        f"correlation_{r}": _row(mean, se, truth, r - 1)
        for r in sorted({1, values.shape[1]})
      }
    elif len(rows) <= MAX_ENTRIES:
      found |= {f"{name}_{i}": _row(mean, se, truth, i) for i in rows}
    if name == "mode_share":
      if len(rows) <= MAX_ENTRIES:
        found |= {f"{name}_{i}_raw": _row(raw, raw_se, truth, i) for i in rows}
      found |= _modes(mean, se, raw, truth, len(values))
  return found


def _row(mean, se, truth, i) -> Entry:
  return entry(mean[i], se[i], None if truth is None else truth[i])


def _modes(mean, se, raw, truth, num) -> dict[str, Entry]:
  """What a high ESS cannot see: the smallest share of any mode."""
  least = None if truth is None else np.min(truth)
  found = {
    "mode_share_min": entry(mean.min(), None, least),
    "mode_share_min_raw": entry(raw.min(), None, least),
  }
  if truth is not None:
    truth = np.asarray(truth)
    # A mode that was never drawn has no error of its own.
    floor = np.sqrt(truth * (1 - truth) / num)
    z = (np.asarray(mean) - truth) / np.maximum(np.asarray(se), floor)
    found["mode_share_worst_z"] = entry(np.abs(z).max())
    found["modes_lost"] = entry(np.sum(np.asarray(raw) < 0.1 * truth), None, 0)
  return found
