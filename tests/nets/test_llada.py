"""LLaDA's network against Llama's; padding, shifted targets, a split mesh."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from benchmarks import llama_reference
from jdiff import ctmc, training
from jdiff.core import axes
from jdiff.nets import llada, llada_io, lora
from jdiff.training import sharding

MASK, PAD = llama_reference.MASK, llama_reference.PAD
CONFIG = llada.Config(
  num_tokens=llama_reference.VOCAB,
  **llama_reference.CONFIG,
  num_kv_heads=2,
  mask_id=MASK,
  eos_id=PAD,
  max_length=8,
)
FULL = dataclasses.replace(CONFIG, num_kv_heads=4)
# Keys and values of one layer follow from each site's own token.
SHALLOW = dataclasses.replace(CONFIG, num_layers=1)
KNOWN = np.arange(CONFIG.num_tokens) != MASK
# Logits of order one through some 20 float32 operations in sequence.
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


@functools.cache
def params(config=CONFIG):
  wanted = llada_io.tensor_shapes(config)
  tensors = llama_reference.weights(config.num_kv_heads)
  tensors = {name: x for name, x in tensors.items() if name in wanted}
  return llada_io.from_tensors(tensors, config)


@functools.cache
def make(config=CONFIG, **options):
  """A float32 network, and its `apply`, jitted, at time one."""
  network = llada.network(config, compute_dtype=jnp.float32, **options)

  @jax.jit
  def apply(params, tokens, sites=None):
    return network.apply(params, tokens, jnp.ones(tokens.shape[0]), sites)

  return network, apply


@functools.cache
def inputs():
  """`[8, 8]` tokens, masks among them and no padding."""
  rng = np.random.default_rng(0)
  return rng.integers(0, PAD, (8, 8), np.int32)


@functools.cache
def reference(num_kv_heads):
  stored = json.loads(llama_reference.PATH.read_text())
  logits = stored["logits"][str(num_kv_heads)]
  return {name: np.asarray(values) for name, values in logits.items()}


@pytest.mark.parametrize("config", [FULL, CONFIG], ids=["mha", "gqa"])
def test_logits_are_those_of_llama_without_its_causal_mask(config):
  wanted = reference(config.num_kv_heads)
  tensors = llama_reference.weights(config.num_kv_heads)

  def ask(tokens, base=config.rope_base, padded=False):
    network = llada.network(
      dataclasses.replace(config, rope_base=base),
      padded=padded,
      forbid_mask=False,
      compute_dtype=jnp.float64,
    )
    params = llada_io.from_tensors(tensors, config, dtype=jnp.float64)
    answer = jax.jit(network.apply)(params, tokens, jnp.ones(len(tokens)))
    assert answer.dtype == jnp.float64
    return np.asarray(answer)

  with jax.enable_x64(True):
    full = ask(llama_reference.TOKENS)
    wrong_base = ask(llama_reference.TOKENS, llama_reference.WRONG_BASE)
    padded = ask(llama_reference.PADDED, padded=True)
  # Rotary tables are float32 in both, softmaxes in Llama.
  near = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
  near(full, wanted["full"])
  near(wrong_base, wanted["wrong_base"])
  # The tolerance tells what is wrong from what is right.
  for name in ("wrong_base", "causal"):
    assert np.abs(full - wanted[name]).max() > 1e-2
  assert np.abs(full - wanted["causal"])[:, -1].max() > 1e-2
  # Llama counts positions from the first real token, and we from the row's
  # start: rotated products depend on differences of positions alone.
  real = np.arange(8) >= llama_reference.NUM_PADS[:, None]
  near(padded[real], wanted["padded"])


def test_every_site_sees_every_other_of_its_row_alone():
  _, apply = make()
  tokens = inputs()
  before = apply(params(), tokens)[..., KNOWN]
  for site in (7, 0):
    other = tokens.copy()
    other[2, site] = (tokens[2, site] + 1) % MASK
    change = np.abs(apply(params(), other)[..., KNOWN] - before).max(-1)
    assert change[2].min() > 1e-4
    assert change[np.arange(8) != 2].max() < 1e-6


def test_bfloat16_stays_near_float32():
  narrow = jax.jit(llada.network(CONFIG).apply)
  held = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())
  logits = narrow(held, inputs(), jnp.ones(8))[..., KNOWN]
  wide = make()[1](params(), inputs())[..., KNOWN]
  assert logits.dtype == jnp.float32
  error = jnp.linalg.norm(logits - wide) / jnp.linalg.norm(wide)
  assert 1e-4 < error < 3e-2


def pad(sizes, length):
  """The first tokens of as many rows, filled to the left."""
  return np.stack(
    [
      np.pad(row[:size], (length - size, 0), constant_values=PAD)
      for row, size in zip(inputs(), sizes, strict=False)
    ]
  )


def loss(network, params, tokens):
  logits = network.apply(params, tokens, jnp.ones(len(tokens)))
  return -jnp.mean(jax.nn.log_softmax(logits)[..., 0])


@functools.cache
def slopes(**options):
  """`(params, tokens) -> gradient`, jitted, of a network like `make`'s."""
  network, _ = make(**options)
  return jax.jit(jax.grad(functools.partial(loss, network)))


