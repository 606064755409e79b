"""The mesh, and where states and batches live on it.

Three axes (`core.axes`): batches are split over `data` and `fsdp`, parameters
over `fsdp` and, where their network names its axes, over `tensor`. Axes are
Auto, so the compiler adds the collectives; results do not depend on the mesh
beyond the order of float sums.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jdiff.core import axes as axes_lib
from jdiff.core import checks
from jdiff.core import keys as keys_lib

MIN_SHARD_SIZE = 2**16
"""Arrays with fewer elements are replicated: a gather costs more."""


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  *,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """A mesh with the axes `("data", "fsdp", "tensor")`.

  Args:
    data: Shards of the batch, or -1 for as many as there are devices.
    fsdp: Shards of large parameters, and of the batch too.
    tensor: Shards of heads, hidden features and the vocabulary, in networks
      that name their axes; neighbouring devices.
    devices: Devices to use, by default all; the first ones are.
  """
  everything = devices is None
  devices = list(jax.devices() if devices is None else devices)
  checks.check_int("mesh.fsdp", fsdp)
  checks.check_int("mesh.tensor", tensor)
  if data == -1:
    data = max(len(devices) // (fsdp * tensor), 1)
  checks.check_int("mesh.data", data)
  shape = (data, fsdp, tensor)
  size = math.prod(shape)
  shown = " x ".join(
    f"{axis}={parts}" for axis, parts in zip(axes_lib.MESH, shape, strict=True)
  )
  if size > len(devices):
    raise ValueError(
      f"a mesh of {shown} needs {size} devices, got {len(devices)}."
    )
  if everything and jax.process_count() > 1 and size != len(devices):
    raise ValueError(
      f"several processes must use all of their {len(devices)} devices, got "
      f"{shown}."
    )
  types = (AxisType.Auto,) * 3
  if not everything:
    # Some shapes do not map onto a torus, and need not.
    grid = np.array(devices[:size]).reshape(shape)
    return Mesh(grid, axes_lib.MESH, axis_types=types)
  return jax.make_mesh(
    shape, axes_lib.MESH, axis_types=types, devices=devices[:size]
  )


def config_mesh(
  mesh: Mapping[str, int], devices: Sequence[Any] | None = None
) -> Mesh:
  """The mesh of a config's field `mesh`."""
  return make_mesh(
    mesh["data"], mesh["fsdp"], mesh.get("tensor", 1), devices=devices
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
  abstract: Any,
  mesh: Mesh,
  *,
  min_size: int = MIN_SHARD_SIZE,
  axes: Callable[[tuple[str, ...]], axes_lib.Names | None] | None = None,
) -> Any:
  """The sharding of every leaf; moments follow parameters.

  Args:
    abstract: A pytree of anything with shapes and dtypes.
    mesh: A mesh of `make_mesh`.
    min_size: Of `fsdp_spec`.
    axes: `(path) -> names` by the string keys on a leaf's path; leaves without
      names are laid out by `fsdp_spec`.

  Raises:
    ValueError: If the mesh does not divide a named axis.
  """

  def place(path, x):
    keys = tuple(str(k.key) for k in path if hasattr(k, "key"))
    names = None if axes is None else axes(keys)
    if names is None:
      return NamedSharding(mesh, fsdp_spec(x, mesh, min_size=min_size))
    of = "/".join(keys)
    return NamedSharding(mesh, axes_lib.spec(names, x.shape, mesh, of=of))

  return jax.tree_util.tree_map_with_path(place, abstract)


def abstract(tree: Any, shardings: Any) -> Any:
  """Shapes and dtypes of a pytree, with where each array goes."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings,
  )


def put(tree: Any, shardings: Any, *, may_alias: bool = False) -> Any:
  """Puts arrays, equal on every process, where their shardings say.

  Args:
    tree: NumPy or JAX arrays.
    shardings: One for each.
    may_alias: Whether what is there already may be taken as it is; what the
      loop donates may not.
  """

  def one(x, sharding):
    if jax.process_count() == 1 or isinstance(x, jax.Array):
      return _device_put(x, sharding, may_alias=None if may_alias else False)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(one, tree, shardings)


def _device_put(x: Any, sharding: Any, **options: Any) -> Any:
  """`jax.device_put`, which has no way for keys to go to other processes."""
  if jax.process_count() == 1 or not (
    isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  ):
    return jax.device_put(x, sharding, **options)
  data = jax.device_put(jax.random.key_data(x), sharding, **options)
  return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))


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
    return _device_put(x, NamedSharding(jax.sharding.get_mesh(), spec))

  return jax.tree.map(shard, tree)


def example_keys(key: jax.Array, num_examples: int) -> jax.Array:
  """`keys.per_example`, laid over the mesh: what they make follows."""
  return shard_batch(keys_lib.per_example(key, num_examples))


def batch_spec(array: Any, mesh: Any) -> PartitionSpec:
  """How `shard_batch` lays out one array."""
  return axes_lib.batch_spec(np.shape(array), mesh)


def put_batch(tree: Any, mesh: Mesh) -> Any:
  """Puts a global host batch, equal on every process, on the devices."""
  places = jax.tree.map(
    lambda x: NamedSharding(mesh, batch_spec(x, mesh)), tree
  )
  return put(tree, places, may_alias=True)


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
