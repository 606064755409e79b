"""Navix rooms in the first person: an observer that turns, and looks ahead.

Its view has the observer in the middle of the last row, facing the first; it
sees through walls, and beyond the map there is nothing but wall. So a cell
shows one token wherever it is seen from, but for the goal: under the observer
it shows as floor. An episode ends there.

Source:
  Pignatelli et al., "NAVIX: Scaling MiniGrid Environments with JAX" (2024); the
  package `navix`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.world import envs, optional
from jdiff.world.geometry import View

ROOMS = (
  "Navix-FourRooms-v0",
  "Navix-Empty-Random-8x8-v0",
  "Navix-Empty-Random-16x16-v0",
)
SIZE = 7
MOVES = ((0, 0, 0), (-1, 0, 0), (0, 0, -1), (0, 0, 1))
ACTIONS = ("stay", "forward", "turn_left", "turn_right")
OPPOSITE = (0, 1, 3, 2)
# The package's (object, colour, state) of each token.
KINDS = {"floor": (1, 0, 0), "wall": (2, 5, 0), "goal": (8, 1, 0)}
WALL = list(KINDS).index("wall")
PALETTE = np.array([(230, 230, 225), (70, 70, 76), (90, 190, 90)], np.uint8)


class NavixState(NamedTuple):
  """The package's state, its number of steps, and what came with the last."""

  game: Any
  time: jax.Array
  reward: jax.Array
  done: jax.Array


def env(name: str = ROOMS[0]) -> envs.Env:
  """A room seen through 7 x 7 cells, `V = 3` kinds, `A = 4` actions.

  Clips are recorded with a walk that keeps on ahead, turns now and then, and
  mostly at walls.

  Args:
    name: One of `ROOMS`: those with floor, walls and a goal alone.

  Raises:
    ValueError: If `name` is unknown.
    ImportError: If the package navix is not installed.
  """
  if name not in ROOMS:
    raise ValueError(f"name must be one of {ROOMS}, got {name!r}.")
  navix = optional.load("navix", "navix")
  ways = navix.actions
  game = navix.make(
    name,
    observation_fn=navix.observations.symbolic_first_person,
    action_set=(ways.noop, ways.forward, ways.rotate_ccw, ways.rotate_cw),
  )
  view = View(SIZE, SIZE, (SIZE - 1, SIZE // 2), MOVES)
  kinds = np.array(list(KINDS.values()))
  ahead = (view.origin[0] - 1) * view.cols + view.origin[1]
  # A megabyte of sprites for each state, unless another cache is given.
  no_sprites = navix.rendering.cache.RenderingCache(jnp.zeros((0,), jnp.uint8))

  @optional.lenient
  def reset(key):
    state = game.reset(key, no_sprites).state
    return _settled(state, 0, 0.0, False)

  @optional.lenient
  def step(key, state, action):
    del key
    # What the package's step does, without its new episode after the last.
    after = game.transitions_fn(state.game, action, game.action_set)
    ends = game.termination_fn(state.game, action, after)
    time = state.time + 1
    done = state.done | ends | (time >= game.max_steps)
    return _settled(
      after, time, game.reward_fn(state.game, action, after), done
    )

  @optional.lenient
  def tokens(state):
    seen = game.observation_fn(state.game).reshape(-1, 1, 3)
    return jnp.argmax((seen == kinds[None]).all(-1), -1).astype(jnp.int32)

  @optional.lenient
  def pose(state):
    player = state.game.get_player()
    # The package counts from facing right.
    heading = (player.direction + 1) % 4
    return jnp.append(player.position, heading).astype(jnp.int32)

  def policy(key, state, last):
    key_repeat, key_new = jax.random.split(key)
    chances = np.array([0.05, 0.45, 0.25, 0.25])
    new = jax.random.choice(key_new, len(ACTIONS), p=chances)
    keep = (jax.random.uniform(key_repeat) < 0.8) & (last == 1)
    keep &= tokens(state)[ahead] != WALL
    return jnp.where(keep, last, new).astype(jnp.int32)

  return envs.Env(
    name=name,
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


def _settled(game, time, reward, done):
  state = NavixState(
    game, jnp.int32(time), jnp.float32(reward), jnp.asarray(done)
  )
  return optional.strong(state)
