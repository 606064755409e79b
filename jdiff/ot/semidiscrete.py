"""Semi-discrete optimal transport from noise to finitely many points.

The dual is one bias a point, and its gradient is the mass of the point's
Laguerre cell less the point's weight. `solve` runs averaged stochastic
approximation from a closed-form start (`ot.iteration`), with a diagonal
preconditioner or, in low dimension, an estimated Newton one (`ot.newton`). No
step size is tuned.

Sources: arXiv:2510.15038 (AlignFlow), 2509.25519 (SD-FM), 2510.25287
(averaging).
"""

import functools
import warnings
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jdiff.core import checks
from jdiff.core.weights import AxisName
from jdiff.ot import duplicates, iteration, newton
from jdiff.ot.iteration import Source

NEWTON_DIM = 4
NEWTON_POINTS = 4096
MAX_ERROR = 0.1
"""Above it nothing counts as converged, however few the samples were."""


class Solution(NamedTuple):
  """A dual solution, with all that pairing needs.

  Attributes:
    points: `[M, D]` float32, as given; the local part under `axis_name`.
    weights: `[M]` float32, summing to one.
    bias: `[M]` float32, score units, weighted mean zero; `-inf` at points of
      weight zero.
    marginal_error: `sum_j (p_j - nu_j)^2 / nu_j` of the hard cells, estimated
      without bias on fresh noise; it may be slightly negative.
    tv: Total variation `sum_j |p_j - nu_j| / 2` that this error implies for
      Gaussian deviations, `0.4 sqrt(marginal_error)`.
    floor: What an efficient estimator from as many samples would have,
      `(M - 1) / num_averaged`, without points of weight zero; infinite if no
      step was made.
    converged: Whether steps were made and the error is at most
      `max(tolerance, 2 floor)` up to two of its standard deviations, and at
      most 0.1.
    num_samples: Noise vectors that the iteration used.
    twins: Points that are equal, or None if there are none or they were not
      looked for.
    classes: `[C, K]` int32: the points of each class, -1 where there are fewer,
      or None. Errors are then `[C]`, one a class.
  """

  points: jax.Array
  weights: jax.Array
  bias: jax.Array
  marginal_error: jax.Array
  tv: jax.Array
  floor: jax.Array
  converged: jax.Array
  num_samples: jax.Array
  twins: duplicates.Twins | None = None
  classes: jax.Array | None = None


