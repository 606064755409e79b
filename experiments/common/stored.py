"""Data sets that lie on the user's disk; `data.load` is the way in.

Three forms: what tensorflow-datasets has prepared as ArrayRecord (read without
tensorflow), the user's own `.npy` or `.npz`, and a folder of latents that is
too big for memory. Nothing is downloaded: what is absent is an error that says
how to prepare it. Loaders return the fields of a `data.Dataset`.
"""

import pathlib
from typing import Any

import numpy as np

from jdiff.core import checks, files

CHUNK = 1024
PIXELS = 127.5
"""`x = pixel / 127.5 - 1` maps bytes onto [-1, 1]."""


class Rows:
  """Rows on disk, read and scaled when asked for: `rows[index]`, float32.

  Has the `shape`, `dtype` and `len` of the array that it stands for, and
  refuses to become that array, which may not fit into memory.
  """

  dtype = np.dtype(np.float32)

  def __init__(self, array: np.ndarray, scale: float = 1.0):
    self._array, self._scale = array, np.float32(scale)
    self.shape = array.shape

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, index: Any) -> np.ndarray:
    if not isinstance(index, slice | int):
      index = np.asarray(index)
    # Float32 before scaling: half precision would round twice.
    return np.asarray(self._array[index], np.float32) * self._scale

  def __array__(self, *_, **__):
    raise TypeError(
      f"rows on disk {list(self.shape)} must be read by index, rows[i:j] or "
      "rows[indices], got a request for all of them as one array."
    )

  def head(self, num_rows: int) -> "Rows":
    """The first rows, still on disk."""
    return Rows(self._array[:num_rows], self._scale)


def tfds(
  tfds_name: str,
  *,
  data_dir: str | None = None,
  train_split: str = "train",
  test_split: str = "test",
) -> dict[str, Any]:
  """Images of a prepared tensorflow-datasets set, in [-1, 1].

  Rows keep the order that tensorflow-datasets stores them in, which is
  scrambled but the same on every machine.

  Args:
    tfds_name: As in `tfds.builder`.
    data_dir: Where it was prepared; by default where tfds puts it.
    train_split: Split for `train`; slices such as "train[:50%]" are allowed.
    test_split: Split for `test`; "" for none.
  """
  import tensorflow_datasets

  where = "" if data_dir is None else f", data_dir={str(data_dir)!r}"
  prepare = (
    "prepare it once, in an environment that has tensorflow too (reading needs "
    'none), with: python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder({tfds_name!r}, file_format='array_record'{where})"
    '.download_and_prepare()"'
  )
  try:
    builder = tensorflow_datasets.builder(tfds_name, data_dir=data_dir)
  except tensorflow_datasets.core.DatasetNotFoundError as error:
    raise ValueError(
      "tfds_name must be known to tensorflow-datasets or lie in data_dir, got "
      f"{tfds_name!r} and data_dir={data_dir!r}."
    ) from error
  if not builder.info.splits:
    raise FileNotFoundError(
      f"data set {tfds_name!r} was not found at {builder.data_path}; {prepare}"
    )
  fields: dict[str, Any] = {"scale": PIXELS, "shift": PIXELS}
  for part, split in (("train", train_split), ("test", test_split)):
    if split:
      try:
        source = builder.as_data_source(split)
      except NotImplementedError as error:
        raise ValueError(
          f"data set {tfds_name!r} at {builder.data_path} must be stored as "
          f"array_record, got {builder.info.file_format.value}; {prepare}"
        ) from error
      except (KeyError, ValueError) as error:
        raise ValueError(
          f"{part}_split must name a split of {tfds_name!r} "
          f"({', '.join(builder.info.splits)}), got {split!r}."
        ) from error
      fields[part], fields[f"{part}_labels"] = _pixels(source, builder)
  if "label" in builder.info.features:
    fields["num_classes"] = builder.info.features["label"].num_classes
  fields["image_shape"] = fields["train"].shape[1:]
  return fields


def _pixels(source, builder) -> tuple[np.ndarray, np.ndarray | None]:
  features = builder.info.features
  if "image" not in features or None in features["image"].shape:
    raise ValueError(
      "tfds_name must be a set with the feature 'image', of one size, got "
      f"{builder.name!r} with {', '.join(features)}."
    )
  labelled = "label" in features
  images = np.empty((len(source), *features["image"].shape), np.float32)
  labels = np.empty(len(source), np.int32)
  for start in range(0, len(source), CHUNK):
    rows = range(start, min(start + CHUNK, len(source)))
    for i, row in zip(rows, source.__getitems__(list(rows)), strict=True):
      images[i] = row["image"]
      if labelled:
        labels[i] = row["label"]
  images /= PIXELS
  images -= 1
  return images, labels if labelled else None


