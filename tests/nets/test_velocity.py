"""Derivatives of velocity networks: forward, and reverse over forward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import nets
from tests.nets.velocities import (
  ALL,
  HEADS,
  LAYERS,
  inputs,
  jit,
  make,
  reference,
)


def wide(tree):
  """Floats as float64, which JAX takes under `jax.enable_x64`."""

  def one(a):
    a = np.asarray(a)
    return a.astype(np.float64) if a.dtype == np.float32 else a

  return jax.tree.map(one, tree)


def centred(f, h):
  """`f'(0)` to fourth order: the error is `h^4 f^(5)(0) / 30`."""
  return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


@ALL
def test_forward_mode_is_the_derivative(name):
  network, params, _ = make(name, compute_dtype=jnp.float64)
  *point, label = inputs(name)
  with jax.enable_x64(True):
    params, point = wide(params), wide(point)
    rng = np.random.default_rng(4)
    tangent = [rng.standard_normal(a.shape) for a in point]

    @jit
    def derivative(point, tangent):
      function = functools.partial(network.apply, params, label=label)
      return jax.jvp(function, tuple(point), tuple(tangent))

    value, slope = map(np.asarray, derivative(point, tangent))
    assert value.dtype == slope.dtype == np.float64

    def at(h):
      moved = [a + h * b for a, b in zip(point, tangent, strict=True)]
      if name == "mlp":
        return np.asarray(derivative(moved, tangent)[0])
      return reference(params, *moved, label, np.ones((LAYERS, HEADS)))

    # Positions are float32 constants and differ by 1e-7 from the reference's;
    # h^4 f^(5) / 30, with at most 60 out of each of the five derivatives, is
    # 3e-9.
    np.testing.assert_allclose(value, at(0.0), atol=1e-6)
    np.testing.assert_allclose(
      slope, centred(at, 1e-4), atol=1e-6 * np.abs(slope).max()
    )
    assert np.abs(slope).max() > 0.1


def mean_flow_loss(params, args, apply):
  """The mean of `(u + (t - s) du/dt)^2`, nothing held constant."""
  x, t, s, label = args

  def at(x, t):
    return apply(params, x, t, s, label=label)

  u, slope = jax.jvp(at, (x, t), (jnp.ones_like(x), jnp.ones_like(t)))
  span = (t - s).reshape(-1, *(1,) * (x.ndim - 1))
  return jnp.mean((u + span * slope) ** 2)


@ALL
def test_reverse_over_forward_reaches_every_parameter(name):
  network, params, _ = make(name, compute_dtype=jnp.float64)
  with jax.enable_x64(True):
    params, args = wide(params), wide(inputs(name))

    def differentiated(network):
      loss = functools.partial(mean_flow_loss, apply=network.apply)
      function = jit(jax.value_and_grad(lambda params: loss(params, args)))
      return lambda params: jax.device_get(function(params))

    function = differentiated(network)
    gradient = function(params)[1]
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
      # Layers are stacked: every one of them.
      rows = leaf if "blocks" in str(path) else leaf[None]
      assert all(np.any(row != 0) for row in rows), path
    rng = np.random.default_rng(5)
    direction = jax.tree.map(lambda a: rng.standard_normal(a.shape), params)

    def at(h):
      return function(jax.tree.map(lambda a, b: a + h * b, params, direction))[
        0
      ]

    inner = jax.tree.map(lambda a, b: np.sum(a * b), gradient, direction)
    # The direction's norm is near 100: a smaller step, and rounding of 1e-16
    # of the value over h.
    np.testing.assert_allclose(
      centred(at, 1e-5), sum(jax.tree.leaves(inner)), rtol=1e-6
    )
    if name == "dit":
      options = dict(compute_dtype=jnp.float64, remat=True)
      again = differentiated(make(name, **options)[0])(params)[1]
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12),
        gradient,
        again,
      )


def test_time_is_smooth():
  """A network's `d/dt` stays near its size; the denoisers' embedding fails."""

  def ratio(**options):
    network, params, _ = make("mlp", **options)
    x, t, s, _ = inputs("mlp")

    def at(t):
      return network.apply(params, x, t, s)

    u, slope = jit(lambda: jax.jvp(at, (t,), (jnp.ones_like(t),)))()
    return np.linalg.norm(slope) / np.linalg.norm(u)

  # An angle w t has the derivative w, and log-spaced w up to m have the root
  # mean square m / sqrt(2 log m): 3 for the default, 270 for 1e3.
  smooth, rough = ratio(), ratio(max_frequency=1e3)
  assert smooth < 2 * 3
  assert rough > 10 * smooth


def test_skip():
  """`skip` adds `x` times a factor for each entry that depends on `t` alone."""
  _, params, apply = make("mlp", skip=True)
  _, _, plain = make("mlp")
  x, t, s, label = inputs("mlp")
  rest = {name: value for name, value in params.items() if name != "skip"}

  def factor(at, apply=apply):
    """What is added to the network without, per unit of each entry."""
    return (apply(params, at, t, s) - plain(rest, at, t, s)) / at

  far = 3 - 2 * x
  np.testing.assert_allclose(factor(x), factor(far), rtol=1e-3, atol=1e-4)
  # Each time and each entry has its own, and none depends on the others.
  assert np.ptp(factor(x), axis=0).min() > 1e-2
  assert np.ptp(factor(x), axis=1).min() > 1e-2
  # The control: the network's own answer is no such factor.
  ratio = (plain(rest, a, t, s) / a for a in (x, far))
  assert np.abs(np.subtract(*ratio)).max() > 0.1


def test_skip_starts_at_zero_and_is_learnt():
  network = nets.velocity_mlp(5, hidden=(16, 12), skip=True)
  params = jit(network.init)(jax.random.key(0))
  x, t, *_ = inputs("mlp")

  def loss(params):
    # A factor for each entry: all that a Gaussian law would need.
    want = jnp.linspace(-1.0, 1.0, 5)[None] * x
    answer = network.apply(params, x, t)
    return jnp.mean((answer - want) ** 2), answer

  step = jit(jax.value_and_grad(loss, has_aux=True))
  (start, answer), gradient = step(params)
  assert not np.any(answer)
  assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient["skip"]))

  def train(names):
    trained = params
    for _ in range(100):
      slope = step(trained)[1]
      trained = trained | {
        name: jax.tree.map(lambda a, b: a - 0.1 * b, trained[name], slope[name])
        for name in names
      }
    return float(step(trained)[0][0])

  assert train(["skip"]) < 0.05 * start
  # The control: what else is zero at first does not learn it.
  assert train(["head_bias"]) > 0.5 * start
