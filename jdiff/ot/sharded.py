"""Laguerre cells of points that no one device could hold."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jdiff.core.weights import AxisName
from jdiff.ot import laguerre


def on_mesh(
  function: Callable[..., Any],
  mesh: Mesh,
  *,
  points_axis: AxisName,
  rows_axis: AxisName = None,
) -> Callable[..., Any]:
  """`function` of global arrays, points and rows split over mesh axes.

    assign = ot.on_mesh(ot.assign, mesh, points_axis="fsdp", rows_axis="data")
    index = jax.jit(assign)(noise, points, bias)

  Args:
    function: `assign`, `assign_with_gap` or `histogram`.
    mesh: The devices.
    points_axis: Axis or axes that points and bias are split over. Points that
      do not divide by the devices are filled up, which copies them: fill a
      large set up once, with bias `-inf`.
    rows_axis: Axis or axes that the rows are split over; None for all rows on
      every device.

  Returns:
    `run(noise, points, bias, *, chunk_size=None, implementation="xla")` with
    the answers of `function` on one device. Those by row are split like the
    rows; the histogram like the points.

  Raises:
    ValueError: If an axis is none of the mesh's, or the function none of the
      three; from `run`, if the rows do not divide by their devices.
  """
  known = (laguerre.assign, laguerre.assign_with_gap, laguerre.histogram)
  if function not in known:
    raise ValueError(
      "function must be assign, assign_with_gap or histogram, got "
      f"{getattr(function, '__name__', function)!r}."
    )
  num_shards = _count("points_axis", points_axis, mesh)
  num_row_shards = _count("rows_axis", rows_axis, mesh)
  options: dict[str, Any] = {"axis_name": points_axis}
  rows, out = P(rows_axis), P(rows_axis)
  if function is laguerre.histogram:
    options["rows_axis_name"] = rows_axis
    out = P(points_axis)

  def run(
    noise: jax.Array,
    points: jax.Array,
    bias: jax.Array,
    *,
    chunk_size: int | None = None,
    implementation: laguerre.Implementation = "xla",
  ):
    laguerre.check(noise, points, bias)
    if noise.shape[0] % num_row_shards:
      raise ValueError(
        f"noise must have a multiple of {num_row_shards} rows, one for every "
        f"device along {rows_axis!r}, got {noise.shape[0]}."
      )
    num_points = points.shape[0]
    pad = -num_points % num_shards
    if pad:
      points = jnp.pad(points, ((0, pad), (0, 0)))
      bias = jnp.pad(bias, (0, pad), constant_values=-jnp.inf)

    def local(noise, points, bias):
      return function(
        noise,
        points,
        bias,
        chunk_size=chunk_size,
        implementation=implementation,
        **options,
      )

    answer = jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(rows, P(points_axis), P(points_axis)),
      out_specs=out,
    )(noise, points, bias)
    return answer[:num_points] if function is laguerre.histogram else answer

  return run


def _count(name, axis, mesh):
  """Devices along an axis, or along several."""
  axes = () if axis is None else (axis,) if isinstance(axis, str) else axis
  size = 1
  for one in axes:
    if one not in mesh.shape:
      raise ValueError(
        f"{name} must be an axis of the mesh, {tuple(mesh.shape)}, got {one!r}."
      )
    size *= mesh.shape[one]
  return size
