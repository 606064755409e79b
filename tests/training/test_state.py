import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdiff import training
from jdiff.training import records


def make(extra=None):
  params = {"w": jnp.array([1.0, 2.0])}
  optimizer = optax.sgd(0.1)
  return training.create(jax.random.key(0), params, optimizer, extra), optimizer


def test_apply_gradients_steps_and_averages():
  state, optimizer = make()
  grads = {"w": jnp.array([1.0, -1.0])}
  seen = []
  for _ in range(3):
    state = training.apply_gradients(state, grads, optimizer, ema_decay=0.5)
    seen.append(np.asarray(state.params["w"]))
  assert int(state.step) == 3 and state.step.dtype == jnp.int32
  np.testing.assert_allclose(seen[-1], [0.7, 2.3], rtol=1e-6)
  # Bias-corrected: weights 1/4, 1/2, 1 over their sum; no initial value.
  mean = np.average(seen, axis=0, weights=[0.25, 0.5, 1.0])
  np.testing.assert_allclose(state.ema["w"], mean, rtol=1e-6)


def test_extra_stays_unless_given():
  state, optimizer = make(extra=jnp.int32(7))
  grads = jax.tree.map(jnp.zeros_like, state.params)
  kept = training.apply_gradients(state, grads, optimizer, ema_decay=0.9)
  assert int(kept.extra) == 7
  new = training.apply_gradients(
    state, grads, optimizer, ema_decay=0.9, extra=None
  )
  assert new.extra is None


def test_step_keys_differ_and_depend_on_the_step_alone():
  state, _ = make()
  keys = [
    jax.random.key_data(training.step_key(state._replace(step=jnp.int32(i))))
    for i in (0, 1, 1)
  ]
  assert not np.array_equal(keys[0], keys[1])
  np.testing.assert_array_equal(keys[1], keys[2])


def test_create_wants_a_typed_key():
  with pytest.raises(TypeError, match="typed PRNG key"):
    training.create(jax.random.PRNGKey(0), {}, optax.sgd(0.1))


def test_measurements_take_any_scalar():
  out = records.measurements(
    {
      "a": jnp.bfloat16(1.5),
      "b": {"value": np.float64(2), "se": float("nan")},
      "c": float("inf"),
      "d": True,
    }
  )
  assert out["a"] == {"value": 1.5, "se": None, "exact": None}
  assert out["b"]["value"] == 2.0 and out["b"]["se"] is None
  assert out["c"]["value"] is None and out["d"]["value"] is True
  with pytest.raises(TypeError, match="'x' must hold scalars"):
    records.measurements({"x": np.ones(2)})
  with pytest.raises(TypeError, match="must return a dict"):
    records.measurements([1.0])
