"""Pictures and films of frames, true and imagined."""

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from experiments.common import plots
from experiments.world import envs


def film(path, env: envs.Env, rows, *, num_frames: int = 12) -> None:
  """Strips of frames, one a label.

  Args:
    path: File to write.
    env: Whose palette and shape they have.
    rows: `{label: tokens [T, N]}`.
    num_frames: Frames shown of each, spread over it.
  """
  length = min(len(tokens) for tokens in rows.values())
  shown = np.unique(np.linspace(0, length - 1, num_frames).astype(int))
  figure, axes = plt.subplots(
    len(rows),
    len(shown),
    figsize=(1.1 * len(shown), 1.3 * len(rows)),
    squeeze=False,
  )
  for line, (label, tokens) in zip(axes, rows.items(), strict=True):
    for axis, t in zip(line, shown, strict=True):
      axis.imshow(envs.render(env.palette, env.view.shape, tokens[t], 1))
      axis.set_xticks([])
      axis.set_yticks([])
    line[0].set_ylabel(label, fontsize=7)
  for axis, t in zip(axes[0], shown, strict=True):
    axis.set_title(f"{t + 1}", fontsize=7)
  plots.save(figure, path)


def maps(path, env: envs.Env, rows) -> None:
  """The world as frames pasted together, and where they contradict.

  Args:
    path: File to write.
    env: Whose palette and view they have.
    rows: `{label: (tokens [T, N], pose [T, 3])}`.
  """
  figure, axes = plt.subplots(
    len(rows), 2, figsize=(7, 3 * len(rows)), squeeze=False
  )
  for line, (label, (tokens, pose)) in zip(axes, rows.items(), strict=True):
    # Unwrapped: on a torus the walk goes on beyond the edge of the map.
    steps = np.asarray(env.view.nearest(np.diff(pose[:, :2], axis=0)))
    place = np.concatenate([[[0, 0]], np.cumsum(steps, axis=0)])
    walk = np.column_stack([place, pose[:, 2]]).astype(np.int32)
    cells = np.asarray(env.view.cells(walk))
    low = cells.min(axis=(0, 1))
    shape = tuple(cells.max(axis=(0, 1)) - low + 1)
    picture = np.full((*shape, 3), 255, np.uint8)
    first = np.full(shape, -1)
    differ, seen = np.zeros(shape), np.zeros(shape)
    for frame, at in zip(tokens, cells - low, strict=True):
      at = tuple(at.T)
      again = first[at] >= 0
      differ[at] += again & (first[at] != frame)
      seen[at] += again
      first[at] = np.where(again, first[at], frame)
      picture[at] = env.palette[frame]
    line[0].imshow(picture)
    line[0].plot(*(place - low)[:, ::-1].T, "k-", lw=1)
    line[0].set_title(f"{label}: as seen last", fontsize=8)
    share = np.where(seen > 0, differ / np.maximum(seen, 1), np.nan)
    shown = line[1].imshow(share, vmin=0, vmax=1, cmap="magma")
    figure.colorbar(shown, ax=line[1], shrink=0.7)
    line[1].set_title("views that differ from the first", fontsize=8)
    for axis in line:
      axis.set_xticks([])
      axis.set_yticks([])
  plots.save(figure, path)


def gif(path, env: envs.Env, rows, *, scale: int = 12, seconds=0.25) -> None:
  """The same side by side, as a GIF that loops."""
  length = min(len(tokens) for tokens in rows.values())
  pictures = [
    envs.render(env.palette, env.view.shape, tokens[:length], scale)
    for tokens in rows.values()
  ]
  gap = np.full((*pictures[0].shape[:2], scale // 2, 3), 255, np.uint8)
  joined = [pictures[0]]
  for picture in pictures[1:]:
    joined += [gap, picture]
  frames = [Image.fromarray(f) for f in np.concatenate(joined, axis=2)]
  path.parent.mkdir(parents=True, exist_ok=True)
  frames[0].save(
    path,
    save_all=True,
    append_images=frames[1:],
    duration=int(1000 * seconds),
    loop=0,
  )
