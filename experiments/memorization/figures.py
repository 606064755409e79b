"""Figures of the two studies, written as PNG files."""

import numpy as np

from experiments.common import plots

# After `plots`, which chooses a backend that needs no screen.
plt = plots.plt


def heads(path, importance, closed):
  """What each head is worth, and which are closed.

  Args:
    path: File to write.
    importance: `[L, H]`.
    closed: `{label: gates [L, H]}`, one marker each.
  """
  figure, axis = plt.subplots(figsize=(1 + 0.6 * importance.shape[1], 2.6))
  image = axis.imshow(importance, cmap="viridis", aspect="auto")
  for (label, gates), marker in zip(closed.items(), "xo+", strict=False):
    layer, head = np.nonzero(np.asarray(gates) == 0)
    axis.plot(head, layer, f"C3{marker}", ms=11, mfc="none", label=label)
  axis.set_xlabel("head")
  axis.set_ylabel("layer")
  axis.set_xticks(range(importance.shape[1]))
  axis.set_yticks(range(importance.shape[0]))
  axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(closed))
  figure.colorbar(image, label="importance")
  plots.save(figure, path)


def shares(path, metrics, arms):
  """Bars of the memorised share of each arm, with two standard errors."""
  figure, axis = plt.subplots(figsize=(6, 3.2))
  names = {"memorised": "ratio 1/3", "memorised_half": "ratio 1/2"}
  where = np.arange(len(arms))
  for shift, (name, label) in zip((-0.2, 0.2), names.items(), strict=True):
    found = [metrics[f"{arm}/{name}"] for arm in arms]
    axis.bar(
      where + shift,
      [x["value"] for x in found],
      0.38,
      yerr=[2 * x["se"] for x in found],
      label=label,
      capsize=2,
    )
  axis.set_xticks(where, [arm.replace("_", "\n") for arm in arms])
  axis.set_ylabel("memorised")
  axis.legend()
  plots.save(figure, path)


def sweep(path, panels):
  """Memorised shares as a table, and loss gaps, by width and training rows.

  Args:
    path: File to write.
    panels: `{title: (sizes, shares, gaps)}`, a row each; the last two are
      `{label: [(value, se)]}`, one pair a size. The first line of `gaps` is
      the one to compare with.
  """
  figure, axes = plt.subplots(
    len(panels), 2, figsize=(10, 3.4 * len(panels)), squeeze=False
  )
  for row, (title, (sizes, shares, gaps)) in zip(
    axes, panels.items(), strict=True
  ):
    table, lines = row
    values = np.array([[x for x, _ in line] for line in shares.values()])
    table.imshow(values, cmap="Reds", vmin=0, vmax=1, aspect="auto")
    for i, line in enumerate(shares.values()):
      for j, (value, se) in enumerate(line):
        colour = "w" if value > 0.6 else "k"
        text = f"{value:.4f}\n± {se:.4f}"
        table.text(j, i, text, ha="center", va="center", color=colour)
    table.set_xticks(range(len(sizes)), sizes)
    table.set_yticks(range(len(shares)), list(shares))
    table.set_title(f"memorised, {title}")
    for index, (label, line) in enumerate(gaps.items()):
      value, se = np.array(line, float).T
      style = "o-" if index else "k--"
      lines.errorbar(sizes, value, 2 * se, fmt=style, ms=3, label=label)
    lines.set_xscale("log")
    lines.set_xticks(sizes, sizes)
    lines.minorticks_off()
    lines.set_ylim(bottom=0)
    lines.set_title("loss gap over its largest expectation")
    lines.legend(fontsize=7)
    for axis in row:
      axis.set_xlabel("training rows")
  plots.save(figure, path)
