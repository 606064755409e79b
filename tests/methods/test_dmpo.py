"""DMPO on 27 sequences: its target, its baselines and what they converge to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdiff import elbo
from jdiff.core import weights
from jdiff.methods import dmpo, wdce
from jdiff.targets import enumerate as enumerate_lib
from tests import helpers

LENGTH, VOCAB, TILT = 3, 3, 0.25
NETWORK = dict(logits_fn=helpers.table_logits(LENGTH, VOCAB), mask_id=VOCAB)
STATES = jnp.asarray(enumerate_lib.enumerate_states(LENGTH, VOCAB))
GROUP = 4


def log_probs(params):
  """The exact any-order law: `[27]`."""
  return elbo.exact_log_prob(params, STATES, **NETWORK)


def exact(params, key, tokens, valid=None):
  del key, valid
  return elbo.exact_elbo(params, tokens, **NETWORK)


def kl(target, params):
  return jnp.sum(jnp.exp(target) * (target - log_probs(params)))


def table_of(target):
  """The network whose conditionals are those of a law."""
  target = np.asarray(target, np.float64)
  return helpers.conditional_table(
    lambda x: target[x @ [9, 3, 1]], LENGTH, VOCAB
  )


def train(params, key, log_ref, rewards, rate, *, kind):
  """100 groups of 4, 8 SGD steps on each; also the largest gradient norm."""

  def inner(params, _, batch):
    grad = jax.grad(
      lambda p: dmpo.loss(
        p, key, batch, elbo_fn=exact, group_size=GROUP, baseline=kind
      )[0].mean()
    )(params)
    return params - rate * grad, jnp.sqrt(jnp.sum(grad**2))

  def outer(params, key):
    log_p = log_probs(params)
    index = jax.random.categorical(key, log_p, shape=(1, GROUP))
    samples = STATES[index.reshape(-1)]
    batch = dmpo.make_batch(
      samples,
      (log_ref - log_p)[index],
      rewards[index],
      reward_temperature=TILT,
      elbo_old=exact(params, None, samples),
    )
    step = functools.partial(inner, batch=batch)
    return jax.lax.scan(step, params, None, length=8)

  params, norms = jax.lax.scan(outer, params, jax.random.split(key, 100))
  return params, norms.max()


@jax.jit
def train_all(params, keys, log_ref, rewards, rate):
  """For each baseline and seed: KL to the target, E[reward], gradient norm."""
  target = dmpo.exact_target(log_ref, rewards, reward_temperature=TILT)

  def one(key, kind):
    fitted, norm = train(params, key, log_ref, rewards, rate, kind=kind)
    return kl(target, fitted), jnp.exp(log_probs(fitted)) @ rewards, norm

  return {
    kind: jax.vmap(functools.partial(one, kind=kind))(keys)
    for kind in dmpo.BASELINES
  }


@pytest.fixture(scope="module")
def rare():
  """A reference under which 2 of 27 sequences are good: 17 percent."""
  with jax.enable_x64(True):
    params = helpers.random_table(0, LENGTH, VOCAB, dtype=np.float64)
    log_ref = np.asarray(jax.jit(log_probs)(params))
    mass = np.exp(log_ref)[:, None] + np.exp(log_ref)[None]
    np.fill_diagonal(mass, np.inf)
    pair = np.unravel_index(np.argmin(np.abs(mass - 0.17)), mass.shape)
    rewards = jnp.zeros(27).at[np.array(pair)].set(1)
    return params, jnp.asarray(log_ref), rewards


def test_exact_expectation_finds_the_target(rare):
  """The 27 sequences as one group, weighted by the target's own law."""
  params, log_ref, rewards = (jnp.asarray(x, jnp.float32) for x in rare)
  target = dmpo.exact_target(log_ref, rewards, reward_temperature=TILT)
  np.testing.assert_allclose(jnp.exp(target).sum(), 1, rtol=1e-5)
  # Uniform rollouts: the ratio is p_ref but for a constant.
  batch = dmpo.make_batch(
    STATES, log_ref[None], rewards[None], reward_temperature=TILT
  )
  np.testing.assert_allclose(
    weights.normalise(batch.log_weights), jnp.exp(target), rtol=1e-5
  )
  optimizer = optax.adam(0.1)

  def step(carry, key):
    params, state = carry
    grad = jax.grad(
      lambda p: dmpo.loss(
        p, key, batch, elbo_fn=exact, group_size=27, baseline="none"
      )[0].mean()
    )(params)
    updates, state = optimizer.update(grad, state)
    return (optax.apply_updates(params, updates), state), None

  @jax.jit
  def fit(params, keys):
    start = params, optimizer.init(params)
    (fitted, _), _ = jax.lax.scan(step, start, keys)
    return kl(target, params), kl(target, fitted)

  before, after = fit(params, jax.random.split(jax.random.key(0), 150))
  assert before > 1 and after < 1e-4


