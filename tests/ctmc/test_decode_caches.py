"""Caches and parallel commits, on networks where they must be exact."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jdiff import ctmc, nets
from jdiff.core import keys as keys_lib
from tests.ctmc.decoding import decode, jit, softmax

KEY = jax.random.key(0)


# A little attention network, written after the contract of `apply_cached`.
class Attention(NamedTuple):
  """Layers of single-head attention over absolute positions, no time."""

  length: int
  vocab: int
  width: int = 8

  def init(self, seed):
    rng = np.random.default_rng(seed)
    shapes = dict(
      embed=(self.vocab + 1, self.width),
      position=(self.length, self.width),
      head=(self.width, self.vocab),
      layers=(LAYERS, 4, self.width, self.width),
    )
    params = {
      name: jnp.asarray(rng.standard_normal(shape), jnp.float32)
      for name, shape in shapes.items()
    }
    # Confidences spread over (0, 1).
    params["head"] = params["head"] * 0.3
    return params | {"visible": jnp.zeros(self.length)}

  def init_cache(self, batch, length):
    return jnp.zeros((LAYERS, 2, batch, length, self.width))

  def apply_cached(self, params, tokens, t, cache, start, sites=None):
    del t
    size = tokens.shape[1]
    place = jax.lax.dynamic_slice_in_dim(params["position"], start, size)
    x = params["embed"][tokens] + place[None]

    def layer(x, xs):
      weights, kept = xs
      y = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
      query, *fresh = (y @ w for w in weights[:3])
      kept = jax.lax.dynamic_update_slice_in_dim(
        kept, jnp.stack(fresh), start, axis=2
      )
      score = jnp.einsum("bqd,bkd->bqk", query, kept[0]) / self.width
      score = score + params["visible"][None, None]
      y = jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(score), kept[1])
      return x + y @ weights[3], kept

    x, cache = jax.lax.scan(layer, x, (params["layers"], cache))
    x = x if sites is None else x[:, sites]
    return x @ params["head"], cache

  def apply(self, params, tokens, t, sites=None):
    cache = self.init_cache(*tokens.shape)
    return self.apply_cached(params, tokens, t, cache, 0, sites)[0]


CANVAS, TOKENS, LAYERS = 10, 5, 2
ATTENTION = Attention(CANVAS, TOKENS)
TWO = ATTENTION.init(1)
# With a second layer that adds nothing: keys and values that are used see
# their own token alone.
ONE = TWO | {"layers": TWO["layers"].at[1, 3].set(0.0)}
# Attends to the prompt alone.
BLIND = TWO | {
  "visible": jnp.full(CANVAS, -jnp.inf, jnp.float32).at[:2].set(0.0)
}
START = jnp.asarray(np.random.default_rng(2).integers(0, TOKENS, (8, 2)))
FUNCTIONS = dict(
  logits_fn=ATTENTION.apply,
  cached_fn=ATTENTION.apply_cached,
  init_cache=ATTENTION.init_cache,
)


def cached(params, prompt=START, **options):
  defaults = dict(length=CANVAS, mask_id=TOKENS, block_size=4, temperature=0.0)
  options = defaults | FUNCTIONS | options
  return jax.device_get(decode(params, KEY, prompt, **options))


def same(got, want):
  np.testing.assert_array_equal(got.samples, want.samples)
  np.testing.assert_array_equal(got.commit_step, want.commit_step)
  # Sums over ten positions in another order; logits of a few tens.
  np.testing.assert_allclose(got.confidence, want.confidence, rtol=1e-4)
  np.testing.assert_allclose(got.log_policy, want.log_policy, rtol=1e-4)


attention = jit(ATTENTION.apply)
# One site a step, and whole blocks, with one compiled function.
ALONE, WHOLE = dict(threshold=2.0), dict(threshold=0.0)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_caches_are_exact_where_they_must_be(cache):
  for params in (ONE, BLIND):
    same(cached(params, cache=cache), cached(params, **ALONE))
  # The control: two layers do see what was committed, after the first step.
  whole, kept = cached(TWO, **ALONE), cached(TWO, cache=cache)
  first = whole.commit_step == 0
  np.testing.assert_array_equal(kept.commit_step == 0, first)
  np.testing.assert_array_equal(
    kept.samples[:, 2:][first], whole.samples[:, 2:][first]
  )
  assert np.abs(kept.confidence - whole.confidence).max() > 1e-2


def test_one_step_a_block_leaves_nothing_to_keep():
  same(cached(TWO, num_steps=2, cache="dual"), cached(TWO, **WHOLE))
  guided = dict(num_steps=2, guidance=0.5)
  got, want = cached(TWO, cache="prefix", **guided), cached(TWO, **guided)
  same(got, want)
  assert np.abs(got.confidence - cached(TWO, **WHOLE).confidence).max() > 1e-2
  assert (got.nfe == 4).all() and (got.num_token_forwards == 40).all()


def test_the_first_step_of_every_block_is_exact():
  # Given what earlier blocks came to, whatever cache they were made with.
  for cache in ("prefix", "dual"):
    got = cached(TWO, cache=cache)
    tokens = got.samples.copy()
    tokens[:, 6:] = TOKENS
    logits = np.asarray(attention(TWO, tokens, None))[:, 6:]
    probs = softmax(logits.astype(np.float64))
    site = probs.max(axis=-1).argmax(axis=1)
    row = np.arange(len(site))
    assert (got.commit_step[row, 4 + site] == 4).all()
    np.testing.assert_array_equal(
      got.samples[row, 6 + site], probs[row, site].argmax(axis=1)
    )
    np.testing.assert_allclose(
      got.confidence[row, 4 + site], probs.max(axis=(1, 2)), rtol=1e-4
    )


def test_dual_cache_of_the_whole_canvas_keeps_nothing():
  network = nets.transformer(
    CANVAS, TOKENS, width=8, num_layers=2, num_heads=2, zero_init_head=False
  )
  functions = dict(
    logits_fn=network.apply,
    cached_fn=network.apply_cached,
    init_cache=network.init_cache,
  )
  # Shapes alone: to compile the initialiser would cost more than the test.
  rng = np.random.default_rng(4)
  params = jax.tree.map(
    lambda leaf: np.float32(0.5 * rng.standard_normal(leaf.shape)),
    jax.eval_shape(network.init, KEY),
  )
  options = dict(prompt=None, num_samples=4, block_size=None, **functions)
  same(cached(params, cache="dual", **options), cached(params, **options))


def test_positions_pushed_through_the_network():
  # Blocks at 2 and 6 of a canvas of 10, four steps each.
  assert (cached(TWO, **ALONE).num_token_forwards == 8 * 10).all()
  prefix, dual = cached(TWO, cache="prefix"), cached(TWO, cache="dual")
  want = sum(10 + 3 * (10 - start) for start in (2, 6))
  assert (prefix.num_token_forwards == want).all()
  assert (dual.num_token_forwards == 2 * (10 + 3 * 4)).all()


def test_ends_of_thresholds():
  dual = cached(TWO, cache="dual", **ALONE)
  same(dual, cached(TWO, cache="dual"))
  assert (dual.nfe == 8).all()
  all_at_once = cached(TWO, cache="dual", **WHOLE)
  same(all_at_once, cached(TWO, **WHOLE))
  assert (all_at_once.nfe == 2).all()


def test_rows_do_not_see_their_batch():
  # Rows in another order, and beside others; they need different numbers of
  # steps.
  some = dict(cache="dual", threshold=0.8)
  got, rows = cached(TWO, **some), np.array([3, 3, 0, 7, 5, 5, 5, 1])
  assert len(np.unique(got.nfe)) > 1
  moved = cached(TWO, prompt=START[rows], **some)
  for name in ("samples", "commit_step", "nfe", "num_token_forwards"):
    np.testing.assert_array_equal(
      getattr(got, name)[rows], getattr(moved, name)
    )


def test_shard_map():
  options = dict(length=CANVAS, mask_id=TOKENS, block_size=4, cache="dual")
  options |= dict(threshold=0.8, temperature=0.0, stop_at_eos=True, eos_id=9)
  options |= FUNCTIONS

  def run(keys, prompt):
    return ctmc.decode(TWO, keys, prompt, **options)

  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  specs = dict(in_specs=(P("x"), P("x")), out_specs=P("x"))
  sharded = jit(jax.shard_map(run, mesh=mesh, **specs))
  got = sharded(keys_lib.per_example(KEY, len(START)), START)
  # Token 9 does not exist, so no row stops.
  want = cached(TWO, cache="dual", threshold=0.8)
  same(got, want)
  np.testing.assert_array_equal(got.nfe, want.nfe)
