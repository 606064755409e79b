"""PDNS: rules on fixed weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jdiff.core import weights
from jdiff.methods import pdns

# A scale s of rewards 0 and x leaves an ESS of 1 + 1 / cosh(s x) out of 2.
FRACTION = 0.8
GAP = 10.0
SHARE = float(np.arccosh(1 / (2 * FRACTION - 1))) / GAP


def two(gap, log_ratio=(0.0, 0.0), offset=0.0):
  """A buffer of two samples whose rewards lie `gap` apart."""
  reward = offset + jnp.array([0.0, gap], jnp.float32)
  return pdns.Buffer(
    jnp.zeros((2, 1)), jnp.asarray(log_ratio, jnp.float32), reward
  )


def at(remaining, allowed=None):
  allowed = remaining if allowed is None else allowed
  return pdns.init()._replace(
    remaining=jnp.float32(remaining), allowed=jnp.float32(allowed)
  )


def jitted(rule):
  return jax.jit(lambda progress, buffer: rule(progress, buffer))


def share(log_w):
  return np.asarray(weights.normalise(log_w))


# Rules.


def test_anchored_goes_as_far_as_its_ess():
  rule = jitted(pdns.anchored(min_fraction=FRACTION, confirm=False))
  # The untrained sampler is its reference: the log-ratio is zero.
  progress, log_w = rule(pdns.init(), two(GAP, offset=7.0))
  np.testing.assert_allclose(progress.remaining, 1 - SHARE, rtol=1e-4)
  np.testing.assert_allclose(progress.allowed, progress.remaining)
  np.testing.assert_allclose(progress.exponent, SHARE, rtol=1e-3)
  assert progress.stage == 1
  np.testing.assert_allclose(weights.ess_fraction(log_w), FRACTION, rtol=1e-4)
  np.testing.assert_allclose(log_w, SHARE * np.array([7, 7 + GAP]), rtol=1e-4)
  assert all(leaf.shape == () for leaf in progress)
  assert progress.remaining.dtype == progress.exponent.dtype == jnp.float32
  # A policy that fits the stage: the next one comes as far again, seen by the
  # weights to its own law, and takes its share of what was left.
  ratio = -(1 - progress.remaining) * two(GAP, offset=7.0).reward
  later, log_w = rule(progress, two(GAP, ratio, offset=7.0))
  np.testing.assert_allclose(later.allowed, 1 - 2 * SHARE, rtol=1e-4)
  np.testing.assert_allclose(weights.ess_fraction(log_w), FRACTION, rtol=1e-3)
  np.testing.assert_allclose(later.exponent, SHARE / (1 - SHARE), rtol=1e-3)


def test_anchored_by_kl():
  # KL of weights 1 and e^x is log cosh(x / 2).
  rule = jitted(pdns.anchored(max_kl=0.2))
  progress, log_w = rule(at(1.0, allowed=0.0), two(GAP))
  want = 2 * np.arccosh(np.exp(0.2)) / GAP
  np.testing.assert_allclose(progress.remaining, 1 - want, rtol=1e-4)
  np.testing.assert_allclose(weights.kl(log_w), 0.2, rtol=1e-3)


def test_anchored_waits_for_a_policy_that_lags():
  rule = jitted(pdns.anchored(min_fraction=FRACTION))
  # Still the reference at lam = 0.5, which is far beyond its reach.
  assert SHARE < 0.5
  progress, log_w = rule(at(0.5), two(GAP))
  assert progress.remaining == 0.5 and progress.exponent == 0
  # It goes on fitting the law at which it stopped.
  np.testing.assert_allclose(log_w, [0, 0.5 * GAP], rtol=1e-6)


@pytest.mark.parametrize("confirm", [True, False])
def test_lucky_buffers(confirm):
  rule = jitted(pdns.anchored(min_fraction=FRACTION, confirm=confirm))
  lucky, usual = two(0.0), two(GAP)
  # Not even the first, whose like has not been seen.
  progress, _ = rule(pdns.init(), lucky)
  assert progress.remaining == (1 if confirm else 0)
  progress, _ = rule(at(1.0, allowed=0.0), usual)
  first = float(progress.remaining)
  progress, log_w = rule(progress, lucky)
  assert progress.allowed == 0
  assert progress.remaining == (first if confirm else 0)
  # The weights are those of the law that was taken, not of what was allowed.
  np.testing.assert_allclose(
    log_w, pdns.stage_log_weights(lucky, progress.remaining)
  )
  # An unlucky one takes the claim back, but never what was reached.
  again, _ = rule(progress, usual)
  assert again.remaining == progress.remaining
  again, _ = rule(again, lucky)
  assert again.remaining == progress.remaining
  # Two in a row are believed.
  progress, _ = rule(progress, lucky)
  assert progress.remaining == 0 and progress.exponent == 1
  # At the end it stays, and says that it takes the whole of nothing.
  progress, log_w = rule(progress, usual)
  assert progress.remaining == 0 and progress.exponent == 1
  np.testing.assert_allclose(log_w, [0, GAP])


def test_relative():
  rule = jitted(pdns.relative(min_fraction=FRACTION, min_remaining=0.05))
  progress, log_w = rule(pdns.init(), two(GAP, offset=3.0))
  np.testing.assert_allclose(progress.exponent, SHARE, rtol=1e-4)
  np.testing.assert_allclose(progress.remaining, 1 - SHARE, rtol=1e-4)
  np.testing.assert_allclose(log_w, SHARE * np.array([3, 3 + GAP]), rtol=1e-4)
  # The same step from elsewhere: the remaining shares multiply. The log-ratio
  # is tempered with the reward.
  progress, log_w = rule(at(0.3), two(2 * GAP, (0.0, -GAP)))
  np.testing.assert_allclose(progress.remaining, 0.3 * (1 - SHARE), rtol=1e-4)
  np.testing.assert_allclose(log_w, [0, SHARE * GAP], rtol=1e-4)
  # Close to the end a step is the whole way, at that stage and after it.
  for remaining in (0.05, 0.01, 0.0):
    progress, log_w = rule(at(remaining), two(GAP))
    assert progress.remaining == 0 and progress.exponent == 1
    np.testing.assert_allclose(log_w, [0, GAP])
  progress, _ = rule(at(0.0501), two(GAP))
  assert 0.03 < progress.remaining < 0.05
  # Even weights go all the way at once.
  progress, _ = rule(at(0.5), two(0.0))
  assert progress.remaining == 0 and progress.exponent == 1


def test_relative_by_kl():
  rule = jitted(pdns.relative(max_kl=0.2))
  progress, log_w = rule(at(0.5), two(GAP))
  want = 2 * np.arccosh(np.exp(0.2)) / GAP
  np.testing.assert_allclose(progress.exponent, want, rtol=1e-4)
  np.testing.assert_allclose(weights.kl(log_w), 0.2, rtol=1e-3)


def test_scheduled():
  values = [0.75, 0.5, 0.0]
  rule = jitted(pdns.scheduled(values))
  progress, buffer = pdns.init(), two(GAP, (0.5, -0.5))
  # The last one stays.
  steps = zip([*values, 0.0], [1 / 4, 1 / 3, 1, 1], strict=True)
  for stage, (remaining, exponent) in enumerate(steps):
    progress, log_w = rule(progress, buffer)
    assert progress.remaining == remaining and progress.stage == stage + 1
    np.testing.assert_allclose(progress.exponent, exponent, rtol=1e-6)
    np.testing.assert_allclose(
      log_w, [0.5, -0.5 + (1 - remaining) * GAP], rtol=1e-6
    )


def test_rules_agree_where_the_stage_was_met():
  # If log_ratio = -(1 - lam) r + const, the policy is the stage's law, and both
  # steps have the weights (lam - lam') r.
  rng = np.random.default_rng(0)
  reward = jnp.asarray(rng.normal(0, 3, 64), jnp.float32)
  lam = 0.6
  met = pdns.Buffer(jnp.zeros((64, 1)), -(1 - lam) * reward + 1.3, reward)
  noise = jnp.asarray(rng.normal(0, 0.5, 64), jnp.float32)
  lagging = met._replace(log_ratio=met.log_ratio + noise)
  rules = [
    jitted(pdns.anchored(min_fraction=0.5, confirm=False)),
    jitted(pdns.relative(min_fraction=0.5)),
  ]
  (one, log_one), (two_, log_two) = (rule(at(lam), met) for rule in rules)
  assert 0.05 < one.remaining < 0.55
  np.testing.assert_allclose(one.remaining, two_.remaining, rtol=1e-4)
  np.testing.assert_allclose(one.exponent, two_.exponent, rtol=1e-3)
  want = share((lam - float(one.remaining)) * reward)
  np.testing.assert_allclose(share(log_one), want, rtol=1e-3)
  np.testing.assert_allclose(share(log_two), want, rtol=1e-3)
  # The control: of any other policy they are different laws.
  (_, log_one), (_, log_two) = (rule(at(lam), lagging) for rule in rules)
  assert np.abs(share(log_one) / share(log_two) - 1).max() > 0.1


RULES = {
  "anchored": pdns.anchored(min_fraction=0.5),
  "anchored_kl": pdns.anchored(max_kl=0.3),
  "relative": pdns.relative(min_fraction=0.5),
  "scheduled": pdns.scheduled([0.5, 0.0]),
}


def wild(values=(np.inf, -np.inf, np.nan)):
  """Eight good samples, then one for each value in either place."""
  reward = np.linspace(-6, 6, 8, dtype=np.float32)
  ratio = 0.3 * np.cos(reward)
  bad, fine = np.float32(values), np.zeros(len(values), np.float32)
  return pdns.Buffer(
    jnp.zeros((8 + 2 * len(values), 1)),
    jnp.concatenate([ratio, fine, bad]),
    jnp.concatenate([reward, bad, fine]),
  )


@pytest.mark.parametrize("name", RULES)
def test_what_is_not_finite_weighs_nothing(name):
  rule = jitted(RULES[name])
  buffer = wild()
  good = jax.tree.map(lambda x: x[:8], buffer)
  for progress in (at(1.0, allowed=0.0), at(0.95, allowed=0.0)):
    (after, log_w), (want, log_want) = (
      rule(progress, b) for b in (buffer, good)
    )
    np.testing.assert_array_equal(log_w[8:], -np.inf)
    np.testing.assert_allclose(log_w[:8], log_want, rtol=1e-4, atol=1e-5)
    for a, b in zip(after, want, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4)
    assert 0 < want.remaining < 1


def test_summary():
  buffer, progress = wild(), at(0.6)
  stage = pdns.stage_log_weights(buffer, 0.6)
  found = jax.jit(pdns.summary)(buffer, progress, stage)
  ratio, reward = (np.float64(x[:8]) for x in buffer[1:])
  total, part = np.exp(ratio + reward), np.exp(ratio + 0.4 * reward)

  def ess(w):
    return w.sum() ** 2 / (w**2).sum() / 14

  want = {
    "remaining": 0.6,
    "exponent": 0.0,
    "invalid": 6 / 14,
    "log_z": np.log(total.sum() / 14),
    "ess_fraction": ess(total),
    "elbo": (ratio + reward).mean(),
    "stage_log_z": np.log(part.sum() / 14),
    "stage_log_z_se": ((1 / ess(part) - 1) / 14) ** 0.5,
    "stage_ess_fraction": ess(part),
  }
  assert found.keys() == want.keys()
  for key, value in want.items():
    np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-6)
  # At both ends the sum is the reward's, or the path's, alone.
  np.testing.assert_array_equal(
    pdns.stage_log_weights(buffer, 1.0)[:8], buffer.log_ratio[:8]
  )
  np.testing.assert_array_equal(
    pdns.log_weights(buffer)[8:], np.full(6, -np.inf)
  )


def test_sharded_rules():
  rng = np.random.default_rng(2)
  ratio, reward = rng.normal(0, [[0.3], [3]], (2, 64)).astype(np.float32)
  # One shard of the eight has nothing that is finite.
  reward[:8] = np.inf
  buffer = pdns.Buffer(jnp.zeros((64, 1)), *map(jnp.asarray, (ratio, reward)))
  progress = at(0.8, allowed=0.0)

  def answers(buffer, axis_name=None):
    found = [rule(progress, buffer, axis_name) for rule in RULES.values()]
    return found, pdns.summary(buffer, *found[0], axis_name)

  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  sharded = jax.shard_map(
    lambda b: answers(b, "x"),
    mesh=mesh,
    in_specs=P("x"),
    out_specs=([(P(), P("x"))] * len(RULES), P()),
    check_vma=False,
  )
  got, want = (jax.device_get(jax.jit(f)(buffer)) for f in (sharded, answers))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
  # The control: a shard by itself goes elsewhere.
  part = jax.tree.map(lambda x: x[8:16], buffer)
  alone, _ = jax.jit(answers)(part)
  assert abs(float(alone[0][0].remaining) - want[0][0][0].remaining) > 1e-2


def test_draw():
  buffer = pdns.Buffer(jnp.arange(4.0)[:, None], jnp.zeros(4), jnp.zeros(4))
  log_w = jnp.log(jnp.array([0.5, 0.0, 0.25, 0.25]))
  drawn = pdns.draw(jax.random.key(0), buffer, log_w, 4)
  np.testing.assert_array_equal(drawn[:, 0], [0, 0, 2, 3])
  with pytest.raises(
    ValueError, match="buffer of 4 samples .* batch of num_samples=5"
  ):
    pdns.draw(jax.random.key(0), buffer, log_w, 5)


@pytest.mark.parametrize(
  "make, message",
  [
    (pdns.anchored, "exactly one of min_fraction and max_kl"),
    (
      functools.partial(pdns.relative, min_fraction=0.5, max_kl=1.0),
      "exactly one of min_fraction and max_kl",
    ),
    (functools.partial(pdns.anchored, min_fraction=1.0), r"lie in \(0, 1\)"),
    (functools.partial(pdns.relative, max_kl=-1.0), "max_kl must be positive"),
    (
      functools.partial(pdns.relative, max_kl=1.0, min_remaining=1.0),
      r"min_remaining must lie in \[0, 1\), got 1.0",
    ),
    (functools.partial(pdns.scheduled, [0.0, 0.5]), "remaining must fall"),
    (functools.partial(pdns.scheduled, [1.5, 0.5]), r"at most 1 .* got \[1.5"),
    (functools.partial(pdns.scheduled, [0.5, -0.1]), "to at least 0"),
    (functools.partial(pdns.scheduled, [np.nan]), "remaining must fall"),
    (functools.partial(pdns.scheduled, []), "remaining must fall"),
    (functools.partial(pdns.scheduled, 0.0), "remaining must have shape"),
  ],
)
def test_bad_rules(make, message):
  with pytest.raises(ValueError, match=message):
    make()