def test_at_the_target_only_two_baselines_are_silent(rare):
  _, log_ref, rewards = rare
  with jax.enable_x64(True):
    target = dmpo.exact_target(log_ref, rewards, reward_temperature=TILT)
    params = jnp.asarray(table_of(target))
    np.testing.assert_allclose(jax.jit(log_probs)(params), target, atol=1e-12)
    keys = jax.random.split(jax.random.key(0), 16)
    out = train_all(params, keys, log_ref, rewards, 0.3)
    gap = {kind: np.median(values[0]) for kind, values in out.items()}
    for kind in ("group", "model"):
      assert out[kind][2].max() < 1e-12 and abs(gap[kind]) < 1e-12
    # The unbaselined law diffuses, the negative one leaves.
    assert gap["none"] > 1e-4 and gap["negative"] > 2 * gap["none"]


def test_a_small_group_reused(rare):
  """N = 4, 8 steps on each group: where the baselines part."""
  params, log_ref, rewards = rare
  with jax.enable_x64(True):
    target = dmpo.exact_target(log_ref, rewards, reward_temperature=TILT)
    keys = jax.random.split(jax.random.key(0), 16)
    out = train_all(params, keys, log_ref, rewards, 1.0)
    # Means of 16 seeds. Measured: none 0.72, group 0.026, model 0.024.
    gap = {kind: values[0].mean() for kind, values in out.items()}
    assert gap["group"] < 0.1 and gap["model"] < 0.1
    assert gap["none"] > 3 * gap["group"]
    # A reward maximiser: past the target's own reward, and away from it.
    assert out["negative"][1].mean() > jnp.exp(target) @ rewards
    assert gap["negative"] > 0.5


RATIO = jnp.array([[-0.2, 0.4, -0.6, 0.4]])
REWARD = jnp.array([[1.0, 0.0, 0.5, 0.0]])


def shares(log_weights):
  return jax.vmap(weights.normalise)(log_weights)


@pytest.mark.parametrize(
  "temperature, want, ess",
  [
    (0.25, [0.863957, 0.028833, 0.078376, 0.028833], 0.3315),
    (1.0, [0.364006, 0.244, 0.147994, 0.244], None),
    (0.04, [0.9999975, 0, 0, 0], 0.25),
  ],
)
def test_worked_figures(temperature, want, ess):
  log_w = dmpo.log_weights(RATIO, REWARD, reward_temperature=temperature)
  np.testing.assert_allclose(shares(log_w)[0], want, atol=3e-6)
  if ess is not None:
    np.testing.assert_allclose(weights.ess_fraction(log_w[0]), ess, atol=1e-4)
  # A constant in either changes nothing.
  moved = dmpo.log_weights(
    RATIO + 3, REWARD - 2, reward_temperature=temperature
  )
  np.testing.assert_allclose(shares(moved), shares(log_w), atol=1e-5)


