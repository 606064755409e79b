"""Checkpoints of a training state: Orbax, with errors that say what to do.

Beside the state each checkpoint holds the shape, dtype and bit sum of every
array. Orbax casts a wrong dtype silently, and reads flipped bits as numbers.
"""

import logging
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jdiff.training import program


class Checkpoints:
  """The checkpoints in one directory; a context manager.

  Args:
    directory: Where they live; made at the first save.
    keep: How many of the newest are kept.
  """

  def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
    self._directory = pathlib.Path(directory).absolute()
    self._keep = keep

  def __enter__(self) -> "Checkpoints":
    logging.getLogger("absl").addFilter(_quiet)
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(max_to_keep=self._keep),
    )
    return self

  def __exit__(self, *unused) -> None:
    self._manager.close()
    logging.getLogger("absl").removeFilter(_quiet)

  def latest(self) -> int | None:
    """The step of the newest checkpoint, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any) -> None:
    """Starts to write a checkpoint, unless that step has one.

    The arrays are copied before this returns, so the state may be donated.
    """
    if self.latest() == step:
      return
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      arrays=ocp.args.JsonSave(_describe(state)),
    )
    self._manager.save(step, args=args)

  def wait(self) -> None:
    """Blocks until the last save is on disk."""
    self._manager.wait_until_finished()

  def restore(self, step: int, abstract: Any, shardings: Any) -> Any:
    """Reads a checkpoint onto a mesh, which need not be the one it came from.

    Nothing is deleted or replaced, whatever is found.

    Args:
      step: One that `latest` named.
      abstract: Shapes and dtypes that the program needs.
      shardings: Where each array goes.

    Raises:
      ValueError: If the checkpoint was written by another program (its
        shapes or dtypes differ), or if it is damaged.
    """
    try:
      return self._restore(step, abstract, shardings)
    except _DamagedError as error:
      older = [s for s in sorted(self._manager.all_steps()) if s < step]
      while older and not self._is_intact(older[-1], abstract, shardings):
        older.pop()
      folder = self._directory / str(step)
      advice = (
        f"move that folder away and run again to continue from step {older[-1]}"
        ", whose checkpoint is intact"
        if older
        else "no older checkpoint is intact; choose a new workdir to start "
        "again"
      )
      raise ValueError(
        f"checkpoint {folder} is damaged ({error}); {advice}."
      ) from error

  def _is_intact(self, step: int, abstract: Any, shardings: Any) -> bool:
    try:
      self._restore(step, abstract, shardings)
    except (_DamagedError, ValueError):
      return False
    return True

  def _restore(self, step: int, abstract: Any, shardings: Any) -> Any:
    target = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract,
      shardings,
    )
    stored = self._read(step, arrays=ocp.args.JsonRestore())["arrays"]
    folder = self._directory / str(step)
    needed = program.leaves_by_path(abstract)
    for path in sorted(stored.keys() | needed.keys()):
      has = stored.get(path, ["nothing"])[0]
      needs = needed.get(path, "nothing")
      if has != needs:
        raise ValueError(
          f"checkpoint {folder} holds {has} for {path} but this program needs "
          f"{needs}; use the code and config that wrote it, or a new workdir."
        )
    state = self._read(step, state=ocp.args.StandardRestore(target))["state"]
    for path, (_, bits) in _describe(state).items():
      if bits != stored[path][1]:
        raise _DamagedError(f"the values of {path} are not those saved")
    return state

  def _read(self, step: int, **args) -> Any:
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**args))
    except Exception as error:
      # Truncated files surface as many types of error, from three libraries.
      if "RESOURCE_EXHAUSTED" in str(error):
        raise
      lines = str(error).strip().splitlines() or [type(error).__name__]
      raise _DamagedError(lines[0][:200].rstrip(". ")) from error


class _DamagedError(Exception):
  """A checkpoint that cannot be read back as it was written."""


def _describe(state: Any) -> dict[str, tuple[str, int]]:
  """`{path: (dtype[shape], sum of the bits)}` of every array."""
  sums = jax.device_get(jax.jit(_bit_sums)(state))
  paths = program.leaves_by_path(state)
  return {
    path: (text, int(bits))
    for (path, text), bits in zip(
      paths.items(), jax.tree.leaves(sums), strict=True
    )
  }


def _bit_sums(tree: Any) -> Any:
  """Sums every array as integers modulo 2^32: exact in any order."""

  def bits(x):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
      x = x.astype(jnp.uint8)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
      x = jnp.stack([x.real, x.imag])
    kind = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    x = jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
    return jnp.sum(x, dtype=jnp.uint32)

  return jax.tree.map(bits, tree)


def _quiet(record: logging.LogRecord) -> bool:
  """Drops what Orbax says below an error."""
  return record.levelno >= logging.ERROR or "orbax" not in record.pathname
