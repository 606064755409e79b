"""MinAtar games: 10 x 10 cells, all of them seen, as tokens or as pixels.

A game's planes fall into groups of which a cell shows one at most; its token
counts through the choices, so that planes and tokens say the same. The observer
never moves. Hidden are a game's timers (how soon a car, an alien or the chicken
moves next), and in Breakout whether the ball struck a brick just before.

Source:
  Young and Tian, "MinAtar: An Atari-Inspired Testbed for Thorough and
  Reproducible Reinforcement Learning Experiments" (2019); the package `gymnax`.
"""

import itertools
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
  skill: float = 0.5,
) -> envs.Env:
  """A MinAtar game, `N = 100` cells.

  Clips are recorded at random, but for Breakout: there the paddle is where the
  ball comes down, or an episode would be over in a few bounces. While there is
  time it moves at random too, so that actions do not follow from frames.

  Args:
    game: One of `GAMES`.
    cell_size: Rows and columns of pixels that a cell takes in `pixels`.
    skill: Share of steps at which Breakout's paddle heads for the ball although
      it has time.

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
  gym, params = optional.load("gymnax").make(game)
  view = View(SIZE, SIZE, (0, 0))
  colours = palette(game)
  bits = planes(game)
  # A number for each set of planes, and the token of it; -1 is no token.
  weights = 1 << np.arange(bits.shape[1])
  table = np.full(1 << bits.shape[1], -1, np.int32)
  table[bits @ weights] = np.arange(len(bits))

  @optional.lenient
  def reset(key):
    _, state = gym.reset_env(key, params)
    return _settled(state, 0.0, False)

  @optional.lenient
  def step(key, state, action):
    _, after, reward, done, _ = gym.step_env(key, state.game, action, params)
    done |= after.time >= params.max_steps_in_episode
    return _settled(after, reward, state.done | done)

  @optional.lenient
  def tokens(state):
    shown = gym.get_obs(state.game).reshape(SIZE * SIZE, -1) > 0
    number = (shown * jnp.asarray(weights)[None]).sum(-1)
    return jnp.asarray(table)[number]

  def pixels(state):
    image = jnp.asarray(colours)[tokens(state)].reshape(SIZE, SIZE, 3)
    image = image.repeat(cell_size, axis=0).repeat(cell_size, axis=1)
    return image.astype(jnp.float32) / 255

  def policy(key, state, last):
    key_repeat, key_new, key_skill, key_turn = jax.random.split(key, 4)
    new = jax.random.choice(
      key_new, len(rules.actions), p=np.array(rules.chances)
    )
    keep = jax.random.uniform(key_repeat) < rules.repeat
    action = jnp.where(keep, last, new)
    if game == "Breakout-MinAtar":
      way, slack = _landing(key_turn, state.game)
      heads = (jax.random.uniform(key_skill) < skill) | (slack < 2)
      action = jnp.where(heads, jnp.array([0, 2, 1])[way], action)
    return action.astype(jnp.int32)

  return envs.Env(
    name=game,
    view=view,
    num_tokens=len(bits),
    num_actions=len(rules.actions),
    action_names=rules.actions,
    opposite=rules.opposite,
    reset=reset,
    step=step,
    tokens=tokens,
    pose=lambda state: jnp.zeros(3, jnp.int32),
    reward=lambda state: state.reward,
    done=lambda state: state.done,
    policy=policy,
    palette=colours,
    rewards=(0.0, 1.0),
    pixels=pixels,
  )


def planes(game: str) -> np.ndarray:
  """`[V, P]` int: which planes of `game` are set where each token stands."""
  rules = GAMES[game]
  rows = []
  for choice in itertools.product(*[(None, *group) for group in rules.groups]):
    row = [0] * len(rules.colours)
    for plane in choice:
      if plane is not None:
        for index in (plane, *rules.implied.get(plane, ())):
          row[index] = 1
    rows.append(row)
  return np.array(rows)


def palette(game: str) -> np.ndarray:
  """`[V, 3]` uint8: the mean colour of the planes set, no two alike."""
  bits = planes(game)
  total = bits @ np.array(GAMES[game].colours)
  return (total // np.maximum(bits.sum(1, keepdims=True), 1)).astype(np.uint8)


def _landing(key, game):
  """The way (-1, 0, 1) to where Breakout's ball comes down, and spare steps.

  A paddle under the ball's last column turns it up, one under the next column
  turns it back as well: which of them is left to chance, or all episodes would
  be alike.
  """
  down = game.ball_dir >= 2
  right = (game.ball_dir == 1) | (game.ball_dir == 2)
  # To the row above the paddle's. Up, it is taken to turn below the lowest row
  # of bricks, one step lost.
  last = SIZE - 2
  steps = jnp.where(
    down, last - game.ball_y, jnp.maximum(game.ball_y - 4, 0) + last - 3
  )
  steps += jnp.where(steps == 0, jax.random.bernoulli(key), 0)
  # Walls fold the line: 9 is followed by 9, and 0 by 0.
  line = (game.ball_x + jnp.where(right, 1, -1) * steps) % (2 * SIZE)
  gap = jnp.minimum(line, 2 * SIZE - 1 - line) - game.pos
  # Where bricks are gone it turns later, up to some columns further on.
  return jnp.sign(gap), steps - jnp.abs(gap) - jnp.where(down, 0, 3)


def _settled(game, reward, done):
  state = MinAtarState(game, jnp.float32(reward), jnp.asarray(done))
  return optional.strong(state)
