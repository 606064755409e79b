"""Pictures of loops, written as PNG files."""

import numpy as np

from experiments.common import plots

# After `plots`, which chooses a backend that needs no screen.
plt = plots.plt


def lines(path, panels):
  """Numbers by generation, a panel each.

  Args:
    path: File to write.
    panels: `{title: {label: (values [n], exact [n] or None)}}`.
  """
  figure, axes = plt.subplots(
    1, len(panels), figsize=(4 * len(panels), 3.2), squeeze=False
  )
  for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
    for label, (values, exact) in curves.items():
      generation = np.arange(1, len(values) + 1)
      (line,) = axis.plot(generation, values, "o-", ms=3, label=label)
      if exact is not None:
        axis.plot(generation, exact, "--", color=line.get_color(), lw=2)
    axis.set_title(title)
    axis.set_xlabel("generation")
    axis.xaxis.get_major_locator().set_params(integer=True)
  axes[0, 0].legend(fontsize=7)
  plots.save(figure, path)


def law(path, series):
  """Entropy against the log of the score, the first generation hollow.

  Args:
    path: File to write.
    series: `{label: (log_score [n], entropy [n])}`.
  """
  figure, axis = plt.subplots(figsize=(4.5, 3.6))
  for label, (x, y) in series.items():
    (line,) = axis.plot(x[1:], y[1:], "o", ms=4, label=label)
    axis.plot(x[:1], y[:1], "o", ms=4, mfc="none", color=line.get_color())
  axis.set_xlabel("log generalisation score")
  axis.set_ylabel("entropy of the training set (nats)")
  axis.legend(fontsize=7)
  plots.save(figure, path)
