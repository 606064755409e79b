"""Data sets against the packages and files that they come from."""

import json
import subprocess
import sys

import numpy as np
import pytest

from experiments.common import data, stored


def match_rows(rows, other):
  """For each of `rows`, the distance to the nearest of `other`."""
  rows, other = (
    x.reshape(len(x), -1).astype(np.float64) for x in (rows, other)
  )
  square = (rows**2).sum(1)[:, None] + (other**2).sum(1)[None]
  return np.sqrt(np.maximum(square - 2 * rows @ other.T, 0).min(1))


@pytest.mark.parametrize(
  "name, size, side", [("digits", 1797, 8), ("mnist", 5000, 28)]
)
def test_sets_in_wheels(name, size, side):
  whole = data.load(name, test_share=0.0)
  assert whole.test is None and whole.test_labels is None
  assert whole.train.shape == (size, side, side, 1)
  assert whole.image_shape == (side, side, 1) and whole.num_classes == 10
  assert (
    whole.train.dtype == np.float32 and whole.train_labels.dtype == np.int32
  )
  assert whole.train.min() == -1 and whole.train.max() == 1
  pixels = whole.scale * whole.train + whole.shift
  # Half an ulp at 1, times the scale.
  np.testing.assert_allclose(pixels, np.round(pixels), atol=2e-5)

  parts = data.load(name, test_share=0.2)
  assert len(parts.train) + len(parts.test) == size
  counts = [np.bincount(x) for x in (whole.train_labels, parts.test_labels)]
  assert np.abs(0.2 * counts[0] - counts[1]).max() <= 0.5
  # Every row is in one part: sorted by content, nothing is lost or doubled.
  both = np.concatenate([parts.train, parts.test]).reshape(size, -1)
  everything = whole.train.reshape(size, -1)
  order = [np.lexsort(x.T) for x in (both, everything)]
  np.testing.assert_array_equal(both[order[0]], everything[order[1]])


def test_digits_are_those_of_scikit_learn():
  from sklearn import datasets

  bunch = datasets.load_digits()
  dataset = data.load("digits", test_share=0.25, seed=3)
  for part, labels in (
    (dataset.train, dataset.train_labels),
    (dataset.test, dataset.test_labels),
  ):
    pixels = 8 * part[..., 0] + 8
    # All rows of the set differ, so that a row has one label.
    index = {x.tobytes(): i for i, x in enumerate(bunch.images)}
    assert len(index) == 1797
    rows = [index[x.tobytes()] for x in pixels.astype(np.float64)]
    np.testing.assert_array_equal(bunch.target[rows], labels)


def test_splits_follow_the_seed_and_subsets_are_nested():
  first, again, other = (data.load("digits", seed=seed) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first.train, again.train)
  assert not np.array_equal(first.train, other.train)
  small = data.load("digits", num_train=64)
  np.testing.assert_array_equal(small.train, first.train[:64])
  np.testing.assert_array_equal(small.train_labels, first.train_labels[:64])
  np.testing.assert_array_equal(small.test, first.test)
  # Rows come in random order, though the packages sort by class: a class that
  # has a tenth is missing from 200 random rows with probability 7e-10.
  assert len(set(data.load("mnist", num_train=200).train_labels)) == 10


def test_checkerboard_is_uniform_on_its_squares():
  dataset = data.load("checkerboard", num_points=20_000)
  assert dataset.train.shape == (20_000, 2) and dataset.train_labels is None
  points = dataset.train * np.float32(0.45)
  square = np.floor(points).astype(int)
  # Scaling back may round a point over an edge, within an ulp at 2.
  inside = np.abs(points - np.round(points)).min(axis=1) > 1e-6
  assert np.all(square[inside].sum(axis=1) % 2 == 0)
  assert np.abs(points).max() <= 2 + 1e-6
  counts = np.histogram2d(*points.T, bins=4, range=[[-2, 2]] * 2)[0]
  assert np.sum(counts > 5) == 8
  # Binomial with p = 1/8, in a band of five deviations.
  band = 5 * np.sqrt(20_000 * 7 / 64)
  assert np.abs(counts[counts > 5] - 2500).max() < band
  # Uniform inside: each coordinate's place in its square averages to 1/2.
  place = points - square
  error = np.abs(place.mean(axis=0) - 0.5).max()
  assert error < 5 / np.sqrt(12 * 20_000)


