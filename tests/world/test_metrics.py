"""Counts and distances against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import world
from jdiff.world import metrics
from tests.world import worlds

VIEWS = {
  "plane": world.View(3, 5, (1, 2), worlds.COMPASS),
  "torus": world.View(3, 3, (1, 1), worlds.TANK, (6, 7)),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("window", [1, 3])
def test_cells_are_recent_old_or_new(view, window):
  poses, _ = worlds.walk(view, 0, 16)
  found = jax.jit(
    jax.vmap(
      lambda now: metrics.cell_classes(
        view, jnp.asarray(poses), now, window=window
      )
    )
  )(jnp.arange(16))
  for now in range(16):
    cells = worlds.cells_of(view, poses[now])
    recent, before = (
      np.any(
        [worlds.shows(view, pose, cells) for pose in poses[first:now]]
        + [np.zeros(len(cells), bool)],
        axis=0,
      )
      for first in (max(now - window, 0), 0)
    )
    expected = [recent, before & ~recent, ~before]
    np.testing.assert_array_equal(found[now], expected)
  # One class each, and all three are met.
  np.testing.assert_array_equal(np.sum(found, axis=1), 1)
  assert (np.sum(found, axis=(0, 2)) > 0).all()
  assert metrics.CLASSES == ("window", "revisit", "new")


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_known_cells_are_those_of_a_prefix(view):
  poses, _ = worlds.walk(view, 1, 12)
  known = jax.jit(
    jax.vmap(
      lambda pose: metrics.known_cells(view, jnp.asarray(poses[:4]), pose)
    )
  )(poses[4:])
  for pose, row in zip(poses[4:], np.asarray(known), strict=True):
    cells = worlds.cells_of(view, pose)
    expected = np.any(
      [worlds.shows(view, seen, cells) for seen in poses[:4]], axis=0
    )
    np.testing.assert_array_equal(row, expected)
  assert known.any() and not known.all()


def test_tallies_keep_hits_and_trials():
  rng = np.random.default_rng(0)
  hit, trial = rng.uniform(size=(2, 3, 40)) < 0.6
  found = metrics.tally(jnp.asarray(hit), jnp.asarray(trial), 1)
  np.testing.assert_array_equal(found.trials, trial.sum(1))
  np.testing.assert_array_equal(found.hits, (hit & trial).sum(1))
  # The parts' counts add up to the whole's.
  whole = metrics.tally(jnp.asarray(hit), jnp.asarray(trial))
  parts = jax.tree.map(lambda x: x.sum(0), found)
  assert (whole.hits, whole.trials) == (parts.hits, parts.trials)


def test_exact_horizon_ends_with_the_first_error():
  wrong = np.random.default_rng(1).uniform(size=(4, 30, 6)) < 0.3
  wrong[0, 0], wrong[0, 1] = False, True
  found = metrics.exact_horizon(jnp.asarray(wrong))
  expected = [
    [next((t for t, w in enumerate(row) if w), 6) for row in rows]
    for rows in wrong
  ]
  np.testing.assert_array_equal(found, expected)
  assert found[0, 0] == 6 and found[0, 1] == 0


def test_psnr():
  rng = np.random.default_rng(3)
  image, other = rng.uniform(size=(2, 4, 6, 5, 3)).astype(np.float32)
  error = np.mean((image - other) ** 2, axis=(1, 2, 3))
  np.testing.assert_allclose(
    metrics.psnr(jnp.asarray(image), jnp.asarray(other)),
    10 * np.log10(1 / error),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    metrics.psnr(jnp.zeros((2, 2, 3)), jnp.full((2, 2, 3), 0.1)), 20, rtol=1e-5
  )
  # Equal pictures are as good as can be told.
  assert metrics.psnr(jnp.asarray(image[0]), jnp.asarray(image[0])) == 100


def test_features_of_clips_see_space_and_time():
  rng = np.random.default_rng(4)
  tokens = jnp.asarray(rng.integers(4, size=(3, 5, 20)))
  features = metrics.clip_features(tokens, (4, 5), 4, num_features=8)
  assert features.shape == (3, 8) and features.dtype == jnp.float32
  # The same frames in another order, the same cells in other places.
  for other in (tokens[:, ::-1], tokens[:, :, ::-1]):
    changed = metrics.clip_features(other, (4, 5), 4, num_features=8)
    assert np.abs(changed - features).max() > 1e-3
  # One clip by loops over its filters.
  kernel = (
    np.asarray(
      jax.random.normal(jax.random.key(0), (2, 3, 3, 4, 8)), np.float64
    )
    / 18**0.5
  )
  one_hot = np.eye(4)[np.asarray(tokens[0])].reshape(5, 4, 5, 4)
  answers = [
    np.einsum("tijv,tijvf", one_hot[t : t + 2, i : i + 3, j : j + 3], kernel)
    for t in range(4)
    for i in range(2)
    for j in range(3)
  ]
  np.testing.assert_allclose(
    features[0], np.maximum(answers, 0).mean(axis=0), atol=1e-5
  )
