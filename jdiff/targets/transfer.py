"""Square-lattice spins with a coupling at each bond and a field at each site.

The transfer matrix of a row is applied a site at a time, so that a sweep over
the lattice costs `size^2` passes over an array of `4^size` numbers (`2^size`
with open edges). Its messages give the partition function, by differentiation
all expectations of spins and bonds, and exact independent draws.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.core import keys as keys_lib
from jdiff.targets import enumerate as enumerate_lib

MAX_SIDE = 10
"""Up to here the messages fit: 10 `2^20` numbers at the largest side."""

_CHUNK = 256


def solve(
  size: int, beta: float, coupling, field, periodic: bool = True
) -> dict[str, Any]:
  """Exact answers in float64, on the host.

  Args:
    size: Lattice side, `2 <= size <= MAX_SIDE`.
    beta: Inverse temperature.
    coupling: `[L, 2]`, of each site with the one below it and the one on its
      right (with open edges, those beyond are ignored), or a number.
    field: `[L]`, or a number.
    periodic: Whether opposite edges are joined.

  Returns:
    `log_z`, `energy_per_site`, `magnetisation`, `spin` (`[L]`, mean spins) and
    `bond` (`[L, 2]`, mean products over the bonds, 0 where there is none).

  Raises:
    ValueError: If the lattice is too small or too large.
  """
  k, h = _grids(size, beta, coupling, field)
  energy = _grids(size, -1.0, coupling, field)
  with jax.enable_x64(True):
    log_z, (bond, spin) = jax.device_get(_solve(k, h, periodic))
  return {
    "log_z": float(log_z),
    "energy_per_site": float(
      np.mean((energy[0] * bond).sum(axis=-1) + energy[1] * spin)
    ),
    "magnetisation": float(spin.mean()),
    "spin": spin.reshape(-1),
    "bond": bond.reshape(-1, 2),
  }


def sampler(
  size: int, beta: float, coupling, field, periodic: bool = True
) -> Callable[[jax.Array, int], jax.Array]:
  """`sample(key, num_samples) -> [N, L]` int32: exact independent draws.

  The first row from its marginal law, each next one given the row before it
  and the first. Messages are float64, the tables drawn from float32. Arguments
  and errors as in `solve`.
  """
  k, h = _grids(size, beta, coupling, field)

  @functools.cache
  def tables():
    # Once, on the host, even if the first draw is asked for under a trace.
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
      own, below = jax.device_get(_messages_jit(k, h, periodic))
      first = np.asarray(_first(own, below, periodic))
    rest = own[1:, :, None] + below[1:]
    # Only differences matter: the likely rows keep all of float32's digits.
    rest = rest - rest.max(axis=1, keepdims=True)
    parts = (first - first.max(), rest.swapaxes(1, 2), k[:-1, :, 0])
    return tuple(np.asarray(x, np.float32) for x in parts)

  tokens = enumerate_lib.enumerate_states(size, 2)
  spins = (2 * tokens - 1).astype(np.float32)

  def draw(key, first, rest, down):
    keys = jax.random.split(key, size)
    rows = jnp.asarray(spins)
    top = jax.random.categorical(keys[0], first)

    def next_row(row, inputs):
      key, below, down = inputs
      logits = below[top if periodic else 0] + rows @ (down * rows[row])
      row = jax.random.categorical(key, logits)
      return row, row

    _, others = jax.lax.scan(next_row, top, (keys[1:], rest, down))
    index = jnp.concatenate([top[None], others])
    return jnp.asarray(tokens)[index].reshape(-1)

  @jax.jit
  def draws(keys, tables):
    return jax.lax.map(lambda key: draw(key, *tables), keys, batch_size=_CHUNK)

  return lambda key, num_samples: draws(
    keys_lib.per_example(key, num_samples), tables()
  )


def _grids(size: int, scale: float, coupling, field):
  """Scaled couplings `[size, size, 2]` and fields `[size, size]`, float64."""
  checks.check_int("size", size, 2)
  if size > MAX_SIDE:
    raise ValueError(f"size must be <= {MAX_SIDE}, got {size}.")
  checks.check_finite("beta", scale)
  num_sites = size * size
  for name, value, shape in (
    ("coupling", coupling, (num_sites, 2)),
    ("field", field, (num_sites,)),
  ):
    checks.check_numbers(name, value)
    if np.ndim(value):
      checks.check_shape(name, value, shape)
  k = np.broadcast_to(np.asarray(coupling, np.float64), (num_sites, 2))
  h = np.broadcast_to(np.asarray(field, np.float64), (num_sites,))
  return scale * k.reshape(size, size, 2), scale * h.reshape(size, size)


def _messages(k, h, periodic: bool):
  """Log-weights of each row alone, and of all that lies below it.

  Returns:
    `own`, `[size, S]` with `S = 2 ** size` states of a row, and `below`,
    `[size, S, A]`: all below a row and the bonds to it, given the row and the
    state of the first row (`A = S`), to which the last one is joined; `A = 1`
    with open edges.
  """
  size = h.shape[0]
  rows = 2.0 * enumerate_lib.enumerate_states(size, 2) - 1
  beside = rows * np.roll(rows, -1, axis=1)
  if not periodic:
    beside[:, -1] = 0
  own = k[:, :, 1] @ beside.T + h @ rows.T

  def site(weight, bond):
    # Sums over a spin of the row below, at the front; the spin above it, on
    # the other side of the bond, enters at the back. After `size` of these
    # the axes stand as before.
    minus, plus = weight.reshape(2, -1, weight.shape[-1])
    like, unlike = jnp.exp(bond), jnp.exp(-bond)
    pair = [like * minus + unlike * plus, unlike * minus + like * plus]
    return jnp.stack(pair, axis=1).reshape(weight.shape), None

  def row(below, inputs):
    own, bonds = inputs
    log_weight = own[:, None] + below
    peak = jax.lax.stop_gradient(log_weight.max(axis=0, keepdims=True))
    weight = jax.lax.scan(site, jnp.exp(log_weight - peak), bonds)[0]
    below = jnp.log(weight) + peak
    return below, below

  last = jnp.zeros((len(rows), 1))
  if periodic:
    last = (rows * k[-1, :, 0][None]) @ rows.T
  above = (own[1:], k[:-1, :, 0])
  _, below = jax.lax.scan(jax.checkpoint(row), last, above, reverse=True)
  return own, jnp.concatenate([below, last[None]])


def _first(own, below, periodic: bool):
  """Log-weights `[S]` of the first row."""
  return own[0] + (jnp.diagonal(below[0]) if periodic else below[0][:, 0])


def _log_z(k, h, periodic: bool):
  own, below = _messages(k, h, periodic)
  return jax.nn.logsumexp(_first(own, below, periodic))


_messages_jit = jax.jit(_messages, static_argnums=2)
_solve = jax.jit(jax.value_and_grad(_log_z, argnums=(0, 1)), static_argnums=2)
