import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import langevin
from jdiff.langevin import constraints as cs

DIM = 8


@pytest.fixture(scope="module")
def quadrics():
  """Three random quadratic equalities and two inequalities, one active."""
  rng = np.random.default_rng(0)
  forms = rng.normal(size=(5, DIM, DIM))
  forms = forms + forms.transpose(0, 2, 1)
  linear = rng.normal(size=(5, DIM))
  point = rng.normal(size=DIM)
  values = 0.5 * np.einsum("kij,i,j->k", forms, point, point) + linear @ point
  shift = np.array([0.3, -0.2, 0.0, 0.1, -0.4]) - values

  def part(rows):
    def fn(x):
      quadratic = 0.5 * jnp.einsum("kij,i,j->k", forms[rows], x, x)
      return quadratic + linear[rows] @ x + shift[rows]

    return fn

  return part(slice(0, 3)), part(slice(3, 5)), forms, linear, point


def at(quadrics):
  eq_fn, ineq_fn, _, _, point = quadrics
  x = jnp.asarray(point)
  stacked = cs.stack(eq_fn, ineq_fn, x)
  return stacked, x, cs.linearise(stacked, x)


def test_projection_and_normal_steps(quadrics):
  with jax.enable_x64(True):
    stacked, x, lin = at(quadrics)
    assert lin.active.tolist() == [True] * 4 + [False]
    _, _, forms, linear, point = quadrics
    jacobian = (forms @ point + linear)[:4]
    v = jnp.asarray(np.random.default_rng(1).normal(size=DIM))
    tangent = cs.tangent_project(lin, v)
    np.testing.assert_allclose(jacobian @ tangent, 0, atol=1e-11)
    np.testing.assert_allclose(
      cs.tangent_project(lin, tangent), tangent, atol=1e-11
    )
    want = v - np.linalg.pinv(jacobian) @ (jacobian @ v)
    np.testing.assert_allclose(tangent, want, atol=1e-11)
    residual = cs.landing_residual(stacked, lin, 0.05)
    np.testing.assert_allclose(residual, [0.3, -0.2, 0, 0.15, 0], atol=1e-12)
    step = cs.landing_direction(stacked, lin, 0.05)
    np.testing.assert_allclose(jacobian @ step, -residual[:4], atol=1e-11)
    np.testing.assert_allclose(
      cs.tangent_and_normal(lin, v, residual), tangent + step, atol=1e-11
    )


def test_units_do_not_matter(quadrics):
  with jax.enable_x64(True):
    eq_fn, ineq_fn, _, _, _ = quadrics
    stacked, x, lin = at(quadrics)
    other = cs.stack(
      lambda y: eq_fn(y) * jnp.array([1e3, 1.0, 1e-4]), ineq_fn, x
    )
    scaled = cs.linearise(other, x)
    np.testing.assert_allclose(scaled.pivot, lin.pivot, rtol=1e-9)
    np.testing.assert_allclose(
      cs.landing_direction(other, scaled, 0.1),
      cs.landing_direction(stacked, lin, 0.1),
      atol=1e-10,
    )


def test_curvature(quadrics):
  with jax.enable_x64(True):
    stacked, x, lin = at(quadrics)
    _, _, forms, linear, point = quadrics
    jacobian = (forms @ point + linear)[:4]
    projector = np.eye(DIM) - np.linalg.pinv(jacobian) @ jacobian
    want = np.einsum("ij,kji->k", projector, forms)
    want[4] = 0
    exact = cs.curvature_trace(stacked, x, lin)
    np.testing.assert_allclose(exact, want, atol=1e-10)

    def once(key):
      return cs.curvature_trace(stacked, x, lin, key=key, num_probes=1)

    draws = jax.vmap(once)(jax.random.split(jax.random.key(0), 20000))
    se = draws.std(axis=0) / 20000**0.5
    assert (jnp.abs(draws.mean(axis=0) - want) < 4.5 * se + 1e-9).all()
    # The control: a trace without the projector is something else.
    wrong = np.einsum("kii->k", forms)
    assert (abs(wrong - want)[:4] > 10 * np.asarray(se)[:4]).any()


@pytest.mark.parametrize("dim", [3, 50])
def test_curvature_drift_of_the_sphere(dim):
  with jax.enable_x64(True):
    x = jax.random.normal(jax.random.key(0), (dim,), jnp.float64)
    x = x / jnp.linalg.norm(x)
    stacked = cs.stack(lambda y: jnp.stack([jnp.sum(y**2) - 1]), None, x)
    lin = cs.linearise(stacked, x)
    drift = cs.curvature_drift(stacked, x, lin)
    np.testing.assert_allclose(drift, -(dim - 1) * x, rtol=1e-10)


def test_newton_retract():
  with jax.enable_x64(True):
    stacked = cs.stack(
      lambda x: jnp.stack([jnp.sum(x**2) - 1]),
      lambda x: jnp.stack([0.2 - x[2]]),
      jnp.zeros(3),
    )
    x = jnp.array([0.9, 0.7, -0.1])
    y = langevin.newton_retract(stacked, x)
    values = stacked.fn(y)
    assert abs(values[0]) < 1e-12 and abs(values[1]) < 1e-12
    inside = jnp.array([0.6, 0.0, 0.8])
    np.testing.assert_allclose(
      langevin.newton_retract(stacked, inside), inside, atol=1e-12
    )


def test_newton_retract_has_derivatives():
  stacked = cs.stack(
    None, lambda x: jnp.stack([jnp.sum(x**2) - 1]), jnp.zeros(2)
  )
  inside = jax.jacobian(lambda x: langevin.newton_retract(stacked, x))
  np.testing.assert_allclose(inside(jnp.zeros(2)), np.eye(2), atol=1e-6)


def test_log_det_gram_needs_no_more_rows_than_columns():
  with jax.enable_x64(True):
    matrix = np.random.default_rng(0).normal(size=(3, 3))
    got = cs.log_det_gram(lambda x: matrix @ x, jnp.zeros(3))
    want = 2 * np.log(abs(np.linalg.det(matrix)))
    np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.parametrize(
  "eq_fn, ineq_fn, error, message",
  [
    (None, None, ValueError, "pass eq_fn, ineq_fn or both"),
    (lambda x: x.sum(), None, ValueError, r"eq_fn must return a vector.*\[\]"),
    (None, lambda x: x[:, None], ValueError, "ineq_fn must return a vector"),
    (lambda x: [x[0], x[1]], None, ValueError, "got no array"),
    (lambda x: x[:0], None, ValueError, "one or more values"),
    (lambda x: jnp.array([1]), None, TypeError, "must return floats"),
  ],
)
def test_bad_constraints(eq_fn, ineq_fn, error, message):
  with pytest.raises(error, match=message):
    cs.stack(eq_fn, ineq_fn, jnp.zeros(3))
