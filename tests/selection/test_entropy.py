import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jdiff import selection


def reference(x, k, eps=1e-10):
  """The formula, in float64 and with all distances at once."""
  x = np.asarray(x, np.float64).reshape(len(x), -1)
  n, dim = x.shape
  distance = np.sqrt(((x[:, None] - x[None]) ** 2).sum(axis=2))
  distance = np.sort(distance, axis=1)[:, k]
  log_volume = dim / 2 * np.log(np.pi) - special.gammaln(dim / 2 + 1)
  mean = np.log(distance + eps).mean()
  return special.psi(n) - special.psi(k) + log_volume + dim * mean


def test_by_hand():
  x = jnp.array([0.0, 1, 3, 7])
  run = jax.jit(selection.kl_entropy, static_argnames="k")
  # Distances 1 1 2 4 and 3 2 3 6; psi(4) = 11/6 - gamma, a segment is 2 long.
  first = run(x)
  assert float(first.value) == pytest.approx(11 / 6 + np.log(2 * 8**0.25))
  assert float(first.value) == pytest.approx(3.04634, abs=1e-5)
  second = run(x[:, None], k=2)
  want = 11 / 6 - 1 + np.log(2 * 108**0.25)
  assert float(second.value) == pytest.approx(want)
  assert float(second.value) == pytest.approx(2.69701, abs=1e-5)
  assert first.num_zero.dtype == jnp.int32 and int(first.num_zero) == 0


@pytest.mark.parametrize(("dim", "k"), [(1, 1), (5, 3)])
def test_formula_and_laws(dim, k):
  rng = np.random.default_rng(dim)
  with jax.enable_x64(True):
    x = jnp.asarray(rng.normal(size=(60, dim)))
    turn = jnp.asarray(np.linalg.qr(rng.normal(size=(dim, dim)))[0])
    run = jax.jit(functools.partial(selection.kl_entropy, k=k, chunk_size=7))
    value = float(run(x).value)
    assert value == pytest.approx(reference(x, k), abs=1e-12)
    # Up to eps: 1e-10 over distances of 1e-2 at the least.
    scaled = float(run(3 * x).value)
    assert scaled == pytest.approx(value + dim * np.log(3), abs=1e-7)
    assert float(run(x @ turn).value) == pytest.approx(value, abs=1e-7)
    shift = jnp.full((1, dim), 10.0)
    assert float(run(x + shift).value) == pytest.approx(value, abs=1e-7)
    # Control: a neighbour too many is another number.
    assert abs(reference(x, k + 1) - value) > 1e-3


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_gaussians(dim):
  keys = jax.random.split(jax.random.key(dim), 16)
  spread = jnp.arange(1.0, dim + 1)

  def draw(key):
    x = jax.random.normal(key, (500, dim)) * spread[None]
    return selection.kl_entropy(x).value

  values = np.asarray(jax.jit(lambda keys: jax.lax.map(draw, keys))(keys))
  want = stats.multivariate_normal(cov=np.diag(spread**2)).entropy()
  # The bias is known to fall below 0.02 nats a dimension at this size.
  band = 5 * values.std() / 4 + 0.02 * dim
  assert band < 0.2
  assert abs(values.mean() - want) < band


def test_many_dimensions():
  # The unit ball's volume is 1e-6000 or so.
  rng = np.random.default_rng(0)
  x = np.float32(rng.random((20, 3072)))
  found = jax.jit(selection.kl_entropy)(x)
  assert float(found.value) == pytest.approx(reference(x, 1), rel=1e-5)


def test_duplicates():
  x = jnp.array([0.0, 0, 0, 1, 3, 3, 7])
  run = jax.jit(selection.kl_entropy, static_argnames=("k", "eps"))
  found = run(x)
  assert int(found.num_zero) == 5
  assert float(found.value) == pytest.approx(reference(x, 1), rel=1e-6)
  # The second neighbour is as near for three of them.
  assert int(run(x, k=2).num_zero) == 3
  assert float(run(x, eps=0.0).value) == -np.inf


def test_bad_arguments():
  x = jnp.array([0.0, 1, 3, 7])
  with pytest.raises(ValueError, match="k must be at most 3"):
    selection.kl_entropy(x, k=4)
  with pytest.raises(ValueError, match="eps must be >= 0"):
    selection.kl_entropy(x, eps=-1.0)
  with pytest.raises(ValueError, match="x must be finite, got 1 of 4"):
    selection.kl_entropy(x.at[0].set(jnp.nan))
