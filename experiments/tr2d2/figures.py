"""Histograms of rewards, fronts, logos, and the best found by calls."""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.common import plots
from jdiff.core import pareto


def histograms(path, rewards, names, exact=None):
  """Rewards of several sources, one panel an objective.

  Args:
    path: File to write.
    rewards: `{label: [N, K]}`; rows with a NaN are left out.
    names: Of the objectives.
    exact: `{name: mean}` under the law aimed at, where known.
  """
  figure, axes = plt.subplots(
    1, len(names), figsize=(4 * len(names), 3), squeeze=False
  )
  kept = {label: _valid(values) for label, values in rewards.items()}
  for k, (axis, name) in enumerate(zip(axes[0], names, strict=True)):
    columns = [values[:, k] for values in kept.values()]
    everything = np.concatenate(columns)
    if not len(everything):
      continue
    levels = np.unique(everything)
    bins = np.histogram_bin_edges(everything, 40)
    if len(levels) <= 40:
      gap = np.diff(levels).min() if len(levels) > 1 else 1.0
      bins = np.concatenate([levels - gap / 2, levels[-1:] + gap / 2])
    for label, values in zip(kept, columns, strict=True):
      axis.hist(values, bins, density=True, alpha=0.5, label=label)
    if exact and name in exact:
      axis.axvline(exact[name], color="k", ls="--", lw=0.8, label="exact mean")
    axis.set_xlabel(name)
  axes[0][0].set_ylabel("density")
  _legend(axes[0][0])
  plots.save(figure, path)


def fronts(path, rewards, names):
  """The first two objectives of several sources, and each one's front.

  Args:
    path: File to write.
    rewards: `{label: [N, K]}`; rows with a NaN are left out.
    names: Of the objectives.
  """
  figure, axis = plt.subplots(figsize=(5, 4))
  for label, values in rewards.items():
    values = np.unique(_valid(values)[:, :2], axis=0)
    if not len(values):
      continue
    front = values[np.asarray(pareto.non_dominated(jnp.asarray(values)))]
    front = front[np.argsort(front[:, 0])]
    (line,) = axis.step(*front.T, where="post", label=label)
    axis.plot(*front.T, "o", ms=3, color=line.get_color())
    shown = values[:: max(1, len(values) // 500)]
    axis.plot(*shown.T, ".", ms=1.5, alpha=0.25, color=line.get_color())
  axis.set_xlabel(names[0])
  axis.set_ylabel(names[1])
  _legend(axis)
  plots.save(figure, path)


def fronts_by_round(path, history, names, num_turns):
  """The fronts of rounds' rows, as far as records hold them.

  Args:
    path: File to write.
    history: Records of `metrics.jsonl`, with `front_0_<name>` and so on.
    names: Of the objectives; the first two are drawn.
    num_turns: Steps of a round.
  """
  figure, axis = plt.subplots(figsize=(5, 4))
  rows = [row for row in history if f"front_0_{names[0]}" in row]
  colours = plt.get_cmap("viridis")(np.linspace(0, 1, max(len(rows), 1)))
  for i, row in enumerate(rows):
    points = []
    while f"front_{len(points)}_{names[0]}" in row:
      points.append([row[f"front_{len(points)}_{n}"] for n in names[:2]])
    points = np.unique(np.array(points), axis=0)
    if points.min() <= -1e9:
      continue
    label = f"round {row['step'] // num_turns}"
    shown = i in (0, len(rows) // 2, len(rows) - 1)
    axis.plot(
      *points.T, ".-", color=colours[i], lw=0.8, label=label if shown else None
    )
  axis.set_xlabel(names[0])
  axis.set_ylabel(names[1])
  _legend(axis)
  plots.save(figure, path)


def logos(path, samples, letters):
  """Information at each site, letters by their share, one row a source.

  Args:
    path: File to write.
    samples: `{label: [N, L]}` tokens.
    letters: One for each token.
  """
  # Heavy, and part of an extra.
  import logomaker
  import pandas

  figure, axes = plt.subplots(
    len(samples),
    1,
    figsize=(max(4, 0.3 * next(iter(samples.values())).shape[1]), 4),
    squeeze=False,
  )
  for axis, (label, tokens) in zip(axes[:, 0], samples.items(), strict=True):
    share = (tokens[..., None] == np.arange(len(letters))).mean(axis=0)
    bits = np.log2(len(letters)) + np.sum(
      share * np.log2(np.maximum(share, 1e-9)), axis=1, keepdims=True
    )
    table = pandas.DataFrame(share * bits, columns=list(letters))
    logomaker.Logo(table, ax=axis, color_scheme="classic")
    axis.set_ylim(0, np.log2(len(letters)))
    axis.set_ylabel(f"{label}\nbits")
  plots.save(figure, path)


def best_by_calls(path, history, found, names):
  """The best of each objective so far, against rewards asked for.

  Args:
    path: File to write.
    history: Records of `metrics.jsonl`.
    found: `{label: inference.Found}`, searches of the base alone.
    names: Of the objectives.
  """
  figure, axes = plt.subplots(
    1, len(names), figsize=(4 * len(names), 3), squeeze=False
  )
  for k, (axis, name) in enumerate(zip(axes[0], names, strict=True)):
    # Before anything valid was found the best stands at a far minimum.
    rows = [row for row in history if row.get(f"best_{name}", -1e9) > -1e9]
    axis.plot(
      [row["num_calls"] for row in rows],
      [row[f"best_{name}"] for row in rows],
      label="fine-tuning",
    )
    for label, search in found.items():
      column = search.rewards[:, k]
      best = np.maximum.accumulate(np.nan_to_num(column, nan=-np.inf))
      axis.plot(np.arange(1, len(best) + 1), best, label=label)
    axis.set_xlabel("rewards asked for")
    axis.set_ylabel(f"best {name}")
    axis.set_xscale("log")
  axes[0][0].legend()
  plots.save(figure, path)


def _legend(axis):
  # Nothing may have been valid.
  if axis.get_legend_handles_labels()[1]:
    axis.legend()


def _valid(values):
  return values[np.isfinite(values).all(axis=1)]