def test_pads_in_front_change_nothing():
  rows = inputs()[:, :5].copy()
  rows[0, 3:] = PAD  # behind the first real token it is a token like others
  wanted = make()[1](params(), rows)[..., KNOWN]
  for number in (1, 3):
    padded = np.pad(rows, ((0, 0), (number, 0)), constant_values=PAD)
    close(make()[1](params(), padded)[:, number:, KNOWN], wanted)
  attended = make(padded=False)[1](params(), padded)[:, number:, KNOWN]
  assert np.abs(attended - wanted).max(axis=(1, 2)).min() > 1e-2
  # A row of pads alone has no answer, and must not spoil the gradient.
  padded[1] = PAD
  gradient = slopes()(params(), padded)
  assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(gradient))


@functools.cache
def cached_apply(config):
  return jax.jit(make(config)[0].apply_cached)


@pytest.mark.parametrize("config", [SHALLOW, CONFIG], ids=["one", "two"])
def test_caches_know_the_padding(config):
  network, apply = make(config)
  run = cached_apply(config)
  sizes = (8, 5, 3, 8)
  tokens = pad(sizes, 8)
  t = jnp.ones(len(tokens))
  real = np.arange(8) >= 8 - np.array(sizes)[:, None]
  wanted = apply(params(config), tokens)
  logits, cache = run(params(config), tokens, t, network.init_cache(4, 8), 0)
  close(logits[real], wanted[real])
  assert cache.padding.tolist() == [0, 3, 5, 0]
  for start in (6, 2, 4):
    at = slice(start, start + 2)
    logits, cache = run(params(config), tokens[:, at], t, cache, start)
    assert cache.padding.tolist() == [0, 3, 5, 0]
    close(logits[real[:, at]], wanted[:, at][real[:, at]])
  # New tokens of a part, which one layer answers exactly.
  part = (tokens[:, 5:7] + 1) % MASK
  logits, _ = run(params(config), part, t, cache, 5)
  tokens[:, 5:7] = part
  wanted = apply(params(config), tokens)[:, 5:7]
  gap = np.abs(logits - wanted)[..., KNOWN].max()
  assert gap < 2e-5 if config == SHALLOW else gap > 1e-3
  blind = cache._replace(padding=jnp.zeros(4, jnp.int32))
  logits, _ = run(params(config), part, t, blind, 5)
  assert np.abs(logits - wanted)[1:3, :, KNOWN].max() > 1e-2


def test_a_part_of_pads_alone_says_not_where_they_end():
  network, apply = make()
  run = cached_apply(CONFIG)
  tokens, t = pad((5, 5, 3, 8), 8), jnp.ones(4)
  wanted = apply(params(), tokens)
  _, cache = run(params(), tokens, t, network.init_cache(4, 8), 0)
  _, cache = run(params(), tokens[:, :2], t, cache, 0)
  logits, cache = run(params(), tokens[:, 6:], t, cache, 6)
  assert cache.padding.tolist() == [3, 3, 5, 0]
  close(logits, wanted[:, 6:])


@pytest.mark.parametrize(
  "cache, guidance", [(None, 0.0), ("prefix", 0.0), ("dual", 0.0), (None, 1.0)]
)
def test_padded_prompts_decode_as_they_do_alone(cache, guidance):
  network, _ = make()

  @jax.jit
  def decode(params, prompt):
    return ctmc.decode(
      params,
      jax.random.key(0),
      prompt,
      logits_fn=network.apply,
      length=prompt.shape[1] + 4,
      mask_id=MASK,
      block_size=2,
      temperature=0.0,
      guidance=guidance,
      pad_id=CONFIG.eos_id,
      cache=cache,
      cached_fn=network.apply_cached,
      init_cache=network.init_cache,
    )

  sizes = (6, 3, 3, 5, 6, 3)
  together = decode(params(), pad(sizes, 6))
  assert len({tuple(row) for row in together.samples[:, 6:].tolist()}) > 3
  for size in (3, 5) if cache is None else (3,):
    rows = np.flatnonzero(np.array(sizes) == size)
    alone = decode(params(), inputs()[rows, :size])
    np.testing.assert_array_equal(
      together.samples[rows, 6 - size :], alone.samples
    )
    np.testing.assert_array_equal(together.commit_step[rows], alone.commit_step)
    close(together.confidence[rows], alone.confidence)


