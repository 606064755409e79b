"""Craftax-Classic: a large map with mobs, of which a small window is seen.

Tokens are read off the state, so they are exact: the map's block, or the mob or
player that stands on it. Left out: the inventory, the player's health and the
dark of night, none of which a token shows; crafting, placing and sleeping.

An episode ends at death. `step` goes on past it, and `done` stays true.

Source:
  Matthews et al., "Craftax: A Lightning-Fast Benchmark for Open-Ended
  Reinforcement Learning" (2024); the package `craftax`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.world import envs, optional
from jdiff.world.geometry import View

NAME = "Craftax-Classic-Symbolic-v1"
SHAPE = (7, 9)
MOVES = ((0, 0, 0), (-1, 0, 0), (0, -1, 0), (0, 1, 0), (1, 0, 0))
# The package's first actions, in its order.
ACTIONS = ("noop", "left", "right", "up", "down", "do")
OPPOSITE = (0, 2, 1, 4, 3, 5)
BLOCKS = (
  "invalid",
  "out_of_bounds",
  "grass",
  "water",
  "stone",
  "tree",
  "wood",
  "path",
  "coal",
  "iron",
  "diamond",
  "crafting_table",
  "furnace",
  "sand",
  "lava",
  "plant",
  "ripe_plant",
)
OUT_OF_BOUNDS = BLOCKS.index("out_of_bounds")
LAVA = BLOCKS.index("lava")
# Where two share a cell, the later one is seen.
MOBS = ("zombies", "cows", "skeletons", "arrows")
FIRST_MOB = len(BLOCKS)
FIRST_PLAYER = FIRST_MOB + len(MOBS)
KINDS = (*BLOCKS, *MOBS, *(f"player_{way}" for way in ACTIONS[1:5]))
PALETTE = np.array(
  [
    (0, 0, 0),
    (128, 128, 128),
    (106, 168, 79),
    (61, 133, 198),
    (150, 150, 158),
    (39, 98, 33),
    (133, 94, 66),
    (205, 193, 170),
    (58, 58, 62),
    (214, 155, 110),
    (190, 240, 250),
    (166, 110, 40),
    (92, 84, 84),
    (235, 220, 160),
    (232, 90, 20),
    (160, 210, 90),
    (230, 90, 120),
    (20, 130, 90),
    (110, 60, 40),
    (240, 240, 235),
    (190, 30, 60),
    (150, 60, 190),
    (190, 90, 220),
    (120, 50, 160),
    (220, 130, 240),
  ],
  np.uint8,
)


class CraftaxState(NamedTuple):
  """The package's state, and what came with the step that led to it."""

  game: Any
  reward: jax.Array
  done: jax.Array


def env() -> envs.Env:
  """Craftax-Classic seen through 7 x 9 cells, `V = 25` kinds, `A = 6` actions.

  The player walks a way and faces it, or faces it only where a block or mob is
  in the way; `do` acts on the cell faced. Clips are recorded with a sticky
  random walk, in which a quarter of new actions is `do`.

  Raises:
    ImportError: If the package craftax is not installed.
  """
  game = optional.load("craftax.craftax_env").make_craftax_env_from_name(
    NAME, auto_reset=False
  )
  rules = optional.load("craftax.craftax_classic.constants")
  params = game.default_params
  # Ways are not kept to into what stops, or ends, a walk.
  stops = (*np.asarray(rules.SOLID_BLOCKS), OUT_OF_BOUNDS, LAVA)
  is_stop = np.isin(np.arange(len(BLOCKS)), stops)
  view = View(*SHAPE, (SHAPE[0] // 2, SHAPE[1] // 2), MOVES)
  # noop, each way, do.
  chances = np.array([0.05, 0.175, 0.175, 0.175, 0.175, 0.25])

  @optional.lenient
  def reset(key):
    _, state = game.reset_env(key, params)
    state = CraftaxState(state, jnp.float32(0), jnp.array(False))
    return optional.strong(state)

  @optional.lenient
  def step(key, state, action):
    _, after, reward, done, _ = game.step_env(key, state.game, action, params)
    after = CraftaxState(after, jnp.float32(reward), state.done | done)
    return optional.strong(after)

  def pose(state):
    return jnp.append(state.game.player_position, 0).astype(jnp.int32)

  def tokens(state):
    cells = view.cells(pose(state))
    found = blocks(state.game.map, cells)
    for kind, name in enumerate(MOBS):
      mobs = getattr(state.game, name)
      here = (cells[:, None] == mobs.position[None]).all(-1) & mobs.mask[None]
      found = jnp.where(here.any(-1), FIRST_MOB + kind, found)
    # The package counts the ways to face from 1.
    player = FIRST_PLAYER + state.game.player_direction - 1
    middle = view.origin[0] * view.cols + view.origin[1]
    return found.at[middle].set(player).astype(jnp.int32)

  def policy(key, state, last):
    key_repeat, key_new = jax.random.split(key)
    new = jax.random.choice(key_new, len(ACTIONS), p=chances)
    faced = rules.DIRECTIONS[state.game.player_direction]
    ahead = (state.game.player_position + faced)[None]
    free = ~jnp.asarray(is_stop)[blocks(state.game.map, ahead)[0]]
    # A second `do` in place seldom does more: only ways are kept to.
    is_way = (last > 0) & (last < len(ACTIONS) - 1)
    keep = (jax.random.uniform(key_repeat) < 0.8) & is_way & free
    return jnp.where(keep, last, new).astype(jnp.int32)

  return envs.Env(
    name="craftax",
    view=view,
    num_tokens=len(KINDS),
    num_actions=len(ACTIONS),
    action_names=ACTIONS,
    opposite=OPPOSITE,
    reset=reset,
    step=step,
    tokens=tokens,
    pose=pose,
    reward=lambda state: state.reward,
    done=lambda state: state.done,
    policy=policy,
    palette=PALETTE,
  )


def blocks(cells: jax.Array, at: jax.Array) -> jax.Array:
  """Blocks `[N]` of a map `[R, C]` at `at [N, 2]`, also outside of it."""
  rows, cols = cells.shape
  inside = (at[:, 0] >= 0) & (at[:, 0] < rows)
  inside &= (at[:, 1] >= 0) & (at[:, 1] < cols)
  found = cells[at[:, 0].clip(0, rows - 1), at[:, 1].clip(0, cols - 1)]
  return jnp.where(inside, found, OUT_OF_BOUNDS)
