"""NNX models as pure functions over a plain dict."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jdiff.nets import interop


class Denoiser(nnx.Module):
  def __init__(self, rngs):
    self.embed = nnx.Embed(4, 8, rngs=rngs)
    self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
    self.head = nnx.Linear(8, 3, rngs=rngs)

  def __call__(self, tokens, t, sites=None):
    x = self.embed(tokens)
    x = x + x.mean(axis=1, keepdims=True)
    for layer in self.layers:
      x = x + jax.nn.tanh(layer(x))
    return self.head(x if sites is None else x[:, sites])


TOKENS = jnp.array([[0, 3, 1, 3, 2], [3, 3, 3, 3, 3]])
TIMES = jnp.array([0.4, 1.0])


def test_it_is_the_model():
  network = interop.from_nnx(Denoiser)
  params = network.init(jax.random.key(3))
  assert type(params) is dict
  model = Denoiser(nnx.Rngs(jax.random.key(3)))
  expected = model(TOKENS, TIMES)
  np.testing.assert_allclose(
    network.apply(params, TOKENS, TIMES), expected, rtol=1e-6
  )
  sites = np.array([3, 1])
  np.testing.assert_allclose(
    network.apply(params, TOKENS, TIMES, sites), expected[:, sites], rtol=1e-5
  )


def test_it_trains_under_jit_and_keeps_no_state():
  network = interop.from_nnx(Denoiser)
  params = start = jax.jit(network.init)(jax.random.key(0))
  optimizer = optax.adam(1e-2)
  opt_state = optimizer.init(params)

  @jax.jit
  def step(params, opt_state):
    def loss(params):
      log_probs = jax.nn.log_softmax(network.apply(params, TOKENS, TIMES))
      return -log_probs[..., 1].mean()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state, value

  losses = []
  for _ in range(20):
    params, opt_state, value = step(params, opt_state)
    losses.append(float(value))
  assert losses[-1] < 0.5 * losses[0]
  # Earlier parameters still give the earlier answer: nothing is remembered.
  np.testing.assert_allclose(step(start, optimizer.init(start))[2], losses[0])


def test_vmap_over_parameters():
  network = interop.from_nnx(Denoiser)
  params = network.init(jax.random.key(0))
  many = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), params)
  apply = jax.vmap(network.apply, in_axes=(0, None, None))
  logits = jax.jit(apply)(many, TOKENS, TIMES)
  assert logits.shape == (3, 2, 5, 3)
  alone = network.apply(jax.tree.map(lambda x: -x, params), TOKENS, TIMES)
  np.testing.assert_allclose(logits[2], alone, rtol=1e-5, atol=1e-6)


def test_hidden_state_is_refused():
  def make(rngs):
    return nnx.Sequential(
      nnx.Linear(2, 2, rngs=rngs), nnx.BatchNorm(2, rngs=rngs)
    )

  with pytest.raises(ValueError, match="only state is nnx.Param.*mean"):
    interop.from_nnx(make)
