"""Velocity networks: the laws that both obey, and those of the DiT."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import nets, training
from jdiff.nets import embed
from jdiff.training import sharding
from tests.nets.velocities import (
  ALL,
  BATCH,
  CLASSES,
  HEADS,
  LAYERS,
  SHAPE,
  compiled,
  inputs,
  jit,
  make,
  reference,
  start,
)

# The package names its function like the module.
dit = importlib.import_module("jdiff.nets.dit")


@ALL
def test_shapes_dtypes_and_zero_at_first(name):
  _, params, apply = make(name)
  untrained = start(name)
  leaves = jax.tree_util.tree_leaves_with_path(untrained)
  assert type(untrained) is dict
  assert all(leaf.dtype == jnp.float32 for _, leaf in leaves)
  assert all(isinstance(k, jax.tree_util.DictKey) for p, _ in leaves for k in p)
  x, t, s, label = inputs(name)
  assert np.all(apply(untrained, x, t, s, label=label) == 0)
  answer = apply(params, x, t, s, label=label)
  assert answer.shape == x.shape and answer.dtype == jnp.float32
  assert np.isfinite(answer).all() and np.all(answer != 0)


def test_mlp_head_need_not_be_zero():
  network = nets.velocity_mlp(5, zero_init_head=False)
  kernel = jit(network.init)(jax.random.key(0))["head_kernel"]
  assert 0.5 / 128**0.5 < np.std(kernel) < 2 / 128**0.5


@ALL
def test_labels(name):
  _, params, apply = make(name)
  x, t, s, label = inputs(name)
  null = apply(params, x, t, s)
  given = apply(params, x, t, s, label=np.full(BATCH, CLASSES))
  np.testing.assert_array_equal(null, given)
  # Each example's own label enters, and no other example's.
  moved = apply(params, x, t, s, label=label) - null
  differs = np.any(moved.reshape(BATCH, -1) != 0, axis=-1)
  np.testing.assert_array_equal(differs, label != CLASSES)
  one = apply(params, x, t, s, label=np.ones(BATCH, np.int32))
  two = apply(params, x, t, s, label=np.full(BATCH, 2))
  assert np.abs(one - two).max() > 1e-2


@ALL
def test_two_times(name):
  _, params, apply = make(name)
  x, t, s, _ = inputs(name)
  answer = apply(params, x, t, s)
  np.testing.assert_array_equal(apply(params, x, t), apply(params, x, t, t))
  for other in (apply(params, x, t), apply(params, x, 0.9 * t, s)):
    assert np.abs(other - answer).max() > 1e-2


@ALL
def test_without_a_second_time_or_classes(name):
  network, params, apply = make(name, num_classes=0, two_times=False)
  x, t, s, label = inputs(name)
  assert set(params["condition"]) == {"time"}
  answer = apply(params, x, t)
  assert np.isfinite(answer).all() and np.all(answer != 0)
  with pytest.raises(ValueError, match="s must be left out"):
    network.apply(params, x, t, s)
  with pytest.raises(ValueError, match="label must be left out"):
    network.apply(params, x, t, label=label)


def test_dit_is_the_formula():
  _, params, apply = make("dit")
  x, t, s, label = inputs("dit")
  gates = jax.random.normal(jax.random.key(3), (LAYERS, HEADS))
  expected = reference(params, x, t, s, label, np.asarray(gates))
  answer = apply(params, x, t, s, label=label, gates=gates)
  # A few hundred float32 roundings of numbers of order one.
  np.testing.assert_allclose(answer, expected, atol=3e-5)
  assert np.abs(expected).max() > 0.5


def test_blocks_are_the_identity_at_first():
  _, params, apply = make("dit")
  # A head that answers, on blocks as they are at first, and with other maps.
  untrained = {**start("dit"), "head_kernel": params["head_kernel"]}
  blocks, moved = untrained["blocks"], params["blocks"]
  other = {**moved, "modulation": blocks["modulation"]}
  x, t, s, label = inputs("dit")
  answer, again, changed = (
    apply({**untrained, "blocks": b}, x, t, s, label=label)
    for b in (blocks, other, moved)
  )
  np.testing.assert_array_equal(again, answer)
  assert np.abs(answer).max() > 0.1
  assert np.abs(answer - changed).max() > 1e-2


@pytest.mark.parametrize("patch", [1, 2])
def test_unpatchify_inverts_patchify(patch):
  x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
  patches = dit.patchify(x, patch)
  assert patches.shape == (2, 24 // patch**2, 3 * patch**2)
  np.testing.assert_array_equal(dit.unpatchify(patches, (4, 6, 3), patch), x)
  # The last patch of the first row.
  np.testing.assert_array_equal(
    patches[1, 6 // patch - 1], x[1, :patch, 6 - patch :].ravel()
  )


def test_positions_are_distinct_and_bounded():
  positions = embed.sincos_positions((5, 7), 16)
  assert positions.shape == (35, 16) and np.abs(positions).max() <= 1
  # Every row has the norm sqrt(8): sites differ in direction alone.
  np.testing.assert_allclose((positions**2).sum(-1), 8, rtol=1e-5)
  inner = positions @ positions.T
  assert (inner - 100 * np.eye(35)).max() < 7.9


def test_gates():
  _, params, apply = make("dit")
  x, t, s, label = inputs("dit")

  def at(gates, params=params):
    return apply(params, x, t, s, label=label, gates=gates)

  full, ones = at(None), np.ones((LAYERS, HEADS), np.float32)
  np.testing.assert_array_equal(at(ones), full)
  gates = ones.copy()
  gates[1, 0] = 0
  closed = at(gates)
  # Example by example, the same gates and others.
  mixed = at(np.stack([ones, gates] * (BATCH // 2)))
  np.testing.assert_allclose(mixed[::2], full[::2], atol=1e-5)
  np.testing.assert_allclose(mixed[1::2], closed[1::2], atol=1e-5)
  # Without its rows of the output projection the head is gone.
  blocks = dict(params["blocks"])
  out = blocks["out"]["kernel"].copy()
  assert out.shape[:2] == (LAYERS, HEADS)
  out[1, 0] = 0
  blocks["out"] = {"kernel": out}
  without = at(None, {**params, "blocks": blocks})
  np.testing.assert_allclose(closed, without, atol=1e-5)
  assert np.abs(closed - full).max() > 1e-2


@functools.cache
def with_heads(num_heads, **options):
  """The network of `make`, compiled too, with other heads."""
  network = nets.dit(
    SHAPE,
    patch_size=2,
    width=16,
    num_layers=LAYERS,
    num_heads=num_heads,
    num_classes=CLASSES,
    two_times=True,
    **options,
  )
  return network, compiled(network)


RNG = np.random.default_rng(5)
FOUR_HEADS = jax.tree.map(
  lambda a: np.asarray(0.3 * RNG.standard_normal(a.shape), a.dtype),
  jax.eval_shape(with_heads(4)[0].init, jax.random.key(0)),
)


@pytest.mark.parametrize(
  ("gates", "num_heads"),
  [
    ([[1, 0, 1, 1], [0, 0, 0, 1]], 3),  # ragged: two of nothing
    ([[0, 1, 0, 1], [1, 1, 0, 0]], 2),
    ([[0, 0.5, 0, 0], [0, 0, -1.5, 0]], 1),
    ([[0, 0, 0, 0], [0, 0, 0, 0]], 1),
  ],
)
def test_compact_is_the_gated_network(gates, num_heads):
  gates = np.asarray(gates, np.float32)
  params, heads = dit.compact(FOUR_HEADS, gates)
  assert heads == num_heads
  assert params["blocks"]["out"]["kernel"].shape == (LAYERS, heads, 4, 16)
  network, apply = with_heads(heads, head_size=4)
  wanted = jax.eval_shape(network.init, jax.random.key(0))
  assert jax.eval_shape(lambda: params) == wanted
  x, t, s, label = inputs("dit")
  _, full = with_heads(4)
  gated = full(FOUR_HEADS, x, t, s, label=label, gates=gates)
  answer = apply(params, x, t, s, label=label)
  np.testing.assert_allclose(answer, gated, rtol=1e-5, atol=1e-5)
  # Gates matter in this network.
  whole = full(FOUR_HEADS, x, t, s, label=label, gates=np.ones_like(gates))
  assert np.abs(whole - gated).max() > 1e-2


def test_what_pads_a_compact_network_stays_zero():
  params, heads = dit.compact(FOUR_HEADS, [[1, 0, 1, 1], [0, 0, 0, 1]])
  network, _ = with_heads(heads, head_size=4)
  x, t, s, label = inputs("dit")

  def loss(params):
    return jnp.sum((network.apply(params, x, t, s, label=label) - 1) ** 2)

  blocks = jit(jax.grad(loss))(params)["blocks"]
  for name, axis in (("query", 2), ("key", 2), ("value", 2), ("out", 1)):
    kernel = np.moveaxis(params["blocks"][name]["kernel"], axis, 1)
    grad = np.moveaxis(blocks[name]["kernel"], axis, 1)
    assert np.all(kernel[1, 1:] == 0) and np.all(grad[1, 1:] == 0)
    # The heads that were kept do learn.
    assert np.all(np.any(grad[0].reshape(heads, -1) != 0, axis=1))
    assert np.any(grad[1, 0] != 0)


def test_compact_bad_input():
  with pytest.raises(ValueError, match=r"gates must have shape \[2, 4\]"):
    dit.compact(FOUR_HEADS, np.ones((4, 2)))
  with pytest.raises(ValueError, match="gates must be finite"):
    dit.compact(FOUR_HEADS, np.full((2, 4), np.nan))
  with pytest.raises(TypeError, match="gates must have known values"):
    jax.jit(lambda gates: dit.compact(FOUR_HEADS, gates)[0])(np.ones((2, 4)))


@ALL
def test_bfloat16_compute_stays_near_float32(name):
  _, params, apply = make(name)
  network, _, narrow_apply = make(name, compute_dtype=jnp.bfloat16)
  narrow = jax.eval_shape(network.init, jax.random.key(0))
  assert narrow == jax.eval_shape(lambda: params)
  x, t, s, label = inputs(name)
  answer = narrow_apply(params, x, t, s, label=label)
  expected = apply(params, x, t, s, label=label)
  assert answer.dtype == jnp.float32
  # bfloat16 rounds at 2^-9; a few layers of it stay within a few percent.
  assert np.abs(answer - expected).max() < 0.1 * np.abs(expected).max()
  assert np.any(answer != expected)


@ALL
def test_one_device_or_eight(name):
  network, params, apply = make(name)
  args = inputs(name)
  x, t, s, label = args
  alone = apply(params, x, t, s, label=label)
  mesh = training.make_mesh(2, 4)
  with jax.set_mesh(mesh):
    # So small a bound that most parameters are split.
    place = sharding.state_shardings(params, mesh, min_size=32)
    split = jax.device_put(params, place)
    assert any(
      not a.sharding.is_fully_replicated for a in jax.tree.leaves(split)
    )
    x, t, s, label = training.shard_batch(args)
    spread = jit(network.apply)(split, x, t, s, label=label)
  assert len(spread.sharding.device_set) == 8
  np.testing.assert_allclose(spread, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("error", "options", "message"),
  [
    (ValueError, {"shape": (4, 4)}, "shape must be \\(H, W, C\\)"),
    (ValueError, {"shape": (4, 4, 0)}, "every size in shape must be >= 1"),
    (ValueError, {"patch_size": 3}, "patch_size must divide"),
    (ValueError, {"width": 10}, "width must be a multiple"),
    (ValueError, {"num_heads": 3}, "width must be a multiple"),
    (ValueError, {"head_size": 0}, "head_size must be >= 1"),
    (ValueError, {"num_layers": 0}, "num_layers must be >= 1"),
    (ValueError, {"num_classes": -1}, "num_classes must be >= 0"),
    (ValueError, {"max_frequency": 0.0}, "max_frequency must be positive"),
    (TypeError, {"mlp_ratio": 2.5}, "mlp_ratio must be an integer"),
    (TypeError, {"compute_dtype": jnp.int32}, "compute_dtype must be"),
  ],
)
def test_dit_refuses(error, options, message):
  sizes = dict(shape=SHAPE, patch_size=2, width=16, num_layers=1, num_heads=2)
  sizes.update(options)
  with pytest.raises(error, match=message):
    nets.dit(sizes.pop("shape"), **sizes)


@pytest.mark.parametrize(
  ("error", "options", "message"),
  [
    (ValueError, {"dim": 0}, "dim must be >= 1"),
    (ValueError, {"hidden": ()}, "hidden must name"),
    (TypeError, {"hidden": (8, 4.0)}, "hidden must be an integer"),
    (ValueError, {"num_classes": -1}, "num_classes must be >= 0"),
    (TypeError, {"compute_dtype": jnp.int32}, "compute_dtype must be"),
  ],
)
def test_velocity_mlp_refuses(error, options, message):
  with pytest.raises(error, match=message):
    nets.velocity_mlp(**{"dim": 2, **options})


@pytest.mark.parametrize(
  ("error", "call", "message"),
  [
    (ValueError, {"x": jnp.zeros((BATCH, 4, 4, 2))}, "x must have shape"),
    (ValueError, {"x": jnp.zeros(SHAPE)}, "x must have shape"),
    (TypeError, {"x": jnp.zeros((BATCH, *SHAPE), int)}, "x must be floating"),
    (ValueError, {"t": jnp.float32(1)}, "t must have shape"),
    (ValueError, {"s": jnp.ones(3)}, "s must have shape"),
    (ValueError, {"label": jnp.zeros(3, int)}, "label must have shape"),
    (TypeError, {"label": jnp.zeros(BATCH)}, "label must be integers"),
    (ValueError, {"label": jnp.full(BATCH, 4)}, "label must lie in \\[0, num"),
    (ValueError, {"gates": jnp.ones((2, 3))}, "gates must have shape"),
    (ValueError, {"gates": jnp.ones((3, 2, 2))}, "gates must have shape"),
  ],
)
def test_calls_are_checked(error, call, message):
  network, params, _ = make("dit")
  x, t, s, label = inputs("dit")
  with pytest.raises(error, match=message):
    network.apply(params, **{"x": x, "t": t, "s": s, "label": label, **call})
