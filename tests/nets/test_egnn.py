"""The particles' network: symmetries, its start, collisions, its formulas."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

# The package's function has the module's name.
egnn_lib = importlib.import_module("jdiff.nets.egnn")
N, D, BATCH, LAYERS, WIDTH = 5, 3, 3, 2, 8
# Compiling is what these tests cost.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def make(**options):
  options = {"width": WIDTH, "num_layers": LAYERS, "length": 1.5, **options}
  return egnn_lib.egnn(N, D, **options)


@functools.cache
def filled(dtype=np.float32):
  """Parameters none of which is zero."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda a: np.asarray(0.5 * rng.standard_normal(a.shape), dtype),
    jax.eval_shape(make().init, jax.random.key(0)),
  )


@functools.cache
def inputs(dtype=np.float32):
  rng = np.random.default_rng(1)
  x = 1.5 * rng.standard_normal((BATCH, N, D))
  return x.astype(dtype), np.linspace(0.1, 0.9, BATCH).astype(dtype)


@functools.cache
def compiled(**options):
  return jit(make(**options).apply)


def loss(params, x, t, apply):
  answer = apply(params, x, t)
  target = jnp.sin(jnp.arange(answer.size).reshape(answer.shape))
  return jnp.sum((answer - target.astype(answer.dtype)) ** 2)


TURN = stats.ortho_group(D, seed=0).rvs()
TURN *= np.sign(np.linalg.det(TURN))
MIRROR = TURN @ np.diag([-1.0, 1, 1])
ORDER = np.array([3, 0, 4, 1, 2])
# Moves of the particles, and what must become of the answer.
MOVES = {
  "turn": (lambda x: x @ TURN, lambda y: y @ TURN),
  "mirror": (lambda x: x @ MIRROR, lambda y: y @ MIRROR),
  "permute": (lambda x: x[:, ORDER], lambda y: y[:, ORDER]),
  "shift": (lambda x: x + np.array([3.0, -1, 2]), lambda y: y),
  "none, and no mean": (lambda x: x, lambda y: y - y.mean(1, keepdims=True)),
}


def violations(apply):
  """How far each symmetry is broken, in units of the answer."""
  params, (x, t) = filled(np.float64), inputs(np.float64)
  plain = np.asarray(apply(params, x, t))
  assert plain.dtype == np.float64
  size = np.abs(plain).max()
  assert size > 0.1 and np.ptp(plain, axis=0).max() > 0.1
  return {
    name: np.abs(apply(params, move(x), t) - after(plain)).max() / size
    for name, (move, after) in MOVES.items()
  }


def test_symmetries_hold_to_rounding():
  with jax.enable_x64(True):
    found = violations(compiled(compute_dtype=jnp.float64))
  assert max(found.values()) < 1e-12, found


@pytest.mark.parametrize(
  "name, extra, broken",
  [
    (
      "_distances",
      lambda own, x: own(x) + x[:, :, None, 0] ** 2,
      ("turn", "mirror"),
    ),
    (
      "_distances",
      lambda own, x: own(x) + jnp.arange(x.shape[1])[None, None],
      ("permute",),
    ),
    ("_centred", lambda own, x: x, ("shift", "none, and no mean")),
  ],
  ids=["raw coordinate", "raw index", "not centred"],
)
def test_the_symmetries_can_fail(monkeypatch, name, extra, broken):
  own = getattr(egnn_lib, name)
  monkeypatch.setattr(egnn_lib, name, lambda x: extra(own, x))
  with jax.enable_x64(True):
    found = violations(jit(make(compute_dtype=jnp.float64).apply))
  assert {move for move, by in found.items() if by > 1e-6} == set(broken), found


def test_constant_coefficients_give_the_written_formula():
  """Kernels of zero leave biases alone, and sums that NumPy can write out."""
  move, push, force, pull, follow = 0.7, -0.4, 0.6, 1.3, -0.9
  params = jax.tree.map(lambda a: np.zeros(a.shape), filled())
  params["layers"]["message"]["bias"][:] = 1.0
  sent = WIDTH / (1 + np.exp(-1.0))  # the sum of silu(1) over the features
  params["layers"]["vectors"][..., 0] = move / sent
  params["layers"]["vectors"][..., 1] = push / sent
  # Of the features the logarithm of the distance alone.
  params["force"]["bias"][0] = force
  params["time"]["Dense_1"]["bias"][:] = 2.0  # the norm makes it 1
  params["head_norm"]["scale"][:] = 1.0
  params["head_kernel"][:] = np.array([pull, follow]) / WIDTH
  x, t = inputs(np.float64)
  with jax.enable_x64(True):
    found = compiled(compute_dtype=jnp.float64)(params, x, t)

  def along(weight, x):
    out = np.zeros_like(x)
    for i in range(N):
      for j in range(N):
        d = np.sqrt(np.sum((x[i] - x[j]) ** 2) + 1e-4)
        out[i] += weight(d) * (x[i] - x[j]) / (d + 1)
    return out

  for b in range(BATCH):
    start = (x[b] - x[b].mean(0)) / 1.5
    y, answer = start, 0
    for _ in range(LAYERS):
      answer = answer + along(lambda d: push, y) / np.sqrt(N - 1)
      y = y + along(lambda d: np.tanh(move), y) / (N - 1)
    answer = answer + along(lambda d: force * np.log(d), start) / np.sqrt(N - 1)
    answer = answer + pull * start + follow * (y - start)
    # The norm adds 1e-6 to a mean square of 4.
    np.testing.assert_allclose(found[b], answer - answer.mean(0), atol=1e-5)


