"""Blocks: which token stands where, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import world
from tests.world import worlds

VIEW = world.View(2, 3, (0, 1), worlds.COMPASS)
PLAIN = world.Layout(6, 4, 3, 5)
REWARDED = world.Layout(6, 4, 3, 5, (-1.0, 0.0, 2.0))


@pytest.fixture(params=[PLAIN, REWARDED], ids=["plain", "rewarded"])
def layout(request):
  return request.param


def test_the_vocabulary_is_a_list(layout):
  """Every token's meaning, written out, is where the layout says."""
  names = [f"cell{i}" for i in range(4)]
  names += [f"action{i}" for i in range(3)] + [f"move{i}" for i in range(5)]
  if layout.rewards:
    names += [f"reward{i}" for i in range(3)] + ["over", "alive"]
  cells, actions, moves, rewards, alive = layout.starts
  assert layout.mask_id == len(names)
  assert (cells, names[actions], names[moves]) == (0, "action0", "move0")
  if layout.rewards:
    assert (names[rewards], names[alive]) == ("reward0", "over")
  sites = ["action", "move"]
  sites += ["reward", ("over", "alive")] if layout.rewards else []
  sites += ["cell"] * 6
  assert layout.length == len(sites)
  expected = [[name.startswith(site) for name in names] for site in sites]
  np.testing.assert_array_equal(layout.allowed(), expected)


def test_pack_and_its_inverses(layout):
  clip = worlds.clip(layout, VIEW, 0, 2, 5)
  blocks = jax.jit(layout.pack)(clip)
  assert blocks.shape == (2, 5, layout.length) and blocks.dtype == jnp.int32
  # By hand, site by site.
  parts = [clip.action + 4, clip.move + 7]
  if layout.rewards:
    parts += [clip.reward + 12, clip.alive + 15]
  expected = np.concatenate(
    [np.stack(parts, axis=-1), np.asarray(clip.tokens)], axis=-1
  )
  np.testing.assert_array_equal(blocks, expected)
  # Every token is one that its site may hold.
  sites = np.arange(layout.length)
  assert layout.allowed()[sites, np.asarray(blocks)].all()
  np.testing.assert_array_equal(layout.cells(blocks), clip.tokens)
  np.testing.assert_array_equal(
    layout.given(clip.action, clip.move), blocks[..., :2]
  )
  reward, alive = layout.answers(blocks)
  np.testing.assert_array_equal(
    reward, clip.reward if layout.rewards else 0 * clip.reward
  )
  np.testing.assert_array_equal(
    alive, clip.alive if layout.rewards else 0 * clip.alive + 1
  )
  # One frame, and one clip.
  one = jax.tree.map(lambda x: x[1, 3], clip)
  np.testing.assert_array_equal(layout.pack(one), blocks[1, 3])


def test_reward_classes():
  values = jnp.array([-7.0, -1.0, -0.4, 0.1, 0.9, 1.1, 2.0, 99.0])
  expected = [0, 0, 1, 1, 1, 2, 2, 2]
  np.testing.assert_array_equal(REWARDED.reward_class(values), expected)
  np.testing.assert_array_equal(
    REWARDED.reward_class(values[None, :, None])[0, :, 0], expected
  )
  assert REWARDED.reward_class(2.0) == 2
  np.testing.assert_array_equal(PLAIN.reward_class(values), np.zeros(8))
  assert REWARDED.reward_class(values).dtype == jnp.int32


def changed(**fields):
  clip = worlds.clip(REWARDED, VIEW, 0, 2, 5)
  for name, change in fields.items():
    clip = clip._replace(**{name: change(getattr(clip, name))})
  return clip


def test_good_clips_are_taken(layout):
  clip = worlds.clip(layout, VIEW, 0, 2, 5)
  layout.check_clip(clip)
  layout.check_clip(jax.tree.map(lambda x: x[0], clip))
  layout.check_clip(jax.tree.map(lambda x: np.asarray(x)[0, 0], clip))
  # Values that are not known yet are not looked at.
  jax.eval_shape(layout.check_clip, clip)


@pytest.mark.parametrize(
  ("fields", "error", "message"),
  [
    (
      dict(tokens=lambda x: x.at[1, 2, 3].set(4)),
      ValueError,
      r"tokens must lie in \[0, 4\), got values from 0 to 4",
    ),
    (
      dict(action=lambda x: x - 1),
      ValueError,
      r"action must lie in \[0, 3\), got values from -1 to",
    ),
    (
      dict(action=lambda x: x + 1),
      ValueError,
      r"action must lie in \[0, 3\)",
    ),
    (dict(move=lambda x: x + 5), ValueError, r"move must lie in \[0, 5\)"),
    (dict(reward=lambda x: x + 3), ValueError, r"reward must lie in \[0, 3\)"),
    (dict(alive=lambda x: x + 2), ValueError, r"alive must lie in \[0, 2\)"),
    (
      dict(tokens=lambda x: x[..., :5]),
      ValueError,
      r"tokens must have shape \[2, 5, 6\], got \[2, 5, 5\]",
    ),
    (
      dict(pose=lambda x: x[..., :2]),
      ValueError,
      r"pose must have shape \[2, 5, 3\], got \[2, 5, 2\]",
    ),
    (
      dict(move=lambda x: x[:, 1:]),
      ValueError,
      r"move must have shape \[2, 5\], got \[2, 4\]",
    ),
    (
      dict(tokens=lambda x: x.astype(jnp.float32)),
      TypeError,
      "tokens must be integers, got dtype float32",
    ),
    (
      dict(action=lambda x: x > 0),
      TypeError,
      "action must be integers, got dtype bool",
    ),
    (
      dict(pose=lambda x: x + 0.5),
      TypeError,
      "pose must be integers, got dtype float32",
    ),
  ],
)
def test_bad_clips(fields, error, message):
  with pytest.raises(error, match=message):
    REWARDED.check_clip(changed(**fields))


@pytest.mark.parametrize(
  ("sizes", "error", "message"),
  [
    ((0, 4, 3), ValueError, "num_cells must be >= 1, got 0"),
    ((6, 0, 3), ValueError, "num_tokens must be >= 1"),
    ((6, 4, True), TypeError, "num_actions must be an integer"),
    ((6, 4, 3, 0), ValueError, "num_moves must be >= 1"),
  ],
)
def test_bad_layouts(sizes, error, message):
  with pytest.raises(error, match=message):
    world.Layout(*sizes)
