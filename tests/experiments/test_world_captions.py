"""Captions of clips, and the model of clips and captions together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.world import captioned, captions, envs, events, tile_world
from jdiff import training


@functools.cache
def world():
  return events.walker(tile_world.env(size=12, view=5))


@functools.cache
def recorded():
  clip = envs.record(world(), jax.random.key(3), 64, 12)
  return jax.tree.map(np.asarray, clip)


def walked(place, moves, cells):
  """Frames of a map `[R, C]` seen 5 x 5 from a place and after each move."""
  frames = []
  for move in (0, *moves):
    place = place + np.array(tile_world.MOVES[move][:2])
    row, col = place
    frames.append(cells[row - 2 : row + 3, col - 2 : col + 3].ravel())
  return np.stack(frames)


def test_captions_of_a_walk_by_hand():
  """All that lines can say, on a map that is drawn."""
  cells = np.random.default_rng(0).integers(0, 2, (9, 9))
  cells[4, 4], cells[3, 4], cells[3, 5] = 0, 2, 2
  cells[2, 5], cells[3, 6] = tile_world.WALL, 1
  # North into water, east on water, into the wall, east again into grass.
  moves = np.array([1, 3, 0, 3])
  tokens = walked(np.array([4, 4]), moves, cells)
  words = events.captions(world().view, tokens, np.array([0, *moves]))
  assert events.text(words) == (
    "moved north into water, moved east on water, hit wall on water, "
    "moved east into grass"
  )
  found, overlap = events.read(world().view, jnp.asarray(tokens))
  np.testing.assert_array_equal(found, words)
  np.testing.assert_array_equal(overlap, np.ones(4))


def test_readers_of_frames_know_what_the_world_did():
  clip, view = recorded(), world().view
  words = np.asarray(events.captions(view, clip.tokens, clip.move))
  assert (clip.action[:, 1:] > 0).all()
  # What is to be said is said by some.
  assert (words.reshape(-1, 4).max(0) == [1, 4, 1, 4]).all()
  found, overlap = events.read(view, clip.tokens)
  clear = np.asarray(found)[..., 0] != events.UNREADABLE
  # Frames of few colours may agree under two steps; one in 100 is many.
  assert clear.mean() > 0.99
  np.testing.assert_array_equal(np.asarray(found)[clear], words[clear])
  assert (np.asarray(overlap) == 1).all()


def test_readers_are_not_told():
  """Other frames, other words: the same clips backwards go the other way."""
  clip, view = recorded(), world().view
  words = np.asarray(events.captions(view, clip.tokens, clip.move))
  found, _ = events.read(view, clip.tokens[:, ::-1])
  moved = (words[..., 0] == 0) & (np.asarray(found)[:, ::-1, 0] == 0)
  assert moved.sum() > 300
  np.testing.assert_array_equal(
    np.asarray(found)[:, ::-1, 1][moved], 3 - words[..., 1][moved]
  )


def test_readers_give_up_where_frames_do_not_tell():
  view = world().view
  plain = np.zeros((2, 25), int)
  found, _ = events.read(view, jnp.asarray(plain))
  assert (np.asarray(found) == events.UNREADABLE).all()
  assert events.text(found) == "? ? ? ?"
  # Still, and no wall beside the walker.
  cells = np.random.default_rng(1).integers(0, 5, 25)
  found, overlap = events.read(view, jnp.asarray(np.stack([cells, cells])))
  assert (np.asarray(found) == events.UNREADABLE).all()
  assert overlap == 1
  # A wall there makes it a wall that was hit; one cell that differs costs no
  # more than its share.
  cells[7] = tile_world.WALL
  other = cells.copy()
  other[0] = (other[0] + 1) % 5
  found, overlap = events.read(view, jnp.asarray(np.stack([cells, other])))
  assert events.text(found).startswith("hit wall on ")
  np.testing.assert_allclose(overlap, [24 / 25], rtol=1e-6)
  # Nobody stands on a wall.
  cells[12] = tile_world.WALL
  found, _ = events.read(view, jnp.asarray(np.stack([cells, cells])))
  assert (np.asarray(found) == events.UNREADABLE).all()


def test_other_worlds_have_no_captions():
  clip = recorded()
  other = tile_world.View(5, 5, (2, 2), ((0, 0, 0), (1, 0, 0)))
  with pytest.raises(ValueError, match="view.moves must be the tile world's"):
    events.captions(other, clip.tokens, clip.move)
  with pytest.raises(ValueError, match=r"tokens must be \[..., T, 25\]"):
    events.read(world().view, clip.tokens[..., 1:])


def test_tasks_leave_open_what_they_name():
  config = captions.get_config("smoke")
  canvas = captioned.make_canvas(config, captioned.environment(config))
  num = {t: captioned.open_sites(canvas, t).sum() for t in captioned.TASKS}
  assert num == {"joint": 83, "caption": 8, "frames": 75, "future": 58}


@pytest.mark.parametrize(
  "name", ["cpu", pytest.param("pod", marks=pytest.mark.thorough)]
)
def test_variants_trace(name):
  config = captions.get_config(name)
  experiment = captioned.build(config)
  canvas = captioned.make_canvas(config, captioned.environment(config))
  state = jax.eval_shape(experiment.init, jax.random.key(0))
  tokens = jax.ShapeDtypeStruct((config.batch_size, canvas.length), jnp.int32)
  after, metrics = jax.eval_shape(experiment.step, state, tokens)
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
  assert set(metrics) == {"loss", "grad_norm"}


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("task_weights", (1.0, 1.0), "config.task_weights must be 4 numbers"),
    ("task_weights", (0.0,) * 4, "config.task_weights must be 4 numbers"),
    ("num_frames", 1, "config.num_frames must be >= 2, got 1"),
    ("num_frames", 7, "at most config.data.num_frames=6, got 7"),
    ("learning_rate", 0.0, "config.learning_rate must be positive"),
  ],
)
def test_fields_out_of_range_are_named(field, value, message):
  config = captions.get_config("smoke").copy_and_resolve_references()
  config[field] = value
  with pytest.raises(ValueError, match=message):
    captioned.build(config)


@pytest.mark.thorough
def test_a_run_from_end_to_end(tmp_path):
  config = captions.get_config("smoke").copy_and_resolve_references()
  config.num_steps = config.eval_every = config.checkpoint_every = 4
  config.log_every = 2
  config.data.num_test = config.eval.num_quick
  experiment = captioned.build(config)
  report = training.run(experiment, config, tmp_path, progress=False)
  metrics = report["metrics"]
  assert metrics["reader_exact"]["value"] == 1
  assert 0 <= metrics["caption_word"]["value"] <= 1
  names = ("caption_to_frames", "frames_to_caption", "training")
  for name in names:
    assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 0
  samples = training.sample(tmp_path, 3)
  assert samples.shape == (3, 83)
  # Held-out captions stay as they are, and every site holds what it may.
  canvas = captioned.make_canvas(config, captioned.environment(config))
  assert canvas.allowed()[np.arange(83), samples].all()
