"""PDNS: rules on fixed weights, exact stage weights, exact optima."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jdiff import targets
from jdiff.core import weights
from jdiff.methods import pdns, wdce
from jdiff.sde import references
from jdiff.targets import enumerate as enumerate_lib
from tests import helpers

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
  with pytest.raises(ValueError, match="buffer of 4 samples .* batch of 5"):
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


# Weights of stages.

STAGES = (0.9, 0.4, 0.0)


def check_normalisers(buffer, exact):
  """`E[exp(stage weights)]` against exact values at several `lam`."""
  found = {}
  for lam in STAGES:
    log_w = np.asarray(pdns.stage_log_weights(buffer, lam), np.float64)
    w = np.exp(log_w - exact(lam))
    error = w.std() / len(w) ** 0.5
    assert error < 0.02
    assert abs(w.mean() - 1) < 5 * error
    found[lam] = w.mean() * np.exp(exact(lam)), error
  # The control: the normaliser of another stage is far away.
  value, error = found[0.4]
  assert abs(value / np.exp(exact(0.5)) - 1) > 10 * error


@pytest.mark.parametrize("size", [2, 3])
def test_masked_stages(size):
  target = targets.ising(size, beta=0.6 / size, field=0.1)
  length = size**2
  sampler = pdns.masked(
    target, logits_fn=helpers.table_logits(length, 2), mask_id=2
  )
  table = helpers.random_table(0, length, 2, scale=0.3)
  collect = jax.jit(sampler.collect, static_argnums=2)
  buffer = collect(table, jax.random.key(0), 30_000)
  states = enumerate_lib.enumerate_states(length, 2)
  log_prob = np.float64(jax.vmap(target.log_prob)(jnp.asarray(states)))

  def exact(lam):
    tilted = (1 - lam) * log_prob
    return np.logaddexp.reduce(tilted) - lam * length * np.log(2)

  np.testing.assert_allclose(exact(0.0), target.log_z, rtol=1e-5)
  check_normalisers(buffer, exact)
  # The sampler is not its reference, nor the target.
  assert buffer.log_ratio.std() > 0.2


MEAN, STD, SCALE = 0.8, 0.5, 1.5


def narrow():
  law = targets.mixtures.mixture([1.0], [[MEAN]], STD**2)
  return targets.gaussian_mixture(law, log_z=0.7)


def residual(params, x, t):
  """Neither zero nor good."""
  return params["net"] * (jnp.sin(2 * x + 1) - 0.5 * jnp.cos(3 * t)[:, None])


def controlled(target, residual_fn=residual):
  return pdns.gaussian(
    target,
    residual_fn=residual_fn,
    reference=references.brownian(scale=SCALE),
    num_steps=8,
    spread=lambda params: params["spread"],
  )


@pytest.mark.slow
def test_gaussian_stages():
  law = targets.mixtures.mixture([0.7, 0.3], [[1.0], [-1.0]], 0.5)
  target = targets.gaussian_mixture(law, log_z=0.4)
  sampler = controlled(target)
  params = {"net": 0.3, "spread": jnp.linspace(1.0, 0.8, 8)}
  collect = jax.jit(sampler.collect, static_argnums=2)
  buffer = collect(params, jax.random.key(0), 20_000)

  with jax.enable_x64(True):
    grid = jnp.linspace(-12, 12, 4001)
    step = float(grid[1] - grid[0])
    log_prob = np.asarray(jax.vmap(target.log_prob)(grid[:, None]))
    log_ref = np.asarray(
      jax.scipy.stats.norm.logpdf(grid, jnp.float64(0), SCALE)
    )

  def exact(lam):
    mixed = (1 - lam) * log_prob + lam * log_ref
    return np.logaddexp.reduce(mixed) + np.log(step)

  np.testing.assert_allclose(exact(0.0), 0.4, atol=1e-6)
  np.testing.assert_allclose(exact(1.0), 0.0, atol=1e-6)
  check_normalisers(buffer, exact)
  assert buffer.log_ratio.std() > 0.2
  upper = jax.jit(sampler.eubo)(
    params, jax.random.key(1), target.sample(jax.random.key(2), 4000)
  )
  upper = np.float64(upper)
  error = upper.std() / 4000**0.5
  # E_P*[W] - log Z is a KL, of a policy that is far from the best.
  assert upper.mean() - 0.4 > 5 * error
  inverse = np.exp(0.4 - upper)
  assert abs(inverse.mean() - 1) < 5 * inverse.std() / 4000**0.5


def test_collection_has_no_gradient():
  sampler = controlled(narrow())

  def total(net):
    params = {"net": net, "spread": jnp.ones(8)}
    buffer = sampler.collect(params, jax.random.key(0), 8)
    return buffer.log_ratio.sum() + buffer.samples.sum()

  assert jax.jit(jax.grad(total))(0.3) == 0


def test_bad_samplers():
  with pytest.raises(ValueError, match="reference.centred must be set"):
    controlled(targets.double_well_particles(3))
  with pytest.raises(ValueError, match="reference.centred must be set"):
    pdns.gaussian(
      narrow(),
      residual_fn=residual,
      reference=references.brownian(centred=True),
    )
  with pytest.raises(ValueError, match="target must be discrete"):
    pdns.masked(narrow(), logits_fn=None, mask_id=2)
  with pytest.raises(ValueError, match="target must be continuous"):
    controlled(targets.ising(2, beta=0.3))
  rollout = jax.eval_shape(
    lambda: controlled(narrow()).rollout(
      {"net": 0.1, "spread": jnp.ones(8)}, jax.random.key(0), 2
    )
  )
  with pytest.raises(ValueError, match="no exact log_ratio"):
    pdns.weigh(rollout._replace(log_ratio=None), lambda x: x.sum())


# What a stage's regression comes to.


def every_mask(key, valid):
  """The law of masks with uniform counts, summed instead of drawn."""
  del key
  masks = np.argwhere(np.ones((2,) * valid.shape[0]))[1:].astype(bool)
  count = masks.sum(axis=1)
  choose = np.array([1, 4, 6, 4, 1])[count]
  return jnp.asarray(masks), jnp.asarray(len(masks) / (count * choose))


def test_a_masked_stage_ends_at_the_tempered_conditionals():
  with jax.enable_x64(True):
    target = targets.ising(2, beta=0.4, field=0.3)
    states = jnp.asarray(enumerate_lib.enumerate_states(4, 2))
    sampler = pdns.masked(
      target,
      logits_fn=helpers.table_logits(4, 2),
      mask_id=2,
      draw_masks=every_mask,
    )
    # What the untrained sampler draws, each state as often as it does.
    buffer = pdns.Buffer(
      states, jnp.zeros(16), jax.vmap(sampler.reward)(states)
    )

    @jax.jit
    def slope(table, log_w):
      return jax.grad(
        lambda p: sampler.loss(p, jax.random.key(0), states, log_w)[0].mean()
      )(table)

    def optimum(lam):
      table = helpers.conditional_table(
        lambda x: (1 - lam) * float(target.log_prob(jnp.asarray(x))), 4, 2
      )
      return jnp.asarray(table)

    log_w = pdns.stage_log_weights(buffer, 0.6)
    np.testing.assert_allclose(slope(optimum(0.6), log_w), 0, atol=1e-12)
    # The controls: another stage's optimum, and no weights.
    assert jnp.abs(slope(optimum(0.0), log_w)).max() > 1e-3
    assert jnp.abs(slope(optimum(0.6), jnp.zeros(16))).max() > 1e-3


@pytest.mark.slow
def test_a_gaussian_stage_ends_at_the_tempered_expectation():
  # Linear in four parameters, the best of which are known: the law
  # target^(1 - lam) reference^lam is Gaussian, exp(h x - p x^2 / 2) times the
  # reference, and its residual (h - p x) s sqrt(t) / (1 + p s^2 t).
  lam = 0.4
  precision = (1 - lam) * (1 / STD**2 - 1 / SCALE**2)
  slope = (1 - lam) * MEAN / STD**2

  def basis(x, t):
    noise = SCALE * jnp.sqrt(t)[:, None]
    factor = noise / (1 + precision * noise**2)
    return jnp.stack([factor, factor * x, noise, noise * x])

  def linear(params, x, t):
    return jnp.tensordot(params, basis(x, t), 1)

  drawn = controlled(narrow())
  reference = references.brownian(scale=SCALE)
  policy = {"net": 0.3, "spread": jnp.full(8, 0.9)}

  @jax.jit
  def fit(key):
    key_draw, key_fit = jax.random.split(key)
    buffer = drawn.collect(policy, key_draw, 4096)
    log_w = pdns.stage_log_weights(buffer, lam)

    def solve(log_w):
      def loss(params):
        value, _ = wdce.bridge_wdce(
          params,
          key_fit,
          buffer.samples,
          log_w,
          residual_fn=linear,
          reference=reference,
        )
        return value.mean()

      # Quadratic: one Newton step is the solution.
      start = jnp.zeros(4)
      return -jnp.linalg.solve(jax.hessian(loss)(start), jax.grad(loss)(start))

    return solve(log_w), solve(jnp.zeros(4096))

  keys = jax.random.split(jax.random.key(0), 32)
  weighted, plain = (np.float64(a) for a in jax.lax.map(fit, keys))
  # The second pair is not needed, and comes out as zero.
  want = np.array([slope, -precision, 0, 0])

  # By answers: the parameters themselves are nearly collinear.
  x, t = jnp.linspace(-1.0, 2.0, 12)[:, None], jnp.linspace(0.05, 0.95, 12)
  shapes = np.asarray(basis(x, t), np.float64)[..., 0]
  answers, exact = weighted @ shapes, want @ shapes
  error = answers.std(axis=0, ddof=1) / 32**0.5
  assert error.max() < 0.03
  # The self-normalised weights' bias is a tenth of the error.
  assert (np.abs(answers.mean(axis=0) - exact) < 5 * error).all()
  # The control: without weights it is the law that was drawn.
  assert np.abs(plain.mean(axis=0) @ shapes - exact).max() > 20 * error.max()
