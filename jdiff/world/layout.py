"""One vocabulary and one block for all that a frame is: the token sequence.

A block is `[action, move | reward, continue | cells]`: what is given in play,
what the world answers beside its cells, the cells. The action and the move are
those that LEAD TO the frame's cells.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks

NUM_GIVEN = 2
"""Sites at the front of a block that are given: the action and the move."""


class Clip(NamedTuple):
  """Recorded frames, `[..., T]`; a batch or one, and one frame without `T`.

  Attributes:
    tokens: `[..., T, N]` int32 cells.
    action: `[..., T]` int32, the action that led to the frame; any in the
      first.
    move: `[..., T]` int32, the way the observer moved to get there.
    pose: `[..., T, 3]` int32 `(row, col, heading)`, see `geometry`.
    reward: `[..., T]` int32, class of the reward that came with the frame.
    alive: `[..., T]` int32, 1 where the episode goes on after the frame.
  """

  tokens: jax.Array
  action: jax.Array
  move: jax.Array
  pose: jax.Array
  reward: jax.Array
  alive: jax.Array


@dataclasses.dataclass(frozen=True)
class Layout:
  """Sizes of a block, and where each kind of token lies in the vocabulary.

  Attributes:
    num_cells: Cells `N` of a frame.
    num_tokens: Kinds of cells.
    num_actions: Actions `A`.
    num_moves: Ways to move; 1 if the observer never does.
    rewards: Values of the classes of reward; empty if the world answers
      neither reward nor whether it goes on.
  """

  num_cells: int
  num_tokens: int
  num_actions: int
  num_moves: int = 1
  rewards: tuple[float, ...] = ()

  def __post_init__(self):
    for field in ("num_cells", "num_tokens", "num_actions", "num_moves"):
      checks.check_int(field, getattr(self, field))

  @property
  def num_answers(self) -> int:
    """Sites of reward and continuation: 2, or 0."""
    return 2 if self.rewards else 0

  @property
  def length(self) -> int:
    """Sites `G` of a block."""
    return NUM_GIVEN + self.num_answers + self.num_cells

  @property
  def starts(self) -> tuple[int, ...]:
    """First token of the cells, actions, moves, rewards, continuations."""
    sizes = (
      self.num_tokens,
      self.num_actions,
      self.num_moves,
      len(self.rewards),
    )
    return (0, *(int(n) for n in np.cumsum(sizes)))

  @property
  def mask_id(self) -> int:
    """The mask, the last token: also the number of the others."""
    return self.starts[-1] + self.num_answers

  def allowed(self) -> np.ndarray:
    """`[G, V]` bool: which tokens each site may hold."""
    cells, actions, moves, rewards, alive = self.starts
    kinds = [(actions, moves), (moves, rewards)]
    if self.rewards:
      kinds += [(rewards, alive), (alive, self.mask_id)]
    kinds += [(cells, actions)] * self.num_cells
    table = np.zeros((self.length, self.mask_id), bool)
    for site, (begin, end) in enumerate(kinds):
      table[site, begin:end] = True
    return table

  def given(self, action: jax.Array, move: jax.Array) -> jax.Array:
    """The tokens `[..., 2]` at a block's front."""
    _, actions, moves, _, _ = self.starts
    return jnp.stack([action + actions, move + moves], axis=-1)

  def pack(self, clip: Clip) -> jax.Array:
    """Blocks `[..., T, G]` int32 of a clip."""
    parts = [self.given(clip.action, clip.move)]
    if self.rewards:
      _, _, _, rewards, alive = self.starts
      parts.append(
        jnp.stack([clip.reward + rewards, clip.alive + alive], axis=-1)
      )
    parts.append(clip.tokens)
    return jnp.concatenate(parts, axis=-1).astype(jnp.int32)

  def cells(self, blocks: jax.Array) -> jax.Array:
    """The cells `[..., N]` of blocks."""
    return blocks[..., -self.num_cells :]

  def answers(self, blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Classes of reward and of continuation, `[...]` each; 0 and 1 if none."""
    if not self.rewards:
      zero = jnp.zeros(blocks.shape[:-1], jnp.int32)
      return zero, zero + 1
    _, _, _, rewards, alive = self.starts
    return blocks[..., NUM_GIVEN] - rewards, blocks[..., NUM_GIVEN + 1] - alive

  def reward_class(self, reward: jax.Array) -> jax.Array:
    """The class of the value nearest to each reward `[...]`."""
    if not self.rewards:
      return jnp.zeros(jnp.shape(reward), jnp.int32)
    values = jnp.asarray(self.rewards)
    reward = jnp.asarray(reward)
    gap = reward[..., None] - jnp.broadcast_to(
      values, (*reward.shape, len(self.rewards))
    )
    return jnp.argmin(jnp.abs(gap), axis=-1).astype(jnp.int32)

  def check_clip(self, clip: Clip) -> None:
    """Raises unless a clip's shapes fit, and its values where known."""
    lead = np.shape(clip.action)
    checks.check_shape("tokens", clip.tokens, (*lead, self.num_cells))
    checks.check_shape("pose", clip.pose, (*lead, 3))
    dtype = jnp.result_type(clip.pose)
    if not jnp.issubdtype(dtype, jnp.integer):
      raise TypeError(f"pose must be integers, got dtype {dtype}.")
    for name, size in (
      ("tokens", self.num_tokens),
      ("action", self.num_actions),
      ("move", self.num_moves),
      ("reward", max(1, len(self.rewards))),
      ("alive", 2),
    ):
      value = getattr(clip, name)
      if name != "tokens":
        checks.check_shape(name, value, lead)
      check_range(name, value, size)


def check_range(name: str, value: jax.Array, size: int) -> None:
  """Raises unless `value` holds integers, in `[0, size)` where known."""
  checks.check_integers(name, value)
  if checks.is_concrete(value) and np.size(value):
    # As NumPy: while tracing, JAX would make tracers of them.
    values = np.asarray(value)
    low, high = values.min(), values.max()
    if low < 0 or high >= size:
      raise ValueError(
        f"{name} must lie in [0, {size}), got values from {low} to {high}."
      )