def imagenet_latents(
  path: str, *, scale: float = 0.18215, num_classes: int = 1000
) -> dict[str, Any]:
  """Autoencoder latents of images, left on disk.

  `train` and `train_std` are `Rows`. Where there are deviations, a training
  batch is `train[rows] + train_std[rows] * noise`, and optimal transport is
  solved on `train`, the means.

  Args:
    path: A folder with `latents.npy` (`[N, 32, 32, 4]` float16 or float32, the
      means of the encoder's posterior), `labels.npy` (`[N]` integers) and, if
      wanted, `std.npy` (shaped like the latents). Mirrored images are encoded
      in their own right: a mirrored latent decodes to no mirrored image.
    scale: Factor from the encoder's units to `train`'s.
    num_classes: Labels lie below it.
  """
  checks.check_finite("scale", scale, positive=True)
  folder = pathlib.Path(path)
  needed = ("latents.npy", "labels.npy")
  absent = [name for name in needed if not (folder / name).exists()]
  if absent:
    raise FileNotFoundError(
      f"{' and '.join(absent)} not found in path={str(path)!r}; prepare "
      "latents.npy ([N, 32, 32, 4] float16 or float32, the posterior means of "
      "the image autoencoder, unscaled), labels.npy ([N] integers) and, to "
      "sample the posterior, std.npy, with numpy.save."
    )
  latents = _map(folder / "latents.npy")
  checks.check_shape("latents.npy", latents, (None, None, None, None))
  fields: dict[str, Any] = {
    "train": Rows(latents, scale),
    "train_labels": _labels(
      "labels.npy",
      files.map_array(folder / "labels.npy"),
      len(latents),
      num_classes,
    ),
    "num_classes": num_classes,
    "scale": 1 / scale,
  }
  if (folder / "std.npy").exists():
    std = _map(folder / "std.npy")
    checks.check_shape("std.npy", std, latents.shape)
    fields["train_std"] = Rows(std, scale)
  return fields


def _map(path: pathlib.Path) -> np.ndarray:
  array = files.map_array(path)
  if array.dtype not in (np.float16, np.float32):
    raise TypeError(
      f"{path.name} must be float16 or float32, got {array.dtype}."
    )
  return array


def array(
  path: str,
  *,
  scale: float | None = None,
  shift: float | None = None,
  num_classes: int | None = None,
) -> dict[str, Any]:
  """The user's own rows, loaded as `(stored - shift) / scale`.

  Args:
    path: A `.npy` file of `[N, ...]` rows, or an `.npz` with `train` and, if
      wanted, `train_labels`, `test` and `test_labels`. Rows `[H, W, C]` are
      taken for images.
    scale: By default 127.5 for bytes (then also `shift`, so that they land in
      [-1, 1]), and 1 for floats.
    shift: By default 127.5 for bytes, 0 for floats.
    num_classes: By default the largest label plus one.
  """
  file = pathlib.Path(path)
  if not file.is_file() or file.suffix not in (".npy", ".npz"):
    raise FileNotFoundError(
      "path must be a .npy file of [N, ...] rows or a .npz file with 'train' "
      "(and 'train_labels', 'test', 'test_labels'), got "
      f"{str(path)!r}{'' if file.is_file() else ', which is no file'}."
    )
  if file.suffix == ".npz":
    stored = files.load_arrays(file)
  else:
    stored = {"train": np.array(files.map_array(file))}
  known = {"train", "train_labels", "test", "test_labels"}
  if "train" not in stored or not known >= set(stored):
    raise ValueError(
      f"path={str(path)!r} must hold 'train' and nothing beside "
      f"{', '.join(sorted(known))}, got {', '.join(sorted(stored))}."
    )
  dtype = stored["train"].dtype
  if scale is None and dtype != np.uint8 and dtype.kind != "f":
    raise ValueError(
      "scale must be given where rows are neither bytes nor floats, got "
      f"{dtype}."
    )
  default = (PIXELS, PIXELS) if dtype == np.uint8 else (1.0, 0.0)
  scale = default[0] if scale is None else scale
  shift = default[1] if shift is None else shift
  checks.check_finite("scale", scale, positive=True)
  checks.check_finite("shift", shift)
  shape = stored["train"].shape
  fields: dict[str, Any] = {"scale": scale, "shift": shift}
  if num_classes is None:
    labels = [stored[n] for n in stored if n.endswith("labels")]
    num_classes = max((int(v.max()) + 1 for v in labels if v.size), default=0)
  fields["num_classes"] = num_classes
  for part in ("train", "test"):
    if part in stored:
      checks.check_shape(part, stored[part], (None, *shape[1:]))
      rows = ((stored[part] - np.float64(shift)) / scale).astype(np.float32)
      if not np.isfinite(rows).all():
        raise ValueError(f"{part} must be finite, got NaN or infinity.")
      fields[part] = rows
      name = f"{part}_labels"
      if name in stored:
        fields[name] = _labels(name, stored[name], len(rows), num_classes)
  if len(shape) == 4:
    fields["image_shape"] = shape[1:]
  return fields


def _labels(name, labels, num_rows, num_classes) -> np.ndarray:
  checks.check_shape(name, labels, (num_rows,))
  if labels.dtype.kind not in "iu":
    raise TypeError(f"{name} must be integers, got dtype {labels.dtype}.")
  if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
    raise ValueError(
      f"{name} must lie in [0, num_classes = {num_classes}), got values from "
      f"{labels.min()} to {labels.max()}."
    )
  return labels.astype(np.int32)
