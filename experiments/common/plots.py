"""Figures of experiments, written as PNG files."""

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402


def lattices(path, panels, size):
  """Rows of square-lattice configurations, one row of pictures a source.

  Args:
    path: File to write.
    panels: `{label: [n, size * size] int}`.
    size: Lattice side.
  """
  columns = min(8, min(len(p) for p in panels.values()))
  figure, axes = plt.subplots(
    len(panels), columns, figsize=(columns, 1.2 * len(panels)), squeeze=False
  )
  top = max(int(p.max()) for p in panels.values())
  for row, (label, configurations) in zip(axes, panels.items(), strict=True):
    for axis, x in zip(row, configurations[:columns], strict=True):
      axis.imshow(x.reshape(size, size), cmap="viridis", vmin=0, vmax=top)
      axis.set_xticks([])
      axis.set_yticks([])
    row[0].set_ylabel(label)
  save(figure, path)


def correlations(path, curves):
  """Two-point correlation against distance: `{label: (mean, se or None)}`."""
  figure, axis = plt.subplots(figsize=(4.5, 3.2))
  for label, (mean, se) in curves.items():
    r = np.arange(1, len(mean) + 1)
    if se is None:
      axis.plot(r, mean, "k--", label=label)
    else:
      axis.errorbar(r, mean, yerr=2 * np.asarray(se), fmt="o", label=label)
  axis.set_xlabel("distance r (sites)")
  axis.set_ylabel("two-point correlation")
  axis.legend()
  save(figure, path)


def training(path, history, *, log_z=None, ramp_end=0):
  """ESS fraction and log Z (its error, if known exactly) against the step.

  Args:
    path: File to write.
    history: Records of `metrics.jsonl`.
    log_z: Exact value, or None.
    ramp_end: Before this step batches are of an easier target, whose log Z is
      another: it is left out.
  """
  figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
  shifts = {"ess_fraction": 0.0, "log_z": log_z or 0.0}
  for axis, (name, shift) in zip(axes, shifts.items(), strict=True):
    for prefix, style in (("", "-"), ("eval/", "o")):
      points = [
        (h["step"], h[prefix + name] - shift)
        for h in history
        if h.get(prefix + name) is not None
        and (prefix or name != "log_z" or h["step"] >= ramp_end)
      ]
      if points:
        label = "fresh rollouts, EMA" if prefix else "training batch"
        axis.plot(*zip(*points, strict=True), style, ms=3, label=label)
    axis.set_xlabel("step")
    axis.set_title(name)
  if log_z is not None:
    axes[1].set_title("log_z - exact")
    axes[1].axhline(0, color="k", ls="--", lw=1)
  for axis in axes:
    axis.set_xlim(left=0)
    if 0 < ramp_end:
      axis.axvline(ramp_end, color="0.8", zorder=0, label="end of the ramp")
    axis.legend()
  save(figure, path)


def planar_set(path, points, *, eq_fn=None, ineq_fn=None, reference=None):
  """Samples in the plane on the set that constrains them.

  Args:
    path: File to write.
    points: `[n, 2]` samples.
    eq_fn: `x -> [m]`; its zero set is drawn.
    ineq_fn: `x -> [l]`; where any is positive is shaded.
    reference: `[k, 2]` exact draws for a second panel, or None.
  """
  panels = {"samples": points}
  if reference is not None:
    panels["exact law"] = reference
  every = np.concatenate(list(panels.values()))
  low, high = every.min() - 0.5, every.max() + 0.5
  axis_values = np.linspace(low, high, 400)
  grid = np.stack(np.meshgrid(axis_values, axis_values), axis=-1)
  flat = jnp.asarray(grid.reshape(-1, 2), jnp.float32)

  def evaluate(fn, reduce):
    values = reduce(np.asarray(jax.vmap(fn)(flat)))
    return values.reshape(grid.shape[:2])

  figure, axes = plt.subplots(
    1, len(panels), figsize=(4 * len(panels), 4), squeeze=False
  )
  for axis, (label, x) in zip(axes[0], panels.items(), strict=True):
    if ineq_fn is not None:
      worst = evaluate(ineq_fn, lambda v: v.max(axis=1))
      axis.contourf(*grid.T, worst.T, [0, np.inf], colors=["0.85"])
    if eq_fn is not None:
      value = evaluate(eq_fn, lambda v: v[:, 0])
      axis.contour(*grid.T, value.T, [0], colors="k", linewidths=0.6)
    axis.plot(*x[:2000].T, ".", ms=2, alpha=0.5)
    axis.set_title(label)
    axis.set_aspect("equal")
  save(figure, path)


def estimates(path, history, exact):
  """Averages over chains of each observable that is known, by step."""
  names = [n for n in exact if any(n in record for record in history)]
  if not names:
    return
  figure, axes = plt.subplots(
    1, len(names), figsize=(3.2 * len(names), 3), squeeze=False
  )
  for axis, name in zip(axes[0], names, strict=True):
    points = [(r["step"], r[name]) for r in history if name in r]
    axis.plot(*zip(*points, strict=True), label="chains now")
    points = [
      (r["step"], r[f"eval/{name}"], r.get(f"eval/{name}_se") or 0.0)
      for r in history
      if r.get(f"eval/{name}") is not None
    ]
    if points:
      steps, values, errors = zip(*points, strict=True)
      axis.errorbar(steps, values, yerr=2 * np.array(errors), fmt="o", ms=3)
    axis.axhline(exact[name], color="k", ls="--", lw=1, label="exact")
    axis.set_title(name)
    axis.set_xlabel("step")
    axis.legend()
  save(figure, path)


