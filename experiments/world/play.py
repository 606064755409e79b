r"""Plays a trained world: arrow keys move through what the model imagines.

  python -m experiments.world.play --workdir=W [--seed=0]

The left panel is imagined, from one real frame on; the right one is the true
world under the same actions. Keys: arrows or the first letters of actions
(listed on start), `m` turns the memory off and on, `r` begins again, `q` quits.
Without a terminal, keys are read from standard input: `echo wwaa |`.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from PIL import Image

from experiments.world import envs, evaluate, parts
from jdiff import training
from jdiff.world import layout as layout_lib

ARROWS = {
  "\x1b[A": ("north", "up", "forward"),
  "\x1b[B": ("south", "down"),
  "\x1b[C": ("east", "right", "turn_right"),
  "\x1b[D": ("west", "left", "turn_left"),
}
"""The arrow keys, and the actions that they mean, whichever there is."""


class Player:
  """A walk through an imagined world beside the true one.

  Attributes:
    env: The environment.
    state: Of the imagined world.
    real: Of the true world.
    has_memory: Whether the memory is read.
    frames: `(imagined [N], true [N])` so far, the first one real.
  """

  def __init__(self, config, params: Any, *, seed: int = 0):
    self.config, self.params = config, params
    if config.data.labels != "actions":
      raise ValueError(
        "a run to play must have config.data.labels='actions', got "
        f"{config.data.labels!r}: the true world knows no other actions."
      )
    self.system = parts.system(config)
    self.env: envs.Env = self.system.env
    self._step = jax.jit(self.system.world.step)
    self._observe = jax.jit(self.system.world.observe)
    self._move = jax.jit(self.env.step)
    self.has_memory = True
    self.begin(seed)

  @classmethod
  def load(cls, workdir: str | os.PathLike, *, seed: int = 0) -> "Player":
    """The player of a run; the parameters that were evaluated."""
    _, params, config = training.load(workdir)
    return cls(config, params, seed=seed)

  def begin(self, seed: int) -> None:
    """A new world, of which one real frame is seen."""
    key = jax.random.key(seed)
    self._key_env, self.key = jax.random.split(key)
    self.seed = seed
    self.real = jax.jit(self.env.reset)(self._key_env)
    state = jax.jit(self.system.world.init)(self.params)
    memory = evaluate.switch(state.memory, self.has_memory)
    state = state._replace(memory=memory)
    tokens = self.env.tokens(self.real)
    self.state = self._observe(
      self.params, state, tokens, jnp.int32(0), self.env.pose(self.real)
    )
    self.frames = [(np.asarray(tokens), np.asarray(tokens))]

  def press(self, action: str | int) -> tuple[np.ndarray, np.ndarray]:
    """Acts in both worlds; `(imagined [N], true [N])`.

    Raises:
      ValueError: If there is no such action.
    """
    names = self.env.action_names
    if isinstance(action, str):
      if action not in names:
        raise ValueError(
          f"action must be one of {', '.join(names)}, got {action!r}."
        )
      action = names.index(action)
    layout_lib.check_range("action", np.asarray(action), len(names))
    self.state, frame = self._step(
      self.params, self.key, self.state, jnp.int32(action)
    )
    key = jax.random.fold_in(self._key_env, len(self.frames))
    self.real = self._move(key, self.real, jnp.int32(action))
    both = np.asarray(frame.tokens), np.asarray(self.env.tokens(self.real))
    self.frames.append(both)
    return both

  def toggle(self) -> None:
    """Turns reading the memory off or on."""
    self.has_memory = not self.has_memory
    memory = evaluate.switch(self.state.memory, self.has_memory)
    self.state = self.state._replace(memory=memory)

  def picture(self, scale: int = 16) -> np.ndarray:
    """The two panels `[H, W, 3]` uint8, the imagined one on the left."""
    panels = [
      envs.render(self.env.palette, self.env.view.shape, tokens, scale)
      for tokens in self.frames[-1]
    ]
    gap = np.full((panels[0].shape[0], scale, 3), 255, np.uint8)
    return np.concatenate([panels[0], gap, panels[1]], axis=1)

  def text(self) -> str:
    """The two panels in colour, for a terminal."""
    rows = []
    for row in self.picture(1):
      cells = (f"\x1b[48;2;{r};{g};{b}m  " for r, g, b in row)
      rows.append("".join(cells) + "\x1b[0m")
    imagined, true = self.frames[-1]
    memory = "on" if self.has_memory else "off"
    rows.append(
      f"frame {len(self.frames) - 1}, memory {memory}, "
      f"{(imagined == true).mean():.0%} of cells as in the true world"
    )
    return "\r\n".join(rows)

  def widget(self):
    """Buttons and the two panels, for a notebook.

    Raises:
      ImportError: If `ipywidgets` is not installed.
    """
    try:
      import ipywidgets
    except ImportError as error:
      raise ImportError(
        "the notebook's player needs ipywidgets; install it with: "
        "pip install ipywidgets"
      ) from error
    picture = ipywidgets.Image(format="png", width=420)
    label = ipywidgets.Label()

    def show():
      picture.value = _png(self.picture())
      label.value = self.text().splitlines()[-1]

    def button(name, act):
      made = ipywidgets.Button(description=name)

      def on_click(_):
        act()
        show()

      made.on_click(on_click)
      return made

    buttons = [
      button(name, lambda name=name: self.press(name))
      for name in self.env.action_names
    ]
    buttons.append(button("memory", self.toggle))
    buttons.append(button("begin again", lambda: self.begin(self.seed + 1)))
    show()
    return ipywidgets.VBox([picture, label, ipywidgets.HBox(buttons)])


def keys(names: tuple[str, ...]) -> dict[str, str]:
  """A letter for each action: its first, or the next one that is free."""
  taken: dict[str, str] = {}
  for name in names:
    free = [c for c in name.lower() if c.isalpha() and c not in "mrq"]
    letter = next(c for c in [*free, *"0123456789"] if c not in taken)
    taken[letter] = name
  return taken


def run(player: Player, pressed: Iterator[str], write) -> None:
  """Plays the keys of an iterator until `q` or its end."""
  letters = keys(player.env.action_names)
  write(
    ", ".join(f"{k}: {name}" for k, name in letters.items())
    + ", m: memory, r: again, q: quit\r\n"
  )
  write(player.text() + "\r\n")
  for key in pressed:
    means = ARROWS.get(key, (letters.get(key, key),))
    name = next((m for m in means if m in player.env.action_names), None)
    if key == "q":
      return
    if key == "m":
      player.toggle()
    elif key == "r":
      player.begin(player.seed + 1)
    elif name is not None:
      player.press(name)
    else:
      continue
    write(player.text() + "\r\n")


def typed(stream) -> Iterator[str]:
  """Keys from a stream of characters, arrows in three of them."""
  while True:
    char = stream.read(1)
    if not char:
      return
    if char == "\x1b":
      yield char + stream.read(2)
    elif not char.isspace():
      yield char


@contextlib.contextmanager
def raw_terminal(stream) -> Iterator[None]:
  """Single keys without an enter, where the stream is a terminal."""
  if not stream.isatty():
    yield
    return
  # Not on every system; piped keys work on all.
  import termios
  import tty

  before = termios.tcgetattr(stream)
  try:
    tty.setcbreak(stream)
    yield
  finally:
    termios.tcsetattr(stream, termios.TCSADRAIN, before)


def _png(picture: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, format="png")
  return buffer.getvalue()


def main(argv: list[str]) -> None:
  """Loads a run and plays it."""
  del argv
  try:
    player = Player.load(FLAGS.workdir, seed=FLAGS.seed)
  except (ValueError, FileNotFoundError, ImportError) as error:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from error
  clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""

  def write(text):
    sys.stdout.write(clear + text)
    sys.stdout.flush()

  with raw_terminal(sys.stdin):
    run(player, typed(sys.stdin), write)


FLAGS = flags.FLAGS

if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Of a finished run.", required=True)
  flags.DEFINE_integer("seed", 0, "Of the world.")
  app.run(main)
