"""Laws that every full-canvas denoiser obeys, and those of each one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import nets
from jdiff.nets import blocks, embed

LENGTH, NUM_TOKENS, BATCH = 6, 3, 4
ALL = pytest.mark.parametrize("name", ["mlp", "dilated", "sequence", "grid"])


@functools.cache
def make(name, **options):
  """A small network, its parameters and its jitted `apply`."""
  options = {"zero_init_head": False, **options}
  shapes = {
    k: options[k] for k in options if k not in ("compute_dtype", "remat")
  }
  if name == "mlp":
    network = nets.mlp(LENGTH, NUM_TOKENS, hidden=(16, 12), **options)
  elif name == "dilated":
    sizes = dict(width=16, kernel_size=5, dilations=(1, 2), num_stacks=2)
    network = nets.dilated(LENGTH, NUM_TOKENS, **sizes, **options)
  else:
    if name == "grid":
      options["grid"] = (2, 3)
    network = nets.transformer(
      LENGTH, NUM_TOKENS, width=16, num_layers=2, num_heads=2, **options
    )
    if (name, shapes) != ("sequence", options):
      # Their parameters are alike, and compiling `init` is what costs.
      return network, make("sequence", **shapes)[1], jax.jit(network.apply)
  return network, init(network), jax.jit(network.apply)


@functools.cache
def inputs():
  tokens = jax.random.randint(
    jax.random.key(1), (BATCH, LENGTH), 0, NUM_TOKENS + 1
  )
  return tokens, jnp.linspace(0.1, 1.0, BATCH)


def init(network, seed=0):
  return jax.jit(network.init)(jax.random.key(seed))


def assert_trees_close(a, b, **tolerance):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, **tolerance)


@ALL
def test_shapes_and_dtypes(name):
  _, params, apply = make(name)
  leaves = jax.tree_util.tree_leaves_with_path(params)
  assert type(params) is dict
  assert all(leaf.dtype == jnp.float32 for _, leaf in leaves)
  assert all(isinstance(k, jax.tree_util.DictKey) for p, _ in leaves for k in p)
  logits = apply(params, *inputs())
  assert logits.shape == (BATCH, LENGTH, NUM_TOKENS)
  assert logits.dtype == jnp.float32
  assert jnp.isfinite(logits).all()


@ALL
def test_sites_answer_as_the_whole_canvas_does(name):
  network, params, apply = make(name)
  tokens, t = inputs()
  full = apply(params, tokens, t)
  shared = np.array([4, 0, 4])
  own = jax.random.randint(jax.random.key(2), (BATCH, 2), 0, LENGTH)

  @jax.jit
  def at(traced, own):
    ask = functools.partial(network.apply, params, tokens, t)
    return ask(shared), ask(traced), ask(own)

  known, traced, each = at(jnp.asarray(shared), own)
  np.testing.assert_allclose(known, full[:, shared], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(traced, full[:, shared], rtol=1e-5, atol=1e-6)
  wanted = jnp.take_along_axis(full, own[..., None], axis=1)
  np.testing.assert_allclose(each, wanted, rtol=1e-5, atol=1e-6)


def test_known_sites_may_be_closed_over():
  network, params, _ = make("mlp")
  sites = jnp.array([4, 0])  # known, but not NumPy's
  answer = jax.eval_shape(
    lambda *x: network.apply(params, *x, sites), *inputs()
  )
  assert answer.shape == (BATCH, 2, NUM_TOKENS)


@ALL
def test_the_head_is_paid_for_at_the_sites_alone(name):
  network, params, _ = make(name)
  tokens, t = inputs()

  def flops(sites):
    apply = jax.jit(lambda *x: network.apply(*x, sites))
    return apply.lower(params, tokens, t).cost_analysis()["flops"]

  width = jax.tree.leaves(params["head_kernel"])[0].shape[0]
  saved = 2 * BATCH * (LENGTH - 1) * width * NUM_TOKENS
  assert flops(None) - flops(np.array([0])) >= saved


@pytest.mark.parametrize("name", ["mlp", "dilated", "grid"])
def test_vmap_grad_and_remat(name):
  network, params, _ = make(name)
  tokens, t = inputs()

  def objective(apply):
    def loss(params, tokens, t):
      return jnp.mean(jax.nn.log_softmax(apply(params, tokens, t))[..., 0])

    return jax.value_and_grad(loss)

  value, gradient = jax.jit(objective(network.apply))(params, tokens, t)
  # One example at a time, with activations recomputed: the same numbers.
  again = make(name, remat=True)[0] if name == "grid" else network
  one = objective(again.apply)
  each = jax.vmap(lambda x, s: one(params, x[None], s[None]))
  values, gradients = jax.jit(each)(tokens, t)
  np.testing.assert_allclose(values.mean(), value, rtol=1e-5)
  means = jax.tree.map(lambda g: g.mean(0), gradients)
  assert_trees_close(means, gradient, rtol=1e-3, atol=1e-6)
  assert all(jnp.any(g != 0) for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", ["mlp", "dilated", "grid"])
def test_bfloat16_compute_stays_near_float32(name):
  _, params, apply = make(name)
  network, _, narrow_apply = make(name, compute_dtype=jnp.bfloat16)
  narrow = jax.eval_shape(network.init, jax.random.key(0))
  assert narrow == jax.eval_shape(lambda: params)
  wide = apply(params, *inputs())
  logits = narrow_apply(params, *inputs())
  assert logits.dtype == jnp.float32
  # bfloat16 rounds at 2^-9; a few layers of it stay within a few percent.
  assert jnp.abs(logits - wide).max() < 0.1 * jnp.abs(wide).max()
  assert jnp.any(logits != wide)


@pytest.mark.parametrize("name", ["mlp", "sequence"])
def test_init_is_a_function_of_the_key(name):
  network, first, _ = make(name)
  draw = jax.jit(network.init)
  again, other = draw(jax.random.key(0)), draw(jax.random.key(1))
  assert_trees_close(first, again, rtol=0)
  differ = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), first, other)
  assert any(jax.tree.leaves(differ))


@ALL
def test_untrained_network_is_uniform_with_a_zero_head(name):
  _, params, apply = make(name, zero_init_head=True)
  assert jnp.all(apply(params, *inputs()) == 0)


@pytest.mark.parametrize("name", ["mlp", "dilated", "sequence"])
def test_time_enters_only_if_asked_to(name):
  tokens, t = inputs()
  for time_conditioned in (False, True):
    _, params, apply = make(name, time_conditioned=time_conditioned)
    same = apply(params, tokens, t) == apply(params, tokens, t / 2)
    assert bool(jnp.all(same)) != time_conditioned


@ALL
def test_every_site_sees_every_token_and_the_mask(name):
  _, params, apply = make(name)
  tokens, t = inputs()
  for site in range(LENGTH):
    masked = tokens.at[:, site].set(NUM_TOKENS)
    other = tokens.at[:, site].set(0)
    moved = apply(params, masked, t) - apply(params, other, t)
    assert jnp.all(jnp.any(moved != 0, axis=-1))


def test_depth_costs_no_compilation():
  def size(num_layers):
    network = nets.transformer(
      4, 2, width=8, num_layers=num_layers, num_heads=2
    )
    params = jax.eval_shape(network.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    return len(jax.jit(network.apply).lower(params, tokens, t).as_text())

  assert size(24) < 1.05 * size(3)


@pytest.mark.parametrize("grid", [(12,), (3, 4)])
def test_rotary_scores_depend_on_displacement_alone(grid):
  angles = embed.rotary_angles(grid, 8)
  assert angles.shape == (12, 4)
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
  rotate = blocks.rotate
  shape = (1, 12, 1, 8)
  score = jnp.einsum(
    "blhd,bmhd->lm",
    rotate(jnp.broadcast_to(q, shape), angles),
    rotate(jnp.broadcast_to(k, shape), angles),
  )
  place = np.indices(grid).reshape(len(grid), -1).T
  by_shift = {}
  for i in range(12):
    for j in range(12):
      shift = tuple(place[j] - place[i])
      by_shift.setdefault(shift, []).append(float(score[i, j]))
  for values in by_shift.values():
    np.testing.assert_allclose(values, values[0], atol=1e-5)
  # Different displacements are told apart, on both axes and in both signs.
  firsts = sorted(values[0] for values in by_shift.values())
  assert np.diff(firsts).min() > 1e-5


def test_rotation_keeps_norms_and_the_origin():
  x = jax.random.normal(jax.random.key(0), (2, 6, 2, 8))
  turned = blocks.rotate(x, embed.rotary_angles((2, 3), 8))
  np.testing.assert_allclose(turned[:, 0], x[:, 0], rtol=1e-6)
  np.testing.assert_allclose(
    jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
  )


@pytest.mark.parametrize("turned", [False, True])
def test_positions_alone_tell_sites_apart(turned, monkeypatch):
  network, params, _ = make("grid")
  if not turned:
    monkeypatch.setattr(
      embed, "rotary_angles", lambda *_: np.zeros((LENGTH, 4), np.float32)
    )
  apply = jax.jit(lambda *x: network.apply(*x))  # traced after the patch
  tokens, t = inputs()
  order = np.array([1, 0, 5, 3, 4, 2])
  straight = apply(params, tokens, t)[:, order]
  moved = straight - apply(params, tokens[:, order], t)
  assert (jnp.abs(moved).max() > 1e-3) == turned


def test_grid_is_row_major():
  angles = embed.rotary_angles((3, 4), 16).reshape(3, 4, 8)
  # Sites of a row share the first half of the angles, of a column the second.
  rows, columns = np.split(angles, 2, axis=-1)
  assert np.ptp(rows, axis=1).max() == 0 and np.ptp(columns, axis=0).max() == 0


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"length": 0}, "length must be >= 1"),
    ({"num_tokens": 0}, "num_tokens must be >= 1"),
    ({"width": 15}, "width must be a multiple of num_heads"),
    ({"width": 6}, "width / num_heads must be a multiple of 2"),
    ({"width": 12, "grid": (2, 3)}, "multiple of 4 .* on a grid"),
    ({"num_layers": 0}, "num_layers must be >= 1"),
    ({"num_heads": 0}, "num_heads must be >= 1"),
    ({"mlp_ratio": 0}, "mlp_ratio must be >= 1"),
    ({"grid": (2, 4)}, "rows \\* cols == length"),
    ({"grid": (6,)}, "grid must be"),
    ({"grid": (-2, -3)}, "grid must be"),
  ],
)
def test_transformer_refuses(options, message):
  sizes = dict(length=6, num_tokens=2, width=16, num_layers=1, num_heads=2)
  with pytest.raises(ValueError, match=message):
    nets.transformer(**{**sizes, **options})


@pytest.mark.parametrize(
  ("error", "options", "message"),
  [
    (ValueError, {"length": -1}, "length must be >= 1"),
    (TypeError, {"length": 2.0}, "length must be an integer"),
    (ValueError, {"hidden": ()}, "hidden must name"),
    (ValueError, {"hidden": (8, 0)}, "hidden must be >= 1"),
    (TypeError, {"compute_dtype": jnp.int32}, "compute_dtype must be"),
  ],
)
def test_mlp_refuses(error, options, message):
  with pytest.raises(error, match=message):
    nets.mlp(**{"length": 6, "num_tokens": 2, **options})


@pytest.mark.parametrize(
  ("error", "call", "message"),
  [
    (ValueError, {"tokens": jnp.zeros((4, 5), jnp.int32)}, "tokens must have"),
    (ValueError, {"tokens": jnp.zeros(6, jnp.int32)}, "tokens must have"),
    (TypeError, {"tokens": jnp.zeros((4, 6))}, "tokens must be integer"),
    (ValueError, {"t": jnp.ones(3)}, "t must have shape"),
    (ValueError, {"sites": jnp.zeros((3, 2), jnp.int32)}, "sites must have"),
    (TypeError, {"sites": np.zeros(2)}, "sites must be integers"),
    (ValueError, {"sites": np.array([0, 6])}, "sites must lie in"),
  ],
)
def test_calls_are_checked(error, call, message):
  network, params, _ = make("mlp")
  tokens, t = inputs()
  with pytest.raises(error, match=message):
    network.apply(params, **{"tokens": tokens, "t": t, **call})
