"""Every loss's gradient against the enumerated gradient of its objective."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdiff import ctmc, targets
from jdiff.core import orders, replay, weights
from jdiff.methods import mdns, wdce
from jdiff.targets import enumerate as enumerate_lib
from tests import helpers

LENGTH, VOCAB = 4, 2
LOGITS = helpers.table_logits(LENGTH, VOCAB)
LAW = orders.uniform(LENGTH)


@pytest.fixture(scope="module")
def enumerated():
  """Every path as often as the policy takes it: exact expectations as means.

  All conditionals are 1/4 or 3/4, so a path has a whole number of 256ths.
  """
  with jax.enable_x64(True):
    target = targets.ising(2, beta=0.3, field=0.2)
    sign = np.random.default_rng(0).choice(
      [-1.0, 1.0], ((VOCAB + 1) ** LENGTH, LENGTH)
    )
    table = np.stack([-sign, sign], axis=-1) * np.log(3) / 2
    states = enumerate_lib.enumerate_states(LENGTH, VOCAB)
    samples, order = [], []
    for blocks in helpers.enumerate_orders(LAW):
      prob = helpers.path_prob(table, states, blocks, VOCAB)
      times = np.rint(prob * 256).astype(int)
      np.testing.assert_allclose(times, prob * 256, atol=1e-9)
      samples.append(np.repeat(states, times, axis=0))
      order.append(np.tile(sum(blocks, []), (256, 1)))
    samples = jnp.asarray(np.concatenate(samples))
    order = jnp.asarray(np.concatenate(order), jnp.int32)
    table = jnp.asarray(table)
    log_policy = jax.jit(path)(table, samples, order)
    log_w = jax.vmap(target.log_prob)(samples) - log_policy
    return target, table, mdns.Batch(samples, log_w, order)


def path(table, samples, order):
  return ctmc.path_log_prob(
    table, samples, order, LAW.num_revealed, logits_fn=LOGITS, mask_id=VOCAB
  )


def gradient(function, at):
  """Of the mean of what it returns."""
  return jax.jit(jax.grad(lambda x: function(x).mean()))(at)


def objectives(target, at, batch):
  """The objectives as functions of theta, by sums over the enumerated law."""
  log_p = jax.vmap(target.log_prob)(batch.samples)
  base = path(at, batch.samples, batch.order)

  def kl(theta):
    log_theta = path(theta, batch.samples, batch.order)
    ratio = jnp.exp(log_theta - base)
    return jnp.mean(ratio * (log_theta - log_p))

  def variance(theta):
    return jnp.var(log_p - path(theta, batch.samples, batch.order))

  def cross(theta):
    tilt = jnp.exp(log_p - base)
    return -jnp.mean(tilt * path(theta, batch.samples, batch.order)) / (
      jnp.mean(tilt)
    )

  return {"rerf": kl, "lv": variance, "ce": cross, "ce_cv": cross}


@pytest.mark.parametrize("name", ["rerf", "lv", "ce", "ce_cv"])
def test_path_losses(name, enumerated):
  target, table, batch = enumerated
  loss = {
    "rerf": mdns.rerf,
    "lv": mdns.log_variance,
    "ce": mdns.cross_entropy,
    "ce_cv": mdns.cross_entropy_cv,
  }[name]
  with jax.enable_x64(True):
    method = mdns.path_method(
      target, logits_fn=LOGITS, mask_id=VOCAB, num_samples=8, loss=loss
    )
    got = gradient(lambda p: method.loss(p, jax.random.key(0), batch)[0], table)
    want = gradient(objectives(target, table, batch)[name], table)
    np.testing.assert_allclose(got, want, atol=1e-12)
    assert float(jnp.abs(want).max()) > 1e-3


def test_log_variance_off_policy():
  # The batch comes from other parameters than the loss is asked at.
  target = targets.ising(2, beta=0.3, field=0.2)
  with jax.enable_x64(True):
    old, new = (
      helpers.random_table(i, LENGTH, VOCAB, dtype=np.float64) for i in (1, 2)
    )
    method = mdns.path_method(
      target,
      logits_fn=LOGITS,
      mask_id=VOCAB,
      num_samples=64,
      loss=mdns.log_variance,
    )
    batch = jax.jit(method.collect)(old, jax.random.key(0))

    def direct(table):
      w = jax.vmap(target.log_prob)(batch.samples) - path(
        table, batch.samples, batch.order
      )
      return jnp.mean((w - w.mean()) ** 2)

    @jax.jit
    @jax.value_and_grad
    def loss(table, batch):
      return method.loss(table, jax.random.key(0), batch)[0].mean()

    value, got = loss(new, batch)
    exact, want = jax.jit(jax.value_and_grad(direct))(new)
    np.testing.assert_allclose(value, exact, rtol=1e-10)
    np.testing.assert_allclose(got, want, atol=1e-10)
    # The control: without the collection's log_policy it is another loss.
    _, blind = loss(new, batch._replace(log_policy=None))
    assert float(jnp.abs(blind - want).max()) > 1e-2


def test_rerf_without_its_reward_is_wrong(enumerated):
  # The negative control: weights that forget the target must not pass.
  target, table, batch = enumerated
  with jax.enable_x64(True):
    method = mdns.path_method(
      target, logits_fn=LOGITS, mask_id=VOCAB, num_samples=8
    )
    wrong = batch._replace(log_weights=-path(table, batch.samples, batch.order))
    got = gradient(lambda p: method.loss(p, jax.random.key(0), wrong)[0], table)
    want = gradient(objectives(target, table, batch)["rerf"], table)
    assert float(jnp.abs(got - want).max()) > 1e-3


def every_mask(key, valid):
  """The exact-count law, summed instead of drawn."""
  del key
  masks = itertools.product([0, 1], repeat=valid.shape[0])
  masks = [m for m in masks if any(m)]
  masks = np.array(masks, bool)
  count = masks.sum(axis=1)
  choose = np.array([1, 4, 6, 4, 1])[count]
  return jnp.asarray(masks), jnp.asarray(len(masks) / (count * choose))


def test_wdce_gradient(enumerated):
  target, table, batch = enumerated
  with jax.enable_x64(True):
    got = gradient(
      lambda p: wdce.wdce(
        p,
        jax.random.key(0),
        batch.samples,
        batch.log_weights,
        logits_fn=LOGITS,
        mask_id=VOCAB,
        draw_masks=every_mask,
      )[0],
      table,
    )
    # P* makes the order independent of x, so the average over orders is CE.
    want = gradient(objectives(target, table, batch)["ce"], table)
    np.testing.assert_allclose(got, want, atol=1e-12)


def check_average(draw, want, num=400):
  """The error as a whole, against its spread: entries are hardly Gaussian."""
  keys = jax.random.split(jax.random.key(0), num)
  draws = np.asarray(
    helpers.optimised_jit(lambda k: jax.lax.map(draw, k))(keys)
  )
  error = np.linalg.norm(draws.mean(axis=0) - want)
  spread = np.sqrt((draws.var(axis=0, ddof=1) / num).sum())
  assert error < 2 * spread
  # And the spread is small enough for a wrong factor to show.
  assert spread < 0.03 * np.linalg.norm(want)


@pytest.mark.parametrize("law", ["count", "bernoulli"])
def test_wdce_draws_have_that_gradient_on_average(law, enumerated):
  target, table, batch = enumerated
  make = ctmc.count_masks if law == "count" else ctmc.bernoulli_masks
  with jax.enable_x64(True):
    draw = jax.grad(
      lambda p, key: wdce.wdce(
        p,
        key,
        batch.samples,
        batch.log_weights,
        logits_fn=LOGITS,
        mask_id=VOCAB,
        draw_masks=make(2, antithetic=True),
      )[0].mean()
    )
    want = gradient(objectives(target, table, batch)["ce"], table)
    check_average(functools.partial(draw, table), want)


def test_subsampled_rerf(enumerated):
  target, table, batch = enumerated
  with jax.enable_x64(True):
    method = mdns.path_method(
      target, logits_fn=LOGITS, mask_id=VOCAB, num_samples=8, num_terms=2
    )
    draw = jax.grad(lambda p, key: method.loss(p, key, batch)[0].mean())
    want = gradient(objectives(target, table, batch)["rerf"], table)
    check_average(functools.partial(draw, table), want)


def test_bounds_hold_log_z_between(enumerated):
  target, table, batch = enumerated
  with jax.enable_x64(True):
    samples = target.sample(jax.random.key(0), 4000)
    upper = jax.jit(
      lambda table: mdns.eubo(
        table,
        jax.random.key(1),
        samples,
        target,
        logits_fn=LOGITS,
        mask_id=VOCAB,
      )
    )(table)
    log_z = target.log_z
    assert weights.elbo(batch.log_weights) < log_z
    np.testing.assert_allclose(
      weights.log_z(batch.log_weights), log_z, rtol=1e-12
    )
    # E_P*[W] - log Z = KL(P* || P), enumerated.
    share = weights.normalise(batch.log_weights)
    exact = float(jnp.sum(share * batch.log_weights))
    se = float(upper.std()) / 4000**0.5
    assert abs(float(upper.mean()) - exact) < 4 * se and exact > log_z


def test_buffer_round_trip():
  target = targets.ising(2, beta=0.3)
  table = helpers.random_table(0, LENGTH, VOCAB)
  method = mdns.wdce_method(
    target, logits_fn=LOGITS, mask_id=VOCAB, num_samples=64
  )
  example = mdns.Batch(jnp.zeros(4, jnp.int32), jnp.float32(0), None)
  buffer = replay.init(example, 128)
  key = jax.random.key(0)
  refresh = jax.jit(functools.partial(mdns.refresh, method.collect))
  buffer = refresh(table, key, buffer, jnp.bool_(True))
  same = refresh(table, key, buffer, jnp.bool_(False))
  np.testing.assert_array_equal(same.data.samples, buffer.data.samples)
  assert int(replay.size(buffer)) == 64
  # The buffer is half full: what it lacks enters no statistic.
  want = mdns.summary(buffer.data.log_weights[:64])
  for name, value in mdns.buffer_summary(buffer).items():
    np.testing.assert_allclose(value, want[name], rtol=1e-5)
  draw = jax.jit(mdns.draw_weighted, static_argnums=2)
  batch = draw(jax.random.key(1), buffer, 4096)
  # Resampled draws need no weights: their mean is the reweighted mean.
  log_w = buffer.data.log_weights[:64]
  want, _ = weights.expectation(
    log_w, buffer.data.samples[:64].astype(jnp.float32)
  )
  np.testing.assert_allclose(
    batch.samples.mean(axis=0), want, atol=64 / 4096 + 1e-3
  )
  assert (batch.log_weights == 0).all()
  loss, info = jax.jit(method.loss)(table, jax.random.key(2), batch)
  assert loss.shape == (4096,) and bool(jnp.isfinite(loss).all())
  assert set(info) >= {"elbo", "log_z", "ess_fraction"}


def test_udns_learns():
  target = targets.ising(2, beta=0.3, field=0.2)
  num_levels = 8

  def logits_fn(params, tokens, t):
    # Unlike the masked process, flips leave the noise level to `t`.
    level = jnp.clip(num_levels * t, 0, num_levels - 1).astype(jnp.int32)
    return jax.vmap(
      lambda table, x: LOGITS(table, x[None], None)[0], in_axes=(0, 0)
    )(params[level], tokens)

  method = mdns.udns_method(
    target, logits_fn=logits_fn, num_samples=512, num_steps=6
  )
  table = helpers.random_table(0, LENGTH, VOCAB)
  params = jnp.stack([table] * num_levels)
  optimizer = optax.adam(3e-2)

  def step(carry, key):
    params, state = carry
    key_collect, key_loss = jax.random.split(key)
    batch = method.collect(params, key_collect)

    def objective(p):
      per_example, info = method.loss(p, key_loss, batch)
      return per_example.mean(), info

    grads, info = jax.grad(objective, has_aux=True)(params)
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), info

  run = helpers.optimised_jit(lambda c, k: jax.lax.scan(step, c, k))
  _, info = run(
    (params, optimizer.init(params)), jax.random.split(jax.random.key(0), 600)
  )
  assert float(info["ess_fraction"][0]) < 0.1
  assert float(info["ess_fraction"][-20:].mean()) > 0.65
  # 20 batches of 512 at this ESS: a standard error of about 0.006.
  assert abs(float(info["log_z"][-20:].mean()) - target.log_z) < 0.03


def test_bad_target():
  with pytest.raises(ValueError, match="target must be discrete"):
    mdns.collector(
      targets.Target(log_prob=lambda x: x.sum(), dim=2),
      logits_fn=LOGITS,
      mask_id=2,
      num_samples=1,
    )