def test_two_gaussians_have_their_moments():
  dataset = data.load(
    "two_gaussians", num_points=20_000, separation=6.0, std=0.5
  )
  x, labels = dataset.train, dataset.train_labels
  assert dataset.num_classes == 2
  for label, centre in ((0, -3), (1, 3)):
    part = x[labels == label]
    band = 5 * 0.5 / np.sqrt(len(part))
    np.testing.assert_allclose(part.mean(axis=0), [centre, 0], atol=band)
    # The deviation of a normal sample's deviation is std / sqrt(2 n).
    np.testing.assert_allclose(part.std(axis=0), 0.5, atol=band / np.sqrt(2))


def test_moons_lie_on_their_circles():
  dataset = data.load("moons", noise=0.0)
  for label, centre in ((0, [-0.5, -0.25]), (1, [0.5, 0.25])):
    offset = dataset.train[dataset.train_labels == label] - np.array(centre)
    np.testing.assert_allclose(np.linalg.norm(offset, axis=1), 1, atol=1e-6)
    assert np.all(offset[:, 1] * (1 - 2 * label) > -1e-6)


@pytest.mark.parametrize("name", ["checkerboard", "moons", "two_gaussians"])
def test_fresh_draws_are_not_the_training_set(name):
  dataset = data.load(name, num_points=100, num_test=100, seed=5)
  points, labels = dataset.fresh(5, 100)
  np.testing.assert_array_equal(points, dataset.fresh(5, 100)[0])
  assert (labels is None) == (dataset.num_classes == 0)
  for one, two in (
    (points, dataset.train),
    (points, dataset.test),
    (dataset.train, dataset.test),
    (points, dataset.fresh(6, 100)[0]),
  ):
    assert one.dtype == np.float32
    assert match_rows(one, two).min() > 0
  np.testing.assert_array_equal(
    dataset.train, data.load(name, num_points=100, seed=5).train
  )


def test_epochs_are_permutations_that_differ():
  rows = data.batches(10, batch_size=4, seed=0)
  order = np.concatenate([rows(step) for step in range(5 * 5)])
  assert order.dtype == np.int32
  epochs = order.reshape(10, 10)
  np.testing.assert_array_equal(
    np.sort(epochs), np.tile(np.arange(10), (10, 1))
  )
  assert len(np.unique(epochs, axis=0)) == 10
  # Another seed is another order, not the same one an epoch later.
  other = data.batches(10, batch_size=10, seed=1)
  others = [tuple(other(step)) for step in range(10)]
  assert not set(others) & set(map(tuple, epochs))


@pytest.mark.parametrize("num_rows, batch_size", [(7, 3), (5, 5), (3, 8)])
def test_rows_are_a_function_of_seed_and_step(num_rows, batch_size):
  def make(size=batch_size):
    return data.batches(num_rows, batch_size=size, seed=2)

  steps = range(12)
  straight = make()
  expected = [straight(step) for step in steps]
  assert all(len(x) == batch_size for x in expected)
  backwards = make()
  for step in reversed(steps):
    np.testing.assert_array_equal(backwards(step), expected[step])
  # Resumed in the middle, by a process that saw nothing of what came before.
  np.testing.assert_array_equal(make()(9), expected[9])
  # The stream of rows does not depend on how it is cut into batches.
  one = make(1)
  stream = [one(i)[0] for i in range(12 * batch_size)]
  np.testing.assert_array_equal(stream, np.concatenate(expected))


