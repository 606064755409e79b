"""How good a world is: counts by kind of cell, horizons, drift."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.world import geometry
from jdiff.world.geometry import View

CLASSES = ("window", "revisit", "new")


class Tally(NamedTuple):
  """Hits among trials, kept apart so that averages over parts are exact."""

  hits: jax.Array
  trials: jax.Array


def tally(hit: jax.Array, trial: jax.Array, axis=None) -> Tally:
  """Counts `hit & trial` and `trial`, both bool of one shape."""
  checks.check_flags("hit", hit)
  checks.check_flags("trial", trial)
  checks.check_shape("trial", trial, np.shape(hit))
  return Tally(jnp.sum(hit & trial, axis=axis), jnp.sum(trial, axis=axis))


def cell_classes(
  view: View, pose: jax.Array, now: jax.Array, *, window: int
) -> jax.Array:
  """Which cells of frame `now` of an episode were seen, and when.

  Args:
    view: The observer's.
    pose: `[T, 3]`, of all frames.
    now: Scalar, the frame in question.
    window: Frames that count as recent.

  Returns:
    `[3, N]` bool: in the last `window` frames; only before these; never.
  """
  checks.check_int("window", window)
  geometry.check_pose("pose", pose, (None,))
  cells = view.cells(pose[now])
  seen = jax.vmap(view.visible, in_axes=(0, None))(pose, cells)
  age = now - jnp.arange(pose.shape[0])
  recent = jnp.any(seen & ((age > 0) & (age <= window))[:, None], axis=0)
  before = jnp.any(seen & (age > 0)[:, None], axis=0)
  return jnp.stack([recent, before & ~recent, ~before])


def known_cells(view: View, prefix: jax.Array, pose: jax.Array) -> jax.Array:
  """Which cells at `pose [3]` the frames at `prefix [T, 3]` show: `[N]`."""
  geometry.check_pose("prefix", prefix, (None,))
  geometry.check_pose("pose", pose)
  cells = view.cells(pose)
  return jax.vmap(view.visible, in_axes=(0, None))(prefix, cells).any(axis=0)


def exact_horizon(wrong: jax.Array) -> jax.Array:
  """Frames before the first wrong one: `[..., T]` bool to `[...]`."""
  checks.check_flags("wrong", wrong)
  if not np.ndim(wrong):
    raise ValueError("wrong must have shape [..., T], got [].")
  right = jnp.cumsum(wrong.astype(jnp.int32), axis=-1) == 0
  return jnp.sum(right, axis=-1)


def psnr(
  image: jax.Array, reference: jax.Array, axis=(-3, -2, -1)
) -> jax.Array:
  """Peak signal-to-noise ratio in dB of pictures with values in `[0, 1]`."""
  checks.check_numbers("image", image)
  checks.check_numbers("reference", reference)
  checks.check_shape("reference", reference, np.shape(image))
  error = jnp.mean((image - reference) ** 2, axis=axis)
  return -10 * jnp.log10(jnp.maximum(error, 1e-10))


def clip_features(
  tokens: jax.Array, shape: tuple[int, int], num_tokens: int, num_features=64
) -> jax.Array:
  """Fixed random features of clips `[E, T, N]`, for a Frechet distance.

  Means over places and times of random 2 x 3 x 3 space-time filters of the
  one-hot cells, rectified: the same for everyone, nothing to download.

  Returns:
    `[E, num_features]` float32.
  """
  rows, cols = checks.check_sizes("shape", shape, parts="(rows, cols)")
  checks.check_int("num_tokens", num_tokens)
  checks.check_int("num_features", num_features)
  checks.check_integers("tokens", tokens)
  checks.check_shape("tokens", tokens, (None, None, rows * cols))
  x = jax.nn.one_hot(tokens, num_tokens)
  x = x.reshape(*tokens.shape[:2], rows, cols, num_tokens)
  fan_in = 2 * 3 * 3
  kernel = (
    jax.random.normal(jax.random.key(0), (2, 3, 3, num_tokens, num_features))
    / fan_in**0.5
  )
  y = jax.lax.conv_general_dilated(
    x,
    kernel,
    (1, 1, 1),
    "VALID",
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )
  return jnp.mean(jax.nn.relu(y), axis=(1, 2, 3))
