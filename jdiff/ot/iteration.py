"""Where the dual iteration starts, and one step of it.

  b_j <- b_j - eta_k (P r)_j,   r_j = mass_j - nu_j,

averaged over the last steps (arXiv:2510.25287). The start and the diagonal
preconditioner P come from extreme-value statistics of Gaussian scores:

  b_j = -c z_j s_j,   P_jj = s_j / (z_j nu_j),
  s_j = |y_j - mean|,   z_j = Phi^{-1}(1 - nu_j).

In low dimension scores are far from independent; there the map between the
Gaussian and a Gaussian with the points' covariance is the better start. Both
are tried, and the one with the least error is taken. No step size is tuned.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy import stats

from jdiff.core import checks
from jdiff.core.types import Kernel
from jdiff.core.weights import AxisName
from jdiff.ot import host, laguerre

Source = Callable[[jax.Array, tuple[int, int]], jax.Array]
"""`(key, (B, D)) -> [B, D]` noise of mean zero and unit variance."""

START_BATCH = 1024
MAX_GAUSSIAN_DIM = 64
"""Dimension above which the Gaussian start never won and costs `D^3`."""


class State(NamedTuple):
  """The iteration's state.

  Attributes:
    bias: `[M]` float32, the current iterate.
    average: `[M]` float32, the average so far; the iterate before burn-in ends.
    step: Scalar int32.
  """

  bias: jax.Array
  average: jax.Array
  step: jax.Array


class Info(NamedTuple):
  """What one step saw.

  Attributes:
    chi2: Scalar, `sum_j (mass_j - nu_j)^2 / nu_j` of this batch at the current
      iterate; `M / B` of it is sampling noise.
  """

  chi2: jax.Array


class Cells(NamedTuple):
  """A semi-discrete problem, asked for the masses of its cells.

  Attributes:
    points: `[M, D]` float32, centred; the local part under `axis_name`.
    weights: `[M]` float32; points of weight zero have no cell.
    source: The noise.
    mirrored: Whether `-x` is used beside every `x`.
    chunk_size: See `laguerre.assign`.
    axis_name: Mesh axis that the points are split over, inside `shard_map`.
    rows_axis_name: Mesh axis that the noise is split over.
  """

  points: jax.Array
  weights: jax.Array
  source: Source
  mirrored: bool
  chunk_size: int | None = None
  axis_name: AxisName = None
  rows_axis_name: AxisName = None

  def noise(self, key: jax.Array, batch_size: int) -> jax.Array:
    """`[B, D]` rows of this device; the same rows on any number of them."""
    noise = self._draw(key, batch_size)
    return jnp.concatenate([noise, -noise]) if self.mirrored else noise

  def mass(self, key: jax.Array, bias: jax.Array, batch_size: int) -> jax.Array:
    """Shares of fresh noise in the cells of `bias`, `[M]` or `[K, M]`."""
    noise, bias = self._draw(key, batch_size), self.drop_empty(bias)

    def anywhere(noise, bias):
      if bias.ndim > 1:
        return jax.vmap(anywhere, (None, 0))(noise, bias)
      if self.mirrored:
        noise = jnp.concatenate([noise, -noise])
      return laguerre.histogram(
        noise,
        self.points,
        bias,
        chunk_size=self.chunk_size,
        axis_name=self.axis_name,
        rows_axis_name=self.rows_axis_name,
      )

    if self.axis_name is not None or self.rows_axis_name is not None:
      return anywhere(noise, bias)

    def on_cpu(noise, bias):
      return host.masses(
        noise,
        self.points,
        bias,
        mirrored=self.mirrored,
        chunk_size=self.chunk_size,
      )

    return lax.platform_dependent(noise, bias, cpu=on_cpu, default=anywhere)

  def _draw(self, key, batch_size):
    """Noise of this device, without its mirror images."""
    parts, unit = axis_size(self.rows_axis_name), self.unit()
    if batch_size % unit:
      raise ValueError(
        f"batch_size must be a multiple of {unit}, the devices that its rows "
        f"are split over times two for mirrored noise, got {batch_size}."
      )
    num = batch_size // (2 if self.mirrored else 1)
    noise = self.source(key, (num, self.points.shape[1]))
    if parts == 1:
      return noise
    size = num // parts
    first = lax.axis_index(self.rows_axis_name) * size
    return lax.dynamic_slice_in_dim(noise, first, size)

  def unit(self) -> int:
    """What batches must be a multiple of: row shards, and mirrored pairs."""
    return axis_size(self.rows_axis_name) * (2 if self.mirrored else 1)

  def drop_empty(self, bias: jax.Array) -> jax.Array:
    """`bias`, with `-inf` at points of weight zero."""
    return jnp.where(self.weights > 0, bias, -jnp.inf)

  def safe_weights(self) -> jax.Array:
    """Weights to divide by: one where they are zero."""
    return jnp.where(self.weights > 0, self.weights, 1.0)

  def residual(self, mass: jax.Array) -> jax.Array:
    """`mass - weights`, zero at points of weight zero."""
    return jnp.where(self.weights > 0, mass - self.weights, 0)

  def num_cells(self) -> jax.Array:
    """Points of positive weight, over every device; float32."""
    return self.sum((self.weights > 0).astype(jnp.float32))

  def num_points(self) -> int:
    """Points in all, over every device."""
    return self.weights.shape[0] * axis_size(self.axis_name)

  def sum(self, x: jax.Array) -> jax.Array:
    """Sum over all points, on every device."""
    total = jnp.sum(x, axis=0)
    return total if self.axis_name is None else lax.psum(total, self.axis_name)

  def chi2(self, mass: jax.Array, num_samples: int) -> jax.Array:
    """Unbiased `sum_j (p_j - nu_j)^2 / nu_j` from shares among samples."""
    n = float(num_samples)
    terms = mass * (mass - 1 / n) / self.safe_weights()
    return self.sum(terms) * (n / (n - 1)) - 1


def cells(
  points: jax.Array,
  weights: jax.Array,
  *,
  source: Source,
  mirrored: bool,
  chunk_size: int | None = None,
  axis_name: AxisName = None,
  rows_axis_name: AxisName = None,
) -> Cells:
  """The problem with its points centred: scores shift alike with the mean."""
  problem = Cells(
    points.astype(jnp.float32),
    weights,
    source,
    mirrored,
    chunk_size,
    axis_name,
    rows_axis_name,
  )
  mean = problem.sum(weights[:, None] * problem.points)
  return problem._replace(points=problem.points - mean[None])


def advance(
  problem: Cells,
  state: State,
  mass: jax.Array,
  precondition: Callable[[jax.Array], jax.Array],
  *,
  batch_size: int,
  num_burn_in,
) -> State:
  """One step of the averaged iteration, from the masses that a batch found.

  Args:
    problem: From `cells`.
    state: The iteration's.
    mass: `[M]` shares of the batch.
    precondition: `[M] -> [M]`, an approximate inverse of the masses'
      derivative by the bias.
    batch_size: Noise vectors in the batch.
    num_burn_in: Steps before the average begins.
  """
  num_points = problem.num_points()
  # Counts have relative variance M / B: longer steps would carry iterates
  # further than the gap between scores, where averaging no longer helps.
  rate = min(0.5, 0.4 * batch_size / num_points)
  scale = max(1.0, 2 * num_points / batch_size)
  eta = rate * (1 + state.step / scale) ** -0.6
  residual = problem.residual(mass)
  bias = state.bias - eta * precondition(residual)
  count = jnp.maximum(state.step - num_burn_in + 1, 1)
  average = state.average + (bias - state.average) / count
  average = jnp.where(state.step < num_burn_in, bias, average)
  return State(bias, average, state.step + 1)


def init(bias: jax.Array) -> State:
  """The state before the first step."""
  bias = jnp.asarray(bias, jnp.float32)
  return State(bias, bias, jnp.int32(0))


def averaged(
  problem: Cells, *, batch_size: int, num_burn_in: int = 0
) -> Kernel:
  """The iteration with the diagonal preconditioner, as a kernel.

  `init(bias) -> State`, `step(key, state) -> (State, Info)`; the answer is
  `state.average`. A run that must be saved and resumed carries the state.

  Args:
    problem: From `cells`.
    batch_size: Noise vectors a step.
    num_burn_in: Steps before the average begins.
  """
  checks.check_int("batch_size", batch_size)
  checks.check_int("num_burn_in", num_burn_in, 0)
  _, step_size = extreme_value_start(problem)
  scale = step_size / problem.safe_weights()

  def step(key, state):
    mass = problem.mass(key, state.bias, batch_size)
    new = advance(
      problem,
      state,
      mass,
      lambda residual: scale * residual,
      batch_size=batch_size,
      num_burn_in=num_burn_in,
    )
    squares = problem.residual(mass) ** 2 / problem.safe_weights()
    return new, Info(problem.sum(squares))

  return Kernel(init, step)


def extreme_value_start(problem: Cells) -> tuple[jax.Array, jax.Array]:
  """`(bias, step)` `[M]`: `-z s`, and `s / z`.

  With Gaussian noise scores are `N(b_j, s_j^2)`; all win as often as they
  should if `b_j = T - z_j s_j`, were they independent.
  """
  spread = jnp.linalg.norm(problem.points, axis=1)
  mean = problem.sum(spread) / problem.num_points()
  spread = jnp.maximum(spread, 1e-3 * mean)
  # Phi^{-1}(1 - nu), without rounding 1 - nu.
  z = -stats.norm.ppf(jnp.minimum(problem.safe_weights(), 1 - 1e-6))
  z = jnp.where(problem.weights > 0, z, 0.0)
  # Few points: a cell's mass moves by about 1 / (0.4 s) however large it is.
  return -z * spread, spread / jnp.maximum(z, 0.4)


def gaussian_start(problem: Cells) -> jax.Array:
  """`[M]`: the dual of the map to a Gaussian of the points' covariance `S`.

  `b_j = -y_j' S^{-1/2} y_j / 2`, for centred points.
  """
  points = problem.points
  moments = (problem.weights[:, None] * points).T @ points
  if problem.axis_name is not None:
    moments = lax.psum(moments, problem.axis_name)
  values, vectors = jnp.linalg.eigh(moments)
  values = jnp.maximum(values, 1e-6 * values[-1])
  return -0.5 * (points @ vectors) ** 2 @ values**-0.5


def start_samples(num_points: int) -> int:
  """Draws that `best_start` compares candidates by.

  Their errors, of order one, are then known to `sqrt(2 M) / samples = 0.06`.
  """
  return max(START_BATCH, round(22 * num_points**0.5))


def best_start(key: jax.Array, problem: Cells) -> jax.Array:
  """The closed-form start with the least error on a few draws."""
  base, _ = extreme_value_start(problem)
  # Correlated scores have fewer effective competitors: hence factors below 1.
  candidates = [factor * base for factor in (1.0, 0.9, 0.8, 0.7)]
  if problem.points.shape[1] <= MAX_GAUSSIAN_DIM:
    candidates.append(gaussian_start(problem))
  stacked = jnp.stack(candidates)
  batch_size = problem.unit() * -(-START_BATCH // problem.unit())
  num = -(-start_samples(problem.num_points()) // batch_size)

  def body(total, index):
    mass = problem.mass(jax.random.fold_in(key, index), stacked, batch_size)
    return total + mass, None

  total, _ = lax.scan(body, jnp.zeros_like(stacked), jnp.arange(num))
  errors = [problem.chi2(mass, num * batch_size) for mass in total / num]
  return stacked[jnp.argmin(jnp.stack(errors))]


def axis_size(axis_name: AxisName) -> int:
  """Devices of a mesh axis; one without an axis."""
  return 1 if axis_name is None else lax.axis_size(axis_name)
