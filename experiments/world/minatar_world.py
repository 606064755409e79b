"""MinAtar games: 10 x 10 cells, all of them seen, as tokens or as pixels.

A game's planes fall into groups of which a cell shows one at most; its token
counts through the choices, so that planes and tokens say the same. The observer
never moves. Hidden are a game's timers (how soon a car, an alien or the chicken
moves next), and in Breakout whether the ball struck a brick just before.

Source:
  Young and Tian, "MinAtar: An Atari-Inspired Testbed for Thorough and
  Reproducible Reinforcement Learning Experiments" (2019); the package `gymnax`.
"""

import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.world import envs, optional
from jdiff.core import checks
from jdiff.world.geometry import View

SIZE = 10


class Game(NamedTuple):
  """What an adapter needs to know of a game.

  Attributes:
    groups: Planes that exclude each other, by their place among the game's.
    implied: For each plane those that it brings along.
    colours: Of each plane.
    actions: Names of the game's own actions.
    opposite: For each action the one across.
    chances: How often a new action is each.
    repeat: How often the last action is kept.
  """

  groups: tuple[tuple[int, ...], ...]
  implied: dict[int, tuple[int, ...]]
  colours: tuple[tuple[int, int, int], ...]
  actions: tuple[str, ...]
  opposite: tuple[int, ...]
  chances: tuple[float, ...]
  repeat: float


GAMES = {
  # Paddle, ball, trail, brick: bricks are never in the paddle's row.
  "Breakout-MinAtar": Game(
    ((0, 3), (1,), (2,)),
    {},
    ((70, 160, 250), (250, 240, 90), (120, 60, 60), (90, 190, 90)),
    ("noop", "left", "right"),
    (0, 2, 1),
    (1 / 3, 1 / 3, 1 / 3),
    0.0,
  ),
  # Chicken, car, trails of five speeds: one car a row.
  "Freeway-MinAtar": Game(
    ((0,), (1, 2, 3, 4, 5, 6)),
    {},
    (
      (250, 240, 90),
      (230, 70, 60),
      (40, 60, 90),
      (50, 90, 120),
      (60, 120, 150),
      (70, 150, 180),
      (80, 180, 210),
    ),
    ("noop", "up", "down"),
    (0, 2, 1),
    (0.1, 0.7, 0.2),
    0.8,
  ),
  # Player, enemy, trail, gold: one of the latter three a row.
  "Asterix-MinAtar": Game(
    ((0,), (1, 2, 3)),
    {},
    ((70, 160, 250), (230, 70, 60), (80, 60, 60), (250, 240, 90)),
    ("noop", "left", "up", "right", "down"),
    (0, 3, 4, 1, 2),
    (0.2, 0.2, 0.2, 0.2, 0.2),
    0.5,
  ),
  # Cannon, alien, alien going left, going right, own bullet, alien's bullet.
  "SpaceInvaders-MinAtar": Game(
    ((0,), (2, 3), (4,), (5,)),
    {2: (1,), 3: (1,)},
    (
      (70, 160, 250),
      (60, 120, 60),
      (90, 190, 90),
      (190, 190, 80),
      (240, 240, 240),
      (230, 70, 60),
    ),
    ("noop", "left", "right", "fire"),
    (0, 2, 1, 3),
    (0.1, 0.3, 0.3, 0.3),
    0.5,
  ),
}


class MinAtarState(NamedTuple):
  """The package's state, and what came with the step that led to it."""

  game: Any
  reward: jax.Array
  done: jax.Array


def env(
  game: str = "Breakout-MinAtar",
  *,
  cell_size: int = 4,
  skill: float = 0.9,
) -> envs.Env:
  """A MinAtar game, `N = 100` cells.

  Clips are recorded at random, but for Breakout: there the paddle follows the
  ball with probability `skill`, or an episode would be over in a few bounces.

  Args:
    game: One of `GAMES`.
    cell_size: Rows and columns of pixels that a cell takes in `pixels`.
    skill: Share of steps at which Breakout's paddle follows the ball.

  Raises:
    ValueError: If `game` is unknown or an option out of range.
    ImportError: If the package gymnax is not installed.
  """
  if game not in GAMES:
    raise ValueError(f"game must be one of {sorted(GAMES)}, got {game!r}.")
  checks.check_int("cell_size", cell_size)
  if not 0 <= skill <= 1:
    raise ValueError(f"skill must lie in [0, 1], got {skill}.")
  rules = GAMES[game]
  made = optional.load("gymnax").make(game)
  gym, params = made
  colours = palette(game)
  planes_of = jnp.asarray(plane_table(game))
