"""The transformer against NumPy, its shared heads, its split and its cache."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import nets

LENGTH, NUM_TOKENS, BATCH, HEADS = 6, 7, 3, 4
MASK = 5
# LLaDA's choices, small.
LLAMA = dict(
  width=16,
  num_layers=2,
  num_heads=HEADS,
  num_kv_heads=2,
  mlp="swiglu",
  mlp_width=24,
  rope_base=5e5,
  norm_eps=1e-5,
  mask_id=MASK,
  head_bias=False,
  zero_init_head=False,
)
PLAIN = dict(width=16, num_layers=2, num_heads=HEADS, zero_init_head=False)
LLADA_8B = dict(
  width=4096,
  num_layers=32,
  num_heads=32,
  mlp="swiglu",
  mlp_width=12288,
  rope_base=5e5,
  norm_eps=1e-5,
  mask_id=126336,
  head_bias=False,
)
OPTIONS = {
  "llama": LLAMA,
  "plain": PLAIN,
  "shallow": {**LLAMA, "num_layers": 1},
  "timed grid": {**PLAIN, "grid": (2, 3), "time_conditioned": True},
}


@functools.cache
def make(name):
  """A network, parameters far from special, and `apply`, jitted."""
  length = LENGTH if "grid" in name else None
  network = nets.transformer(length, NUM_TOKENS, **OPTIONS[name])
  shapes = jax.eval_shape(network.init, jax.random.key(0))
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    values = rng.standard_normal(leaf.shape)
    if path[-1].key == "scale":
      values = 1 + 0.3 * values
    elif path[-1].key != "embedding":
      values = values / math.sqrt(leaf.shape[-1])
    return jnp.asarray(values.astype(np.float32))

  params = jax.tree_util.tree_map_with_path(draw, shapes)
  return network, params, jax.jit(network.apply)


@functools.cache
def inputs():
  rng = np.random.default_rng(1)
  tokens = rng.integers(0, NUM_TOKENS, (BATCH, LENGTH), np.int32)
  return jnp.asarray(tokens), jnp.linspace(0.1, 1.0, BATCH)


@functools.cache
def cached_apply(name):
  return jax.jit(make(name)[0].apply_cached)


def reference(params, tokens, *, base=1e4, eps=1e-6, kv=HEADS):
  """Logits in float64, head by head, by loops over rows and layers."""
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

  def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale

  def turn(x):  # pairs (i, i + d/2) as complex numbers
    half = x.shape[-1] // 2
    place = np.arange(len(x))[:, None] * base ** (-np.arange(half) / half)
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * place)
    return np.concatenate([z.real, z.imag], axis=-1)

  def row(ids):
    x = params["embed"]["embedding"][ids]
    blocks = params["blocks"]
    for i in range(len(blocks["mlp_norm"]["scale"])):
      w = {k: v["kernel"][i] for k, v in blocks.items() if "kernel" in v}
      y = norm(x, blocks["attention_norm"]["scale"][i])
      branch = 0
      for h in range(HEADS):
        shared = h // (HEADS // kv)
        q, k = turn(y @ w["query"][:, h]), turn(y @ w["key"][:, shared])
        scores = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
        scores /= scores.sum(-1, keepdims=True)
        branch = branch + scores @ (y @ w["value"][:, shared]) @ w["out"][h]
      x = x + branch
      y = norm(x, blocks["mlp_norm"]["scale"][i])
      up = y @ w["up"]
      if "gate" in w:
        gate = y @ w["gate"]
        up = gate / (1 + np.exp(-gate)) * up
      else:
        cube = up + 0.044715 * up**3
        up = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * cube))
      x = x + up @ w["down"]
    logits = norm(x, params["norm"]["scale"]) @ params["head_kernel"]
    return logits + params.get("head_bias", 0)

  return np.stack([row(ids) for ids in np.asarray(tokens)])


def test_gated_and_shared_heads_match_numpy():
  _, params, apply = make("llama")
  tokens, t = inputs()
  known = np.arange(NUM_TOKENS) != MASK
  logits = apply(params, tokens, t)[..., known]
  settings = dict(base=5e5, eps=1e-5, kv=2)
  wanted = reference(params, tokens, **settings)[..., known]
  # Logits of order one through some 20 float32 operations in sequence.
  np.testing.assert_allclose(logits, wanted, atol=2e-5)
  # The comparison tells other settings apart.
  for other in (dict(base=1e4), dict(eps=1e-2)):
    wrong = reference(params, tokens, **{**settings, **other})[..., known]
    assert np.abs(logits - wrong).max() > 1e-3


def test_the_plain_network_matches_numpy():
  _, params, apply = make("plain")
  tokens, t = inputs()
  logits = apply(params, tokens, t)
  np.testing.assert_allclose(logits, reference(params, tokens), atol=2e-5)


def test_shared_heads_equal_repeated_ones():
  _, params, apply = make("llama")
  one_each = nets.transformer(None, NUM_TOKENS, **LLAMA | {"num_kv_heads": 4})
  repeated = jax.tree.map(lambda leaf: leaf, params)
  for name in ("key", "value"):
    kernel = params["blocks"][name]["kernel"]
    repeated["blocks"][name] = {"kernel": jnp.repeat(kernel, 2, axis=2)}
  logits = jax.jit(one_each.apply)(repeated, *inputs())
  np.testing.assert_allclose(
    logits, apply(params, *inputs()), rtol=1e-5, atol=1e-5
  )


def test_llada_8b_is_one_configuration():
  network = nets.transformer(None, 126464, **LLADA_8B)
  shapes = jax.eval_shape(network.init, jax.random.key(0))
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  assert count == 8_015_581_184
  tokens = jax.ShapeDtypeStruct((2, 512), jnp.int32)
  t = jax.ShapeDtypeStruct((2,), jnp.float32)
  sites = np.arange(500, 512)
  logits = jax.eval_shape(
    lambda *x: network.apply(*x, sites), shapes, tokens, t
  )
  assert logits.shape == (2, 12, 126464)


@pytest.mark.parametrize("name", ["llama", "timed grid"])
def test_head_of_hidden_is_apply(name):
  network, params, apply = make(name)
  tokens, t = inputs()
  full = apply(params, tokens, t)
  own = jnp.array([[5, 0], [2, 2], [1, 4]])

  @jax.jit
  def split(params, own):
    ask = functools.partial(network.hidden, params, tokens, t)
    parts = ask(), ask(np.array([4, 0])), ask(own)
    assert parts[1].shape == (BATCH, 2, 16)
    one = network.head(params, parts[0][0, 0])  # any leading axes
    return one, [network.head(params, part) for part in parts]

  one, (whole, shared, each) = split(params, own)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  close(whole, full)
  close(one, full[0, 0])
  close(shared, full[:, np.array([4, 0])])
  close(each, jnp.take_along_axis(full, own[..., None], axis=1))


def test_a_mask_among_the_tokens_is_never_predicted():
  network, params, apply = make("llama")
  assert params["embed"]["embedding"].shape == (NUM_TOKENS, 16)
  assert make("plain")[1]["embed"]["embedding"].shape == (NUM_TOKENS + 1, 16)
  logits = apply(params, *inputs())
  finite = jnp.isfinite(logits).all(axis=(0, 1))
  assert finite.tolist() == [v != MASK for v in range(NUM_TOKENS)]
  assert jnp.all(logits[..., MASK] == -jnp.inf)

  def loss(kernel):
    log_probs = jax.nn.log_softmax(
      network.head({**params, "head_kernel": kernel}, hidden)
    )
    return log_probs[..., 0].mean()

  hidden = jnp.ones((2, 16))
  gradient = jax.grad(loss)(params["head_kernel"])
  assert jnp.isfinite(gradient).all() and jnp.all(gradient[:, MASK] == 0)


def test_any_length_shares_parameters():
  _, params, apply = make("llama")
  tokens, t = inputs()
  fixed = nets.transformer(LENGTH - 2, NUM_TOKENS, **LLAMA)
  short = tokens[:, :-2]
  answer = jax.jit(fixed.apply)(params, short, t)
  np.testing.assert_allclose(answer, apply(params, short, t), atol=1e-6)
  with pytest.raises(ValueError, match=r"tokens must have shape \[3, 4\]"):
    fixed.apply(params, tokens, t)


def test_bfloat16_stays_near_float32():
  _, params, apply = make("llama")
  narrow = nets.transformer(
    None, NUM_TOKENS, **LLAMA, compute_dtype=jnp.bfloat16
  )
  known = np.arange(NUM_TOKENS) != MASK
  wide = apply(params, *inputs())[..., known]
  # The parameters too, as a large network is kept.
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  logits = jax.jit(narrow.apply)(params, *inputs())[..., known]
  assert logits.dtype == jnp.float32
  assert jnp.abs(logits - wide).max() < 3e-2 * jnp.abs(wide).max()


@pytest.mark.parametrize("name", ["llama", "timed grid"])
def test_a_cached_canvas_is_apply_whole_and_in_parts(name):
  network, params, apply = make(name)
  tokens, t = inputs()
  full = apply(params, tokens, t)
  run = cached_apply(name)
  empty = network.init_cache(BATCH, LENGTH)
  kv_heads = OPTIONS[name].get("num_kv_heads", HEADS)
  assert empty.key.shape == (2, BATCH, LENGTH, kv_heads, 4)
  logits, cache = run(params, tokens, t, empty, 0)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  close(logits, full)
  for start in (0, 1, 4):  # traced; the others' tokens are as they were
    part = tokens[:, start : start + 2]
    logits, again = run(params, part, t, cache, start)
    close(logits, full[:, start : start + 2])
    jax.tree.map(functools.partial(close, atol=1e-5), again, cache)
  # Sites count from the part's first.
  sites = np.array([1])
  logits, _ = jax.jit(
    lambda params, cache: network.apply_cached(
      params, tokens[:, 4:6], t, cache, 4, sites
    )
  )(params, cache)
  close(logits, full[:, 5:6])


@pytest.mark.parametrize("name", ["shallow", "llama"])
def test_what_a_stale_cache_does(name):
  # Keys and values of one layer follow from each site's own token, so that a
  # cache of a single layer is never stale; of two layers it is.
  network, params, apply = make(name)
  tokens, t = inputs()
  run = cached_apply(name)
  _, cache = run(params, tokens, t, network.init_cache(BATCH, LENGTH), 0)
  part = (tokens[:, 2:4] + 1) % NUM_TOKENS
  logits, again = run(params, part, t, cache, 2)
  wanted = apply(params, tokens.at[:, 2:4].set(part), t)[:, 2:4]
  known = np.arange(NUM_TOKENS) != MASK
  gap = jnp.abs(logits - wanted)[..., known].max()
  assert gap < 1e-5 if name == "shallow" else gap > 1e-3
  for old, new in ((cache.key, again.key), (cache.value, again.value)):
    moved = jnp.any(old != new, axis=(0, 1, 3, 4))
    assert moved.tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize(
  ("error", "options", "message"),
  [
    (ValueError, {"num_kv_heads": 3}, "num_heads must be a multiple of"),
    (ValueError, {"num_kv_heads": 0}, "num_kv_heads must be >= 1"),
    (ValueError, {"mlp": "relu"}, "mlp must be 'gelu' or 'swiglu'"),
    (ValueError, {"mlp_width": 0}, "mlp_width must be >= 1"),
    (ValueError, {"rope_base": -1.0}, "rope_base must be positive"),
    (ValueError, {"norm_eps": 0.0}, "norm_eps must be positive"),
    (ValueError, {"mask_id": NUM_TOKENS}, "mask_id must be None or lie in"),
    (ValueError, {"mask_id": -1}, "mask_id must be >= 0"),
    (TypeError, {"mask_id": 1.0}, "mask_id must be an integer"),
    (ValueError, {"grid": (2, 3)}, "got grid=\\(2, 3\\) and length=None"),
  ],
)
def test_transformer_refuses(error, options, message):
  with pytest.raises(error, match=message):
    nets.transformer(None, NUM_TOKENS, **{**LLAMA, **options})


def test_cached_calls_are_checked():
  network, params, _ = make("llama")
  tokens, t = inputs()
  cache = network.init_cache(BATCH, LENGTH)
  call = network.apply_cached
  with pytest.raises(ValueError, match="cache.key must have shape"):
    call(params, tokens, t, network.init_cache(BATCH + 1, LENGTH), 0)
  with pytest.raises(ValueError, match="within the cache's length of 5"):
    call(params, tokens, t, network.init_cache(BATCH, LENGTH - 1), 0)
  with pytest.raises(ValueError, match="got start=5 and Q=2"):
    call(params, tokens[:, :2], t, cache, 5)
  with pytest.raises(ValueError, match=r"sites must lie in \[0, length = 2\)"):
    call(params, tokens[:, :2], t, cache, 0, np.array([2]))
  with pytest.raises(ValueError, match="hidden must have shape"):
    network.head(params, jnp.ones((2, 15)))
  grid, params, _ = make("timed grid")
  with pytest.raises(ValueError, match="length must be the network's, 6"):
    grid.init_cache(BATCH, 4)
  with pytest.raises(ValueError, match="cache.key must have shape"):
    short = jax.tree.map(
      lambda leaf: leaf[:, :, 1:], grid.init_cache(BATCH, LENGTH)
    )
    grid.apply_cached(params, tokens[:, :2], t, short, 0)