def test_positions_in_an_epoch_are_uniform():
  rows = data.batches(6, batch_size=6, seed=0)
  counts = np.zeros((6, 6))
  for step in range(1200):
    counts[np.arange(6), rows(step)] += 1
  # Binomial with p = 1/6 over 1200 epochs, five deviations.
  assert np.abs(counts - 200).max() < 5 * np.sqrt(1200 * 5 / 36)


def images(num_rows, seed):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (num_rows, 4, 3, 3), np.uint8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A set written by tensorflow-datasets as ArrayRecord, and its folder."""
  tfds = pytest.importorskip("tensorflow_datasets")

  # The class registers its name for the whole process.
  class JdiffTinyImages(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = {
        "image": tfds.features.Image(shape=(4, 3, 3)),
        "label": tfds.features.ClassLabel(num_classes=5),
      }
      return self.dataset_info_from_configs(
        features=tfds.features.FeaturesDict(features)
      )

    def _split_generators(self, dl_manager):
      return {"train": self._rows(12, 0), "test": self._rows(5, 1)}

    def _generate_examples(self):
      raise NotImplementedError

    def _rows(self, num_rows, seed):
      # Arrays would be compressed by tensorflow, pictures are by Pillow.
      picture = tfds.core.lazy_imports.PIL_Image.fromarray
      for i, image in enumerate(images(num_rows, seed)):
        yield i, {"image": picture(image), "label": i % 5}

  folder = tmp_path_factory.mktemp("tfds")
  JdiffTinyImages(
    data_dir=folder, file_format="array_record"
  ).download_and_prepare()
  return folder


def test_prepared_images(prepared):
  dataset = data.load(
    "tfds", tfds_name="jdiff_tiny_images", data_dir=str(prepared)
  )
  assert dataset.num_classes == 5 and dataset.image_shape == (4, 3, 3)
  for part, labels, num_rows, seed in (
    (dataset.train, dataset.train_labels, 12, 0),
    (dataset.test, dataset.test_labels, 5, 1),
  ):
    assert part.dtype == np.float32 and part.shape == (num_rows, 4, 3, 3)
    pixels = np.round(dataset.scale * part + dataset.shift).astype(np.uint8)
    written = {x.tobytes(): i for i, x in enumerate(images(num_rows, seed))}
    # The order is tensorflow-datasets' own, so rows are found by content.
    rows = [written[x.tobytes()] for x in pixels]
    assert sorted(rows) == list(range(num_rows))
    np.testing.assert_array_equal(labels, np.array(rows) % 5)


def test_flips_mirror_what_is_left_of_the_training_set(prepared):
  options = {"tfds_name": "jdiff_tiny_images", "data_dir": str(prepared)}
  plain = data.load("tfds", **options)
  dataset = data.load("tfds", num_train=7, flips=True, **options)
  assert dataset.train.shape == (14, 4, 3, 3)
  np.testing.assert_array_equal(dataset.train[:7], plain.train[:7])
  np.testing.assert_array_equal(dataset.train[7:], plain.train[:7, :, ::-1])
  np.testing.assert_array_equal(
    dataset.train_labels[:7], plain.train_labels[:7]
  )
  np.testing.assert_array_equal(
    dataset.train_labels[7:], plain.train_labels[:7]
  )
  np.testing.assert_array_equal(dataset.test, plain.test)


def test_splits_can_be_sliced_or_left_out(prepared):
  options = {"tfds_name": "jdiff_tiny_images", "data_dir": str(prepared)}
  dataset = data.load("tfds", train_split="train[:5]", test_split="", **options)
  assert len(dataset.train) == 5 and dataset.test is None
  with pytest.raises(
    ValueError, match=r"test_split must name .*\(train, test\)"
  ):
    data.load("tfds", test_split="validation", **options)


def test_wrong_file_format_says_how_to_prepare(prepared, tmp_path):
  (source,) = (prepared / "jdiff_tiny_images").iterdir()
  folder = tmp_path / "jdiff_tiny_images" / source.name
  folder.mkdir(parents=True)
  for path in source.iterdir():
    (folder / path.name).write_bytes(path.read_bytes())
  info = json.loads((folder / "dataset_info.json").read_text())
  info["fileFormat"] = "tfrecord"
  (folder / "dataset_info.json").write_text(json.dumps(info))
  with pytest.raises(
    ValueError, match="array_record, got tfrecord; prepare it"
  ):
    data.load("tfds", tfds_name="jdiff_tiny_images", data_dir=str(tmp_path))


def test_absent_sets_say_how_to_prepare_them(tmp_path):
  pytest.importorskip("tensorflow_datasets")
  with pytest.raises(FileNotFoundError) as error:
    data.load("cifar10", data_dir=str(tmp_path))
  message = str(error.value)
  command = message.split('python -c "')[1].rstrip('"')
  # What it tells the user to run is a program, on this set and folder.
  compile(command, "command", "exec")
  assert "tfds.builder('cifar10', file_format='array_record'" in command
  assert repr(str(tmp_path)) in command and "\n" not in message
  assert not list(tmp_path.iterdir())
  with pytest.raises(ValueError, match="tfds_name must be known"):
    data.load("tfds", tfds_name="no_such_set_at_all", data_dir=str(tmp_path))
  with pytest.raises(FileNotFoundError, match="latents.npy and labels.npy not"):
    data.load("imagenet_latents", path=str(tmp_path))
  with pytest.raises(FileNotFoundError, match="which is no file"):
    data.load("array", path=str(tmp_path / "x.npy"))


@pytest.fixture
def latents(tmp_path):
  rng = np.random.default_rng(0)
  arrays = {
    "latents": rng.standard_normal((20, 32, 32, 4)).astype(np.float16),
    "std": rng.uniform(0.1, 1, (20, 32, 32, 4)).astype(np.float16),
    "labels": np.arange(20) * 50,
  }
  for name, array in arrays.items():
    np.save(tmp_path / f"{name}.npy", array)
  return tmp_path, arrays


def test_latents_stay_on_disk(latents):
  path, arrays = latents
  dataset = data.load("imagenet_latents", path=str(path))
  assert dataset.train.shape == (20, 32, 32, 4) and len(dataset.train) == 20
  assert dataset.num_classes == 1000 and dataset.image_shape is None
  np.testing.assert_array_equal(dataset.train_labels, arrays["labels"])
  rows = np.array([3, 19, 3], np.int32)
  for lazy, name in ((dataset.train, "latents"), (dataset.train_std, "std")):
    got = lazy[rows]
    assert got.dtype == np.float32 and type(got) is np.ndarray
    expected = arrays[name][rows].astype(np.float32) * np.float32(0.18215)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(lazy[3:5][0], expected[0])
    np.testing.assert_array_equal(lazy[3], expected[0])
    with pytest.raises(TypeError, match=r"\[20, 32, 32, 4\] must be read by"):
      np.asarray(lazy)
  # Still the file, not a copy of it.
  path_on_disk = path / "latents.npy"
  written = np.load(path_on_disk, mmap_mode="r+")
  written[3] = 0
  written.flush()
  assert not dataset.train[3].any()

  small = data.load("imagenet_latents", path=str(path), num_train=5, scale=1.0)
  assert isinstance(small.train, stored.Rows) and len(small.train) == 5
  assert len(small.train_std) == len(small.train_labels) == 5
  np.testing.assert_array_equal(small.train[1], arrays["latents"][1])


@pytest.mark.parametrize(
  "name, array, error, message",
  [
    ("labels", np.full(20, 1000), ValueError, r"in \[0, num_classes = 1000\)"),
    ("labels", np.zeros(19, int), ValueError, r"shape \[20\], got \[19\]"),
    ("labels", np.zeros(20), TypeError, "labels.npy must be integers"),
    ("latents", np.zeros((20, 4)), TypeError, "latents.npy must be float16"),
    (
      "std",
      np.zeros((2, 4), np.float16),
      ValueError,
      "std.npy must have shape",
    ),
  ],
)
def test_wrong_latents_are_refused(latents, name, array, error, message):
  path, _ = latents
  np.save(path / f"{name}.npy", array)
  with pytest.raises(error, match=message):
    data.load("imagenet_latents", path=str(path))


def test_own_arrays(tmp_path):
  rows = images(6, 0)
  np.save(tmp_path / "rows.npy", rows)
  dataset = data.load("array", path=str(tmp_path / "rows.npy"))
  assert dataset.image_shape == (4, 3, 3) and dataset.train_labels is None
  assert dataset.num_classes == 0 and np.abs(dataset.train).max() <= 1
  back = np.round(dataset.scale * dataset.train + dataset.shift)
  np.testing.assert_array_equal(back, rows)

  labels = np.array([0, 3, 1], np.uint8)
  points = np.random.default_rng(0).standard_normal((3, 2))
  file = tmp_path / "rows.npz"
  np.savez(file, train=points, train_labels=labels, test=points[:1])
  dataset = data.load("array", path=str(file), scale=2.0, shift=1.0)
  assert dataset.num_classes == 4 and dataset.train_labels.dtype == np.int32
  np.testing.assert_array_equal(
    dataset.train, ((points - 1) / 2).astype(np.float32)
  )
  assert dataset.test.shape == (1, 2) and dataset.image_shape is None


@pytest.mark.parametrize(
  "arrays, options, message",
  [
    ({"x": np.zeros((2, 2))}, {}, "must hold 'train'"),
    ({"train": np.zeros((2, 2), int)}, {}, "scale must be given"),
    ({"train": np.full((2, 2), np.nan)}, {}, "train must be finite"),
    ({"train": np.zeros((2, 2)), "test": np.zeros((2, 3))}, {}, "test must"),
    ({"train": np.zeros((2, 2))}, {"scale": 0.0}, "scale must be positive"),
    ({"train": np.zeros((2, 2))}, {"flips": True}, "flips must be False"),
    (
      {"train": np.zeros((2, 2)), "train_labels": np.array([0, 2])},
      {"num_classes": 2},
      "train_labels must lie",
    ),
  ],
)
def test_wrong_arrays_are_refused(tmp_path, arrays, options, message):
  file = tmp_path / "rows.npz"
  np.savez(file, **arrays)
  with pytest.raises(ValueError, match=message):
    data.load("array", path=str(file), **options)


@pytest.mark.parametrize(
  "name, options, message",
  [
    ("digit", {}, "must be one of digits, mnist, .*got 'digit'"),
    ("digits", {"share": 1}, "takes .*test_share.*got {'share': 1}"),
    ("digits", {"test_share": 1.0}, r"test_share must lie in \[0, 1\)"),
    ("digits", {"num_train": 2000}, "num_train must be at most"),
    ("digits", {"num_train": 0}, "num_train must be >= 1"),
    ("moons", {"std": 1}, "takes .*num_points.*noise.*got"),
    ("moons", {"noise": -1}, "noise must be at least 0"),
    ("moons", {"flips": True}, "flips must be False"),
    ("checkerboard", {"seed": -1}, "seed must be >= 0"),
    ("cifar10", {"tfds_name": "mnist"}, "takes .*data_dir"),
    ("array", {}, "takes .*missing a required argument: 'path'"),
  ],
)
def test_wrong_options_are_refused(name, options, message):
  with pytest.raises(ValueError, match=message):
    data.load(name, **options)


def test_heavy_packages_load_on_demand():
  heavy = ("tensorflow_datasets", "sklearn", "mlxtend", "grain", "pandas")
  code = (
    "import sys, experiments.common.data\n"
    f"print([name for name in {heavy} if name in sys.modules])"
  )
  output = subprocess.check_output([sys.executable, "-c", code], text=True)
  assert output.strip() == "[]"