def test_coefficients():
  options = dict(reward_temperature=0.25)
  full = dmpo.log_weights(RATIO, REWARD, **options)
  half = dmpo.log_weights(RATIO, REWARD, coefficient=0.5, **options)
  np.testing.assert_allclose(half, full / 2, rtol=1e-6)
  # Each group by itself: a sharp one is flattened, a flat one left.
  ratio, reward = jnp.tile(RATIO, (2, 1)), jnp.stack([REWARD[0], 0 * REWARD[0]])
  log_w = dmpo.log_weights(ratio, reward, min_ess_fraction=0.7, **options)
  fraction = jax.vmap(weights.ess_fraction)(log_w)
  np.testing.assert_allclose(fraction[0], 0.7, atol=1e-4)
  np.testing.assert_array_equal(log_w[1], RATIO[0])
  # The opposite tilt has the same exponent.
  batch = dmpo.make_batch(
    jnp.zeros((8, 3), jnp.int32), ratio, reward, min_ess_fraction=0.7, **options
  )
  exponent = log_w[0, 0] / full[0, 0]
  np.testing.assert_allclose(
    batch.opposite[:4], exponent * (RATIO - REWARD / 0.25)[0], rtol=1e-4
  )
  # Noise of an ELBO does not own a group.
  far = dmpo.log_weights(1e6 * RATIO, REWARD, **options)
  np.testing.assert_allclose(far, jnp.sign(RATIO) * 50 + REWARD * 4, rtol=1e-6)


def test_weights_are_even_where_rollouts_follow_the_target(rare):
  _, log_ref, rewards = (jnp.asarray(x, jnp.float32) for x in rare)
  target = dmpo.exact_target(log_ref, rewards, reward_temperature=TILT)
  log_w = dmpo.log_weights(
    (log_ref - target)[None], rewards[None], reward_temperature=TILT
  )
  np.testing.assert_allclose(shares(log_w), np.full((1, 27), 1 / 27), rtol=1e-4)


def test_baselines():
  normal = np.random.default_rng(0).normal(size=(4, 2, GROUP))
  log_w, opposite, new, old = jnp.asarray(normal, jnp.float32)
  log_w = log_w.at[0, 1].set(-jnp.inf)
  more = dict(opposite=opposite, elbo=new, elbo_old=old)
  for kind in dmpo.BASELINES:
    got = dmpo.baseline(kind, log_w, **more)
    assert got[0, 1] == 0
    factors = wdce.coefficients(
      log_w.reshape(-1), group_size=GROUP, baseline=got.reshape(-1)
    ).reshape(2, GROUP)
    total = GROUP if kind == "none" else 0
    np.testing.assert_allclose(factors.sum(axis=1), total, atol=1e-5)
    # The missing one is neither pushed up nor down.
    assert factors[0, 1] == 0
  # Before the first inner step the model's is the group's.
  np.testing.assert_allclose(
    dmpo.baseline("model", log_w, elbo=old, elbo_old=old),
    dmpo.baseline("group", log_w),
    rtol=1e-6,
  )
  want = jax.nn.softmax((new - old)[1])
  np.testing.assert_allclose(
    dmpo.baseline("model", log_w, **more)[1] / GROUP, want, rtol=1e-5
  )


def test_missing_and_tied_rewards():
  """Under a trace: no NaN, and nothing from what is left out."""
  params = helpers.random_table(0, LENGTH, VOCAB)
  samples = STATES[jnp.arange(16)]
  rewards = jnp.array(
    [[1.0, np.nan, 0.0, 0.5], [np.nan] * 4, [0.3] * 4, [0.0, 1.0, 0.0, 1.0]]
  )

  @functools.partial(jax.jit, static_argnums=1)
  def run(rewards, skip_tied):
    batch = dmpo.make_batch(
      samples,
      jnp.zeros((4, 4)),
      rewards,
      reward_temperature=TILT,
      skip_tied=skip_tied,
      min_ess_fraction=0.4,
      elbo_old=exact(params, None, samples) + 0.1 * jnp.arange(16),
    )

    def mean(params, kind):
      value, info = dmpo.loss(
        params,
        jax.random.key(0),
        batch,
        elbo_fn=exact,
        group_size=4,
        baseline=kind,
      )
      return value.mean(), (value, info)

    kinds = ("group",) if skip_tied else dmpo.BASELINES
    return [jax.grad(mean, has_aux=True)(params, kind) for kind in kinds]

  for skip_tied in (False, True):
    for grad, (value, info) in run(rewards, skip_tied):
      assert bool(jnp.isfinite(grad).all()) and float(info["ess_fraction"]) > 0
      value = value.reshape(4, 4)
      assert value[0, 1] == 0 and (value[0, [0, 2]] != 0).all()
      assert (value[1] == 0).all() and (value[3] != 0).all()
      kept = 7 + 4 * (not skip_tied)
      np.testing.assert_allclose(info["kept_fraction"], kept / 16)
    if skip_tied:
      assert (value[2] == 0).all()


