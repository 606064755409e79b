"""Names of array axes, and the axes of the mesh that each is split over.

Networks name the axes of their parameters and activations by what they hold;
the one table here says where those go on a mesh with the axes `MESH`. Batches
are split over `data` and `fsdp`. Parameters are split over `fsdp`, which the
compiler gathers before use, and over `tensor`, along which it computes parts:
heads, hidden features, the vocabulary.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, PartitionSpec

MESH = ("data", "fsdp", "tensor")
"""Axes of the mesh."""

BATCH = ("data", "fsdp")
"""Those that batches are split over."""

RULES = {
  "heads": "tensor",
  "kv_heads": "tensor",
  "mlp": "tensor",
  "vocab": "tensor",
  "width": "fsdp",
}
"""Axis of the mesh for each name; one that is not here stays whole."""

Names = tuple[str | None, ...]
"""A name for each axis of an array, or None."""


def spec(
  names: Names, shape: tuple[int, ...], mesh: Any, *, of: str
) -> PartitionSpec:
  """How an array whose axes have `names` is split.

  Args:
    names: Names of its axes; unknown ones stay whole.
    shape: Its shape.
    mesh: A mesh; axes that it lacks split nothing.
    of: What the array is, for errors.

  Raises:
    ValueError: If there are not as many names as axes, or the mesh does not
      divide one of them.
  """
  if len(names) != len(shape):
    raise ValueError(
      f"{of} must have {len(names)} axes, {names}, got shape {list(shape)}."
    )
  entries: list[str | None] = []
  for name, size in zip(names, shape, strict=True):
    axis = RULES.get(name or "")
    parts = 1 if axis is None else mesh.shape.get(axis, 1)
    if size % parts:
      raise ValueError(
        f"mesh.{axis} must divide {name} of {of}, got mesh.{axis}={parts} and "
        f"{name}={size}."
      )
    entries.append(axis if parts > 1 else None)
  return PartitionSpec(*entries)


def batch_spec(shape: tuple[int, ...], mesh: Any) -> PartitionSpec:
  """How a batch is split: its leading axis over as many axes as divide it."""
  sizes = {axis: mesh.shape[axis] for axis in BATCH if axis in mesh.shape}
  for parts in (tuple(sizes), ("data",), ("fsdp",)):
    number = math.prod(sizes.get(axis, 0) for axis in parts)
    if shape and number > 1 and shape[0] % number == 0:
      return PartitionSpec(parts)
  return PartitionSpec()


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Asks for activations to be laid over the mesh of `jax.set_mesh`.

  Does nothing where there is none, or where its axes are manual, as inside
  `jax.shard_map`. Numbers do not depend on it. Without it a compiler that
  meets split parameters may split features of activations rather than gather
  the parameters.

  Args:
    x: Its leading axis is the batch.
    *names: Of the axes after it; those that are not named stay whole, and of
      those that the mesh does not divide, the batch too, nothing is said.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size == 1 or not set(MESH) & set(mesh.axis_names):
    return x
  if AxisType.Manual in mesh.axis_types:
    return x
  free = PartitionSpec.UNCONSTRAINED
  entries: list[Any] = [*batch_spec(np.shape(x), mesh), free][:1]
  for name, size in zip(names, np.shape(x)[1:], strict=True):
    axis = RULES.get(name or "")
    parts = 1 if axis is None else mesh.shape.get(axis, 1)
    entries.append(None if parts == 1 else axis if size % parts == 0 else free)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*entries))
