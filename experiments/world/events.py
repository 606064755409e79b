"""Captions of clips in the tile world: exact, and read back from frames alone.

A line for each step of the walker: "moved north into water", "moved west on
grass", "hit wall on sand". Words are numbers within their own slot of a line.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.world import envs, tile_world
from jdiff.core import checks
from jdiff.world.geometry import View

GROUNDS = ("sand", "grass", "water", "heath", "wheat")

SLOTS = (
  ("moved", "hit"),
  ("north", "west", "east", "south", "wall"),
  ("on", "into"),
  GROUNDS,
)
"""What happened, which way, whether the ground is new, which ground it is."""

UNREADABLE = -1
"""In place of words that frames do not tell."""


def walker(env: envs.Env, repeat: float = 0.5) -> envs.Env:
  """The same world under a policy that never waits.

  To wait and to walk into a wall look the same; of a walker that always walks,
  every event shows in the frames. Which of several walls it hit does not, and
  captions do not say.

  Args:
    env: A tile world.
    repeat: Chance that an action is the last one again.
  """
  num_ways = env.num_actions - 1

  def policy(key, state, last):
    del state
    key_first, key_next = jax.random.split(key)
    # The action before the first frame is none.
    first = jax.random.randint(key_first, (), 0, num_ways)
    way = jnp.where(last == 0, first, last - 1)
    return 1 + envs.sticky(key_next, way, num_ways, repeat)

  return env._replace(policy=policy)


def captions(view: View, tokens: jax.Array, move: jax.Array) -> jax.Array:
  """What happened in clips, from the environment's own record.

  Args:
    view: The window, with the moves of the tile world.
    tokens: `[..., T, N]` cells.
    move: `[..., T]` moves that led to each frame, of a walker that never
      waits: 0 is a wall that it hit.

  Returns:
    `[..., T - 1, 4]` int32 words.

  Raises:
    ValueError: If the window's moves are others, or shapes do not fit.
  """
  _check(view, tokens)
  checks.check_shape("move", move, tokens.shape[:-1])
  ground = tokens[..., _centre(view)]
  return _words(move[..., 1:], ground[..., :-1], ground[..., 1:])


def read(view: View, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
  """What happened in clips, from their frames alone.

  The step between two frames is the one under which they agree in the greatest
  share of the cells that both show. Words are `UNREADABLE` where two steps
  agree equally well, where the walker stands on a wall, or where it stays with
  no wall beside it that it could have hit.

  Args:
    view: The window, with the moves of the tile world.
    tokens: `[..., T, N]` cells.

  Returns:
    Words `[..., T - 1, 4]` int32; and the share `[..., T - 1]` of the cells
    that both frames show on which they agree, under the step that was read.
  """
  _check(view, tokens)
  frames = tokens.reshape(*tokens.shape[:-1], view.rows, view.cols)
  before, after = frames[..., :-1, :, :], frames[..., 1:, :, :]
  shares = jnp.stack(
    [_agreement(before, after, *move[:2]) for move in view.moves], axis=-1
  )
  best = shares.max(-1)
  move = jnp.argmax(shares, axis=-1).astype(jnp.int32)
  is_tied = jnp.sum(shares == best[..., None], axis=-1) > 1
  row, col = view.origin
  walls = [
    before[..., row + down, col + right] == tile_world.WALL
    for down, right, _ in view.moves[1:]
  ]
  ground = tokens[..., _centre(view)]
  words = _words(move, ground[..., :-1], ground[..., 1:])
  lost = is_tied | ((move == 0) & ~jnp.stack(walls).any(0))
  lost |= jnp.maximum(ground[..., 1:], ground[..., :-1]) == tile_world.WALL
  return jnp.where(lost[..., None], UNREADABLE, words), best


def text(words) -> str:
  """Lines `[S, 4]` as a sentence."""
  lines = [
    " ".join(
      "?" if word == UNREADABLE else SLOTS[slot][word]
      for slot, word in enumerate(line)
    )
    for line in np.asarray(words)
  ]
  return ", ".join(lines)


def _words(move, before, after):
  is_move = move > 0
  way = jnp.where(is_move, move - 1, len(SLOTS[1]) - 1)
  parts = [~is_move, way, is_move & (before != after), after]
  return jnp.stack([part.astype(jnp.int32) for part in parts], axis=-1)


def _agreement(before, after, down, right):
  """Share of cells that two frames agree on if the walker went so."""
  rows, cols = before.shape[-2:]

  def cut(frame, down, right):
    return frame[
      ...,
      max(down, 0) : rows + min(down, 0),
      max(right, 0) : cols + min(right, 0),
    ]

  same = cut(before, down, right) == cut(after, -down, -right)
  return same.mean(axis=(-2, -1))


def _centre(view):
  return view.origin[0] * view.cols + view.origin[1]


def _check(view, tokens):
  if view.moves != tile_world.MOVES:
    raise ValueError(
      f"view.moves must be the tile world's {tile_world.MOVES}, got "
      f"{view.moves}."
    )
  if min(view.shape) < 3:
    raise ValueError(f"view must be 3 x 3 or larger, got {view.shape}.")
  if np.ndim(tokens) < 2 or tokens.shape[-1] != view.num_cells:
    raise ValueError(
      f"tokens must be [..., T, {view.num_cells}], got "
      f"{list(np.shape(tokens))}."
    )
