"""Many wells: products of one-dimensional double wells and Gaussians.

A well is `exp(-beta ((x^2 - delta)^2 - tilt x))`, with modes near
`+-sqrt(delta)`; a tilt makes the positive one heavier. `m` of them have `2^m`
modes of known shares, so that a lost mode shows. One-dimensional laws are
tabulated on the host in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.core import keys as keys_lib
from jdiff.core.types import Target

# Densities below exp(-REACH) of a mode's are left out.
REACH = 60.0
CELLS = 2**14


def many_well(
  dim: int = 5,
  num_wells: int | None = None,
  *,
  delta: float = 4.0,
  tilt: float = 0.0,
  beta: float = 1.0,
) -> Target:
  """Wells in the first coordinates, Gaussians in the others.

  `-log_prob = beta (sum_(i < m) ((x_i^2 - delta)^2 - tilt x_i)
  + sum_(i >= m) x_i^2 / 2)`. The defaults are MW54 of arXiv:2510.03824.

  Draws take a cell of a table by its mass and a place within it uniformly, one
  table of 2^14 cells for all wells: second moments are off by less than 1e-6
  of themselves, and events rarer than 1e-7 are not resolved.

  Observables: `mean` `[dim]`, `squared_norm`, `magnitude` `[m]` (each well's
  `|x_i|`), `positive` `[m]` (whether `x_i > 0`), and up to ten wells
  `mode_share` `[2^m]`, one-hot: entry `sum_i 2^i [x_i > 0]`.

  Args:
    dim: Coordinates.
    num_wells: Wells `m` among them; all by default.
    delta: Squared distance of the modes from zero.
    tilt: Slope that favours positive coordinates; zero for equal modes.
    beta: Inverse temperature; `beta delta^2`, the barrier, at most 1e5.

  Raises:
    ValueError: If a number is out of its range.
    TypeError: If a count is not an integer.
  """
  dim = checks.check_int("dim", dim)
  num = dim if num_wells is None else checks.check_int("num_wells", num_wells)
  if num > dim:
    raise ValueError(f"num_wells must be at most dim={dim}, got {num}.")
  return _product(dim, np.arange(num), delta, tilt, beta, offset=0.0)


def many_well_pairs(dim: int = 32) -> Target:
  """`dim / 2` copies of `log_prob = x / 2 + 6 x^2 - x^4 - y^2 / 2`.

  The asymmetric many-well of the literature, coordinates `x, y, x, y, ...`:
  `log_z` is 164.695675 for 32 of them, and `P(x > 0)` is 0.844307096. Draws and
  observables as for `many_well`.

  Args:
    dim: Coordinates, an even number.

  Raises:
    ValueError: If `dim` is not positive and even.
    TypeError: If it is not an integer.
  """
  dim = checks.check_int("dim", dim, 2)
  if dim % 2:
    raise ValueError(f"dim must be even, got {dim}.")
  # 6 x^2 - x^4 = 9 - (x^2 - 3)^2.
  return _product(dim, np.arange(0, dim, 2), 3.0, 0.5, 1.0, offset=9.0)


def _product(dim, wells, delta, tilt, beta, offset):
  """Wells at the given coordinates, their log-density raised by `offset`."""
  delta = checks.check_finite("delta", delta, positive=True)
  tilt = checks.check_finite("tilt", tilt)
  beta = checks.check_finite("beta", beta, positive=True)
  if beta * delta**2 > 1e5:
    raise ValueError(
      "beta * delta^2 must be at most 1e5, where wells are still wider than "
      f"cells, got {beta * delta**2}."
    )
  num, wells = len(wells), np.int32(wells)
  others = np.setdiff1d(np.arange(dim, dtype=np.int32), wells)

  def well(x):
    return offset - beta * ((x**2 - delta) ** 2 - tilt * x)

  edges, mass, log_z_well = _table(well, delta, tilt, beta)
  log_z = num * log_z_well + len(others) * 0.5 * np.log(2 * np.pi / beta)

  def log_prob(x):
    checks.check_shape("x", x, (dim,), "Batch with jax.vmap.")
    return jnp.sum(well(x[wells])) - 0.5 * beta * jnp.sum(x[others] ** 2)

  def sample(key, num_samples):
    dtype = jnp.result_type(float)
    low = jnp.asarray(edges, dtype)
    width = edges[1] - edges[0]
    below = jnp.asarray(np.cumsum(mass)[:-1], dtype)

    def draw(key):
      key_cell, key_place, key_rest = jax.random.split(key, 3)
      # Centred: zero itself would pick the first cell 1e-7 of the time.
      u = jax.random.uniform(key_cell, (num,), dtype) + 2.0**-24
      cell = jnp.searchsorted(below, u, side="right")
      place = jax.random.uniform(key_place, (num,), dtype)
      rest = jax.random.normal(key_rest, (len(others),), dtype) / beta**0.5
      x = jnp.zeros(dim, dtype).at[wells].set(low[cell] + width * place)
      return x.at[others].set(rest)

    return jax.vmap(draw)(keys_lib.per_example(key, num_samples))

  def observables(x):
    positive = x[wells] > 0
    values = {
      "mean": x,
      "squared_norm": jnp.sum(x**2),
      "magnitude": jnp.abs(x[wells]),
      "positive": positive.astype(x.dtype),
    }
    if num <= 10:
      mode = jnp.sum(positive * 2 ** np.arange(num))
      values["mode_share"] = jax.nn.one_hot(mode, 2**num, dtype=x.dtype)
    return values

  def exact():
    centre = (edges[:-1] + edges[1:]) / 2
    mean = np.zeros(dim)
    mean[wells] = mass @ centre
    # Cells do not straddle zero.
    share = float(mass @ (centre > 0))
    values = {
      "log_z": float(log_z),
      "mean": mean,
      "squared_norm": float(num * (mass @ centre**2) + len(others) / beta),
      "magnitude": np.full(num, mass @ np.abs(centre)),
      "positive": np.full(num, share),
    }
    if num <= 10:
      modes = np.ones(1)
      for _ in range(num):
        modes = np.outer([1 - share, share], modes).ravel()
      values["mode_share"] = modes
    return values

  return Target(
    log_prob=log_prob,
    dim=dim,
    log_z=float(log_z),
    sample=sample,
    exact=exact,
    observables=observables,
  )


def _table(well, delta, tilt, beta):
  """Edges `[CELLS + 1]` and masses `[CELLS]` of a well, and its `log Z`.

  Midpoints of equal cells: spectrally accurate for an analytic density that
  vanishes at both ends. A kink at zero costs 1e-8.
  """
  # Where the energy exceeds one mode's by REACH: the other's is lower still.
  level = -abs(tilt) * delta**0.5 + REACH / beta
  roots = np.roots([1, 0, -2 * delta, -abs(tilt), delta**2 - level])
  reach = roots.real.max()
  edges = np.linspace(-reach, reach, CELLS + 1)
  centre = (edges[:-1] + edges[1:]) / 2
  log_density = well(centre)
  peak = log_density.max()
  mass = np.exp(log_density - peak)
  log_z = peak + np.log(mass.sum() * (edges[1] - edges[0]))
  return edges, mass / mass.sum(), log_z
