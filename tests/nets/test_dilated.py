"""What the dilated convolutions alone promise; the rest is in denoisers."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import nets
from tests import helpers

# The package's attribute of that name is the function.
dilated_module = importlib.import_module("jdiff.nets.dilated")

NUM_TOKENS, LENGTH = 4, 48
SIZES = dict(width=16, kernel_size=3, dilations=(1, 3), num_stacks=2)
# One site to each side in the first layer, then 2 * (1 + 3).
REACH = 9


@functools.cache
def make():
  network = nets.dilated(None, NUM_TOKENS, zero_init_head=False, **SIZES)
  params = jax.jit(network.init)(jax.random.key(0))
  # Biases and scales away from the zeros and ones that they start from.
  return network, helpers.perturbed(params, 1, 0.1), jax.jit(network.apply)


def draw(batch, length=LENGTH, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, NUM_TOKENS + 1, (batch, length)), np.ones(batch, "f4")


def in_numpy(params, tokens):
  """The same network, one site at a time, in float64."""
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)

  def conv(x, p, dilation):
    kernel, out = p["kernel"], np.tile(p["bias"], (len(x), 1))
    for site in range(len(x)):
      for tap in range(len(kernel)):
        other = site + dilation * (tap - len(kernel) // 2)
        if 0 <= other < len(x):
          out[site] += x[other] @ kernel[tap]
    return np.maximum(out, 0)

  x = conv(np.eye(NUM_TOKENS + 1)[tokens], params["embed"], 1)
  for stack in range(SIZES["num_stacks"]):
    p = jax.tree.map(lambda p, stack=stack: p[stack], params["stacks"])
    for i, dilation in enumerate(SIZES["dilations"]):
      y = x - x.mean(1, keepdims=True)
      y = y / np.sqrt((y**2).mean(1, keepdims=True) + 1e-6)
      y = y * p[f"norm_{i}"]["scale"] + p[f"norm_{i}"]["bias"]
      x = x + conv(y, p[f"conv_{i}"], dilation)
  p = params["head_hidden"]
  x = np.maximum(x @ p["kernel"] + p["bias"], 0)
  return x @ params["head_kernel"] + params["head_bias"]


def test_against_loops_in_numpy():
  _, params, apply = make()
  tokens, t = draw(2)
  got = apply(params, tokens, t)
  for i in range(2):
    want = in_numpy(params, tokens[i])
    np.testing.assert_allclose(got[i], want, rtol=1e-4, atol=1e-5)
  # The control: the mirror image of a sequence is another one.
  mirrored = in_numpy(params, tokens[0, ::-1])[::-1]
  assert np.abs(got[0] - mirrored).max() > 1e-2


def test_a_site_sees_exactly_its_reach():
  _, params, apply = make()
  tokens, t = draw(8)
  site = LENGTH // 2
  base = apply(params, tokens, t)[:, site]
  others = np.repeat(tokens[:, None], LENGTH, axis=1)
  index = np.arange(LENGTH)
  others[:, index, index] = (others[:, index, index] + 1) % (NUM_TOKENS + 1)
  moved = apply(params, others.reshape(-1, LENGTH), np.ones(8 * LENGTH, "f4"))
  moved = moved[:, site].reshape(8, LENGTH, NUM_TOKENS) - base[:, None]
  # Rounding moves them by 1e-6, the farthest site in reach by 0.1.
  seen = np.flatnonzero((np.abs(moved) > 1e-4).any((0, 2)))
  np.testing.assert_array_equal(seen, np.arange(site - REACH, site + REACH + 1))


def test_translations_commute_away_from_the_ends():
  _, params, apply = make()
  tokens, t = draw(3)
  shift = 5
  moved, _ = draw(3, seed=1)
  moved[:, shift:] = tokens[:, :-shift]
  here = apply(params, tokens, t)
  there = apply(params, moved, t)
  inner = slice(REACH, LENGTH - shift - REACH)
  outer = slice(REACH + shift, LENGTH - REACH)
  np.testing.assert_allclose(
    there[:, outer], here[:, inner], rtol=1e-4, atol=1e-5
  )
  # Up to the end is one site too far.
  first = np.abs(there[:, REACH + shift - 1] - here[:, REACH - 1])
  assert first.max() > 1e-4


def test_parameters_know_no_length():
  network, params, apply = make()
  shape = jax.eval_shape(network.init, jax.random.key(0))
  for length in (7, 200):
    fixed = nets.dilated(length, NUM_TOKENS, zero_init_head=False, **SIZES)
    assert jax.eval_shape(fixed.init, jax.random.key(0)) == shape
    with pytest.raises(ValueError, match="tokens must have shape"):
      fixed.apply(params, *draw(2))
  # Shorter than every dilation.
  tokens, t = draw(2, 2)
  got = apply(params, tokens, t)
  np.testing.assert_allclose(
    got[1], in_numpy(params, tokens[1]), rtol=1e-4, atol=1e-5
  )


def test_products_are_the_convolution_and_its_gradients(monkeypatch):
  network, params, _ = make()
  tokens, t = draw(3)

  def both(params):
    logits = network.apply(params, tokens, t)
    return jnp.mean(jax.nn.log_softmax(logits)[..., 0]), logits

  def answers():
    gradient, logits = jax.grad(both, has_aux=True)(params)
    return {"logits": logits, **gradient}

  got = jax.jit(lambda: answers())()
  monkeypatch.setattr(dilated_module, "_convolve", jax.lax.conv_general_dilated)
  want = jax.jit(lambda: answers())()
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_cpus_multiply(platform):
  network, params, _ = make()
  tokens, t = draw(2)
  gradient = jax.jit(jax.grad(lambda p: network.apply(p, tokens, t).sum()))
  text = gradient.trace(params).lower(lowering_platforms=(platform,)).as_text()
  assert ("stablehlo.convolution" in text) == (platform != "cpu")
  # The copies of sixteen features at three taps are nowhere else.
  assert (f"{LENGTH}x48xf32" in text) == (platform == "cpu")


def test_stacks_cost_no_compilation():
  def size(num_stacks):
    network = nets.dilated(8, 4, width=8, num_stacks=num_stacks)
    params = jax.eval_shape(network.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    return len(jax.jit(network.apply).lower(params, tokens, t).as_text())

  assert size(24) < 1.05 * size(3)


def test_the_size_of_the_published_network():
  network = nets.dilated(200, 4, time_conditioned=True)
  params = jax.eval_shape(network.init, jax.random.key(0))
  convs = 5 * 9 * 128 + 128 + 20 * (9 * 128 * 128 + 128)
  norms, times = 20 * 2 * 128, 20 * (128 * 128 + 128)
  heads = 128 * 128 + 128 + 128 * 4 + 4
  time = 64 * 128 + 128 + 128 * 128 + 128  # 32 sines and cosines
  sizes = [p.size for p in jax.tree.leaves(params)]
  assert sum(sizes) == convs + norms + times + heads + time


@pytest.mark.parametrize(
  ("error", "options", "message"),
  [
    (ValueError, {"length": 0}, "length must be >= 1"),
    (TypeError, {"num_tokens": 4.0}, "num_tokens must be an integer"),
    (ValueError, {"width": 0}, "width must be >= 1"),
    (ValueError, {"kernel_size": 4}, "kernel_size must be odd"),
    (ValueError, {"kernel_size": -1}, "kernel_size must be >= 1"),
    (ValueError, {"dilations": ()}, "dilations must name"),
    (ValueError, {"dilations": (1, 0)}, "dilations must be >= 1"),
    (ValueError, {"num_stacks": 0}, "num_stacks must be >= 1"),
    (TypeError, {"compute_dtype": jnp.int32}, "compute_dtype must be"),
  ],
)
def test_bad_sizes(error, options, message):
  with pytest.raises(error, match=message):
    nets.dilated(**{"length": 6, "num_tokens": 4, **options})