def losses(path, history):
  """The training loss, and distances to data by number of steps."""
  figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
  rows = [(r["step"], r["loss"]) for r in history if r.get("loss") is not None]
  if rows:
    axes[0].plot(*zip(*rows, strict=True))
  axes[0].set_title("loss")
  axes[0].set_yscale("log")
  names = dict.fromkeys(
    name for record in history for name in record if "_nfe" in name
  )
  for name in names:
    rows = [(r["step"], r[name]) for r in history if r.get(name) is not None]
    axes[1].plot(*zip(*rows, strict=True), "o-", ms=3, label=name[5:])
  if names:
    axes[1].set_title("distance to data")
    axes[1].set_yscale("log")
    axes[1].legend()
  for axis in axes:
    axis.set_xlabel("step")
  save(figure, path)


def curves(path, history, names, exact=None):
  """Recorded numbers against the step, one panel each.

  Args:
    path: File to write.
    history: Records of `metrics.jsonl`.
    names: Fields of the records; a tuple inside shares a panel.
    exact: `{name: value}`, drawn as dashed lines.
  """
  exact = exact or {}
  groups = [(n,) if isinstance(n, str) else n for n in names]
  groups = [g for g in groups if any(n in row for n in g for row in history)]
  if not groups:
    return
  figure, axes = plt.subplots(
    1, len(groups), figsize=(3.2 * len(groups), 3), squeeze=False
  )
  for axis, group in zip(axes[0], groups, strict=True):
    for name in group:
      rows = [
        (row["step"], row[name]) for row in history if row.get(name) is not None
      ]
      if rows:
        axis.plot(*zip(*rows, strict=True), label=name.removeprefix("eval/"))
      if name in exact:
        axis.axhline(exact[name], color="k", ls="--", lw=0.8)
    if len(group) > 1:
      axis.legend(fontsize=7)
    axis.set_title(group[0].removeprefix("eval/"))
    axis.set_xlabel("step")
  save(figure, path)


def images(path, panels):
  """Rows of pictures in `[-1, 1]`: `{label: [n, H, W, C]}`."""
  columns = min(len(p) for p in panels.values())
  figure, axes = plt.subplots(
    len(panels), columns, figsize=(0.6 * columns, 0.7 * len(panels))
  )
  for row, (label, pictures) in zip(axes, panels.items(), strict=True):
    for axis, picture in zip(row, pictures[:columns], strict=True):
      shown = np.clip(0.5 * (np.asarray(picture) + 1), 0, 1)
      axis.imshow(shown.squeeze(), cmap="gray", vmin=0, vmax=1)
      axis.set_xticks([])
      axis.set_yticks([])
    row[0].set_ylabel(label, rotation=0, ha="right", va="center")
  save(figure, path)


def points(path, panels):
  """Point clouds in the plane, one panel each: `{label: [n, 2]}`."""
  figure, axes = plt.subplots(
    1, len(panels), figsize=(2.4 * len(panels), 2.6), squeeze=False
  )
  first = np.asarray(next(iter(panels.values())))
  low, high = 1.2 * first.min(), 1.2 * first.max()
  for axis, (label, x) in zip(axes[0], panels.items(), strict=True):
    axis.plot(*np.asarray(x).T, ".", ms=1, alpha=0.5)
    axis.set_title(label)
    axis.set_xlim(low, high)
    axis.set_ylim(low, high)
    axis.set_aspect("equal")
  save(figure, path)


def paths(path, trajectories):
  """Paths `[K + 1, n, 2]` from noise (black) to data."""
  figure, axis = plt.subplots(figsize=(4, 4))
  trajectories = np.asarray(trajectories)
  axis.plot(trajectories[..., 0], trajectories[..., 1], "C0-", lw=0.4)
  axis.plot(*trajectories[0].T, "k.", ms=2)
  axis.plot(*trajectories[-1].T, "C1.", ms=3)
  axis.set_aspect("equal")
  save(figure, path)


def cells(path, targets, assign):
  """Laguerre cells in the plane of the noise.

  Args:
    path: File to write.
    targets: `[M, 2]` points.
    assign: `[n, 2] -> [n]`, the cell of each noise vector.
  """
  axis_values = np.linspace(-3, 3, 300)
  grid = np.stack(np.meshgrid(axis_values, axis_values), axis=-1)
  index = np.asarray(assign(jnp.asarray(grid.reshape(-1, 2), jnp.float32)))
  colours = np.random.default_rng(0).uniform(0.25, 1, (len(targets), 3))
  figure, axes = plt.subplots(1, 2, figsize=(8, 4))
  axes[0].imshow(
    colours[index].reshape(300, 300, 3), origin="lower", extent=(-3, 3, -3, 3)
  )
  axes[0].set_title("cells of the noise")
  axes[1].scatter(*np.asarray(targets).T, c=colours, s=6)
  axes[1].set_title("points, in their cells' colours")
  for axis in axes:
    axis.set_aspect("equal")
  save(figure, path)


def save(figure, path):
  """Writes a figure as PNG, and forgets it."""
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  plt.close(figure)
