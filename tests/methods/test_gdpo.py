"""GDPO and its one-step baseline on a network with a table of logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import elbo
from jdiff.methods import diffu_grpo, gdpo
from jdiff.targets import enumerate as enumerate_lib
from tests import helpers

LENGTH, VOCAB, MU = 3, 3, 2
LOGITS = helpers.table_logits(LENGTH, VOCAB)
STATES = jnp.asarray(enumerate_lib.enumerate_states(LENGTH, VOCAB))
SAMPLES = STATES[jnp.array([0, 5, 13, 26])]
REWARDS = jnp.array([[1.0, 0.0], [0.25, 0.75]])
LENGTHS = jnp.array([3, 3, 2, 1])
NETWORK = dict(logits_fn=LOGITS, mask_id=VOCAB)


exact_elbo = jax.jit(functools.partial(elbo.exact_elbo, **NETWORK))


def exact(params, key, tokens, valid=None):
  del key, valid
  return exact_elbo(params, tokens)


ESTIMATOR = elbo.estimator(law=elbo.node_masks(2), **NETWORK)


def exact_batch(old, ref=None):
  return gdpo.Batch(
    SAMPLES,
    gdpo.group_advantages(REWARDS).reshape(-1),
    LENGTHS,
    exact(old, None, SAMPLES),
    None if ref is None else exact(ref, None, SAMPLES),
  )


@functools.partial(jax.jit, static_argnames=("options",))
def loss_and_grad(params, key, batch, options=()):
  def mean(params):
    value, info = gdpo.loss(params, key, batch, elbo_fn=exact, **dict(options))
    return value.mean(), (value, info)

  grad, aux = jax.grad(mean, has_aux=True)(params)
  return *aux, grad


@jax.jit
def reinforce(params, factors):
  """The gradient of the loss `-mean(factors * elbo)`."""
  return jax.grad(lambda p: -jnp.mean(factors * exact(p, None, SAMPLES)))(
    params
  )


def test_advantages():
  got = gdpo.group_advantages(REWARDS)
  np.testing.assert_allclose(got, [[0.5, -0.5], [-0.25, 0.25]])
  # Less the mean of the others.
  got = gdpo.group_advantages(jnp.array([[1.0, 2, 6]]), leave_one_out=True)
  np.testing.assert_allclose(got, [[-3, -1.5, 4.5]])
  got = gdpo.group_advantages(REWARDS, normalise_std=True)
  np.testing.assert_allclose(
    got, 0.5**0.5 * np.array([[1, -1], [-1, 1]]), rtol=1e-3
  )
  # 0.1 has no exact mean in binary; dividing by a spread of zero must not
  # make an advantage of the rounding.
  tied = gdpo.group_advantages(jnp.full((1, 7), 0.1), normalise_std=True)
  assert (tied == 0).all()


@pytest.mark.parametrize("norm", ["length", "none"])
def test_first_step_is_reinforce(norm):
  with jax.enable_x64(True):
    params = helpers.random_table(0, LENGTH, VOCAB, dtype=np.float64)
    batch = exact_batch(params)
    _, info, grad = loss_and_grad(
      params, jax.random.key(0), batch, (("ratio_norm", norm),)
    )
    want = jax.grad(
      lambda p: -jnp.mean(batch.advantages * exact(p, None, SAMPLES) / LENGTHS)
    )(params)
    np.testing.assert_allclose(grad, want, atol=1e-12)
    assert float(jnp.abs(want).max()) > 1e-2
    # The clip is dormant.
    assert info["clip_fraction"] == 0
    for name in ("ratio_mean", "ess_fraction"):
      np.testing.assert_allclose(info[name], 1, rtol=1e-12)


def test_equal_rewards_give_no_gradient():
  params, old = (helpers.random_table(i, LENGTH, VOCAB) for i in range(2))
  batch = exact_batch(old)._replace(
    advantages=gdpo.group_advantages(jnp.full((2, 2), 0.1)).reshape(-1)
  )
  value, _, grad = loss_and_grad(params, jax.random.key(0), batch)
  assert (value == 0).all() and (grad == 0).all()


@pytest.mark.parametrize("norm", ["length", "none"])
def test_clip(norm):
  """Values and dead gradients against the formula, sample by sample."""
  params, old = (helpers.random_table(i, LENGTH, VOCAB) for i in range(2))
  batch = exact_batch(old)
  value, info, grad = loss_and_grad(
    params, jax.random.key(0), batch, (("ratio_norm", norm), ("clip", 0.1))
  )
  change = exact(params, None, SAMPLES) - batch.elbo_old
  size = np.asarray(LENGTHS, np.float32)
  ratio = np.exp(change / size if norm == "length" else change)
  advantages = np.asarray(batch.advantages)
  free, clipped = ratio * advantages, np.clip(ratio, 0.9, 1.1) * advantages
  want = np.minimum(free, clipped) / (1 if norm == "length" else size)
  np.testing.assert_allclose(value, -want, rtol=1e-4)
  dead = clipped < free
  assert info["clip_fraction"] == dead.mean() and 0 < dead.sum() < 4
  np.testing.assert_allclose(info["ratio_mean"], ratio.mean(), rtol=1e-4)

  want = reinforce(params, jnp.where(dead, 0, advantages * ratio / size))
  np.testing.assert_allclose(grad, want, atol=1e-5)


def test_far_ratios_do_not_overflow():
  batch = exact_batch(helpers.random_table(0, LENGTH, VOCAB))
  far = batch._replace(
    elbo_old=batch.elbo_old - 1e4, elbo_ref=batch.elbo_old + 1e4
  )
  value, info, grad = loss_and_grad(
    helpers.random_table(0, LENGTH, VOCAB),
    jax.random.key(0),
    far,
    (("ratio_norm", "none"), ("kl_weight", 0.1)),
  )
  assert bool(jnp.isfinite(value).all()) and bool(jnp.isfinite(grad).all())
  assert info["ratio_mean"] < np.exp(20.1)


@pytest.mark.parametrize(
  "kind, form",
  [
    ("k1", lambda d: -d),
    ("k2", lambda d: d**2 / 2),
    ("k3", lambda d: np.exp(d) - d - 1),
  ],
)
def test_kl_forms(kind, form):
  params, ref = (helpers.random_table(i, LENGTH, VOCAB) for i in range(2))
  batch = exact_batch(params, ref)
  value, info, _ = loss_and_grad(
    params, jax.random.key(0), batch, (("kl_weight", 0.3), ("kl", kind))
  )
  d = np.asarray(batch.elbo_ref - batch.elbo_old) / np.asarray(LENGTHS)
  want = -batch.advantages + 0.3 * form(d)
  np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(info["kl"], form(d).mean(), rtol=1e-4)


def test_kl_gradients_are_what_the_docstring_says():
  with jax.enable_x64(True):
    theta = jnp.asarray(np.random.default_rng(0).normal(size=5))
    log_ref = jax.nn.log_softmax(jnp.arange(5.0) / 3)
    log_p = jax.nn.log_softmax
    weight = jnp.exp(log_p(theta))

    def penalty(kind):
      return jax.grad(
        lambda t: jnp.sum(weight * gdpo.kl_estimate(log_ref - log_p(t), kind))
      )(theta)

    def kl(t):
      return jnp.sum(jnp.exp(log_p(t)) * (log_p(t) - log_ref))

    def reverse(t):
      return -jnp.sum(jnp.exp(log_ref) * log_p(t))

    np.testing.assert_allclose(penalty("k1"), jnp.zeros(5), atol=1e-14)
    np.testing.assert_allclose(penalty("k2"), jax.grad(kl)(theta), rtol=1e-9)
    np.testing.assert_allclose(
      penalty("k3"), jax.grad(reverse)(theta), rtol=1e-9
    )


def test_old_and_new_share_masks():
  """The ratio is one at equal parameters, step by step, and its noise small."""
  params = helpers.random_table(0, LENGTH, VOCAB)
  keys = jax.random.split(jax.random.key(0), MU)
  old = jax.jit(lambda p, k: gdpo.old_elbos(p, k, SAMPLES, elbo_fn=ESTIMATOR))(
    params, keys
  )
  assert old.shape == (MU, 4)
  # The steps have masks of their own.
  assert float(jnp.abs(old[0] - old[1]).max()) > 1e-2

  @jax.jit
  def negated_ratio(key, old):
    batch = gdpo.Batch(SAMPLES, jnp.ones(4), LENGTHS, old)
    return gdpo.loss(params, key, batch, elbo_fn=ESTIMATOR, clip=9.0)[0]

  for step in range(MU):
    np.testing.assert_allclose(
      negated_ratio(keys[step], old[step]), -1, atol=1e-6
    )
    # The control: another step's masks.
    other = negated_ratio(keys[step - 1], old[step])
    assert float(jnp.abs(other + 1).max()) > 1e-2
  grad = jax.jit(
    jax.grad(
      lambda p: gdpo.old_elbos(p, keys, SAMPLES, elbo_fn=ESTIMATOR).sum()
    )
  )(params)
  assert (grad == 0).all()


def test_ascends_to_the_best_sequence():
  """On policy, with exact ELBOs, the expected reward goes up."""
  reward = (STATES == jnp.array([2, 0, 1])[None]).mean(axis=1)
  every = STATES.reshape(-1, LENGTH)

  def log_probs(params):
    return elbo.exact_log_prob(params, every, **NETWORK)

  def step(params, key):
    index = jax.random.categorical(key, log_probs(params), shape=(8, 8))
    samples = every[index.reshape(-1)]
    batch = gdpo.Batch(
      samples,
      gdpo.group_advantages(reward[index]).reshape(-1),
      jnp.full(64, LENGTH),
      exact(params, key, samples),
    )
    grad = jax.grad(
      lambda p: gdpo.loss(p, key, batch, elbo_fn=exact)[0].mean()
    )(params)
    expected = jnp.sum(jnp.exp(log_probs(params)) * reward)
    return params - 20 * grad, expected

  params = helpers.random_table(0, LENGTH, VOCAB, scale=0.3)
  _, expected = jax.jit(lambda p, k: jax.lax.scan(step, p, k))(
    params, jax.random.split(jax.random.key(1), 60)
  )
  assert expected[0] < 0.5 and expected[-1] > 0.9


def test_one_step_estimate():
  """No likelihood: it and its gradient see the empty canvas alone."""
  params = helpers.random_table(0, LENGTH, VOCAB)
  estimate = jax.jit(diffu_grpo.one_step(**NETWORK))
  got = estimate(params, jax.random.key(0), SAMPLES)
  empty = jax.nn.log_softmax(params[-1])
  np.testing.assert_allclose(
    got, empty[np.arange(LENGTH)[None], SAMPLES], rtol=1e-5
  )
  old = gdpo.old_elbos(
    params,
    jax.random.split(jax.random.key(1), MU),
    SAMPLES,
    elbo_fn=estimate,
  )
  batch = diffu_grpo.Batch(
    SAMPLES, gdpo.group_advantages(REWARDS).reshape(-1), old[0]
  )

  @functools.partial(jax.jit, static_argnames="kl_weight")
  @functools.partial(jax.grad, has_aux=True)
  def gradient(p, batch, kl_weight=0.0):
    value, info = diffu_grpo.loss(
      p,
      jax.random.key(1),
      batch,
      log_probs_fn=estimate,
      kl_weight=kl_weight,
    )
    return value.mean(), info

  grad, info = gradient(params, batch)
  assert (grad[:-1] == 0).all() and float(jnp.abs(grad[-1]).max()) > 1e-2
  # REINFORCE on the mean of the tokens' log-probabilities, by its formula.
  error = jnp.eye(VOCAB)[SAMPLES] - jnp.exp(empty)[None]
  want = -jnp.mean(batch.advantages[:, None, None] * error, axis=0) / LENGTH
  np.testing.assert_allclose(grad[-1], want, atol=1e-6)
  assert info["clip_fraction"] == 0
  # Tokens that are not valid, and their old log-probabilities, do not count.
  valid = jnp.arange(LENGTH)[None] < LENGTHS[:, None]
  part = batch._replace(valid=valid, log_probs_ref=old[0] + 0.1)
  spoilt = part._replace(log_probs_old=jnp.where(valid, old[0], 7.0))
  np.testing.assert_array_equal(
    gradient(params, part, 0.5)[0], gradient(params, spoilt, 0.5)[0]
  )


def test_one_step_masks_part_of_the_prompt():
  seen = []

  def logits_fn(params, tokens, t, sites=None):
    seen.append((tokens, t, sites))
    return jnp.zeros((tokens.shape[0], len(sites), 4)) + params

  samples = jnp.tile(jnp.arange(400)[None] % 3, (16, 1)).astype(jnp.int32)
  estimate = diffu_grpo.one_step(logits_fn=logits_fn, mask_id=3, num_prompt=395)

  @jax.jit
  def run(key, samples):
    log_probs = estimate(0.0, key, samples)
    tokens, t, _ = seen[-1]
    return log_probs, tokens, t

  keys = jax.random.split(jax.random.key(0), 16)
  got, tokens, t = run(keys, samples)
  # The mask inside the vocabulary is not predicted: three tokens are left.
  np.testing.assert_allclose(got, np.full((16, 5), -np.log(3)), rtol=1e-6)
  tokens = np.asarray(tokens)
  assert (tokens[:, 395:] == 3).all() and (np.asarray(t) == 1).all()
  assert seen[0][2].tolist() == list(range(395, 400))
  hidden = tokens[:, :395] == 3
  # 6320 tokens: a standard error of 0.0045.
  assert abs(hidden.mean() - 0.15) < 0.018
  assert not (hidden[0] == hidden[1]).all()
  # An example's prompt mask is its own, wherever it stands in the batch.
  _, part, _ = run(keys[4:8], samples[4:8])
  np.testing.assert_array_equal(part, tokens[4:8])


def test_bad_input():
  params = helpers.random_table(0, LENGTH, VOCAB)
  batch = exact_batch(params)
  key = jax.random.key(0)
  with pytest.raises(ValueError, match=r"N >= 2.*got N=1"):
    gdpo.group_advantages(jnp.ones((4, 1)))
  with pytest.raises(ValueError, match="rewards must be finite, got 1 of 4"):
    gdpo.group_advantages(jnp.array([[1.0, jnp.nan], [0, 0]]))
  with pytest.raises(ValueError, match=r"rewards must have shape \[\*, \*\]"):
    gdpo.group_advantages(jnp.ones(4))
  cases = [
    (dict(clip=0.0), "clip must be positive"),
    (dict(ratio_norm="token"), "ratio_norm must be 'length' or 'none'"),
    (dict(kl="k4", kl_weight=0.1), "kl must be 'k1', 'k2' or 'k3', got 'k4'"),
    (dict(kl_weight=0.1), "batch.elbo_ref must be given"),
  ]
  for options, message in cases:
    with pytest.raises(ValueError, match=message):
      gdpo.loss(params, key, batch, elbo_fn=exact, **options)
  with pytest.raises(ValueError, match=r"batch.advantages must have shape"):
    gdpo.loss(
      params, key, batch._replace(advantages=jnp.ones(3)), elbo_fn=exact
    )
  with pytest.raises(ValueError, match=r"keys must have shape \[mu\]"):
    gdpo.old_elbos(params, key, SAMPLES, elbo_fn=exact)
  with pytest.raises(ValueError, match="prompt_mask_prob must lie in"):
    diffu_grpo.one_step(prompt_mask_prob=15, **NETWORK)
