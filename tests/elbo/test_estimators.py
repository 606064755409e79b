import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as extend

from jdiff import ctmc, elbo
from tests.elbo import networks

LENGTH, VOCAB = 6, 3
PARAMS = networks.sine_params(0, LENGTH, VOCAB)
TOKENS = jnp.array([[0, 2, 1, 1, 0, 2], [2, 2, 0, 1, 1, 0]])
# Of six draws each: under one jit they share what is drawn and compiled.
LAWS = {
  "mid": elbo.node_masks(3, 2),
  "bernoulli": elbo.node_masks(6, law="bernoulli"),
  "count": ctmc.count_masks(12, antithetic=True),
}
OPTIONS = dict(logits_fn=networks.sine_logits, mask_id=VOCAB)


def draw(key, tokens, num_prompt, valid=None):
  return {
    name: elbo.draw_masks(
      key, tokens, law=law, num_prompt=num_prompt, valid=valid
    )
    for name, law in LAWS.items()
  }


@functools.cache
def drawn():
  return jax.jit(draw, static_argnums=2)(jax.random.key(0), TOKENS, 2)


def test_scan_equals_batch():
  masks = drawn()["mid"]

  def value_and_grad(implementation):
    def total(params):
      values = elbo.estimate(
        params,
        TOKENS,
        masks,
        num_prompt=2,
        implementation=implementation,
        **OPTIONS,
      )
      return values @ jnp.array([1.0, -2.0]), values

    return jax.jit(jax.value_and_grad(total, has_aux=True))

  with jax.enable_x64(True):
    params = jax.tree.map(jnp.asarray, PARAMS)
    (_, batch), batch_grad = value_and_grad("batch")(params)
    (_, scan), scan_grad = value_and_grad("scan")(params)
    np.testing.assert_allclose(scan, batch, rtol=1e-13)
    for name in params:
      np.testing.assert_allclose(scan_grad[name], batch_grad[name], atol=1e-13)
    assert float(jnp.abs(batch_grad["scale"])) > 0.1


def test_shared_masks():
  """Log-ratios on shared masks: zero at equal parameters, and quiet else."""
  num = 2000
  tokens = jnp.broadcast_to(TOKENS[:1], (num, LENGTH))
  elbo_fn = jax.jit(elbo.estimator(law=elbo.node_masks(2), **OPTIONS))
  new = {**PARAMS, "scale": 1.05 * PARAMS["scale"]}
  first, second = jax.random.key(0), jax.random.key(1)
  old = elbo_fn(PARAMS, first, tokens)
  np.testing.assert_array_equal(elbo_fn(PARAMS, first, tokens) - old, 0)
  shared = np.asarray(elbo_fn(new, first, tokens) - old)
  independent = np.asarray(elbo_fn(new, second, tokens) - old)
  assert independent.var() > 100 * shared.var()
  exact_fn = jax.jit(functools.partial(elbo.exact_elbo, **OPTIONS))
  exact = [exact_fn(p, tokens[:1])[0] for p in (new, PARAMS)]
  # Two nodes leave a bias in the ratio, which is far below a nat here.
  assert abs(shared.mean() - float(exact[0] - exact[1])) < 0.1


