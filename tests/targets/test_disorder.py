"""Ising lattices with arrays of couplings and fields."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdiff import targets
from jdiff.targets import exact, lattice, torus, transfer


def disorder(size, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(size**2, 2)), 0.5 * rng.normal(size=size**2)


@functools.cache
def glass(size, periodic=True):
  coupling, field = disorder(size)
  return targets.ising(
    size, beta=0.8, coupling=coupling, field=field, periodic=periodic
  )


@pytest.mark.parametrize(
  "size, periodic",
  [(2, True), (2, False), (3, True), (3, False), (4, True), (4, False)],
)
def test_transfer_against_enumeration(size, periodic):
  target = glass(size, periodic)
  want = exact.enumeration(target)
  coupling, field = disorder(size)
  got = transfer.solve(size, 0.8, coupling, field, periodic)
  np.testing.assert_allclose(target.log_z, want["log_z"], rtol=1e-12)
  for name in ("log_z", "energy_per_site", "magnetisation"):
    np.testing.assert_allclose(got[name], want[name], rtol=1e-10)
  # Spins and bonds from the enumerated law and the lattice's own table.
  spins, pmf = 2.0 * want["states"] - 1, np.exp(want["log_pmf"])
  np.testing.assert_allclose(got["spin"], pmf @ spins, atol=1e-10)
  near = lattice.neighbours(size, periodic=periodic)[:, [0, 2]]
  bond = (pmf @ (spins[:, near] * spins[..., None]).reshape(len(pmf), -1)).T
  bond = np.where(near >= 0, bond.reshape(-1, 2), 0)
  np.testing.assert_allclose(got["bond"], bond, atol=1e-10)
  # A bond read as the other one, or from its other end, is another lattice.
  for wrong in (coupling[:, ::-1], np.roll(coupling, 1, axis=0)):
    answer = transfer.solve(size, 0.8, wrong, field, periodic)
    assert abs(answer["log_z"] - want["log_z"]) > 1e-2


def test_log_prob_is_a_sum_over_the_table_of_neighbours():
  size = 5
  coupling, field = disorder(size)
  x = np.random.default_rng(1).integers(0, 2, (8, size**2))
  s = 2.0 * x - 1
  for periodic in (True, False):
    near = lattice.neighbours(size, periodic=periodic)[:, [0, 2]]
    inside = np.where(near >= 0, coupling, 0)
    want = 0.8 * (
      (inside[None] * s[:, near] * s[..., None]).sum(axis=(1, 2)) + s @ field
    )
    target = glass(size, periodic)
    got = jax.vmap(target.log_prob)(jnp.asarray(x))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_arrays_of_one_value_are_that_value():
  size, k, h = 6, 0.3, 0.12
  ones = np.ones((size**2, 2))
  got = transfer.solve(size, 1.0, k * ones, h)
  want = exact.ising_transfer(size, k, h)
  for name in ("log_z", "magnetisation"):
    np.testing.assert_allclose(got[name], want[name], rtol=1e-12)
  np.testing.assert_allclose(got["bond"], want["correlation"][0], rtol=1e-10)
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 3, (16, size**2)))
  some = (None, np.array([3, 0, 35]), jnp.arange(32).reshape(16, 2))

  for periodic in (True, False):

    @jax.jit
    def everything(coupling, tokens, periodic=periodic):
      target = targets.ising(
        size, beta=0.5, coupling=coupling, field=0.2, periodic=periodic
      )
      return (
        jax.vmap(target.log_prob)(jnp.minimum(tokens, 1)),
        [target.conditional(tokens, sites) for sites in some],
      )

    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=1e-5),
      everything(jnp.float32(-0.7), tokens),
      everything(jnp.float32(-0.7) * ones, tokens),
    )


def test_a_gauge_transform_changes_no_partition_function():
  # s_i -> xi_i s_i maps J to J xi_i xi_j (Mattis): Kaufman's answer remains.
  size, k = 8, 0.4407
  xi = np.random.default_rng(0).choice([-1.0, 1.0], size**2)
  near = lattice.neighbours(size)[:, [0, 2]]
  sign = xi[:, None] * xi[near]
  answer = targets.ising(size, beta=k, coupling=sign).exact()
  log_z = torus.kaufman_log_z(size, size, k)
  np.testing.assert_allclose(answer["log_z"], log_z, rtol=1e-12)
  np.testing.assert_allclose(
    sign * answer["bond"], torus.row_correlation(size, k)[0], rtol=1e-9
  )
  np.testing.assert_allclose(answer["spin"], 0, atol=1e-10)
  # One bond turned over is frustration, which no such map makes.
  sign[0] *= np.array([-1.0, 1.0])
  broken = transfer.solve(size, k, sign, 0.0)
  assert broken["log_z"] < log_z - 0.1


def test_a_tree_in_closed_form_at_the_largest_side():
  # Rows joined along the first column: Z = 2^L prod 2 cosh(K), <s s> = tanh.
  size = transfer.MAX_SIDE
  k, _ = disorder(size)
  k = k.reshape(size, size, 2)
  k[:, 1:, 0] = 0
  inside = k.copy()
  inside[-1, :, 0] = inside[:, -1, 1] = 0
  answer = transfer.solve(size, 1.0, k.reshape(-1, 2), 0.0, periodic=False)
  want = size**2 * np.log(2) + np.log(np.cosh(inside)).sum()
  np.testing.assert_allclose(answer["log_z"], want, rtol=1e-12)
  mask = inside != 0
  np.testing.assert_allclose(
    answer["bond"].reshape(k.shape)[mask], np.tanh(inside)[mask], atol=1e-9
  )


def test_low_temperatures_neither_overflow_nor_underflow():
  # At beta = 30 the law is its ground state: all spins along the fields.
  size = 6
  field = np.random.default_rng(0).choice([-1.0, 1.0], size**2)
  answer = transfer.solve(size, 30.0, 0.1 * np.ones((size**2, 2)), field)
  assert np.isfinite(answer["log_z"])
  np.testing.assert_allclose(answer["spin"], field, atol=1e-12)
  np.testing.assert_allclose(
    answer["log_z"], -30.0 * size**2 * answer["energy_per_site"], rtol=1e-12
  )


def test_hidden_neighbours_count_as_absent():
  size = 4
  coupling, field = disorder(size)
  tokens = np.random.default_rng(0).integers(0, 2, (1, size**2))
  hidden = tokens.copy()
  hidden[0, 6] = 2
  logits, known = glass(size).conditional(jnp.asarray(hidden))
  # Cut the hidden site's bonds: its own two, and those that lead to it.
  cut = coupling.copy()
  near = lattice.neighbours(size)
  cut[6] = cut[near[6, 1], 0] = cut[near[6, 3], 1] = 0
  without = targets.ising(size, beta=0.8, coupling=cut, field=field)
  want, _ = without.conditional(jnp.asarray(tokens))
  np.testing.assert_allclose(
    np.delete(logits, 6, axis=1), np.delete(want, 6, axis=1), atol=1e-6
  )
  np.testing.assert_array_equal(
    np.flatnonzero(~np.asarray(known[0])), np.sort(near[6])
  )


@pytest.mark.parametrize("periodic", [True, False])
def test_draws_follow_the_enumerated_law(periodic):
  target = glass(3, periodic)
  law = exact.enumeration(target)
  num = 2**14
  draws = np.asarray(target.sample(jax.random.key(0), num))
  assert draws.shape == (num, 9) and draws.dtype == np.int32
  index = draws @ 2 ** np.arange(9)[::-1]
  want = num * np.exp(law["log_pmf"])
  counts = np.bincount(index, minlength=512)
  # Rare states go together, so that every cell expects five draws.
  rare = want < 5
  want = np.append(want[~rare], want[rare].sum())
  statistic = (
    (np.append(counts[~rare], counts[rare].sum()) - want) ** 2
  ) / want
  band = stats.chi2.isf([1e-4, 1 - 1e-4], len(want) - 1)
  assert band[1] < statistic.sum() < band[0]


@pytest.mark.parametrize("periodic", [True, False])
def test_draws_have_the_exact_means(periodic):
  target = glass(6, periodic)
  answer, num = target.exact(), 4096
  draws = target.sample(jax.random.key(1), num)
  s = 2.0 * np.asarray(draws) - 1
  near = lattice.neighbours(6, periodic=periodic)[:, [0, 2]]
  bond = s[:, near] * s[..., None]
  energy = np.asarray(jax.vmap(target.observables)(draws)["energy_per_site"])
  for values, want in (
    (s, answer["spin"]),
    (bond[:, near >= 0], answer["bond"][near >= 0]),
    (energy, answer["energy_per_site"]),
  ):
    # Of up to 72 means, 4.5 standard errors are passed once in 2000 keys.
    error = np.abs(values.mean(axis=0) - want)
    assert (error < 4.5 * values.std(axis=0) / num**0.5).all()
  # Each draw hangs on its own key; under a trace they are the same.
  sample = glass.__wrapped__(6, periodic).sample
  few = jax.jit(lambda key: sample(key, 8))
  np.testing.assert_array_equal(few(jax.random.key(1)), draws[:8])
  assert (np.asarray(few(jax.random.key(2))) != np.asarray(draws[:8])).any()


def test_what_is_not_known_is_none():
  size = transfer.MAX_SIDE + 1
  coupling, field = disorder(size)
  target = targets.ising(size, beta=0.5, coupling=coupling, field=field)
  assert target.log_z is target.exact is target.sample is None
  logits, _ = target.conditional(jnp.zeros((1, size**2), jnp.int32))
  assert logits.shape == (1, size**2, 2)
  # Neither Kaufman's zero field nor the spin flip survive one site's field.
  coupling, _ = disorder(6)
  field = np.zeros(36)
  plain = targets.ising(6, beta=0.4, field=field)
  np.testing.assert_allclose(
    plain.log_z, torus.kaufman_log_z(6, 6, 0.4), rtol=1e-12
  )
  field[7] = 1.0
  odd = targets.ising(6, beta=0.4, field=field)
  np.testing.assert_allclose(
    odd.log_z - plain.log_z, np.log(np.cosh(0.4)), rtol=1e-9
  )
  assert odd.exact()["magnetisation"] > 0.01


def test_traced_disorder():
  coupling, field = disorder(3)
  x = jnp.asarray(np.random.default_rng(0).integers(0, 2, 9))

  @jax.jit
  def slope(coupling, field):
    def log_prob(coupling, field):
      target = targets.ising(3, beta=0.8, coupling=coupling, field=field)
      assert target.log_z is target.exact is target.sample is None
      return target.log_prob(x)

    return jax.grad(log_prob, argnums=(0, 1))(coupling, field)

  bonds, fields = slope(jnp.asarray(coupling), jnp.asarray(field))
  s = 2.0 * np.asarray(x) - 1
  near = lattice.neighbours(3)[:, [0, 2]]
  np.testing.assert_allclose(bonds, 0.8 * s[near] * s[:, None], rtol=1e-6)
  np.testing.assert_allclose(fields, 0.8 * s, rtol=1e-6)


@pytest.mark.parametrize(
  "options, error, message",
  [
    (
      {"coupling": np.ones(9)},
      ValueError,
      r"coupling must have shape \[9, 2\]",
    ),
    ({"field": np.ones((3, 3))}, ValueError, r"field must have shape \[9\]"),
    (
      {"coupling": np.full((9, 2), np.nan)},
      ValueError,
      r"coupling must be finite, got nan at \[0, 0\]",
    ),
    ({"field": np.full(9, "up")}, TypeError, "field must hold numbers"),
  ],
)
def test_bad_arguments(options, error, message):
  with pytest.raises(error, match=message):
    targets.ising(3, beta=1.0, **options)


def test_bad_sides():
  for size, message in ((1, "size must be >= 2"), (11, "size must be <= 10")):
    for make in (transfer.solve, transfer.sampler):
      with pytest.raises(ValueError, match=message):
        make(size, 1.0, 1.0, 0.0)
