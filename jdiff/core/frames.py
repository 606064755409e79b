"""What world models and their networks say to one another."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdiff.core.types import Params


def shortest(step: jax.Array, period: tuple[int, int] | None) -> jax.Array:
  """Displacements `[..., 2]`, the short way round a torus of that period."""
  if period is None:
    return step
  # By component: a table of periods would be of lower rank.
  parts = [
    (step[..., i] + size // 2) % size - size // 2
    for i, size in enumerate(period)
  ]
  return jnp.stack(parts, axis=-1)


class KeyValues(NamedTuple):
  """What a network keeps of finished frames, for all of its layers.

  Attributes:
    key: `[D, B, F, N, H, d]`: `D` layers, `F` frames of `N` cells, `H` heads;
      or `[D, B, Q, F, N, H, d]` where each of `Q` queries has frames of its
      own.
    value: As `key`.

  A network may lay out what follows `N` as it likes, and what its `recall`
  answers is its own.
  """

  key: jax.Array
  value: jax.Array


class Seen(NamedTuple):
  """Finished frames, as each of `Q` frames in the making sees them.

  Attributes:
    cells: `[B, Q, F, N, 2]` float32, where their cells lie, in the frame of
      the observer who looks.
    age: `[B, Q, F, N]` float32, frames since.
    valid: `[B, Q, F, N]` bool; others are not looked at.
    kv: What the network kept of them; None where it is made on the way.
  """

  cells: jax.Array
  age: jax.Array
  valid: jax.Array
  kv: KeyValues | None = None


class Context(NamedTuple):
  """All that frames in the making may look at, beside their own block.

  Attributes:
    window: The last frames.
    recalled: Frames from a memory, or None.
    noise: `[B]` float32 in `[0, 1]`, the share of context tokens that may be
      wrong: of training's corruption, 0 in play.
  """

  window: Seen
  recalled: Seen | None
  noise: jax.Array


class WorldNetwork(NamedTuple):
  """A denoiser of frames with a cache of finished ones.

  A block is a frame's tokens with those around it, `[G]`, as
  `world.Layout.pack` makes it; its last `N` sites are cells.

  Attributes:
    init: `(key) -> params`.
    encode: `(params, blocks [B, F, G], seen) -> KeyValues`, of finished
      frames; `seen` is a `Seen` with `Q = F` of what came before each. Without
      key-values of its own the frames are what they see, which is how a clip
      is encoded at once.
    recall: `(params, tokens [B, Q, F, N]) -> KeyValues` of each query's own
      frames, from their cells alone: what a memory gives back. Also takes
      probabilities `[B, Q, F, N, V]`.
    logits: `(params, blocks [B, Q, G], context, sites=None) -> [B, Q, m, V]`.
    move: `(params, tokens [B, N], action [B]) -> [B, num_moves]` logits of the
      way that the observer moves, from what it saw before.
  """

  init: Callable[..., Params]
  encode: Callable[..., KeyValues]
  recall: Callable[..., KeyValues]
  logits: Callable[..., jax.Array]
  move: Callable[..., jax.Array]
