"""Conformance of the rollout: transforms, prompts, errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jdiff import ctmc
from jdiff.core import keys as keys_lib
from jdiff.core import orders
from jdiff.schedules import masking
from tests import helpers

LENGTH, VOCAB, NUM = 4, 3, 16
LOGITS = helpers.table_logits(LENGTH, VOCAB)
TABLE = helpers.random_table(0, LENGTH, VOCAB)
MIXED = orders.Order((orders.Stage((0, 2, 3), 3), orders.Stage((1,), 1)))


def run(params, key, num_samples=NUM, **options):
  options.setdefault("logits_fn", LOGITS)
  options.setdefault("length", LENGTH)
  options.setdefault("mask_id", VOCAB)
  return ctmc.rollout(params, key, num_samples=num_samples, **options)


@pytest.fixture(scope="module")
def reference():
  return jax.device_get(run(TABLE, jax.random.key(0)))


def test_shapes(reference):
  chex.assert_shape(reference.samples, (NUM, LENGTH))
  assert reference.samples.max() < VOCAB and reference.samples.min() >= 0
  assert (np.sort(reference.order, axis=1) == np.arange(LENGTH)).all()
  assert (reference.nfe == LENGTH).all()
  np.testing.assert_allclose(
    reference.log_ratio,
    -LENGTH * np.log(VOCAB) - reference.log_policy,
    rtol=1e-6,
  )


def test_jit_traces_once(reference):
  jitted = jax.jit(chex.assert_max_traces(lambda p, k: run(p, k), n=1))
  for _ in range(2):
    chex.assert_trees_all_close(
      jax.device_get(jitted(TABLE, jax.random.key(0)))._replace(
        num_revealed=reference.num_revealed
      ),
      reference,
      rtol=1e-5,
    )


def test_vmap(reference):
  tables = jnp.stack([TABLE, 2 * TABLE])
  both = jax.vmap(
    lambda p: run(p, jax.random.key(0))._replace(num_revealed=None)
  )(tables)
  np.testing.assert_array_equal(both.samples[0], reference.samples)
  np.testing.assert_array_equal(
    both.samples[1], run(2 * TABLE, jax.random.key(0)).samples
  )


def test_grad_is_that_of_the_paths_log_prob(reference):
  def by_rollout(p):
    return run(p, jax.random.key(0)).log_policy.mean()

  def by_path(p):
    return ctmc.path_log_prob(
      p,
      jnp.asarray(reference.samples),
      reference.order,
      reference.num_revealed,
      logits_fn=LOGITS,
      mask_id=VOCAB,
    ).mean()

  got, want = jax.jit(jax.grad(by_rollout))(TABLE), jax.grad(by_path)(TABLE)
  np.testing.assert_allclose(got, want, atol=1e-6)
  assert float(jnp.abs(want).max()) > 1e-3


@pytest.mark.parametrize("order", ["random", MIXED])
def test_shard_map_and_pmap(order):
  keys = keys_lib.per_example(jax.random.key(0), NUM)
  want = jax.device_get(run(TABLE, keys, order=order))

  def shard(params, keys):
    rollout = run(params, keys, num_samples=keys.shape[0], order=order)
    return rollout.samples, rollout.log_ratio

  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  samples, log_ratio = jax.jit(
    jax.shard_map(
      shard, mesh=mesh, in_specs=(P(), P("x")), out_specs=(P("x"), P("x"))
    )
  )(TABLE, keys)
  np.testing.assert_array_equal(samples, want.samples)
  np.testing.assert_allclose(log_ratio, want.log_ratio, rtol=1e-5)
  samples, log_ratio = jax.pmap(shard, in_axes=(None, 0))(
    TABLE, keys.reshape(8, -1)
  )
  np.testing.assert_array_equal(samples.reshape(NUM, -1), want.samples)
  np.testing.assert_allclose(log_ratio.ravel(), want.log_ratio, rtol=1e-5)


def test_auto_sharding_gives_the_same_numbers():
  keys = keys_lib.per_example(jax.random.key(0), NUM)
  want = jax.jit(lambda k: run(TABLE, k).log_ratio)(keys)
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  sharded = jax.device_put(keys, NamedSharding(mesh, P("x")))
  got = jax.jit(lambda k: run(TABLE, k).log_ratio)(sharded)
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_no_key_is_used_twice():
  with jax.debug_key_reuse(True):
    jax.jit(lambda k: run(TABLE, k))(jax.random.key(0))


def test_prompt():
  prompt = jnp.tile(jnp.array([[2, 0]]), (NUM, 1)).at[0].set(1)
  rollout = run(TABLE, jax.random.key(0), prompt=prompt, num_steps=1)
  np.testing.assert_array_equal(rollout.samples[:, :2], prompt)
  assert (np.sort(rollout.order, axis=1) == [2, 3]).all()
  again = ctmc.path_log_prob(
    TABLE,
    rollout.samples,
    rollout.order,
    rollout.num_revealed,
    logits_fn=LOGITS,
    mask_id=VOCAB,
  )
  np.testing.assert_allclose(again, rollout.log_policy, rtol=1e-5)


def test_time_is_the_masked_share():
  seen = []

  def spy(params, tokens, t, sites=None):
    jax.debug.callback(lambda m, s: seen.append((m, s)), (tokens == VOCAB), t)
    return LOGITS(params, tokens, t, sites)

  run(TABLE, jax.random.key(0), logits_fn=spy, num_steps=3)
  jax.effects_barrier()
  assert len(seen) == 3
  for masked, t in seen:
    np.testing.assert_allclose(np.asarray(masked).mean(axis=1), t, rtol=1e-6)


def test_subsampled_terms_are_unbiased(reference):
  def estimate(key):
    return ctmc.path_log_prob(
      TABLE,
      jnp.asarray(reference.samples),
      reference.order,
      reference.num_revealed,
      logits_fn=LOGITS,
      mask_id=VOCAB,
      key=key,
      num_terms=2,
    )

  draws = jax.vmap(estimate)(jax.random.split(jax.random.key(1), 2000))
  error = np.asarray(draws.mean(axis=0)) - reference.log_policy
  se = np.asarray(draws.std(axis=0)) / 2000**0.5
  assert (np.abs(error) < 5 * se + 1e-6).all() and se.max() < 0.1


def test_mask_inside_the_vocabulary():
  wide = helpers.table_logits(LENGTH, VOCAB)

  def with_mask(params, tokens, t, sites=None):
    logits = wide(params, tokens, t, sites)
    return jnp.concatenate([logits, logits[..., :1]], axis=-1)

  with pytest.raises(ValueError, match="mask_id=3 lies inside the vocabulary"):
    run(TABLE, jax.random.key(0), logits_fn=with_mask)
  safe = ctmc.forbid_mask(with_mask, VOCAB)
  rollout = run(TABLE, jax.random.key(0), logits_fn=safe)
  assert int(rollout.samples.max()) < VOCAB
  want = run(TABLE, jax.random.key(0)).log_ratio + rollout.log_policy
  del want
  np.testing.assert_allclose(
    rollout.log_ratio + rollout.log_policy, -LENGTH * np.log(VOCAB), rtol=1e-6
  )


@pytest.mark.parametrize(
  "options, error, message",
  [
    (dict(num_samples=0), ValueError, "num_samples must be >= 1"),
    (dict(length=0), ValueError, "length must be >= 1"),
    (dict(length=2.5), TypeError, "length must be an integer"),
    (dict(temperature=0.0), ValueError, "temperature must be positive"),
    (dict(temperature=float("nan")), ValueError, "temperature must be"),
    (dict(num_steps=9), ValueError, "num_steps must lie in"),
    (dict(order="confidence"), ValueError, "order must be 'random'"),
    (dict(order=[[0, 1]]), ValueError, "cover the 4 sites"),
    (
      dict(logits_fn=lambda p, x, t, sites=None: p[0]),
      ValueError,
      "logits_fn's answer must have shape",
    ),
    (
      dict(prompt=jnp.full((NUM, 1), VOCAB)),
      ValueError,
      "prompt must hold no mask id",
    ),
    (dict(prompt=jnp.zeros(4, int)), ValueError, "fills the canvas"),
    (dict(key=jnp.zeros(2, jnp.uint32)), TypeError, "typed PRNG key"),
  ],
)
def test_bad_arguments(options, error, message):
  options = dict(options)
  key = options.pop("key", jax.random.key(0))
  with pytest.raises(error, match=message):
    run(TABLE, key, **options)


def timed(params, tokens, t, sites=None):
  logits = LOGITS(params, tokens, t, sites)
  return logits * (1 + t)[:, None, None]


@pytest.mark.parametrize("prompt", [None, jnp.array([1])])
def test_bernoulli_paths_see_the_same_times(prompt):
  options = dict(prompt=prompt, num_steps=3, schedule=masking.linear())
  rollout = run(TABLE, jax.random.key(0), logits_fn=timed, **options)
  log_ratio = ctmc.path_log_ratio(
    TABLE,
    rollout.samples,
    rollout.order,
    rollout.num_revealed,
    logits_fn=timed,
    mask_id=VOCAB,
  )
  np.testing.assert_allclose(log_ratio, rollout.log_ratio, atol=1e-5)


def test_the_mask_is_never_drawn_under_jit():
  # Values cannot be looked at inside a trace, so the mask's logit is set.
  def logits_fn(params, tokens, t, sites=None):
    num = tokens.shape[1] if sites is None else np.shape(sites)[-1]
    return jnp.zeros((tokens.shape[0], num, 3)) + params

  def rollout(params):
    return ctmc.rollout(
      params,
      jax.random.key(0),
      logits_fn=logits_fn,
      num_samples=500,
      length=5,
      mask_id=2,
    )

  with pytest.raises(ValueError, match="its logit is finite"):
    rollout(jnp.float32(0))
  result = jax.jit(rollout)(jnp.float32(0))
  assert int(result.samples.max()) == 1
  np.testing.assert_allclose(result.log_ratio, 0, atol=1e-5)


def test_blocks_must_add_up():
  with pytest.raises(ValueError, match="must add up to the 4 sites"):
    ctmc.path_log_prob(
      TABLE,
      jnp.zeros((2, 4), jnp.int32),
      np.arange(4),
      np.array([1, 1]),
      logits_fn=LOGITS,
      mask_id=VOCAB,
    )
  with pytest.raises(TypeError, match="num_steps must be an integer"):
    run(TABLE, jax.random.key(0), num_steps=2.9)


def test_flips_of_a_flat_schedule_stay_finite():
  rollout = ctmc.uniform_rollout(
    helpers.random_table(0, 4, VOCAB),
    jax.random.key(0),
    logits_fn=helpers.table_logits(4, VOCAB),
    num_samples=64,
    length=4,
    num_tokens=VOCAB,
    num_steps=16,
    schedule=masking.polynomial(8.0),
  )
  assert bool(jnp.isfinite(rollout.log_ratio).all())
