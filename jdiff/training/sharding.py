"""The mesh, and where states and batches live on it.

Two axes: batches are split over both, large parameters over `fsdp`. Axes are
Auto, so the compiler adds the collectives; results do not depend on the mesh
beyond the order of float sums.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jdiff.core import checks
from jdiff.core import keys as keys_lib

AXES = ("data", "fsdp")

MIN_SHARD_SIZE = 2**16
"""Arrays with fewer elements are replicated: a gather costs more."""


def make_mesh(
  data: int = -1, fsdp: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
  """A mesh with the axes `("data", "fsdp")`.

  Args:
    data: Shards of the batch, or -1 for as many as there are devices.
    fsdp: Shards of large parameters, and of the batch too.
    devices: Devices to use, by default all; the first `data * fsdp` are.
  """
  everything = devices is None
  devices = list(jax.devices() if devices is None else devices)
  checks.check_int("mesh.fsdp", fsdp)
  if data == -1:
    data = max(len(devices) // fsdp, 1)
  checks.check_int("mesh.data", data)
  if data * fsdp > len(devices):
    raise ValueError(
      f"a mesh of data={data} x fsdp={fsdp} needs {data * fsdp} devices, "
      f"got {len(devices)}."
    )
  if everything and jax.process_count() > 1 and data * fsdp != len(devices):
    raise ValueError(
      f"several processes must use all of their {len(devices)} devices, got "
      f"data={data} x fsdp={fsdp}."
    )
  return jax.make_mesh(
    (data, fsdp),
    AXES,
    axis_types=(AxisType.Auto,) * 2,
    devices=devices[: data * fsdp],
  )


def fsdp_spec(
  array: Any, mesh: Mesh, *, min_size: int = MIN_SHARD_SIZE
) -> PartitionSpec:
  """Splits the largest axis that the `fsdp` axis divides, if it is worth it.

  Args:
    array: Anything with a shape and a dtype.
    mesh: A mesh with an `fsdp` axis.
    min_size: Arrays with fewer elements are replicated, as are keys.
  """
  shape, parts = np.shape(array), mesh.shape["fsdp"]
  if (
    parts == 1
    or math.prod(shape) < min_size
    or jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
  ):
    return PartitionSpec()
  axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
  if not axes:
    return PartitionSpec()
  best = max(axes, key=lambda axis: shape[axis])
  return PartitionSpec(*(None,) * best, "fsdp")


def state_shardings(
  abstract: Any, mesh: Mesh, *, min_size: int = MIN_SHARD_SIZE
) -> Any:
  """`fsdp_spec` of every leaf, as shardings; moments follow parameters."""
  return jax.tree.map(
    lambda x: NamedSharding(mesh, fsdp_spec(x, mesh, min_size=min_size)),
    abstract,
  )


def shard_batch(tree: Any) -> Any:
  """Asks for the leading axis of every leaf to be split over the mesh.

  Works on the mesh of `jax.set_mesh`, under jit or not, and does nothing
  where there is none. A leading axis that `data * fsdp` does not divide is
  split over as many axes as do divide it, in the end over none: the numbers
  are the same, only slower.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return tree

  def shard(x):
    spec = batch_spec(x, mesh)
    if isinstance(x, jax.core.Tracer):
      return jax.lax.with_sharding_constraint(x, spec)
    # Outside jit a constraint wants arrays that are on the mesh already.
    return jax.device_put(x, NamedSharding(jax.sharding.get_mesh(), spec))

  return jax.tree.map(shard, tree)


def example_keys(key: jax.Array, num_examples: int) -> jax.Array:
  """`keys.per_example`, laid over the mesh: what they make follows."""
  return shard_batch(keys_lib.per_example(key, num_examples))


def batch_spec(array: Any, mesh: Any) -> PartitionSpec:
  """How `shard_batch` lays out one array."""
  shape = np.shape(array)
  sizes = {a: mesh.shape[a] for a in AXES if a in mesh.shape}
  for axes in (tuple(sizes), ("data",), ("fsdp",)):
    parts = math.prod(sizes.get(axis, 0) for axis in axes)
    if shape and parts > 1 and shape[0] % parts == 0:
      return PartitionSpec(axes)
  return PartitionSpec()


def put_batch(tree: Any, mesh: Mesh) -> Any:
  """Puts a global host batch, equal on every process, on the devices."""

  def put(x):
    sharding = NamedSharding(mesh, batch_spec(x, mesh))
    if jax.process_count() == 1 or isinstance(x, jax.Array):
      return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(put, tree)


def fetch(tree: Any) -> Any:
  """NumPy copies of global arrays, on every process; others as they are."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  # Heavy and needed by pods alone.
  from jax.experimental import multihost_utils

  def one(x):
    # What each process holds whole must not be concatenated over them.
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
      return jax.device_get(x)
    if x.is_fully_replicated:
      return np.asarray(x.addressable_data(0))
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(one, tree)
