"""The patch autoencoder: shapes, what a patch sees, learning through FSQ."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdiff import nets
from jdiff.world import tokenizers
from tests import helpers

SHAPE = (8, 12, 3)
CELLS = 6


@functools.cache
def made(num_layers, **options):
  net = nets.autoencoder(
    SHAPE,
    2,
    patch_size=4,
    width=16,
    num_layers=num_layers,
    num_heads=2,
    mlp_ratio=2,
    **options,
  )
  jitted = net._replace(
    **{name: jax.jit(function) for name, function in net._asdict().items()}
  )
  return jitted, jitted.init(jax.random.key(0))


def frames(seed, *leading):
  return jax.random.uniform(jax.random.key(seed), (*leading, *SHAPE))


@pytest.mark.parametrize("num_layers", [0, 2])
def test_shapes_and_leading_axes(num_layers):
  net, params = made(num_layers)
  assert set(params) == {"encoder", "decoder"}
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
  obs = frames(1, 2, 3)
  z = net.encode(params, obs)
  assert z.shape == (2, 3, CELLS, 2) and z.dtype == jnp.float32
  # The spread of latents is about what FSQ's levels cover: many codes at once.
  assert 0.3 < np.std(z) < 3
  shown = net.decode(params, z)
  assert shown.shape == obs.shape and shown.dtype == jnp.float32
  # Products of other sizes are summed in another order.
  for one, many in [
    (net.encode(params, obs[1, 2]), z[1, 2]),
    (net.decode(params, z[1, 2]), shown[1, 2]),
  ]:
    np.testing.assert_allclose(one, many, atol=1e-5)


@pytest.mark.parametrize(("num_layers", "alone"), [(0, True), (1, False)])
def test_whether_a_patch_sees_others(num_layers, alone):
  net, params = made(num_layers)
  obs = frames(2)
  changed = obs.at[4:, 8:].set(1 - obs[4:, 8:])  # the last cell's pixels
  before, after = (net.encode(params, x) for x in (obs, changed))
  moved = np.abs(after - before).max(axis=-1) > 1e-6
  assert moved[-1] and moved[:-1].any() != alone
  z = jax.random.normal(jax.random.key(3), (CELLS, 2))
  before, after = (
    net.decode(params, x) for x in (z, z.at[0].set(-z[0]))
  )  # the first cell's latents
  moved = np.abs(after - before).max(axis=-1) > 1e-6
  assert moved[:4, :4].all()
  moved[:4, :4] = False
  assert moved.any() != alone


@pytest.mark.thorough
def test_compute_dtype_and_remat():
  net, params = made(1)
  half, _ = made(1, compute_dtype=jnp.bfloat16)
  again, _ = made(1, remat=True)
  obs = frames(4, 2)
  z = net.encode(params, obs)
  low = half.encode(params, obs)
  assert low.dtype == jnp.float32
  # bfloat16 keeps eight bits; a dozen roundings in a row.
  np.testing.assert_allclose(low, z, atol=0.1)
  assert np.abs(low - z).max() > 1e-5

  def gradient(net):
    loss = jax.grad(lambda p: jnp.sum(jnp.square(net.encode(p, obs))))
    return jax.jit(loss)(params)

  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    gradient(net),
    gradient(again),
  )


def fit(levels, obs, num_steps):
  """Squared errors of a tokenizer in training, `[num_steps]`, and its codes."""
  net, params = made(0)
  tokenizer = tokenizers.fsq(net.encode, net.decode, levels)
  optimizer = optax.adam(1e-2)

  def loss(params):
    shown, tokens = tokenizer.reconstruct(params, obs)
    return jnp.mean(jnp.square(shown - obs)), tokens

  def step(carry, _):
    params, opt_state = carry
    (value, tokens), grad = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(grad, opt_state)
    return (optax.apply_updates(params, updates), opt_state), (value, tokens)

  run = helpers.optimised_jit(
    lambda params: jax.lax.scan(
      step, (params, optimizer.init(params)), length=num_steps
    )[1]
  )
  losses, tokens = run(params)
  return np.asarray(losses), np.asarray(tokens[-1])


def test_learns_tiles_through_the_quantiser():
  # Five plain tiles and 25 codes; a decoder that saw no codes would be left
  # with the pixels' variance.
  colours = jax.random.uniform(jax.random.key(5), (5, 3))
  kinds = jax.random.randint(jax.random.key(6), (16, 2, 3), 0, 5)
  obs = colours[kinds].repeat(4, axis=1).repeat(4, axis=2)
  losses, tokens = fit((5, 5), obs, 400)
  blind = np.mean(np.var(obs, axis=(0, 1, 2)))
  assert losses[-1] < 0.02 * blind
  pairs = {*zip(np.ravel(kinds), np.ravel(tokens), strict=True)}
  assert len(pairs) == 5 and len({token for _, token in pairs}) == 5


@pytest.mark.parametrize(
  ("change", "error", "message"),
  [
    (dict(patch_size=5), ValueError, "patch_size must divide H and W"),
    (dict(shape=(8, 12)), ValueError, r"shape must be \(H, W, C\)"),
    (dict(num_latents=0), ValueError, "num_latents must be >= 1"),
    (dict(num_layers=-1), ValueError, "num_layers must be >= 0"),
    (dict(num_layers=1, num_heads=8), ValueError, "multiple of 4 for rotary"),
    (dict(width=1.5), TypeError, "width must be an integer"),
    (dict(compute_dtype=jnp.int8), TypeError, "compute_dtype"),
  ],
)
def test_bad_sizes(change, error, message):
  options = dict(shape=SHAPE, num_latents=2, patch_size=4, width=16)
  with pytest.raises(error, match=message):
    nets.autoencoder(**{**options, **change})


def test_bad_frames():
  net, params = made(0)
  with pytest.raises(ValueError, match=r"obs must have shape \[\*, 8, 12, 3\]"):
    net.encode(params, jnp.zeros((2, 8, 8, 3)))
  with pytest.raises(TypeError, match="obs must be floating"):
    net.encode(params, jnp.zeros(SHAPE, jnp.uint8))
  with pytest.raises(ValueError, match=r"z must have shape \[\*, 6, 2\]"):
    net.decode(params, jnp.zeros((2, 5, 2)))
