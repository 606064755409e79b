"""Poses and views against a world in NumPy, turned by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import world
from tests.world import worlds

VIEWS = {
  "plane": world.View(3, 5, (1, 2), worlds.COMPASS),
  "torus": world.View(3, 5, (1, 2), worlds.COMPASS, (6, 7)),
  "ahead": world.View(3, 3, (2, 1), worlds.TANK),
  "ahead_torus": world.View(3, 3, (2, 1), worlds.TANK, (5, 8)),
  "outside": world.View(2, 2, (3, 0), worlds.TANK, (9, 9)),
}


@pytest.fixture(params=VIEWS)
def view(request):
  return VIEWS[request.param]


def all_poses(view):
  rows, cols = view.period or (4, 4)
  # Where no move turns, headings are not looked at.
  ways = range(4 if any(turn for _, _, turn in view.moves) else 1)
  return np.array(
    list(itertools.product(range(rows), range(cols), ways)), np.int32
  )


def test_sizes(view):
  assert view.num_cells == view.rows * view.cols == len(view.offsets)
  assert view.shape == (view.rows, view.cols)
  assert view.num_moves == 5 and view.offsets.dtype == np.int32
  assert hash(view) == hash(world.View(**view.__dict__))


def test_cells_of_all_headings(view):
  poses = all_poses(view)
  cells = jax.jit(view.cells)(jnp.asarray(poses))
  assert cells.shape == (len(poses), view.num_cells, 2)
  expected = [worlds.cells_of(view, pose) for pose in poses]
  np.testing.assert_array_equal(worlds.wrapped(view, cells), expected)
  # One pose alone, and one more axis.
  np.testing.assert_array_equal(view.cells(jnp.asarray(poses[7])), cells[7])
  np.testing.assert_array_equal(view.cells(jnp.asarray(poses)[None])[0], cells)


def test_what_is_seen_is_cut_out_of_the_turned_map():
  view = VIEWS["ahead_torus"]
  rows, cols = view.period
  world_map = np.arange(rows * cols).reshape(rows, cols)
  for pose in all_poses(view):
    # Counterclockwise, so that the heading points up.
    turned = np.rot90(world_map, pose[2])
    (at,) = np.argwhere(turned == world_map[pose[0], pose[1]])
    window = np.roll(turned, -at, axis=(0, 1)).take(
      range(-view.origin[0], view.rows - view.origin[0]), 0, mode="wrap"
    )
    window = window.take(
      range(-view.origin[1], view.cols - view.origin[1]), 1, mode="wrap"
    )
    at = np.asarray(view.cells(jnp.asarray(pose))) % view.period
    np.testing.assert_array_equal(world_map[tuple(at.T)], window.ravel())


def test_relative_undoes_cells(view):
  poses = jnp.asarray(all_poses(view))
  cells = view.cells(poses)
  offsets = np.broadcast_to(view.offsets, cells.shape)
  np.testing.assert_array_equal(view.relative(poses, cells), offsets)
  if view.period is not None:
    # However often one goes round.
    around = cells + jnp.array([[[3, -2]]]) * jnp.array([[view.period]])
    np.testing.assert_array_equal(view.relative(poses, around), offsets)


def test_visible_is_to_be_among_the_cells(view):
  rows, cols = view.period or (9, 9)
  grid = np.indices((rows, cols)).reshape(2, -1).T.astype(np.int32)
  poses = all_poses(view)
  seen = jax.jit(jax.vmap(view.visible, in_axes=(0, None)))(poses, grid)
  expected = [worlds.shows(view, pose, grid) for pose in poses]
  np.testing.assert_array_equal(seen, expected)
  if view.period is not None:
    assert (np.sum(seen, axis=1) == view.num_cells).all()


def test_move(view):
  poses, move = all_poses(view), jax.jit(view.move)
  for index, (row, col, turn) in enumerate(view.moves):
    moved = move(poses, np.full(len(poses), index))
    for pose, after in zip(poses, np.asarray(moved), strict=True):
      place = pose[:2] + worlds.turned_in(view, (row, col), pose[2])
      np.testing.assert_array_equal(after[:2], worlds.wrapped(view, place))
      assert after[2] == (pose[2] + turn) % 4
    assert moved.dtype == jnp.int32


def test_four_rights_and_a_way_back():
  view = VIEWS["ahead_torus"]
  pose = jnp.array([2, 3, 1], jnp.int32)
  ahead, left, right, back = (jnp.int32(i) for i in range(1, 5))
  step = jax.jit(view.move)
  for path in ([right] * 4, [left, right], [ahead, back], [ahead, right] * 4):
    end = pose
    for move in path:
      end = step(end, move)
    np.testing.assert_array_equal(end, pose)
  np.testing.assert_array_equal(view.move(pose, ahead), [2, 4, 1])
  np.testing.assert_array_equal(view.move(pose, right), [2, 3, 2])


# A torus so small that ways coincide, and a way that is another's duplicate.
TINY = world.View(
  1, 1, (0, 0), (*worlds.TANK, (0, 0, 4), (0, 1, 0), (-1, 0, 0)), (2, 3)
)


@pytest.mark.parametrize(
  "view", [VIEWS["torus"], VIEWS["ahead"], TINY], ids=["torus", "ahead", "tiny"]
)
def test_move_between_is_the_first_move_that_leads_there(view):
  poses, move = all_poses(view)[: 4 * 24], jax.jit(view.move)
  reached = {
    (tuple(pose), tuple(after), index)
    for index in range(view.num_moves)
    for pose, after in zip(
      poses.tolist(),
      np.asarray(move(poses, np.full(len(poses), index))).tolist(),
      strict=True,
    )
  }
  expected = np.full((len(poses), len(poses)), -1)
  place = {tuple(pose): i for i, pose in enumerate(poses.tolist())}
  for before, after, index in sorted(reached, key=lambda x: -x[2]):
    if tuple(after) in place:
      expected[place[before], place[tuple(after)]] = index
  table = jax.jit(jax.vmap(jax.vmap(view.move_between, (None, 0)), (0, None)))(
    poses, poses
  )
  np.testing.assert_array_equal(table, expected)
  assert (expected == -1).any() and (expected > 0).any()
  assert table.dtype == jnp.int32
  # Poses that were not wrapped, as those of an episode may be.
  if view.period is not None:
    around = poses + np.array([*view.period, 4])
    again = view.move_between(jnp.asarray(poses), jnp.asarray(around))
    np.testing.assert_array_equal(again, 0)


def test_nearest_is_the_shortest_way_round():
  view = world.View(1, 1, (0, 0), period=(4, 5))
  steps = np.array(list(itertools.product(range(-9, 10), repeat=2)), np.int32)
  found = np.asarray(view.nearest(jnp.asarray(steps)))
  for i, size in enumerate(view.period):
    ways = steps[:, i, None] + size * np.arange(-4, 5)
    np.testing.assert_array_equal(abs(found[:, i]), abs(ways).min(axis=1))
    np.testing.assert_array_equal((found[:, i] - steps[:, i]) % size, 0)
  plane = world.View(1, 1, (0, 0))
  np.testing.assert_array_equal(plane.nearest(jnp.asarray(steps)), steps)


@pytest.mark.parametrize(
  ("options", "error", "message"),
  [
    (dict(rows=0), ValueError, "rows must be >= 1, got 0"),
    (dict(cols=2.0), TypeError, "cols must be an integer"),
    (dict(moves=()), ValueError, r"moves must begin with \(0, 0, 0\)"),
    (
      dict(moves=((1, 0, 0),)),
      ValueError,
      r"moves must begin with \(0, 0, 0\), to stay; got \(\(1, 0, 0\),\)",
    ),
    (
      dict(moves=((0, 0, 0), (1, 0))),
      ValueError,
      r"moves must be \(rows, cols, quarter turns\)",
    ),
    (dict(period=(0, 4)), ValueError, "period's rows must be >= 1, got 0"),
    (dict(period=(4, 4.0)), TypeError, "period's cols must be an integer"),
    (dict(period=(4,)), ValueError, r"period must be \(rows, cols\)"),
    (dict(origin=(1,)), ValueError, r"origin must be \(row, col\)"),
  ],
)
def test_bad_views(options, error, message):
  with pytest.raises(error, match=message):
    world.View(**{"rows": 3, "cols": 3, "origin": (1, 1), **options})


@pytest.mark.parametrize(
  "options",
  [
    # Beyond what is nearest on a torus, cells would be taken for others.
    dict(rows=5, origin=(4, 1), period=(6, 6)),
    dict(rows=3, cols=7, origin=(1, 3), period=(9, 6)),
    # Turned, rows lie along columns.
    dict(rows=7, origin=(3, 1), moves=worlds.TANK, period=(9, 5)),
  ],
)
def test_a_view_must_fit_its_torus(options):
  with pytest.raises(ValueError, match="period must"):
    world.View(**{"rows": 3, "cols": 3, "origin": (1, 1), **options})
