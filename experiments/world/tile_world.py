"""The built-in world: a torus of terrain, walked over in a small window.

Exact ground truth, deterministic, partly seen: what a memory must hold is known
to the cell.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.world import envs
from jdiff.core import checks
from jdiff.world.geometry import View

NUM_TERRAINS = 5
WALL = NUM_TERRAINS
MOVES = ((0, 0, 0), (-1, 0, 0), (0, -1, 0), (0, 1, 0), (1, 0, 0))
ACTIONS = ("stay", "north", "west", "east", "south")
OPPOSITE = (0, 4, 3, 2, 1)
PALETTE = np.array(
  [
    (222, 203, 150),
    (106, 168, 79),
    (61, 133, 198),
    (166, 77, 121),
    (241, 194, 50),
    (60, 60, 66),
  ],
  np.uint8,
)


class TileState(NamedTuple):
  """The map `[R, C]`, wherever the observer is."""

  cells: jax.Array
  pose: jax.Array


def env(
  *, size: int = 24, view: int = 7, salt: float = 0.15, walls: float = 0.12
) -> envs.Env:
  """A torus of five patchy terrains, with salt and blocking walls.

  Args:
    size: Rows and columns of the torus.
    view: Rows and columns of the window, odd; the observer stands in its
      middle.
    salt: Share of cells whose terrain is drawn by itself.
    walls: Share of cells that cannot be walked on.

  Raises:
    ValueError: If a size or share is out of range.
  """
  checks.check_int("size", size, 3)
  checks.check_int("view", view)
  if view % 2 == 0 or view > size:
    raise ValueError(
      f"view must be odd and at most the size {size}, got {view}."
    )
  for name, share in (("salt", salt), ("walls", walls)):
    if not 0 <= share < 1:
      raise ValueError(f"{name} must lie in [0, 1), got {share}.")
  window = View(view, view, (view // 2,) * 2, MOVES, (size, size))

  def reset(key):
    keys = jax.random.split(key, 5)
    noise = jax.random.normal(keys[0], (NUM_TERRAINS, size, size))
    # Patches: noise averaged over 5 x 5 neighbours, the greatest one wins.
    shifts = [(i, j) for i in range(-2, 3) for j in range(-2, 3)]
    smooth = sum(jnp.roll(noise, shift, axis=(1, 2)) for shift in shifts)
    cells = jnp.argmax(smooth, axis=0)
    drawn = jax.random.randint(keys[1], cells.shape, 0, NUM_TERRAINS)
    is_salt = jax.random.uniform(keys[2], cells.shape) < salt
    cells = jnp.where(is_salt, drawn, cells)
    is_wall = jax.random.uniform(keys[3], cells.shape) < walls
    cells = jnp.where(is_wall, WALL, cells).astype(jnp.int32)
    place = jax.random.randint(keys[4], (2,), 0, size)
    cells = cells.at[place[0], place[1]].set(
      jnp.minimum(cells[place[0], place[1]], WALL - 1)
    )
    return TileState(cells, jnp.append(place, 0).astype(jnp.int32))

  def step(key, state, action):
    del key
    pose = window.move(state.pose, action)
    blocked = state.cells[pose[0], pose[1]] == WALL
    return state._replace(pose=jnp.where(blocked, state.pose, pose))

  def tokens(state):
    at = window.cells(state.pose) % size
    return state.cells[at[:, 0], at[:, 1]]

  def policy(key, state, last):
    del state
    # Staying is drawn as often as a way to go.
    return envs.sticky(key, last, len(ACTIONS))

  return envs.Env(
    name="tiles",
    view=window,
    num_tokens=NUM_TERRAINS + 1,
    num_actions=len(ACTIONS),
    action_names=ACTIONS,
    opposite=OPPOSITE,
    reset=reset,
    step=step,
    tokens=tokens,
    pose=lambda state: state.pose,
    reward=lambda state: jnp.float32(0),
    done=lambda state: jnp.array(False),
    policy=policy,
    palette=PALETTE,
  )
