"""The Ising torus without a field, exactly, at any size: free fermions.

The partition function is Kaufman's finite formula (B. Kaufman, Phys. Rev. 76,
1232, 1949). For correlations, the transfer matrix is Gaussian in each of its
four sectors (anti-periodic or periodic fermions, without or with the parity),
which are the formula's four terms; in each of them Wick's theorem turns two
spins of a row into a determinant. Float64 NumPy throughout.
"""

import numpy as np

from jdiff.core import checks


def kaufman_log_z(rows: int, cols: int, k: float) -> float:
  """`log Z` of the `rows x cols` Ising torus at `h = 0`, `K = beta J > 0`.

  Args:
    rows: One side, `>= 3` (a side of 2 would count its bonds twice).
    cols: The other side.
    k: `beta J`, positive.
  """
  return kaufman_terms(rows, cols, k)[0]


def kaufman_terms(
  rows: int, cols: int, k: float, sign: float = 1.0
) -> tuple[float, np.ndarray]:
  """`log Z` and the four signed terms; `sign` flips the last one in tests."""
  checks.check_int("rows", rows, 3)
  checks.check_int("cols", cols, 3)
  checks.check_finite("k", k, positive=True)
  index = np.arange(1, 2 * rows)
  cosh = np.cosh(2 * k) ** 2 / np.sinh(2 * k) - np.cos(np.pi * index / rows)
  # gamma_0 is signed: negative above the critical temperature.
  gamma = np.concatenate(
    [[2 * k + np.log(np.tanh(k))], np.arccosh(np.maximum(cosh, 1))]
  )
  x = cols * gamma / 2
  log_cosh = np.abs(x) + np.log1p(np.exp(-2 * np.abs(x)))
  with np.errstate(divide="ignore"):
    log_sinh = np.abs(x) + np.log(-np.expm1(-2 * np.abs(x)))
  odd, even = slice(1, None, 2), slice(0, None, 2)
  logs = np.array(
    [
      log_cosh[odd].sum(),
      log_sinh[odd].sum(),
      log_cosh[even].sum(),
      log_sinh[even].sum(),
    ]
  )
  signs = np.array([1, 1, 1, sign * np.sign(x[0])])
  peak = logs.max()
  total = peak + np.log(np.sum(signs * np.exp(logs - peak)))
  prefactor = 0.5 * rows * cols * np.log(2 * np.sinh(2 * k)) - np.log(2)
  return float(prefactor + total), signs * np.exp(logs - total)


def row_correlation(size: int, k: float) -> np.ndarray:
  """`E[s_i s_(i+r)]` along a row, `[size // 2]`, `r = 1, 2, ...`; float64.

  Args:
    size: Side of the square torus, `>= 3`; no field.
    k: `beta J`, positive.
  """
  checks.check_int("size", size, 3)
  checks.check_finite("k", k, positive=True)
  if abs(size * (2 * k + np.log(np.tanh(k)))) > 1e-5:
    return _row_correlation(size, k)
  # At the critical point one mode costs nothing: its term is 0 times infinity.
  # The sum is analytic in k, so it is extrapolated from four points around.
  width = 5e-4
  near = [
    _row_correlation(size, k + i * width)
    + _row_correlation(size, k - i * width)
    for i in (1, 2, 3)
  ]
  return (15 * near[0] - 6 * near[1] + near[2]) / 20


def _row_correlation(size: int, k: float) -> np.ndarray:
  _, shares = kaufman_terms(size, size, k)
  result = np.zeros(size // 2)
  for boundary, (plain, parity) in ((-1, shares[:2]), (1, shares[2:])):
    energies, modes = _modes(size, k, boundary)
    x = size * energies
    occupations = (2 / (1 + np.exp(-x)), -2 / np.expm1(-x))
    for share, occupation in zip((plain, parity), occupations, strict=True):
      pairs = (modes * occupation[None]) @ modes.conj().T
      # <i b_j a_(k+1)>: the spins' product is that of its diagonal factors.
      bonds = (1j * pairs[size:, :size]).real[:-1, 1:]
      result += share * np.array(
        [np.linalg.det(bonds[:r, :r]) for r in range(1, size // 2 + 1)]
      )
  return result


def _modes(size: int, k: float, boundary: int):
  """Energies and modes of one row's transfer matrix on `(a_j, b_j)`."""
  dual = np.arctanh(np.exp(-2 * k))
  a, b = np.arange(size), size + np.arange(size)
  sites = np.zeros((2 * size, 2 * size))
  sites[a, b], sites[b, a] = dual, -dual
  bonds = np.zeros((2 * size, 2 * size))
  sign = np.ones(size)
  sign[-1] = boundary
  ahead = np.roll(a, -1)
  bonds[b, ahead], bonds[ahead, b] = k * sign, -k * sign
  half = _exp(bonds, -1j)
  energies, modes = np.linalg.eigh(half @ _exp(sites, -2j) @ half)
  return np.log(energies), modes


def _exp(antisymmetric: np.ndarray, factor: complex) -> np.ndarray:
  """`exp(factor * A)` with an imaginary factor: a Hermitian exponential."""
  values, vectors = np.linalg.eigh(factor * antisymmetric)
  return (vectors * np.exp(values)[None]) @ vectors.conj().T
