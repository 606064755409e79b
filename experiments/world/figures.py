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
