"""Checkpoints of a training state: Orbax, with errors that say what to do.

Beside the state each checkpoint holds the shape and dtype of every array
(Orbax casts a wrong dtype silently) and the size and checksum of every file
(Orbax reads some flipped bits as numbers, and meets others with pages of
text). Both are there before the checkpoint gets its final name.
"""

import contextlib
import itertools
import json
import logging
import os
import pathlib
import warnings
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from jdiff.core import files as files_lib
from jdiff.training import processes, program, sharding

_MANIFEST = "files.json"
# Orbax touches these after the manifest is written; nothing depends on them.
_LATER = (_MANIFEST, "commit_success.txt", "_CHECKPOINT_METADATA")

ASIDE = "damaged"
"""Where damaged checkpoints are moved to, beside the directory."""


class Checkpoints:
  """The checkpoints in one directory; a context manager.

  Those that are newer than the newest intact one are damaged. They are moved to
  a folder beside the directory when that is opened, or with `read_only` passed
  over; either way a warning says so.

  Args:
    directory: Where they live.
    keep: How many of the newest are kept.
    read_only: Neither makes the directory nor changes what is in it, so that a
      run that is still going on can be read.

  Raises:
    ValueError: If there are checkpoints, and none is intact.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    keep: int = 2,
    read_only: bool = False,
  ):
    self._directory = pathlib.Path(directory).absolute()
    self._keep = keep
    self._read_only = read_only
    self._saving: int | None = None
    self._before: int | None = None

  def __enter__(self) -> "Checkpoints":
    # Others may see the first process's files late.
    self._newest, found = processes.agree(lambda: _sort_out(self._directory))
    damaged = {int(step): reason for step, reason in found.items()}
    if not self._read_only:
      _set_aside(self._directory, damaged)
    for step, reason in damaged.items() if not jax.process_index() else ():
      warnings.warn(
        f"checkpoint {self._directory / str(step)} is damaged ({reason}) and "
        f"{'passed over' if self._read_only else 'moved to ' + ASIDE}; step "
        f"{self._newest} is used instead.",
        stacklevel=2,
      )
    options = ocp.CheckpointManagerOptions(
      max_to_keep=None if self._read_only else self._keep,
      read_only=self._read_only,
      create=not self._read_only,
      cleanup_tmp_directories=not self._read_only,
      async_options=ocp.AsyncOptions(
        post_finalization_callback=self._write_manifest
      ),
    )
    # One of its own: a run that trains its base has another inside.
    self._filter = _Quiet()
    logging.getLogger("absl").addFilter(self._filter)
    try:
      self._manager = ocp.CheckpointManager(self._directory, options=options)
    except Exception:
      logging.getLogger("absl").removeFilter(self._filter)
      raise
    return self

  def __exit__(self, kind, *unused) -> None:
    try:
      with self._writing():
        self._manager.close()
    except OSError:
      # One that is on its way out says more.
      if kind is None:
        raise
    finally:
      logging.getLogger("absl").removeFilter(self._filter)

  def newest(self) -> int | None:
    """The step of the newest checkpoint, or None; it may still be written."""
    return self._newest

  def save(self, step: int, state: Any) -> None:
    """Starts to write a checkpoint, unless that step has one.

    The arrays are copied before this returns, so the state may be donated.

    Raises:
      OSError: If the one before could not be written.
    """
    if self._newest == step:
      return
    self.wait()
    self._before, self._saving = self._newest, step
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      arrays=ocp.args.JsonSave(program.leaves_by_path(state)),
    )
    with self._writing():
      self._newest = step
      if not self._manager.save(step, args=args):
        raise ValueError("there is a newer one")

  def wait(self) -> None:
    """Blocks until the last save is on disk.

    Raises:
      OSError: If it could not be written; the one before is kept.
    """
    with self._writing():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      # A full disk surfaces as many types of error, some pages long.
      step, self._newest = self._saving, self._before
      left = "no other" if self._newest is None else f"that of {self._newest}"
      raise OSError(
        f"the checkpoint of step {step} could not be written to "
        f"{self._directory} ({_last_line(error)}); there is {left}. Make room "
        "and run the same command again."
      ) from error

  def restore(self, step: int, abstract: Any, shardings: Any) -> Any:
    """Reads a checkpoint onto a mesh, which need not be the one it came from.

    Nothing is deleted or replaced, whatever is found.

    Args:
      step: The one that `newest` named.
      abstract: Shapes and dtypes that the program needs.
      shardings: Where each array goes.

    Raises:
      ValueError: If the checkpoint was written by another program (its
        shapes or dtypes differ), or if it is damaged.
    """
    try:
      self._check_arrays(step, abstract)
      target = sharding.abstract(abstract, shardings)
      return self._read(step, state=ocp.args.StandardRestore(target))["state"]
    except _DamagedError as error:
      raise ValueError(
        f"checkpoint {self._directory / str(step)} cannot be read ({error}); "
        "move that folder away and run again to continue from an older one."
      ) from error

  def _check_arrays(self, step: int, abstract: Any) -> None:
    stored = self._read(step, arrays=ocp.args.JsonRestore())["arrays"]
    needed = program.leaves_by_path(abstract)
    for path in sorted(stored.keys() | needed.keys()):
      has, needs = (d.get(path, "nothing") for d in (stored, needed))
      if has != needs:
        raise ValueError(
          f"checkpoint {self._directory / str(step)} holds {has} for {path} "
          f"but this program needs {needs}; use the code and config that "
          "wrote it, or a new workdir."
        )

  def _read(self, step: int, **args) -> Any:
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**args))
    except Exception as error:
      # Bad files surface as many types of error, from three libraries.
      if "RESOURCE_EXHAUSTED" in str(error):
        raise
      lines = str(error).strip().splitlines() or [type(error).__name__]
      raise _DamagedError(lines[0][:200].rstrip(". ")) from error

  def _write_manifest(self) -> None:
    """Called on files that are complete, in a folder not yet renamed."""
    if jax.process_index():
      return
    for folder in self._directory.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
      (folder / _MANIFEST).write_text(json.dumps(_fingerprints(folder)))


def save_params(directory: str | os.PathLike, params: Any) -> None:
  """Writes parameters alone, for `load_params`.

  Args:
    directory: Must not exist.
    params: A pytree of arrays, laid over devices in any way.

  Raises:
    ValueError: If there is such a directory.
  """
  path = pathlib.Path(directory).absolute()
  if path.exists():
    raise ValueError(f"{path} exists; pass another directory.")
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, params)
  if not jax.process_index():
    (path / _MANIFEST).write_text(json.dumps(_fingerprints(path)))


def load_params(
  directory: str | os.PathLike, abstract: Any, shardings: Any
) -> Any:
  """Reads what `save_params` wrote, each device its part.

  Args:
    directory: Where it lies.
    abstract: Shapes, and dtypes, which need not be those that were written.
    shardings: Where each array goes.

  Raises:
    ValueError: If nothing of these shapes is there, or it is damaged.
  """
  path = pathlib.Path(directory).absolute()
  try:
    _check_files(path)
  except _DamagedError as error:
    raise ValueError(
      f"{directory} holds no parameters, or damaged ones ({error})."
    ) from error
  target = sharding.abstract(abstract, shardings)
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      return checkpointer.restore(path, target)
  except Exception as error:
    # As many types of error as in `Checkpoints`.
    if "RESOURCE_EXHAUSTED" in str(error):
      raise
    lines = str(error).strip().splitlines() or [type(error).__name__]
    raise ValueError(
      f"{directory} holds no parameters of the shapes that are needed "
      f"({lines[0][:200]})."
    ) from error


def _last_line(error: Exception) -> str:
  """The end of what an error says, where TensorStore puts the cause."""
  text = (str(error).strip() or type(error).__name__).splitlines()[-1]
  return text if len(text) <= 200 else f"... {text[-200:]}"


class _DamagedError(Exception):
  """A checkpoint whose files are not those that were written."""


def _sort_out(directory: pathlib.Path) -> tuple[int | None, dict[int, str]]:
  """The newest step that is intact, and what is wrong with newer ones."""
  steps: list[int] = []
  if directory.is_dir():
    names = [path.name for path in directory.iterdir()]
    steps = sorted((int(n) for n in names if n.isdecimal()), reverse=True)
  damaged: dict[int, str] = {}
  for step in steps:
    try:
      _check_files(directory / str(step))
      return step, damaged
    except _DamagedError as error:
      damaged[step] = str(error)
  if damaged:
    found = "; ".join(f"{step}: {text}" for step, text in damaged.items())
    raise ValueError(
      f"no checkpoint in {directory} is intact ({found}); choose a new workdir "
      "to start again."
    )
  return None, {}


def _set_aside(directory: pathlib.Path, damaged: Iterable[int]) -> None:
  """Moves folders where neither Orbax nor a later run looks for them."""

  def move():
    place = directory.parent / ASIDE
    place.mkdir(exist_ok=True)
    for step in damaged:
      # The same step may have been damaged before.
      names = (place / f"{step}_{i}" for i in itertools.count())
      (directory / str(step)).rename(next(n for n in names if not n.exists()))

  if damaged:
    processes.agree(move)


def _check_files(folder: pathlib.Path) -> None:
  try:
    files = files_lib.read_json(folder / _MANIFEST)
    sizes = {name: (size, checksum) for name, (size, checksum) in files.items()}
  # Other errors of the disk may pass, and are no reason to move anything.
  except (
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError),
    *(ValueError, TypeError, AttributeError),
  ):
    raise _DamagedError(f"its {_MANIFEST} cannot be read") from None
  for name, (size, checksum) in sizes.items():
    if not (folder / name).is_file():
      raise _DamagedError(f"{name} is missing")
    now = _fingerprint(folder / name)
    if now[0] != size:
      raise _DamagedError(f"{name} has {now[0]} bytes instead of {size}")
    if None not in (now[1], checksum) and now[1] != checksum:
      raise _DamagedError(f"{name} has other contents than were written")


def _fingerprints(folder: pathlib.Path) -> dict[str, tuple[int, int | None]]:
  """Of every file that is complete before the folder is."""
  return {
    path.relative_to(folder).as_posix(): _fingerprint(path)
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name not in _LATER
  }


def _fingerprint(path: pathlib.Path) -> tuple[int, int | None]:
  """Size and checksum; on a pod size alone, where files are huge and far."""
  size = path.stat().st_size
  if jax.process_count() > 1:
    return size, None
  checksum = 0
  with path.open("rb") as file:
    while chunk := file.read(2**24):
      checksum = zlib.crc32(chunk, checksum)
  return size, checksum


class _Quiet(logging.Filter):
  """Drops what Orbax logs; its failures are raised too."""

  def filter(self, record: logging.LogRecord) -> bool:
    """Whether a record is kept."""
    return "orbax" not in record.pathname