def standard_normal(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """The default source."""
  return jax.random.normal(key, shape)


def solve(
  key: jax.Array,
  points: jax.Array,
  *,
  weights: jax.Array | None = None,
  num_samples: int,
  batch_size: int = 1024,
  source: Source = standard_normal,
  mirrored: bool | None = None,
  method: Literal["auto", "averaged", "newton"] = "auto",
  init: jax.Array | None = None,
  num_eval: int | None = None,
  tolerance: float = 1e-3,
  chunk_size: int | None = None,
  axis_name: AxisName = None,
  rows_axis_name: AxisName = None,
) -> Solution:
  """Finds the bias under which cell `j` has mass `weights[j]`.

  Equal points are solved as one and share its mass when they are paired; they
  are looked for where the points are concrete. Under `jit` points must differ.

  Args:
    key: PRNG key; consumed.
    points: `[M, D]`, `M >= 2`.
    weights: `[M]`, at least zero, summing to one; uniform by default. A point
      of weight zero is never chosen.
    num_samples: Budget of noise vectors. The error goes as `M / num_samples`
      (100 to 1000 a point is usual); with fewer than `M` the closed-form start
      is returned, since steps would make it worse.
    batch_size: Noise vectors a step.
    source: The noise; the start and the step are those of a Gaussian.
    mirrored: Whether `-x` is used beside every `x`, which halves the noise to
      be drawn; right for symmetric noise alone. By default for the default
      source.
    method: "averaged", with a diagonal preconditioner; "newton", for low
      dimension; "auto" takes "newton" up to 4 dimensions and 4096 points.
    init: `[M]` bias to start from, for a warm start.
    num_eval: Fresh noise vectors for `marginal_error`; by default 2^17, or 16
      a point if that is more.
    tolerance: On `marginal_error`, for `converged`.
    chunk_size: See `laguerre.assign`.
    axis_name: Mesh axis that the points are split over, inside `shard_map`.
    rows_axis_name: Mesh axis that the noise is split over. The numbers do not
      depend on it beyond rounding.

  Raises:
    ValueError: If shapes, sizes or weights do not fit.
  """
  checks.check_key(key)
  checks.check_numbers("points", points)
  checks.check_shape("points", points, (None, None))
  num_points = points.shape[0] * iteration.axis_size(axis_name)
  checks.check_int("number of points", num_points, 2)
  checks.check_int("num_samples", num_samples)
  checks.check_int("batch_size", batch_size)
  num_eval = max(2**17, 16 * num_points) if num_eval is None else num_eval
  checks.check_int("num_eval", num_eval, 2)
  if method not in ("auto", "averaged", "newton"):
    raise ValueError(
      f"method must be 'auto', 'averaged' or 'newton', got {method!r}."
    )
  nu = _weights(weights, points.shape[0], num_points, axis_name)
  same = None
  merged = nu
  if axis_name is None and checks.is_concrete(points, nu):
    same = duplicates.find(np.asarray(points, np.float32), np.asarray(nu))
    if same is not None:
      merged = jnp.asarray(same.merged)
  if init is not None:
    checks.check_shape("init", init, points.shape[:1])
  if method == "auto":
    alone = axis_name is None and rows_axis_name is None
    low = points.shape[1] <= NEWTON_DIM and num_points <= NEWTON_POINTS
    method = "newton" if alone and low else "averaged"
  if num_samples < max(num_points, batch_size):
    warnings.warn(
      f"num_samples={num_samples} is less than the {num_points} points or one "
      f"batch of {batch_size}: steps would make the start worse, and it is "
      "returned, not converged.",
      stacklevel=2,
    )
    num_samples = 0
  solution = _solve(
    key,
    points,
    merged,
    init,
    num_samples=num_samples,
    batch_size=batch_size,
    source=source,
    mirrored=source is standard_normal if mirrored is None else mirrored,
    method=method,
    num_eval=num_eval,
    tolerance=float(tolerance),
    chunk_size=chunk_size,
    axis_name=axis_name,
    rows_axis_name=rows_axis_name,
  )
  bias = solution.bias if same is None else solution.bias[same.first]
  return solution._replace(weights=nu, bias=bias, twins=same)


# Called with the same shapes it would compile anew each time: its scans close
# over arrays.
@functools.partial(
  jax.jit,
  static_argnames=(
    "num_samples",
    "batch_size",
    "source",
    "mirrored",
    "method",
    "num_eval",
    "tolerance",
    "chunk_size",
    "axis_name",
    "rows_axis_name",
  ),
)
def _solve(
  key,
  points,
  weights,
  init,
  *,
  num_samples,
  batch_size,
  source,
  mirrored,
  method,
  num_eval,
  tolerance,
  chunk_size,
  axis_name,
  rows_axis_name,
):
  problem = iteration.cells(
    points,
    weights,
    source=source,
    mirrored=mirrored,
    chunk_size=chunk_size,
    axis_name=axis_name,
    rows_axis_name=rows_axis_name,
  )
  key_start, key_steps, key_eval = jax.random.split(key, 3)
  if init is None:
    bias = iteration.best_start(key_start, problem)
  else:
    # A warm start may hold -inf where weights were zero.
    bias = jnp.where(jnp.isfinite(init), init, 0).astype(jnp.float32)
  num_averaged = 0.0
  if num_samples and method == "newton":
    bias, num_drawn = newton.solve(
      key_steps,
      problem,
      bias,
      num_samples=num_samples,
      batch_size=batch_size,
    )
    num_averaged = newton.AVERAGED_SHARE * num_samples
    num_samples = num_drawn
  elif num_samples:
    num_steps = num_samples // batch_size
    num_burn_in = num_steps // 10
    kernel = iteration.averaged(
      problem, batch_size=batch_size, num_burn_in=num_burn_in
    )

    def body(state, index):
      return kernel.step(jax.random.fold_in(key_steps, index), state)[0], None

    state, _ = lax.scan(body, kernel.init(bias), jnp.arange(num_steps))
    bias = state.average
    num_averaged = float((num_steps - num_burn_in) * batch_size)
    num_samples = num_steps * batch_size
  bias = problem.drop_empty(bias - problem.sum(weights * bias))
  error = _marginal_error(key_eval, problem, bias, num_eval, batch_size)
  num_cells = problem.num_cells()
  floor = (num_cells - 1) / num_averaged if num_averaged else jnp.inf
  floor = jnp.float32(floor)
  return Solution(
    jnp.asarray(points, jnp.float32),
    weights,
    bias,
    error,
    _tv(error),
    floor,
    _is_converged(error, floor, tolerance, (2 * num_cells) ** 0.5 / num_eval),
    jnp.int32(num_samples),
  )


def solve_classes(
  key: jax.Array,
  points: jax.Array,
  labels: np.ndarray,
  *,
  num_samples: int,
  weights: jax.Array | None = None,
  **options,
) -> Solution:
  """One problem a class: noise of every class is the whole of the noise.

  Classes of unequal sizes are padded with points of weight zero and solved one
  after another by one compiled program.

  Args:
    key: PRNG key; consumed.
    points: `[M, D]`.
    labels: `[M]` integers in `[0, C)`, concrete; every class needs two points.
    num_samples: Budget a class.
    weights: `[M]`, summing to one over all classes; uniform by default.
    **options: As of `solve`, but `init` and the mesh axes.

  Returns:
    A `Solution` with `classes`; `marginal_error`, `tv`, `floor` and
    `converged` are `[C]`.

  Raises:
    ValueError: If shapes, labels or weights do not fit.
  """
  checks.check_key(key)
  checks.check_numbers("points", points)
  checks.check_shape("points", points, (None, None))
  checks.check_numbers("labels", labels)
  labels = np.asarray(labels)
  num_points = points.shape[0]
  checks.check_shape("labels", labels, (num_points,))
  if not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0:
    raise ValueError("labels must be integers >= 0.")
  counts = np.bincount(labels)
  if counts.min() < 2:
    raise ValueError(
      f"every class needs two points or more, class {counts.argmin()} has "
      f"{counts.min()}."
    )
  nu = _weights(weights, num_points, num_points, None)
  same = None
  merged = nu
  if checks.is_concrete(points, nu):
    if (np.bincount(labels, weights=np.asarray(nu)) <= 0).any():
      raise ValueError("every class needs a point of positive weight.")
    same = duplicates.find(
      np.asarray(points, np.float32), np.asarray(nu), labels
    )
    merged = nu if same is None else jnp.asarray(same.merged)
  classes = np.full((len(counts), counts.max()), -1, np.int32)
  for label, count in enumerate(counts):
    classes[label, :count] = np.flatnonzero(labels == label)
  # A traced index takes rows of JAX's arrays alone.
  members, rows = jnp.asarray(classes), jnp.asarray(points, jnp.float32)

  def one(arguments):
    key, member = arguments
    share = jnp.where(member >= 0, merged[member], 0)
    return solve(
      key,
      rows[member],
      weights=share / share.sum(),
      num_samples=num_samples,
      **options,
    )

  every = lax.map(one, (jax.random.split(key, len(counts)), members))
  bias = jnp.full(num_points, -jnp.inf, jnp.float32)
  spots = jnp.where(members >= 0, members, num_points)
  bias = bias.at[spots].set(every.bias, mode="drop")
  if same is not None:
    bias = bias[same.first]
  return Solution(
    rows,
    nu,
    bias,
    every.marginal_error,
    every.tv,
    every.floor,
    every.converged,
    jnp.sum(every.num_samples),
    same,
    members,
  )


def marginal_error(
  key: jax.Array,
  points: jax.Array,
  bias: jax.Array,
  *,
  weights: jax.Array | None = None,
  num_samples: int = 2**17,
  batch_size: int = 1024,
  source: Source = standard_normal,
  chunk_size: int | None = None,
) -> jax.Array:
  """Unbiased `sum_j (p_j - nu_j)^2 / nu_j` of the hard cells, fresh noise.

  Its standard deviation at the optimum is about `sqrt(2 M) / num_samples`.
  """
  checks.check_key(key)
  checks.check_numbers("points", points)
  checks.check_shape("points", points, (None, None))
  num_points = points.shape[0]
  checks.check_numbers("bias", bias)
  checks.check_shape("bias", bias, (num_points,))
  checks.check_int("num_samples", num_samples)
  checks.check_int("batch_size", batch_size)
  problem = iteration.cells(
    points,
    _weights(weights, num_points, num_points, None),
    source=source,
    mirrored=False,
    chunk_size=chunk_size,
  )
  return _marginal_error(key, problem, bias, num_samples, batch_size)


def _marginal_error(key, problem, bias, num_samples, batch_size):
  # Mirrored noise is not independent, which the unbiased form needs.
  problem = problem._replace(mirrored=False)
  batch_size = min(batch_size, num_samples)
  num_batches = -(-num_samples // batch_size)

  def body(mass, index):
    fresh = problem.mass(jax.random.fold_in(key, index), bias, batch_size)
    # Whole counts add up exactly where shares would not; ties are shares.
    return mass + fresh * batch_size, None

  mass, _ = lax.scan(body, jnp.zeros_like(bias), jnp.arange(num_batches))
  total = num_batches * batch_size
  return problem.chi2(mass / total, total)


def _tv(error):
  return 0.4 * jnp.sqrt(jnp.maximum(error, 0))


def _is_converged(error, floor, tolerance, deviation):
  bound = jnp.maximum(tolerance, 2 * floor) + 2 * deviation
  # An error near -1 is that of masses that are all zero.
  sound = jnp.isfinite(error) & jnp.isfinite(floor) & (error > -0.5)
  return sound & (error <= jnp.minimum(bound, MAX_ERROR))


def _weights(weights, local, num_points, axis_name):
  if weights is None:
    return jnp.full(local, 1 / num_points, jnp.float32)
  checks.check_shape("weights", weights, (local,))
  weights = jnp.asarray(weights, jnp.float32)
  if axis_name is None and checks.is_concrete(weights):
    total, low = float(weights.sum()), float(weights.min())
    if not (low >= 0 and abs(total - 1) < 1e-3):
      raise ValueError(
        "weights must be at least zero and sum to one, got a minimum of "
        f"{low:.3g} and a sum of {total:.6g}; pass weights / weights.sum()."
      )
  return weights
