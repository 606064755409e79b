import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.nets import embed

# Rows, contracted axes and features; the last is no linear map.
CASES = [
  ((4, 3, 5), (5, 2), ((2,), (0,)), ((), ())),
  ((4, 3, 5), (5, 2, 6), ((2,), (0,)), ((), ())),
  ((4, 3, 2, 5), (2, 5, 6), ((2, 3), (0, 1)), ((), ())),
  ((5,), (5, 2), ((0,), (0,)), ((), ())),
  ((0, 3, 5), (5, 2), ((2,), (0,)), ((), ())),
  ((4, 3, 5), (2, 5), ((2,), (1,)), ((), ())),
  ((4, 3, 5), (4, 5, 2), ((2,), (1,)), ((0,), (0,))),
]


@pytest.mark.parametrize("lhs, rhs, contracted, batch", CASES)
def test_dot_general_and_its_gradient_are_laxs(lhs, rhs, contracted, batch):
  key_x, key_w, key_c = jax.random.split(jax.random.key(0), 3)
  x, w = jax.random.normal(key_x, lhs), jax.random.normal(key_w, rhs)
  numbers = (contracted, batch)
  expected, pullback = jax.vjp(
    lambda x, w: jax.lax.dot_general(x, w, numbers), x, w
  )
  got, own_pullback = jax.vjp(
    lambda x, w: embed.dot_general(x, w, numbers), x, w
  )
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
  cotangent = jax.random.normal(key_c, expected.shape)
  for ours, theirs in zip(
    own_pullback(cotangent), pullback(cotangent), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_of_kernels_contract_over_one_axis():
  x, w = jnp.ones((4, 3, 5)), jnp.ones((5, 2, 6))
  numbers = (((2,), (0,)), ((), ()))

  def contracted(dot):
    jaxpr = jax.make_jaxpr(jax.grad(lambda w: dot(x, w, numbers).sum()))(w)
    return [
      len(e.params["dimension_numbers"][0][0])
      for e in jaxpr.eqns
      if e.primitive.name == "dot_general"
    ]

  assert max(contracted(embed.dot_general)) == 1
  assert max(contracted(jax.lax.dot_general)) == 2
