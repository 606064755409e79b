"""Adapters change nothing at first, merge exactly, and are all that trains."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import nets
from jdiff.nets import lora

LENGTH, NUM_TOKENS, BATCH, RANK, ALPHA = 5, 6, 3, 2, 3.0
SIZES = dict(width=16, num_layers=2, num_heads=4, zero_init_head=False)
LLAMA = dict(num_kv_heads=2, mlp="swiglu", mlp_width=24, **SIZES)


@functools.cache
def make(dtype=jnp.float32):
  """A network, its frozen base in `dtype`, and new adapters of all its maps."""
  network = nets.transformer(None, NUM_TOKENS, **LLAMA, compute_dtype=dtype)
  shapes = jax.eval_shape(network.init, jax.random.key(0))
  draw = functools.partial(lora.init, rank=RANK, targets=lora.TARGETS)
  # In NumPy: compiling `init` of either is what would cost.
  rng = np.random.default_rng(0)
  base = jax.tree.map(
    lambda leaf: (0.5 * rng.standard_normal(leaf.shape)).astype(dtype),
    shapes,
  )
  adapters = jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      (path[-1].key == "a") * rng.uniform(-0.25, 0.25, leaf.shape)
    ).astype(leaf.dtype),
    jax.eval_shape(lambda key: draw(key, shapes), jax.random.key(1)),
  )
  return network, base, adapters, jax.jit(network.apply)


@functools.cache
def inputs():
  rng = np.random.default_rng(1)
  tokens = rng.integers(0, NUM_TOKENS + 1, (BATCH, LENGTH), np.int32)
  return jnp.asarray(tokens), jnp.linspace(0.1, 1.0, BATCH)


def trained(adapters):
  """Adapters that act: `B` is no longer zero."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape, np.float32),
    adapters,
  )


def attach(base, adapters):
  return lora.attach(base, adapters, alpha=ALPHA)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_new_adapters_change_no_bit(dtype):
  _, base, adapters, apply = make(dtype)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(adapters))
  tokens, t = inputs()
  plain = apply(base, tokens, t)
  assert jnp.all(apply(attach(base, adapters), tokens, t) == plain)
  moved = apply(attach(base, trained(adapters)), tokens, t)
  assert jnp.abs(moved - plain).max() > 0.1


def test_merged_parameters_answer_as_the_adapted_do():
  _, base, adapters, apply = make()
  params = attach(base, trained(adapters))
  merged = jax.jit(lora.merge)(params)
  assert jax.tree.structure(merged) == jax.tree.structure(base)
  tokens, t = inputs()
  logits = apply(params, tokens, t)
  np.testing.assert_allclose(apply(merged, tokens, t), logits, atol=1e-5)
  # In NumPy, for one map whose axes are easily mistaken.
  got, a, b = (
    np.asarray(leaf, np.float64)
    for leaf in (
      merged["blocks"]["out"]["kernel"],
      params.adapters["blocks"]["out"]["a"],
      params.adapters["blocks"]["out"]["b"],
    )
  )
  delta = np.einsum("nhdr,nrf->nhdf", a, b) * ALPHA / RANK
  wanted = np.asarray(base["blocks"]["out"]["kernel"]) + delta
  np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_hidden_and_cached_calls_are_adapted_too():
  network, base, adapters, apply = make()
  params = attach(base, trained(adapters))
  tokens, t = inputs()
  wanted = apply(params, tokens, t)

  @jax.jit
  def others(params):
    cache = network.init_cache(BATCH, LENGTH)
    hidden = network.hidden(params, tokens, t)
    return (
      network.head(params, hidden),
      network.apply_cached(params, tokens, t, cache, 0)[0],
    )

  for logits in others(params):
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)


def objective(apply, params):
  return jnp.mean(jax.nn.log_softmax(apply(params, *inputs()))[..., 0])


def test_gradients_are_those_of_the_objective():
  network, base, adapters, apply = make()
  remat = nets.transformer(None, NUM_TOKENS, **LLAMA, remat=True)
  adapters = trained(adapters)
  gradient = jax.jit(
    jax.grad(lambda adapters: objective(remat.apply, attach(base, adapters)))
  )(adapters)

  def along(step, name, leaf):
    blocks = {k: dict(v) for k, v in adapters["blocks"].items()}
    blocks[name][leaf] = blocks[name][leaf] + step
    return objective(apply, attach(base, {"blocks": blocks}))

  for name, adapter in gradient["blocks"].items():
    for leaf, slope in adapter.items():
      norm = np.linalg.norm(slope)
      step = 0.01 * np.asarray(slope) / norm
      change = along(step, name, leaf) - along(-step, name, leaf)
      # float32 rounding of values of order two, over the span of 0.02, is some
      # 3e-5; the third derivative's share is of order 1e-4.
      np.testing.assert_allclose(change / 0.02, norm, rtol=1e-2, atol=5e-4)
      assert norm > 5e-3