def test_padding_is_a_shorter_canvas():
  """A sequence of 4 sites on a canvas of 6, one of them the prompt."""
  keys = jax.random.split(jax.random.key(3), 2)
  valid = jnp.arange(LENGTH)[None] < jnp.array([[4], [LENGTH]])
  jitted = jax.jit(draw, static_argnums=2)
  padded = jitted(keys, TOKENS, 1, valid)
  whole = jitted(keys, TOKENS, 1, valid | True)
  short = jitted(keys[:1], TOKENS[:1, :4], 1)
  for law in LAWS:
    got, want = padded[law], short[law]
    np.testing.assert_array_equal(got.mask[0, :, :4], want.mask[0])
    assert not np.any(got.mask[0, :, 4:]) and np.any(got.mask[0])
    np.testing.assert_allclose(got.weight[0], want.weight[0], rtol=1e-6)
    np.testing.assert_allclose(got.t[0], want.t[0], rtol=1e-6)
    np.testing.assert_array_equal(got.mask[1], whole[law].mask[1])

  # Padding may be anything: here a token that no head predicts.
  def elbos(params, tokens, masks):
    def blind(params, tokens, t, sites):
      inside = jnp.pad(tokens[:, :4], ((0, 0), (0, 2)))
      # Not in place of logits at sites beyond the canvas.
      logits = networks.sine_logits(params, inside, t, np.arange(1, 4))
      empty = ((0, 0), (0, tokens.shape[1] - 4), (0, 0))
      return jnp.pad(logits, empty)

    def total(scale):
      values = elbo.estimate(
        {**params, "scale": scale},
        tokens,
        masks,
        logits_fn=blind,
        mask_id=VOCAB,
        num_prompt=1,
      )
      return values[0]

    return jax.jit(jax.value_and_grad(total))(1.5)

  first = jax.tree.map(lambda x: x[:1], padded["mid"])
  junk = jnp.where(valid, TOKENS, VOCAB + 7)[:1]
  np.testing.assert_allclose(
    elbos(PARAMS, junk, first),
    elbos(PARAMS, TOKENS[:1, :4], short["mid"]),
    rtol=1e-5,
  )


def test_prompts_are_never_masked():
  asked = []

  @jax.jit
  def run(masks):
    seen = []

    def spy(params, tokens, t, sites=None):
      seen.append((tokens, t))
      asked.append(sites)
      return networks.sine_logits(params, tokens, t, sites)

    values = [
      elbo.estimate(
        PARAMS, TOKENS, m, logits_fn=spy, mask_id=VOCAB, num_prompt=2
      )
      for m in (masks, masks._replace(t=None))
    ]
    return values, seen[0]

  for masks in drawn().values():
    values, (tokens, t) = run(masks)
    mask = np.asarray(masks.mask)
    assert not np.any(mask[:, :, :2]) and np.any(mask)
    rows = np.repeat(TOKENS, mask.shape[1], axis=0)
    np.testing.assert_array_equal(tokens[:, :2], rows[:, :2])
    np.testing.assert_array_equal(tokens == VOCAB, mask.reshape(-1, LENGTH))
    share = np.mean(np.asarray(tokens)[:, 2:] == VOCAB, axis=1)
    np.testing.assert_allclose(t, share, rtol=1e-6)
    # Without padding the shares need not be given.
    np.testing.assert_allclose(*values, rtol=1e-6)
  # Concrete, so that a network can specialise, and the completion alone.
  assert isinstance(asked[0], np.ndarray)
  np.testing.assert_array_equal(asked[0], np.arange(2, LENGTH))


def test_examples_have_their_own_keys():
  keys = jax.random.split(jax.random.key(0), 2)
  elbo_fn = jax.jit(elbo.estimator(law=LAWS["mid"], **OPTIONS))
  there = elbo_fn(PARAMS, keys, np.asarray(TOKENS))
  order = np.array([1, 0])
  back = elbo_fn(PARAMS, keys[order], np.asarray(TOKENS)[order])
  np.testing.assert_allclose(there, np.asarray(back)[order], rtol=1e-6)


def test_cross_entropy_is_minus_the_elbo():
  key = jax.random.key(0)
  options = OPTIONS | dict(num_prompt=1)
  valid = jnp.arange(LENGTH)[None] < jnp.array([[6], [4]])

  @jax.jit
  def both(params, valid):
    return elbo.masked_cross_entropy(
      params, key, TOKENS, draw_masks=LAWS["mid"], valid=valid, **options
    ), elbo.estimator(law=LAWS["mid"], **options)(params, key, TOKENS, valid)

  (nll, info), want = both(PARAMS, valid)
  np.testing.assert_allclose(nll, -want, rtol=1e-6)
  np.testing.assert_array_equal(info["nfe"], [6, 6])


def hidden_fn(params, tokens, t, sites):
  x = params["embed"][tokens] + t[:, None, None]
  x = x + jnp.tanh(x.mean(axis=1, keepdims=True))
  return x[:, sites]


def head_fn(params, hidden):
  return hidden @ params["head"]