def test_shifted_targets_are_answered_by_the_site_before():
  network, apply = make(dataclasses.replace(CONFIG, shift_targets=True))
  plain = make()[1](params(), inputs())
  before = np.array([0, 0, 1, 2, 3, 4, 5, 6])
  close(apply(params(), inputs()), plain[:, before])
  shared = np.array([5, 0, 1])
  close(apply(params(), inputs(), shared), plain[:, before[shared]])
  own = np.random.default_rng(0).integers(0, 8, (8, 2))
  wanted = np.take_along_axis(plain, before[own][..., None], axis=1)
  close(apply(params(), inputs(), own), wanted)
  assert network.apply_cached is None and network.init_cache is None
  assert make()[0].apply_cached is not None


def test_what_is_kept_for_the_backward_pass_changes_nothing():
  policies = jax.checkpoint_policies
  products = []
  for policy in (None, policies.dots_with_no_batch_dims_saveable):
    step = slopes(remat=True, remat_policy=policy)
    lowered = step.lower(params(), inputs())
    products.append(lowered.as_text().count("dot_general"))
    jax.tree.map(
      functools.partial(close, atol=1e-6),
      lowered.compile()(params(), inputs()),
      slopes()(params(), inputs()),
    )
  assert products[0] > products[1]  # those that are kept are computed once


def test_lengths_are_the_models():
  llada.check_length(llada.LLADA_8B, 4096)
  with pytest.raises(ValueError, match="max_length=4096, got 4097"):
    llada.check_length(llada.LLADA_8B, 4097)
  with pytest.raises(ValueError, match="length must be >= 1, got 0"):
    llada.check_length(CONFIG, 0)
  with pytest.raises(TypeError, match="length must be an integer"):
    llada.check_length(CONFIG, 8.0)


def test_all_that_is_large_has_names():
  names = llada.network(llada.LLADA_8B).axes
  base = llada.abstract(llada.LLADA_8B, jnp.bfloat16)
  adapters = jax.eval_shape(
    lambda key: lora.init(key, base, rank=8, targets=lora.TARGETS),
    jax.random.key(0),
  )
  flat = traverse_util.flatten_dict(base)
  large = {path for path, x in flat.items() if math.prod(x.shape) > 2**20}
  small = {path[-2:] for path in flat.keys() - large}
  assert small == {
    ("norm", "scale"),
    ("attention_norm", "scale"),
    ("mlp_norm", "scale"),
  }
  flat |= traverse_util.flatten_dict(adapters)
  assert len(flat) == 9 + 3 + 2 * 7
  mesh = AbstractMesh((1, 4, 4), axes.MESH)
  for path, x in flat.items():
    named = names(path)
    if path[-1] == "scale":
      assert named is None
      continue
    assert len(named) == len(x.shape) and set(named) - {None} <= set(axes.RULES)
    split = set(axes.spec(named, x.shape, mesh, of="x")) - {None}
    assert split == ({"fsdp", "tensor"} if path in large else split) != set()


def test_meshes_that_do_not_divide_are_named():
  network = llada.network(CONFIG)
  names, shape = (None, "width", "heads", None), (2, 32, 4, 8)
  lay = functools.partial(axes.spec, names, of="blocks/query")
  two, three, five = (
    training.make_mesh(1, *parts) for parts in ((1, 2), (1, 3), (5, 1))
  )
  assert lay(shape, two) == P(None, None, "tensor", None)
  with pytest.raises(
    ValueError,
    match="mesh.tensor must divide heads of blocks/query, got mesh.tensor=3 "
    "and heads=4",
  ):
    lay(shape, three)
  with pytest.raises(ValueError, match="mesh.fsdp must divide width of .*=32"):
    lay(shape, five)
  with pytest.raises(ValueError, match="query must have 4 axes, .*, 32, 32"):
    lay((2, 32, 32), two)
  with pytest.raises(ValueError, match="kv_heads of blocks/key/kernel, got"):
    sharding.state_shardings(llada.abstract(CONFIG), three, axes=network.axes)


def test_a_split_network_answers_the_same():
  network, apply = make()
  mesh = training.make_mesh(2, 2, 2)
  places = sharding.state_shardings(params(), mesh, axes=network.axes)
  held = jax.device_put(params(), places)
  tokens = inputs()

  def step(params, tokens):
    logits = network.apply(params, tokens, jnp.ones(len(tokens)))
    return logits, jax.grad(functools.partial(loss, network))(params, tokens)

  with jax.set_mesh(mesh):
    split = str(jax.make_jaxpr(step)(held, tokens))
    batch = sharding.put_batch(tokens, mesh)
    logits, gradient = jax.jit(step)(held, batch)
  assert logits.sharding.spec == P(("data", "fsdp"), None, "tensor")
  close(logits, apply(params(), tokens))
  jax.tree.map(
    functools.partial(close, atol=1e-6), gradient, slopes()(params(), tokens)
  )
  # Without a mesh, and in programs of a single device, nothing is asked for.
  assert "sharding_constraint" in split
  x = jnp.ones((2, 3))
  assert axes.constrain(x, "width") is x
  with jax.set_mesh(training.make_mesh(1, devices=jax.devices()[:1])):
    assert axes.constrain(x, "width") is x
