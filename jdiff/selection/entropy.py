"""Kozachenko-Leonenko entropy of a set of points (arXiv:2509.16499, sec. 3)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy import special

from jdiff.core import checks
from jdiff.selection import neighbours


class Entropy(NamedTuple):
  """An estimate of differential entropy.

  Attributes:
    value: Scalar float, nats.
    num_zero: Scalar int32, points whose k-th neighbour is at distance zero.
      Each adds `D / N log(eps)`, -23 `D / N` nats at the default.
  """

  value: jax.Array
  num_zero: jax.Array


def kl_entropy(
  x: jax.Array,
  *,
  k: int = 1,
  chunk_size: int | None = None,
  eps: float = 1e-10,
) -> Entropy:
  """Differential entropy of the law of `x` from nearest-neighbour distances.

    H = psi(N) - psi(k) + log c_D + (D / N) sum_i log(d_i + eps)

  with `d_i` the Euclidean distance of `x_i` to its k-th neighbour and `c_D` the
  volume of the unit ball in `D` dimensions. The bias grows with `D` and `k`,
  and a change of scale by `c` adds `D log c`: compare values of one space, one
  `N` and one `k` only.

  Args:
    x: `[N, ...]`, flattened to `[N, D]`.
    k: Which neighbour, from 1 to `N - 1`; the paper's gamma.
    chunk_size: Most points a chunk; the value does not depend on it.
    eps: Added to distances, as in the authors' code. With 0, a single duplicate
      makes the value `-inf`.

  Raises:
    ValueError: If `k >= N`, `eps < 0`, or a known value is not finite.
    TypeError: If `k` is no integer or `x` holds no numbers.

  Source:
    Kozachenko and Leonenko, Problems of Information Transmission 23 (1987).
  """
  if checks.check_finite("eps", eps) < 0:
    raise ValueError(f"eps must be >= 0, got {eps}.")
  rows = neighbours.as_rows("x", x)
  num, dim = rows.shape
  found = neighbours.nearest(
    rows, rows, k, chunk_size=chunk_size, exclude_self=True
  )
  distance = found.distance[:, -1]
  dtype = distance.dtype
  # The volume itself leaves float32's range at about 60 dimensions.
  log_volume = dim / 2 * jnp.log(jnp.pi) - special.gammaln(
    jnp.asarray(dim / 2 + 1, dtype)
  )
  counts = special.digamma(jnp.asarray([num, k], dtype))
  value = counts[0] - counts[1] + log_volume
  value += dim * jnp.mean(jnp.log(distance + eps))
  return Entropy(value, jnp.sum(distance == 0, dtype=jnp.int32))