def test_wdce_by_groups():
  """One call for all groups is the mean of a call for each."""
  params = helpers.random_table(0, LENGTH, VOCAB)
  rng = np.random.default_rng(1)
  samples = STATES[rng.integers(27, size=8)]
  log_w, base = jnp.asarray(rng.normal(size=(2, 8)), jnp.float32)
  keys = jax.random.split(jax.random.key(0), 8)

  @functools.partial(jax.jit, static_argnames="group_size")
  def call(keys, samples, log_w, base, group_size=None):
    return wdce.wdce(
      params,
      keys,
      samples,
      log_w,
      group_size=group_size,
      baseline=base,
      num_prompt=1,
      **NETWORK,
    )[0]

  got = call(keys, samples, log_w, base, group_size=4)
  for i in (0, 4):
    part = [x[i : i + 4] for x in (keys, samples, log_w, base)]
    np.testing.assert_allclose(got[i : i + 4], call(*part), rtol=1e-5)
  # The control: weights over the batch are others.
  assert float(jnp.abs(got - call(keys, samples, log_w, base)).max()) > 1e-2


def test_the_loss_is_wdce():
  params = helpers.random_table(0, LENGTH, VOCAB)
  rng = np.random.default_rng(1)
  samples = STATES[rng.integers(27, size=8)]
  log_w = jnp.asarray(rng.normal(size=8), jnp.float32)
  law = elbo.node_masks(2)
  batch = dmpo.make_batch(
    samples, log_w.reshape(2, 4), jnp.zeros((2, 4)), reward_temperature=TILT
  )

  @jax.jit
  def both(params, key):
    ours, _ = dmpo.loss(
      params,
      key,
      batch,
      elbo_fn=elbo.estimator(law=law, num_prompt=1, **NETWORK),
      group_size=4,
    )
    theirs, _ = wdce.wdce(
      params,
      key,
      samples,
      log_w,
      group_size=4,
      baseline=jnp.ones(8),
      draw_masks=law,
      num_prompt=1,
      **NETWORK,
    )
    return ours, theirs

  ours, theirs = both(params, jax.random.key(0))
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_bad_input():
  good = dict(reward_temperature=TILT)
  nan = jnp.full((1, 4), jnp.nan)
  cases = [
    (RATIO, REWARD, dict(reward_temperature=0), "reward_temperature must be"),
    (RATIO, REWARD, dict(reward_temperature=-1), "must be positive and finite"),
    (RATIO, nan, good, "got none in group 0"),
    (RATIO, REWARD[:, :3], good, r"log_ratio must have shape \[1, 3\]"),
    (RATIO[:, :1], REWARD[:, :1], good, r"N >= 2.*got N=1"),
    (RATIO, REWARD, good | dict(coefficient=1.5), "coefficient must lie in"),
    (RATIO, REWARD, good | dict(min_ess_fraction=2), "must lie in"),
  ]
  for ratio, reward, options, message in cases:
    with pytest.raises(ValueError, match=message):
      dmpo.log_weights(ratio, reward, **options)
  with pytest.raises(ValueError, match=r"samples must have shape \[4, \*\]"):
    dmpo.make_batch(STATES, RATIO, REWARD, **good)
  batch = dmpo.make_batch(STATES[:4], RATIO, REWARD, **good)
  params = helpers.random_table(0, LENGTH, VOCAB)
  call = functools.partial(
    dmpo.loss, params, jax.random.key(0), batch, elbo_fn=exact
  )
  with pytest.raises(ValueError, match="group_size must divide the 4 entries"):
    call(group_size=3)
  with pytest.raises(ValueError, match="group_size must be >= 2, got 1"):
    call(group_size=1)
  with pytest.raises(ValueError, match="baseline must be one of none, group"):
    call(group_size=4, baseline="individual")
  with pytest.raises(ValueError, match="baseline 'model' needs elbo"):
    call(group_size=4, baseline="model")
  with pytest.raises(ValueError, match="baseline 'negative' needs opposite"):
    dmpo.baseline("negative", RATIO)
  with pytest.raises(ValueError, match="axis_name must be None"):
    wdce.coefficients(RATIO[0], group_size=2, axis_name="x")
