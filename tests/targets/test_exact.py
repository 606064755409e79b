"""The oracles against one another, and against published digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import targets
from jdiff.targets import enumerate as enumerate_lib
from jdiff.targets import exact, torus
from jdiff.targets.ising import CRITICAL_BETA
from tests import helpers

# size, beta: log Z, energy per site, <|m|>, C(1), C(L/2).
ISING = {
  (4, 0.28): (12.53066745, -0.75019860, 0.4762525, 0.375099, 0.247456),
  (4, 0.4407): (15.52224629, -1.56567705, 0.8438824, 0.782839, 0.740554),
  (4, 0.6): (20.05653288, -1.90806953, 0.9728675, 0.954035, 0.948938),
  (6, 0.28): (28.00036718, -0.66305427, 0.3258498, 0.331527, 0.095801),
  (6, 0.4407): (34.11226224, -1.51694089, 0.8050111, 0.758470, 0.672073),
  (6, 0.6): (44.25810729, -1.90893979, 0.9734745, 0.954470, 0.948109),
  (8, 0.4407): (60.14304154, -1.49166700, 0.7773778, 0.745834, 0.626118),
  (8, 0.6): (78.14164886, -1.90906743, 0.9735877, 0.954534, 0.947961),
}
TORUS = {
  (15, 0.28): (174.84560876, -0.64294844),
  (15, 0.4407): (209.82607014, -1.45574698),
  (16, 0.28): (198.93541902, -0.64294014),
  (16, 0.4407): (238.64716942, -1.45316676),
  (16, 0.6): (310.48703859, -1.90908617),
  (24, 0.4407): (536.15555897, -1.44024927),
}
POTTS = {
  (3, 1.005): (19.68811599, -1.74206177, 0.53769755, 0.90034499),
  (4, 0.5): (23.90134531, -0.93826562, 0.13579948, 0.49364844),
  (4, 1.005): (34.17117066, -1.70998363, 0.52165848, 0.86741934),
  (6, 1.2): (88.27506890, -1.89758279, 0.61545806, 0.95394870),
}

BONDS = np.random.default_rng(0).normal(size=(9, 2))


@functools.cache
def transfer(size, k):
  return exact.ising_transfer(size, k)


@pytest.mark.parametrize("size, beta", ISING)
def test_ising_digits(size, beta):
  log_z, energy, m, near, far = ISING[size, beta]
  target = targets.ising(size, beta=beta)
  answer = target.exact()
  for value in (target.log_z, answer["log_z"]):
    np.testing.assert_allclose(value, log_z, atol=6e-9)
  np.testing.assert_allclose(answer["energy_per_site"], energy, atol=6e-9)
  np.testing.assert_allclose(answer["abs_magnetisation"], m, atol=6e-8)
  np.testing.assert_allclose(answer["correlation"][0], near, atol=6e-7)
  np.testing.assert_allclose(answer["correlation"][-1], far, atol=6e-7)
  np.testing.assert_allclose(answer["p_positive"], 0.5, atol=1e-12)


@pytest.mark.parametrize("size, beta", TORUS)
def test_torus_digits(size, beta):
  log_z, energy = TORUS[size, beta]
  answer = targets.ising(size, beta=beta).exact()
  np.testing.assert_allclose(answer["log_z"], log_z, atol=6e-9)
  np.testing.assert_allclose(answer["energy_per_site"], energy, atol=6e-9)


@pytest.mark.parametrize("size, beta", POTTS)
def test_potts_digits(size, beta):
  log_z, energy, near, row = POTTS[size, beta]
  answer = targets.potts(size, 3, beta=beta).exact()
  np.testing.assert_allclose(answer["log_z"], log_z, atol=6e-9)
  np.testing.assert_allclose(answer["energy_per_site"], energy, atol=6e-9)
  np.testing.assert_allclose(answer["correlation"][0], near, atol=6e-9)
  np.testing.assert_allclose(answer["row_magnetisation"], row, atol=6e-9)


def test_ising_in_a_field():
  answer = targets.ising(4, beta=0.28, field=0.1).exact()
  np.testing.assert_allclose(answer["log_z"], 12.56151507, atol=6e-9)
  np.testing.assert_allclose(answer["magnetisation"], 0.13693902, atol=6e-9)
  np.testing.assert_allclose(answer["abs_magnetisation"], 0.48421568, atol=6e-9)
  np.testing.assert_allclose(
    answer["correlation"], [0.38209954, 0.25665036], atol=6e-9
  )


@pytest.mark.parametrize("k", [0.2, 0.4407, CRITICAL_BETA, 0.6, 1.0])
@pytest.mark.parametrize("size", [3, 4, 6])
def test_fermions_against_the_transfer_matrix(size, k):
  want = transfer(size, k)
  got = torus.kaufman_log_z(size, size, k)
  np.testing.assert_allclose(got, want["log_z"], rtol=1e-12)
  correlation = torus.row_correlation(size, k)
  np.testing.assert_allclose(correlation, want["correlation"], atol=1e-10)


def test_kaufman_needs_its_sign():
  wrong, _ = torus.kaufman_terms(4, 4, 0.28, sign=-1.0)
  assert abs(wrong - 12.53066745) > 0.1


@pytest.mark.parametrize("field", [0.0, 0.15])
def test_transfer_against_enumeration(field):
  target = targets.ising(4, beta=0.4, field=field)
  want = exact.enumeration(target)
  got = exact.ising_transfer(4, 0.4, 0.4 * field)
  for name, value in got.items():
    np.testing.assert_allclose(value, want[name], atol=1e-10)
  np.testing.assert_allclose(
    exact.ising_energy(4, 0.4, 1.0, field), want["energy_per_site"], atol=1e-10
  )


@pytest.mark.parametrize("size, num_states", [(3, 3), (2, 4)])
def test_potts_transfer_against_enumeration(size, num_states):
  want = exact.enumeration(targets.potts(size, num_states, beta=0.9))
  got = exact.potts_transfer(size, num_states, 0.9, 1.0)
  for name, value in got.items():
    np.testing.assert_allclose(value, want[name], atol=1e-10)


def test_two_states_are_an_ising_model():
  # 1[x = y] = (1 + s s') / 2: beta halves, and each bond adds beta / 2.
  potts = targets.potts(3, 2, beta=0.8).log_z
  ising = targets.ising(3, beta=0.4).log_z
  np.testing.assert_allclose(potts, ising + 0.4 * 18, rtol=1e-12)


def test_antiferromagnet():
  answer = targets.ising(4, beta=0.5, coupling=-1.0).exact()
  big = targets.ising(10, beta=0.5, coupling=-1.0).exact()
  assert answer["correlation"][0] < 0 < answer["correlation"][1]
  assert big["correlation"][0] < 0 and big["energy_per_site"] < 0
  want = targets.ising(4, beta=0.5).log_z
  np.testing.assert_allclose(answer["log_z"], want, rtol=1e-12)


def test_urn_against_enumeration():
  target = targets.dirichlet_multinomial(6, [0.7, 1.0, 2.0])
  want = exact.enumeration(target)
  np.testing.assert_allclose(target.log_z, want["log_z"], rtol=1e-10)
  np.testing.assert_allclose(target.exact()["share"], want["share"], rtol=1e-10)
  two = targets.dirichlet_multinomial(400, [1.0, 1.0])
  from scipy import special

  np.testing.assert_allclose(two.log_z, special.gammaln(402), rtol=1e-12)
  draws = target.sample(jax.random.key(0), 4000)
  share = jax.vmap(target.observables)(draws)["share"].mean(axis=0)
  np.testing.assert_allclose(share, want["share"], atol=0.025)


@pytest.mark.parametrize(
  "target",
  [
    targets.ising(3, beta=0.4, field=0.1),
    targets.ising(3, beta=0.4, coupling=-0.7, periodic=False),
    targets.ising(3, beta=0.4, coupling=BONDS, field=BONDS[:, 1]),
    targets.ising(3, beta=0.4, coupling=BONDS, field=0.1, periodic=False),
    targets.ising(3, beta=0.4, field=BONDS[:, 0]),
    targets.potts(3, 3, beta=0.7, periodic=False),
    targets.dirichlet_multinomial(5, [0.5, 1.5]),
  ],
  ids=["ising", "open", "glass", "open_glass", "fields", "potts", "urn"],
)
def test_conditionals(target):
  """With everything but one site revealed they are exact."""
  rng = np.random.default_rng(0)
  length, vocab = target.length, target.num_tokens
  tokens = rng.integers(0, vocab, (20, length))
  sites = rng.integers(0, length, (20, 1))
  rows = np.arange(20)[:, None]
  hidden = tokens.copy()
  hidden[rows, sites] = vocab
  logits, known = target.conditional(jnp.asarray(hidden), jnp.asarray(sites))
  assert logits.shape == (20, 1, vocab) and bool(known.all())
  full = []
  for v in range(vocab):
    filled = tokens.copy()
    filled[rows, sites] = v
    full.append(jax.vmap(target.log_prob)(jnp.asarray(filled)))
  want = jax.nn.log_softmax(jnp.stack(full, axis=-1))
  np.testing.assert_allclose(jax.nn.log_softmax(logits)[:, 0], want, atol=1e-5)
  every, _ = target.conditional(jnp.asarray(hidden))
  np.testing.assert_allclose(
    jnp.take_along_axis(every, jnp.asarray(sites)[..., None], axis=1), logits
  )


def test_tempering():
  target = targets.ising(4, beta=0.4)
  half = jax.jit(lambda s, x: targets.temper(target, s).log_prob(x))
  x = jnp.ones(16, jnp.int32)
  np.testing.assert_allclose(half(0.5, x), 0.5 * target.log_prob(x))
  tempered = targets.temper(target, 0.5)
  assert tempered.log_z is None and tempered.exact is None
  tokens = jnp.zeros((1, 16), jnp.int32)
  np.testing.assert_allclose(
    tempered.conditional(tokens)[0], 0.5 * target.conditional(tokens)[0]
  )


def sample(target, num):
  run = helpers.optimised_jit(target.sample, static_argnums=1)
  return run(jax.random.key(0), num)


@pytest.mark.parametrize(
  "make",
  [
    lambda: targets.ising(3, beta=0.5, coupling=-1.0, field=0.2),
    lambda: targets.ising(8, beta=0.4407),
    lambda: targets.ising(6, beta=0.3, field=0.1),
    lambda: targets.potts(5, 3, beta=0.9),
  ],
  ids=["exact", "critical", "field", "potts"],
)
def test_samples(make):
  target = make()
  draws = sample(target, 2048)
  assert draws.shape == (2048, target.length) and draws.dtype == jnp.int32
  values = jax.jit(jax.vmap(target.observables))(draws)
  answer = target.exact()
  for name in ("energy_per_site", "abs_magnetisation", "row_magnetisation"):
    if name in values:
      value = np.asarray(values[name])
      # Chains are independent, so the plain standard error holds.
      assert abs(value.mean() - answer[name]) < 4.5 * value.std() / 2048**0.5


@pytest.mark.parametrize(
  "make, error, message",
  [
    (lambda: targets.ising(1, beta=1.0), ValueError, "size must be >= 2"),
    (lambda: targets.ising(4.0, beta=1.0), TypeError, "size must be an int"),
    (lambda: targets.ising(4, beta=np.inf), ValueError, "beta must be finite"),
    (lambda: targets.ising(4, beta="hot"), TypeError, "beta must be a finite"),
    (lambda: targets.potts(4, 1, beta=1.0), ValueError, "num_states must be"),
    (lambda: torus.kaufman_log_z(4, 4, -1.0), ValueError, "k must be positive"),
    (
      lambda: targets.dirichlet_multinomial(3, [1.0, -1.0]),
      ValueError,
      "alpha must be",
    ),
    (
      lambda: enumerate_lib.enumerate_states(30, 2),
      ValueError,
      "too many to enumerate",
    ),
  ],
)
def test_bad_arguments(make, error, message):
  with pytest.raises(error, match=message):
    make()


@pytest.mark.parametrize("sign", helpers.thorough((1, -1), (-1,)))
def test_clusters_follow_the_product_of_beta_and_coupling(sign):
  # Only the product matters; six a side is beyond enumeration.
  ising = targets.ising(6, beta=0.3 * sign, coupling=float(sign))
  potts = targets.potts(5, 3, beta=1.0 * sign, coupling=float(sign))
  for target, want in (
    (ising, targets.ising(6, beta=0.3).exact()["correlation"][0]),
    (potts, targets.exact.potts_transfer(5, 3, 1.0, 1.0)["correlation"][0]),
  ):
    x = sample(target, 256)
    values = jax.jit(jax.vmap(target.observables))(x)["correlation"]
    values = np.asarray(values)[:, 0]
    se = values.std() / 16
    assert abs(values.mean() - want) < 4.5 * se
