"""Exact answers for lattice models, in float64 on the host.

Enumeration and transfer matrices here, those of disordered lattices in
`transfer`, free fermions in `torus`; `best` picks the strongest that applies.
The tests hold them against one another.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from jdiff.core import checks
from jdiff.core.types import Target
from jdiff.targets import enumerate as enumerate_lib
from jdiff.targets import torus, transfer


def enumeration(target: Target) -> dict[str, Any]:
  """`log_z`, `states`, `log_pmf` and every observable's expectation."""
  with jax.enable_x64(True):
    states = enumerate_lib.enumerate_states(*target.discrete())
    log_prob = np.asarray(_map(target.log_prob, states))
    log_z = float(special.logsumexp(log_prob))
    log_pmf = log_prob - log_z
    answer: dict[str, Any] = {
      "log_z": log_z,
      "states": states,
      "log_pmf": log_pmf,
    }
    if target.observables is not None:
      values = _map(target.observables, states)
      for name, value in values.items():
        answer[name] = _plain(np.tensordot(np.exp(log_pmf), value, axes=1))
  return answer


def best(target: Target, ising: tuple | None) -> dict[str, Any]:
  """The Ising model's expectations by the best oracle for its size.

  Args:
    target: The model.
    ising: Its size, beta, coupling, field and whether it is periodic; the
      coupling and the field may be arrays.
  """
  answer: dict[str, Any] = {}
  if ising is not None and (np.ndim(ising[2]) or np.ndim(ising[3])):
    answer = transfer.solve(*ising)
  if 2 ** target.discrete()[0] <= enumerate_lib.MAX_STATES:
    answer |= _expectations(enumeration(target))
  if answer or ising is None:
    return answer
  size, beta, coupling, field, periodic = ising
  if not periodic:
    return {}
  k = beta * coupling
  if size <= 8:
    return ising_transfer(size, k, beta * field) | {
      "energy_per_site": ising_energy(size, beta, coupling, field)
    }
  if field == 0 and k != 0 and (k > 0 or size % 2 == 0):
    # An even torus maps J to -J by flipping one sublattice.
    sign = np.sign(k) ** np.arange(1, size // 2 + 1)
    correlation = sign * torus.row_correlation(size, abs(k))
    return {
      "log_z": torus.kaufman_log_z(size, size, abs(k)),
      "energy_per_site": float(-2 * coupling * correlation[0]),
      "magnetisation": 0.0,
      "p_positive": 0.5,
      "correlation": correlation,
    }
  return {}


def best_potts(target: Target, shape: tuple | None) -> dict[str, Any]:
  """The Potts model's expectations by the best oracle for its size."""
  length, num_states = target.discrete()
  if num_states**length <= enumerate_lib.MAX_STATES:
    return _expectations(enumeration(target))
  answer: dict[str, Any] = {"p_mode": np.full(num_states, 1 / num_states)}
  if shape is not None and shape[-1]:
    answer |= potts_transfer(*shape[:4])
  return answer


def ising_transfer(size: int, k: float, field: float = 0.0) -> dict[str, Any]:
  """The periodic Ising model by its transfer matrix; `size <= 10` or so.

  Args:
    size: Lattice side.
    k: `beta J`.
    field: `beta h`.

  Returns:
    `log_z`, `magnetisation`, `abs_magnetisation`, `p_positive` and
    `correlation` along a row, `[size // 2]`.
  """
  checks.check_int("size", size, 3)
  checks.check_finite("k", k)
  checks.check_finite("field", field)
  rows = 2.0 * enumerate_lib.enumerate_states(size, 2) - 1
  bonds = (rows * np.roll(rows, 1, axis=1)).sum(axis=1)
  weight = k * bonds + field * rows.sum(axis=1)
  log_t = k * rows @ rows.T + 0.5 * (weight[:, None] + weight[None])
  peak = log_t.max()
  t = np.exp(log_t - peak)
  power = _matrix_power(t, size)
  trace = np.trace(power)
  pmf = np.diag(power) / trace
  correlation = [
    pmf @ (rows * np.roll(rows, r, axis=1)).mean(axis=1)
    for r in range(1, size // 2 + 1)
  ]
  # Imaginary fields give the characteristic function of the up-spin count.
  num = size * size + 1
  up = ((rows + 1) / 2).sum(axis=1)
  traces = []
  for j in range(num):
    half = np.exp(1j * np.pi * j * up / num)
    tilted = half[:, None] * t * half[None]
    traces.append(np.trace(_matrix_power(tilted, size)))
  law = np.fft.fft(np.array(traces)).real / (num * trace)
  mean = (2.0 * np.arange(num) - size**2) / size**2
  return {
    "log_z": float(np.log(trace) + size * peak),
    "magnetisation": float(law @ mean),
    "abs_magnetisation": float(law @ np.abs(mean)),
    "p_positive": float(law @ (0.5 * (1 + np.sign(mean)))),
    "correlation": np.array(correlation),
  }


def ising_energy(
  size: int, beta: float, coupling: float, field: float
) -> float:
  """`<H> / L` of the periodic model, by differentiating `log_z` in beta."""
  checks.check_int("size", size, 3)
  for name, value in dict(beta=beta, coupling=coupling, field=field).items():
    checks.check_finite(name, value)

  def log_z(b):
    rows = 2.0 * enumerate_lib.enumerate_states(size, 2) - 1
    bonds = (rows * np.roll(rows, 1, axis=1)).sum(axis=1)
    weight = b * (coupling * bonds + field * rows.sum(axis=1))
    log_t = b * coupling * rows @ rows.T
    log_t = log_t + 0.5 * (weight[:, None] + weight[None])
    peak = log_t.max()
    power = _matrix_power(np.exp(log_t - peak), size)
    return np.log(np.trace(power)) + size * peak

  return -_central(log_z, beta) / size**2


def potts_transfer(
  size: int, num_states: int, beta: float, coupling: float
) -> dict[str, Any]:
  """The periodic Potts model by its transfer matrix; `q ** size <= 4096`.

  Returns:
    `log_z`, `energy_per_site`, `row_magnetisation`, and `correlation` of `1[x_i
    = x_(i+r)] - 1/q` along a row.
  """
  checks.check_int("size", size, 2)
  checks.check_int("num_states", num_states, 2)
  checks.check_finite("beta", beta)
  checks.check_finite("coupling", coupling)
  rows = enumerate_lib.enumerate_states(size, num_states)
  bonds = (rows == np.roll(rows, 1, axis=1)).sum(axis=1)
  one_hot = (rows[..., None] == np.arange(num_states)).reshape(len(rows), -1)
  inter = one_hot.astype(float) @ one_hot.T

  def power_at(b):
    log_t = b * coupling * (inter + 0.5 * (bonds[:, None] + bonds[None]))
    peak = log_t.max()
    return _matrix_power(np.exp(log_t - peak), size), size * peak

  power, shift = power_at(beta)
  pmf = np.diag(power) / np.trace(power)
  share = one_hot.reshape(len(rows), size, num_states).mean(axis=1).max(axis=1)
  correlation = [
    pmf @ (rows == np.roll(rows, r, axis=1)).mean(axis=1) - 1 / num_states
    for r in range(1, size // 2 + 1)
  ]
  energy = -2 * coupling * (correlation[0] + 1 / num_states)
  return {
    "log_z": float(np.log(np.trace(power)) + shift),
    "energy_per_site": float(energy),
    "row_magnetisation": float(pmf @ (num_states * share - 1))
    / (num_states - 1),
    "correlation": np.array(correlation),
  }


def _map(function, states: np.ndarray):
  """Applies a function of one configuration to all, in chunks."""
  batched = jax.jit(jax.vmap(function))
  parts = [
    jax.device_get(batched(jnp.asarray(chunk)))
    for chunk in np.array_split(states, max(1, len(states) // 2**16))
  ]
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _expectations(answer: dict[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in answer.items() if k not in ("states", "log_pmf")}


def _plain(value):
  return float(value) if np.ndim(value) == 0 else np.asarray(value)


def _central(function, x: float, step: float = 1e-3) -> float:
  """Derivative by Richardson's central difference of order 8."""
  coefficients = ((1, 4 / 5), (2, -1 / 5), (3, 4 / 105), (4, -1 / 280))
  return (
    sum(
      c * (function(x + i * step) - function(x - i * step))
      for i, c in coefficients
    )
    / step
  )


def _matrix_power(matrix: np.ndarray, exponent: int) -> np.ndarray:
  return functools.reduce(
    lambda a, bit: (a @ a) @ matrix if bit == "1" else a @ a,
    bin(exponent)[3:],
    matrix,
  )
