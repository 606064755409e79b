"""Branches and rollouts of a policy, weighed back to an enumerable law."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy import stats

from jdiff import ctmc, elbo
from jdiff.core import keys as keys_lib
from jdiff.core import orders
from jdiff.ctmc import branching
from jdiff.targets import enumerate as enumerate_lib
from tests import helpers

LENGTH, VOCAB, MASK, NUM = 6, 4, 4, 40_000
STATES = enumerate_lib.enumerate_states(LENGTH, VOCAB)
LETTERS = np.array([0.5, 0.2, 0.0, -0.3])
REWARD_TEMPERATURE = 0.5


def markov_chain():
  """`[4, ..., 4]` log-probabilities of six letters, normalised."""
  rng = np.random.default_rng(0)
  first = rng.dirichlet(np.ones(VOCAB))
  step = rng.dirichlet(np.full(VOCAB, 0.7), VOCAB)
  log_pmf = np.log(first[STATES[:, 0]])
  for left, right in itertools.pairwise(STATES.T):
    log_pmf += np.log(step[left, right])
  return log_pmf


LOG_PMF = markov_chain()
TILT = LETTERS[STATES].sum(axis=1) / REWARD_TEMPERATURE
Z = np.exp(LOG_PMF + TILT).sum()
DENOISER = enumerate_lib.denoiser(LOG_PMF.reshape((VOCAB,) * LENGTH))
NOISE = helpers.random_table(1, LENGTH, VOCAB)


def policy(params, tokens, t, sites=None):
  """`params` are the shares of the exact conditionals and of noise."""
  exact = DENOISER(None, tokens, t, sites)
  noise = helpers.table_logits(LENGTH, VOCAB)(NOISE, tokens, t, sites)
  return params[0] * exact + params[1] * noise


REFERENCE = jnp.array([1.0, 0.0])
POLICIES = {
  "reference": (REFERENCE, 1.0),
  "noisy": (jnp.array([1.0, 1.0]), 1.0),
  "flattened": (REFERENCE, 2.0),
  "uniform": (jnp.array([0.0, 0.0]), 1.0),
}


def branch(params, key, canvas, step, **options):
  options = {"logits_fn": policy, "mask_id": MASK, **options}
  return branching.branch(params, key, canvas, step, **options)


@jax.jit
def by_branches(params, temperature, key, canvas, step):
  drawn = branch(
    params,
    key,
    canvas,
    step,
    num_branches=NUM,
    ref_params=REFERENCE,
    temperature=temperature,
  )
  return drawn.samples, drawn.log_policy, drawn.log_ref


@jax.jit
def by_rollouts(params, temperature, key):
  drawn = ctmc.rollout(
    params,
    key,
    logits_fn=policy,
    num_samples=NUM,
    length=LENGTH,
    mask_id=MASK,
    ref_params=REFERENCE,
    temperature=temperature,
  )
  log_ref = drawn.log_policy + drawn.log_ratio
  return drawn.samples, drawn.log_policy, log_ref


EMPTY = jnp.full(LENGTH, MASK)


def draw(name, kind):
  params, temperature = POLICIES[name]
  key = jax.random.key(3)
  if kind == "rollout":
    drawn = by_rollouts(params, temperature, key)
  else:
    drawn = by_branches(params, temperature, key, EMPTY, 0)
  return tuple(np.asarray(x) for x in drawn)


def mean_and_error(samples, log_ratio):
  w = np.exp(log_ratio + LETTERS[samples].sum(axis=1) / REWARD_TEMPERATURE)
  return w.mean(), w.std() / len(w) ** 0.5


def state_of(samples):
  return samples @ VOCAB ** np.arange(LENGTH)[::-1]


def distance(samples, pmf):
  """Total variation, and a bound that draws of `pmf` meet but once in 1e6.

  The expectation is at most `0.5 sum sqrt(p (1 - p) / N)`, and one draw moves
  the distance by `1 / N`: McDiarmid's inequality bounds the rest.
  """
  counts = np.bincount(state_of(samples), minlength=len(pmf))
  tv = 0.5 * np.abs(counts / len(samples) - pmf).sum()
  noise = 0.5 * np.sqrt(pmf * (1 - pmf) / len(samples)).sum()
  return tv, noise + (np.log(1e6) / (2 * len(samples))) ** 0.5


@pytest.mark.parametrize("kind", ["rollout", "branch"])
@pytest.mark.parametrize("name", POLICIES)
def test_mean_weight_is_z(name, kind):
  samples, log_policy, log_ref = draw(name, kind)
  mean, error = mean_and_error(samples, log_ref - log_policy)
  assert abs(mean - Z) < 4 * error < 0.3 * Z
  if name == "flattened":
    # The control: a policy that is the reference but for its temperature, and
    # ratios that forget it, which are zero.
    mean, error = mean_and_error(samples, np.zeros(NUM))
    assert abs(mean - Z) > 6 * error
  if name == "reference":
    np.testing.assert_allclose(log_policy, log_ref, atol=1e-5)


@pytest.mark.parametrize("kind", ["rollout", "branch"])
def test_terminal_law(kind):
  samples, log_policy, _ = draw("reference", kind)
  tv, bound = distance(samples, np.exp(LOG_PMF))
  assert tv < bound < 0.09
  # Consistent conditionals multiply to the law, whatever the order.
  np.testing.assert_allclose(log_policy, LOG_PMF[state_of(samples)], atol=1e-4)
  noisy, *_ = draw("noisy", kind)
  pmf = np.exp(exact_log_prob(POLICIES["noisy"][0]))
  np.testing.assert_allclose(pmf.sum(), 1, rtol=1e-4)
  tv, bound = distance(noisy, pmf)
  assert tv < bound
  # The control: each of them against the other's law.
  assert distance(noisy, np.exp(LOG_PMF))[0] > 1.5 * bound
  assert distance(samples, pmf)[0] > 1.5 * bound


@jax.jit
def exact_log_prob(params):
  return elbo.exact_log_prob(
    params, jnp.asarray(STATES), logits_fn=policy, mask_id=MASK
  )


def test_a_branch_is_a_draw_given_the_canvas():
  canvas = EMPTY.at[1].set(2).at[4].set(0)
  given = (STATES[:, 1] == 2) & (STATES[:, 4] == 0)
  log_pmf = np.where(given, LOG_PMF, -np.inf)
  log_pmf -= np.log(np.exp(log_pmf).sum())
  samples, log_policy, log_ref = by_branches(
    REFERENCE, 1.0, jax.random.key(4), canvas, 2
  )
  samples = np.asarray(samples)
  tv, bound = distance(samples, np.exp(log_pmf))
  assert tv < bound < 0.06
  np.testing.assert_allclose(log_policy, log_pmf[state_of(samples)], atol=1e-4)
  np.testing.assert_allclose(log_ref, log_policy, atol=1e-5)
  # The control: what comes first is not what comes given the two.
  assert tv < 0.3 < distance(samples, np.exp(LOG_PMF))[0]


SMALL = 4
SMALL_LOGITS = helpers.table_logits(SMALL, 3)
SMALL_TABLE = helpers.random_table(2, SMALL, 3)


def small(key, canvas, step, **options):
  options = {"logits_fn": SMALL_LOGITS, "mask_id": 3, **options}
  return branching.branch(SMALL_TABLE, key, canvas, step, **options)


def test_blocks_of_two_sizes():
  law, num = orders.uniform(SMALL, 3), 20_000
  assert law.num_revealed.tolist() == [1, 1, 2]
  states = enumerate_lib.enumerate_states(SMALL, 3)
  paths = helpers.enumerate_orders(law)
  pmf = np.mean(
    [helpers.path_prob(SMALL_TABLE, states, b, 3) for b in paths], axis=0
  )
  drawn = jax.jit(
    lambda key: small(key, jnp.full(SMALL, 3), 0, num_branches=num, num_steps=3)
  )(jax.random.key(0))
  samples = np.asarray(drawn.samples)
  counts = np.bincount(samples @ 3 ** np.arange(SMALL)[::-1], minlength=81)
  # 81 cells: chi-square has 80 degrees of freedom.
  assert stats.chisquare(counts, num * pmf).pvalue > 1e-4
  single = [
    helpers.path_prob(SMALL_TABLE, states, b, 3)
    for b in helpers.enumerate_orders(orders.uniform(SMALL))
  ]
  wrong = stats.chisquare(counts, num * np.mean(single, axis=0))
  assert wrong.pvalue < 1e-4
  rollout = jax.jit(
    lambda key: ctmc.rollout(
      SMALL_TABLE,
      key,
      logits_fn=SMALL_LOGITS,
      num_samples=num,
      length=SMALL,
      mask_id=3,
      num_steps=3,
    )
  )(jax.random.key(1))
  # Two samples of one law of W; the reference is uniform.
  ratio = drawn.log_ref - drawn.log_policy
  test = stats.ks_2samp(np.asarray(ratio), np.asarray(rollout.log_ratio))
  assert test.pvalue > 1e-3
  np.testing.assert_allclose(drawn.log_ref, -SMALL * np.log(3), rtol=1e-6)
  np.testing.assert_allclose(
    drawn.log_ref_step, np.full(num, -np.log(3)), rtol=1e-6
  )


def timed(params, tokens, t, sites=None):
  """Another law at each masked share, so that a wrong one shows."""
  return policy(params, tokens, t, sites) * (1 + t)[:, None, None]


@pytest.mark.parametrize("length, num_steps", [(5, 2), (6, 1)])
def test_log_probs_are_those_of_the_path(length, num_steps):
  """A path of two blocks is known from its child, and can be evaluated."""
  num_prompt, num = LENGTH - length, 64
  prompt = EMPTY.at[:num_prompt].set(1)
  params, options = POLICIES["noisy"][0], dict(logits_fn=timed, mask_id=MASK)
  drawn = jax.jit(
    lambda key: branch(
      params,
      key,
      prompt,
      0,
      num_branches=num,
      num_steps=num_steps,
      num_prompt=num_prompt,
      ref_params=REFERENCE,
      temperature=0.7,
      **options,
    )
  )(jax.random.key(0))
  children, samples = np.asarray(drawn.children), np.asarray(drawn.samples)
  sizes = branching.block_sizes(length, num_steps)
  assert (samples[:, :num_prompt] == 1).all() and (samples < MASK).all()
  assert (((children == MASK).sum(axis=1)) == length - sizes[0]).all()
  known = children != MASK
  np.testing.assert_array_equal(children[known], samples[known])
  # Revealed first where the child has it; a stable sort keeps blocks ascending.
  order = np.argsort(~known[:, num_prompt:], axis=1, kind="stable") + num_prompt

  @jax.jit
  def path(params, temperature):
    return ctmc.path_log_prob(
      params,
      drawn.samples,
      jnp.asarray(order, jnp.int32),
      sizes,
      temperature=temperature,
      **options,
    )

  np.testing.assert_allclose(drawn.log_policy, path(params, 0.7), atol=1e-5)
  np.testing.assert_allclose(drawn.log_ref, path(REFERENCE, 1.0), atol=1e-5)
  assert np.abs(drawn.log_policy - path(params, 1.0)).max() > 0.1
  # The first block alone, from the canvas.
  logits = timed(params, prompt[None], jnp.ones(1))[0] / 0.7
  log_probs = np.asarray(jax.nn.log_softmax(logits))
  block = known & (np.asarray(prompt) == MASK)[None]
  values = log_probs[np.arange(LENGTH)[None], np.where(block, children, 0)]
  step = np.where(block, values, 0).sum(axis=1)
  np.testing.assert_allclose(drawn.log_policy_step, step, atol=1e-5)


def test_states_without_mass_are_never_reached():
  log_pmf = np.log(np.random.default_rng(3).dirichlet(np.ones(81)))
  log_pmf[np.random.default_rng(4).random(81) < 0.7] = -np.inf
  fits = log_pmf > -np.inf
  assert 0 < fits.mean() < 0.5
  exact = enumerate_lib.denoiser(log_pmf.reshape((3,) * SMALL))

  def run(canvas, step, **options):
    drawn = jax.jit(
      lambda key: small(key, canvas, step, num_branches=500, **options)
    )(jax.random.key(0))
    state = np.asarray(drawn.samples) @ 3 ** np.arange(SMALL)[::-1]
    return state, drawn.log_policy, drawn.log_ref

  empty = jnp.full(SMALL, 3)
  state, log_policy, _ = run(empty, 0, logits_fn=exact)
  assert fits[state].all()
  want = log_pmf[state] - np.log(np.exp(log_pmf).sum())
  np.testing.assert_allclose(log_policy, want, atol=1e-5)
  # From a canvas that the law cannot have: uniform answers, and no NaN.
  table = np.full((3,) * SMALL, -np.inf)
  table[2, 2] = 0
  point = enumerate_lib.denoiser(table)
  _, log_policy, _ = run(empty.at[0].set(1), 1, logits_fn=point)
  np.testing.assert_allclose(log_policy, -3 * np.log(3), rtol=1e-5)
  # A ratio to a reference without mass there is minus infinity, not NaN.
  state, _, log_ref = run(empty, 0, ref_params=SMALL_TABLE, ref_logits_fn=exact)
  np.testing.assert_array_equal(np.isfinite(log_ref), fits[state])
  assert not np.isnan(log_ref).any()


def canvases():
  """Eight canvases of several steps."""
  rows = [np.full(SMALL, 3) for _ in range(8)]
  steps = np.arange(8) % SMALL
  for i, step in enumerate(steps):
    rows[i][np.random.default_rng(i).permutation(SMALL)[:step]] = i % 3
  return jnp.asarray(np.stack(rows)), jnp.asarray(steps)


def test_vmap_shards_and_one_trace():
  rows, steps = canvases()
  keys = jax.random.split(jax.random.key(0), 8)

  def one(key, canvas, step):
    return small(key, canvas, step, num_branches=3)

  single = jax.jit(chex.assert_max_traces(one, n=1))
  want = [single(*x) for x in zip(keys, rows, steps, strict=True)]
  want = jax.tree.map(lambda *x: np.stack(x), *want)
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  for many in (
    jax.vmap(one),
    jax.shard_map(
      jax.vmap(one), mesh=mesh, in_specs=(P("x"),) * 3, out_specs=P("x")
    ),
  ):
    got = jax.jit(many)(keys, rows, steps)
    np.testing.assert_array_equal(got.samples, want.samples)
    np.testing.assert_array_equal(got.children, want.children)
    np.testing.assert_allclose(got.log_policy, want.log_policy, rtol=1e-5)
  hidden = np.asarray(rows) == 3
  assert ((want.children == rows[:, None]) | hidden[:, None]).all()
  revealed = (want.children != 3) & hidden[:, None]
  assert (revealed.sum(axis=2) == 1).all() and (want.samples < 3).all()
  # At the last step a child is complete, and its block is all there is.
  last = np.asarray(steps) == SMALL - 1
  np.testing.assert_array_equal(want.children[last], want.samples[last])
  np.testing.assert_array_equal(
    want.log_policy[last], want.log_policy_step[last]
  )


def test_keys():
  canvas, key = jnp.full(SMALL, 3), jax.random.key(0)

  def run(key):
    return small(key, canvas, 0, num_branches=4).samples

  with jax.debug_key_reuse(True):
    want = jax.jit(run)(key)
  # A row depends on its own key alone.
  each = jax.jit(run)
  keys = keys_lib.per_example(key, 4)
  np.testing.assert_array_equal(each(keys), want)
  np.testing.assert_array_equal(each(keys[::-1]), want[::-1])


@pytest.mark.parametrize(
  "canvas, step, options, error, message",
  [
    ([3] * 4, 0, dict(num_branches=0), ValueError, "num_branches must be >= 1"),
    ([3] * 4, 0, dict(num_branches=1.5), TypeError, "num_branches must be an"),
    ([[3] * 4], 0, {}, ValueError, r"canvas must have shape \[\*\]"),
    ([3] * 4, 0, dict(num_steps=5), ValueError, "num_steps must lie in"),
    ([3] * 4, 0, dict(temperature=0.0), ValueError, "temperature must be"),
    ([3] * 4, 0, dict(key=jnp.zeros(2, jnp.uint32)), TypeError, "typed PRNG"),
    ([3, 3, 0, 1], 0, {}, ValueError, "canvas"),
    ([3] * 4, 2, {}, ValueError, "canvas"),
    ([3] * 4, -1, {}, ValueError, "step"),
    ([0] * 4, 4, {}, ValueError, "step"),
    ([3] * 4, 0, dict(num_prompt=1), ValueError, "canvas"),
    ([0] * 4, 0, dict(num_prompt=4), ValueError, "prompt"),
  ],
)
def test_bad_arguments(canvas, step, options, error, message):
  options = {"key": jax.random.key(0), "num_branches": 2, **options}
  with pytest.raises(error, match=message):
    small(options.pop("key"), jnp.asarray(canvas), step, **options)