@pytest.mark.parametrize("merged", [False, True])
def test_adapters_make_nothing_of_a_kernel_s_size(merged):
  network, base, adapters, _ = make()
  change = lora.merge if merged else lambda params: params

  def loss(adapters, base):
    return objective(network.apply, change(attach(base, adapters)))

  program = str(jax.make_jaxpr(jax.grad(loss))(adapters, base))
  made = re.findall(r":f32\[(?:2,)?16,24\] = \w+", program)
  assert bool(made) == merged


def test_only_adapters_train_beside_a_narrow_base():
  network, base, adapters, apply = make()
  base = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base)
  tokens, t = inputs()
  before = apply(base, tokens, t)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(adapters, base):
    def loss(adapters):
      return -objective(network.apply, attach(base, adapters))

    value, gradient = jax.value_and_grad(loss)(adapters)
    new = jax.tree.map(lambda p, g: p - g, adapters, gradient)
    return new, value, gradient

  adapters = jax.tree.map(jnp.asarray, adapters)  # `step` takes these
  adapters, first, gradient = step(adapters, base)
  # With B = 0 the objective does not see A, and moves along B alone.
  for adapter in gradient["blocks"].values():
    assert jnp.all(adapter["a"] == 0) and jnp.any(adapter["b"] != 0)
    assert adapter["b"].dtype == jnp.float32
  for _ in range(3):
    adapters, last, _ = step(adapters, base)
  assert last < first - 0.1
  # The base is still the reference policy.
  assert jnp.all(apply(base, tokens, t) == before)


def test_a_target_draws_alone_what_it_draws_in_company():
  _, base, _, _ = make()

  def draw(*targets):
    key = jax.random.key(1)
    return lora.init(key, base, rank=RANK, targets=targets)["blocks"]

  alone, both = draw("up"), draw("gate", "up")
  assert list(alone) == ["up"] and list(both) == ["gate", "up"]
  for adapter in both.values():
    assert adapter["a"].shape == (2, 16, RANK)
    assert adapter["b"].shape == (2, RANK, 24)
    assert jnp.all(adapter["b"] == 0) and jnp.abs(adapter["a"]).max() <= 0.25
    assert not jnp.any(adapter["a"][0] == adapter["a"][1])
  assert jnp.all(alone["up"]["a"] == both["up"]["a"])
  assert not jnp.any(both["gate"]["a"] == both["up"]["a"])


@pytest.mark.parametrize(
  ("targets", "count"),
  [(lora.TARGETS, 335_544_320), (lora.DEFAULT_TARGETS, 167_772_160)],
)
def test_adapters_of_llada_8b(targets, count):
  network = nets.transformer(
    None,
    126464,
    width=4096,
    num_layers=32,
    num_heads=32,
    mlp="swiglu",
    mlp_width=12288,
    mask_id=126336,
    head_bias=False,
  )
  base = jax.eval_shape(network.init, jax.random.key(0))
  adapters = jax.eval_shape(
    lambda key: lora.init(key, base, rank=128, targets=targets),
    jax.random.key(0),
  )
  leaves = jax.tree.leaves(adapters)
  assert sum(math.prod(leaf.shape) for leaf in leaves) == count


@pytest.mark.parametrize(
  ("error", "options", "message"),
  [
    (ValueError, {"targets": ("gates",)}, "targets must be .* got 'gates'"),
    (ValueError, {"targets": ("gate",)}, r"\(query, .*, up, down\), got 'gate"),
    (ValueError, {"targets": ()}, "targets must name at least one"),
    (ValueError, {"rank": 0}, "rank must be >= 1"),
    (TypeError, {"rank": 1.5}, "rank must be an integer"),
  ],
)
def test_init_refuses(error, options, message):
  network = nets.transformer(LENGTH, NUM_TOKENS, **SIZES)  # not gated
  base = jax.eval_shape(network.init, jax.random.key(0))
  with pytest.raises(error, match=message):
    lora.init(jax.random.key(0), base, **{"rank": 1, **options})


def test_attach_and_merge_refuse():
  _, base, adapters, _ = make()
  plain = nets.transformer(LENGTH, NUM_TOKENS, **SIZES)
  other = jax.eval_shape(plain.init, jax.random.key(0))
  with pytest.raises(ValueError, match="fit the base, got one of blocks/gate"):
    attach(other, {"blocks": {"gate": adapters["blocks"]["gate"]}})
  with pytest.raises(ValueError, match="blocks/key/b must have shape"):
    attach(other, {"blocks": {"key": adapters["blocks"]["key"]}})
  with pytest.raises(ValueError, match="alpha must be positive"):
    lora.attach(base, adapters, alpha=0.0)
  with pytest.raises(TypeError, match="base must be plain parameters"):
    attach(attach(base, adapters), adapters)
  with pytest.raises(TypeError, match="params must be Adapted, got dict"):
    lora.merge(base)