def shapes(jaxpr):
  """Every array shape in a jaxpr, those of its scans included."""
  for equation in jaxpr.eqns:
    for var in equation.outvars:
      yield tuple(getattr(var.aval, "shape", ()))
    for inner in extend.jaxprs_in_params(equation.params):
      yield from shapes(inner)


@pytest.mark.parametrize(
  ("chunk_size", "implementation"), [(2, "scan"), (3, "batch")]
)
def test_streamed_head(chunk_size, implementation):
  """The values and gradients of the plain path, without its logits."""
  vocab, width, num_prompt, mask_id = 50, 4, 2, 7
  rng = np.random.default_rng(0)
  params = {
    "embed": jnp.asarray(rng.standard_normal((vocab, width)), jnp.float32),
    "head": jnp.asarray(rng.standard_normal((width, vocab)), jnp.float32),
  }
  tokens = jnp.asarray(rng.integers(8, vocab, (2, LENGTH)), jnp.int32)
  masks = drawn()["mid"]

  def plain(params, tokens, t, sites=None):
    return head_fn(params, hidden_fn(params, tokens, t, sites))

  def value_and_grad(**options):
    def total(params):
      values = elbo.estimate(
        params, tokens, masks, mask_id=mask_id, num_prompt=num_prompt, **options
      )
      return values @ jnp.array([1.0, -2.0])

    return jax.value_and_grad(total)

  want_fn = value_and_grad(logits_fn=plain)
  got_fn = value_and_grad(
    token_log_probs=elbo.streamed(
      hidden_fn, head_fn, chunk_size=chunk_size, mask_id=mask_id
    ),
    implementation=implementation,
  )
  want, want_grad = jax.jit(want_fn)(params)
  got, got_grad = jax.jit(got_fn)(params)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for name in params:
    np.testing.assert_allclose(
      got_grad[name], want_grad[name], rtol=1e-4, atol=1e-4
    )
  num_masks, sites = masks.mask.shape[1], LENGTH - num_prompt
  full = (2 * num_masks, sites, vocab)
  assert full in set(shapes(jax.make_jaxpr(want_fn)(params).jaxpr))
  found = set(shapes(jax.make_jaxpr(got_fn)(params).jaxpr))
  rows = 2 if implementation == "scan" else 2 * num_masks
  largest = max(np.prod(s) for s in found if s and s[-1] == vocab)
  assert largest == max(rows * min(chunk_size, sites), width) * vocab


def test_bad_arguments():
  key = jax.random.key(0)
  draw = functools.partial(elbo.draw_masks, key, law=LAWS["mid"])
  masks = drawn()["mid"]
  estimate = functools.partial(elbo.estimate, PARAMS)
  with pytest.raises(ValueError, match="must hold no mask id"):
    estimate(TOKENS + 1, masks, **OPTIONS)
  with pytest.raises(TypeError, match="integer tokens"):
    draw(TOKENS * 1.0)
  with pytest.raises(ValueError, match="valid must have shape"):
    draw(TOKENS, valid=jnp.ones((2, 3), bool))
  with pytest.raises(TypeError, match="valid must be bool"):
    draw(TOKENS, valid=jnp.ones((2, LENGTH)))
  with pytest.raises(ValueError, match="num_prompt must be at most"):
    draw(TOKENS, num_prompt=7)
  with pytest.raises(ValueError, match="masks.mask must have shape"):
    estimate(TOKENS[:, :5], masks, **OPTIONS)
  with pytest.raises(ValueError, match="implementation must be one of"):
    estimate(TOKENS, masks, implementation="loop", **OPTIONS)
  with pytest.raises(TypeError, match="logits_fn or token_log_probs"):
    estimate(TOKENS, masks, mask_id=VOCAB)
  with pytest.raises(ValueError, match="logits_fn's answer"):
    estimate(
      TOKENS, masks, mask_id=VOCAB, logits_fn=lambda p, x, t: jnp.zeros((1, 1))
    )
  with pytest.raises(ValueError, match="chunk_size must be >= 1"):
    elbo.streamed(hidden_fn, head_fn, chunk_size=0, mask_id=1)
