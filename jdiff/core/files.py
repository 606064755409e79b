"""Reading files of somebody else's making: of bounded size, and data alone.

Nothing here runs what a file holds. Arrays are read without pickle, and no
header makes more memory than the file has bytes for.
"""

import json
import os
import pathlib
import zipfile
import zlib
from typing import Any

import numpy as np

MAX_JSON_BYTES = 2**26
"""Of a configuration, a report or a manifest."""
MAX_TEXT_BYTES = 2**31
"""Of text that is held in memory as a whole."""
MAX_ARRAY_BYTES = 2**37
"""Of an archive of arrays, once unpacked."""


# NotImplementedError: an unknown compression; RuntimeError: a password.
_BAD_ARCHIVE = (
  *(zipfile.BadZipFile, zlib.error, EOFError, OverflowError, ValueError),
  *(NotImplementedError, RuntimeError),
)


def check_size(path: str | os.PathLike, max_bytes: int) -> pathlib.Path:
  """Returns the path of a file, unless that is larger than `max_bytes`.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If it is too large.
  """
  file = pathlib.Path(path)
  size = file.stat().st_size
  if size > max_bytes:
    raise ValueError(f"{file} must hold at most {max_bytes} bytes, got {size}.")
  return file


def read_text(path: str | os.PathLike, max_bytes: int = MAX_TEXT_BYTES) -> str:
  """Text in UTF-8.

  Raises:
    ValueError: If the file is too large, or holds something else.
  """
  file = check_size(path, max_bytes)
  try:
    return file.read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise ValueError(f"{file} must be UTF-8 text ({error}).") from None


def read_json(path: str | os.PathLike, max_bytes: int = MAX_JSON_BYTES) -> Any:
  """What a JSON file holds.

  Raises:
    ValueError: If the file is too large or nested too deeply, or is no JSON.
  """
  text = read_text(path, max_bytes)
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not valid JSON ({error}).") from None


def map_array(path: str | os.PathLike) -> np.ndarray:
  """A `.npy` file, left on disk.

  Raises:
    ValueError: If it holds Python objects, or less than its header says.
  """
  try:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
      array.close()
      raise ValueError("an archive")
    return array
  except (ValueError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path} must be a whole .npy file ({error}).") from None


def load_arrays(
  path: str | os.PathLike, max_bytes: int = MAX_ARRAY_BYTES
) -> dict[str, np.ndarray]:
  """The arrays of an `.npz` file, by name.

  Raises:
    ValueError: If it is no such file, or too large; if an array holds Python
      objects, or less than its header says.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      members = archive.infolist()
      total = sum(member.file_size for member in members)
      if total > max_bytes:
        raise ValueError(f"at most {max_bytes} bytes, got {total}")
      for member in members:
        _check_member(archive, member)
    with np.load(path, allow_pickle=False) as stored:
      return {name: stored[name] for name in stored.files}
  except _BAD_ARCHIVE as error:
    raise ValueError(f"{path} must be an .npz file ({error}).") from None


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
  """NumPy makes an array of the size that its header says, and then reads."""
  with archive.open(member) as opened:
    version = np.lib.format.read_magic(opened)
    read = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
      raise ValueError(f"{member.filename} is of version {version}")
    shape, _, dtype = read(opened)
  size = dtype.itemsize
  for side in shape:
    size *= side
  if dtype.hasobject or min((0, *shape)) < 0 or size > member.file_size:
    raise ValueError(
      f"{member.filename} must hold an array of plain numbers, got {dtype} of "
      f"shape {list(shape)} in {member.file_size} bytes"
    )