def test_starts_at_zero_with_a_gradient():
  network = make()
  params = jit(network.init)(jax.random.key(0))
  assert {a.dtype for a in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  x, t = inputs()
  gradient = jit(
    jax.value_and_grad(functools.partial(loss, apply=network.apply))
  )
  np.testing.assert_array_equal(compiled()(params, x, t), np.zeros_like(x))
  slope = gradient(params, x, t)[1]
  for leaf in (
    *slope["layers"]["vectors"][..., 1],
    slope["force"]["kernel"],
    slope["head_kernel"][:, 0],
  ):
    assert np.abs(leaf).max() > 1e-3
  for path, leaf in jax.tree_util.tree_leaves_with_path(
    gradient(filled(), x, t)[1]
  ):
    rows = leaf if "layers" in str(path) else leaf[None]
    assert all(np.any(row != 0) for row in rows), path
  params = jit(make(zero_init_head=False).init)(jax.random.key(0))
  assert np.abs(compiled()(params, x, t)).max() > 0.01


def collided():
  x, t = inputs()
  x = x.copy()
  x[0] = 0.0  # all at one point
  x[1, 1] = x[1, 0]
  x[2, 0] += 1e4
  return x, t


def test_collisions_are_finite(monkeypatch):
  def slopes():
    function = functools.partial(loss, apply=make().apply)
    grad = jit(jax.value_and_grad(function, argnums=(0, 1)))
    return jax.tree.leaves(grad(filled(), *collided()))

  assert all(np.isfinite(leaf).all() for leaf in slopes())
  monkeypatch.setattr(egnn_lib, "SOFTENING", 0.0)
  assert not all(np.isfinite(leaf).all() for leaf in slopes())


def test_half_precision_keeps_the_geometry():
  x, t = inputs()
  exact = np.asarray(compiled()(filled(), x, t))
  # bfloat16 numbers near 1,000 lie 4 apart.
  far = x + np.float32(1024)
  half = compiled(compute_dtype=jnp.bfloat16)
  for given in (x, far):
    answer = half(filled(), given, t)
    assert answer.dtype == np.float32
    error = np.abs(answer - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.03
  answer = compiled()(filled(), jnp.asarray(x, jnp.bfloat16), t)
  assert answer.dtype == np.float32


def test_remat_and_vmap_change_nothing():
  x, t = inputs(np.float64)
  with jax.enable_x64(True):
    params = filled(np.float64)

    def slopes(**options):
      apply = make(compute_dtype=jnp.float64, **options).apply
      return jit(jax.value_and_grad(functools.partial(loss, apply=apply)))(
        params, x, t
      )

    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10),
      slopes(),
      slopes(remat=False),
    )
    apply = make(compute_dtype=jnp.float64).apply
    one = jit(jax.vmap(lambda x, t: apply(params, x[None], t[None])[0]))
    batched = compiled(compute_dtype=jnp.float64)(params, x, t)
    np.testing.assert_allclose(one(x, t), batched, atol=1e-12)


@pytest.mark.parametrize(
  "arguments, options, error, match",
  [
    ((1, 3), {}, ValueError, "num_particles must be >= 2, got 1"),
    ((4.0, 3), {}, TypeError, "num_particles must be an integer"),
    ((4, 0), {}, ValueError, "dim must be >= 1, got 0"),
    ((4, 3), {"width": 0}, ValueError, "width must be >= 1, got 0"),
    ((4, 3), {"num_layers": 0}, ValueError, "num_layers must be >= 1, got 0"),
    ((4, 3), {"length": 0.0}, ValueError, "length must be positive"),
    ((4, 3), {"max_frequency": -1}, ValueError, "max_frequency must be pos"),
    ((4, 3), {"compute_dtype": int}, TypeError, "compute_dtype must be a fl"),
  ],
)
def test_bad_options_are_named(arguments, options, error, match):
  with pytest.raises(error, match=match):
    egnn_lib.egnn(*arguments, **options)


def test_bad_input_is_named():
  x, t = inputs()
  with pytest.raises(ValueError, match=r"x must have shape \[3, 5, 3\]"):
    make().apply(filled(), x[:, 1:], t)
  with pytest.raises(ValueError, match=r"t must have shape \[3\]"):
    make().apply(filled(), x, t[:2])
  with pytest.raises(TypeError, match="x must be floating"):
    make().apply(filled(), x.astype(np.int32), t)
