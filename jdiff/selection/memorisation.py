"""Whether samples are copies of the training data.

The paper's pair of measures: a distance to the data (arXiv:2509.16499) and a
rule on the ratio of two distances (arXiv:2511.03202). Both see Euclidean
distances of whatever features they are given, so perceptual copies that these
do not bring together are missed.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jdiff.core import checks
from jdiff.core.weights import AxisName
from jdiff.selection import neighbours


class Memorised(NamedTuple):
  """What the ratio rule says of each sample.

  Attributes:
    memorised: `[B]` bool, ratio at most the limit; the mean is the memorised
      fraction.
    ratio: `[B]` float in `[0, 1]`, distance of the nearest data point over that
      of the nearest one that is not equal to it; NaN if there is none.
    index: `[B]` int32, the nearest data point.
  """

  memorised: jax.Array
  ratio: jax.Array
  index: jax.Array  # type: ignore[assignment]  # hides tuple.index


def generalisation_score(
  samples: jax.Array,
  data: jax.Array,
  *,
  metric: Literal["l2", "mse"] = "l2",
  chunk_size: int | None = None,
  axis_name: AxisName = None,
) -> jax.Array:
  """How far each sample is from the nearest data point, `[B]`; 0 for a copy.

  The paper's score of a generation is the mean.

  Args:
    samples: `[B, ...]`.
    data: `[N, ...]`, what the model was trained on.
    metric: `"l2"`, the Euclidean distance of the paper's formula; or `"mse"`,
      the mean squared difference of its released code.
    chunk_size: Most data points a chunk.
    axis_name: Mesh axis that the data are split over, inside `shard_map`.

  Raises:
    ValueError: If shapes do not fit, or a known value is not finite.
    TypeError: If an array holds no numbers.

  Source:
    Shi et al., arXiv:2509.16499, sec. 3.
  """
  if metric not in ("l2", "mse"):
    raise ValueError(f"metric must be 'l2' or 'mse', got {metric!r}.")
  samples = neighbours.as_rows("samples", samples)
  data = neighbours.as_rows("data", data)
  neighbours.check_sizes("samples", samples, "data", data)
  squared, _ = neighbours.search(
    samples, data, 1, chunk_size=chunk_size, axis_name=axis_name
  )
  if metric == "mse":
    return squared[:, 0] / samples.shape[1]
  return neighbours.root(squared[:, 0])


def memorised(
  samples: jax.Array,
  data: jax.Array,
  *,
  ratio: float = 1 / 3,
  squared: bool = False,
  chunk_size: int | None = None,
  axis_name: AxisName = None,
) -> Memorised:
  """Which samples are copies, by the ratio of their two nearest data points.

  The second point is the nearest one that differs from the first: with the
  second nearest itself, every training image that has a duplicate would give a
  ratio of one. Near duplicates still hide copies. So do not use the rule on
  training sets that are samples themselves, where they abound: there it falls
  as copying grows. `generalisation_score` does not.

  Args:
    samples: `[B, ...]`.
    data: `[N, ...]`, what the model was trained on; at least two distinct rows.
    ratio: The largest ratio of a copy.
    squared: Whether `ratio` is one of squared distances, as is then
      `Memorised.ratio`. The paper's 1/9 is read as such, which is 1/3 of
      distances, the default.
    chunk_size: Most data points a chunk.
    axis_name: Mesh axis that the data are split over, inside `shard_map`.

  Raises:
    ValueError: If shapes do not fit; if `ratio` is not positive; if a known
      value is not finite, or known data are all equal.
    TypeError: If an array holds no numbers.

  Source:
    Ye et al., arXiv:2511.03202, sec. 6.
  """
  ratio = checks.check_finite("ratio", ratio, positive=True)
  samples = neighbours.as_rows("samples", samples)
  data = neighbours.as_rows("data", data)
  neighbours.check_sizes("samples", samples, "data", data)
  search = functools.partial(
    neighbours.search, chunk_size=chunk_size, axis_name=axis_name
  )
  first, index = search(samples, data, 1)
  nearest = neighbours.take(data, index[:, 0], axis_name)
  second, _ = search(samples, data, 1, differ_from=nearest)
  known = jnp.isfinite(second)
  if checks.is_concrete(known) and not known.all():
    raise ValueError(
      f"data must have at least two distinct rows, got {data.shape[0]} equal."
    )
  quotient = jnp.where(known, first / jnp.where(known, second, 1), jnp.nan)
  if not squared:
    quotient = neighbours.root(quotient)
  quotient = quotient[:, 0]
  return Memorised(quotient <= ratio, quotient, index[:, 0])
