"""E[exp(log_weights)] = Z, exactly and by Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import ctmc, schedules, targets
from jdiff.core import orders, weights
from jdiff.methods import mdns
from jdiff.nets.local import local
from jdiff.targets import enumerate as enumerate_lib
from tests import helpers

LAWS = {
  **{f"uniform-{k}": orders.uniform(4, k) for k in (1, 2, 3, 4)},
  "even-odd": targets.lattice.even_odd(2),
  "chain": targets.lattice.chain(2),
  "blocks": orders.blocks([[2], [0, 3], [1]]),
  "mixed": orders.Order((orders.Stage((0, 2, 3), 2), orders.Stage((1,), 1))),
}


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("reference", ["uniform", "network"])
def test_sum_over_all_paths(name, reference):
  law, num_tokens = LAWS[name], 2
  with jax.enable_x64(True):
    target = targets.ising(2, beta=0.4, field=0.2, periodic=False)
    table = helpers.random_table(0, 4, num_tokens, dtype=np.float64)
    ref = helpers.random_table(1, 4, num_tokens, dtype=np.float64)
    states = enumerate_lib.enumerate_states(4, num_tokens)
    log_prob = np.asarray(jax.vmap(target.log_prob)(jnp.asarray(states)))
    logits_fn = helpers.table_logits(4, num_tokens)
    ratio = jax.jit(
      lambda order: ctmc.path_log_ratio(
        table,
        jnp.asarray(states),
        order,
        law.num_revealed,
        logits_fn=logits_fn,
        mask_id=num_tokens,
        ref_params=None if reference == "uniform" else ref,
      )
    )
    all_orders = helpers.enumerate_orders(law)
    total, want, wrong = 0.0, 0.0, 0.0
    for blocks in all_orders:
      # The paths' probabilities come from NumPy, not from the library.
      prob = helpers.path_prob(table, states, blocks, num_tokens)
      log_ratio = np.asarray(ratio(jnp.asarray(sum(blocks, []))))
      total += np.sum(prob * np.exp(log_ratio + log_prob))
      # Forgetting the reference's last factor must show.
      wrong += np.sum(prob * np.exp(log_ratio * 0.75 + log_prob))
      base = helpers.path_prob(
        np.zeros_like(table) if reference == "uniform" else ref,
        states,
        blocks,
        num_tokens,
      )
      want += np.sum(base * np.exp(log_prob))
    np.testing.assert_allclose(total, want, rtol=1e-12)
    assert abs(wrong / want - 1) > 1e-3
    if reference == "uniform":
      log_z = np.log(total / len(all_orders)) + 4 * np.log(2)
      np.testing.assert_allclose(log_z, target.log_z, rtol=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_rollout_ratio_is_the_paths_ratio(name):
  law = LAWS[name]
  with jax.enable_x64(True):
    table = helpers.random_table(0, 4, 2, dtype=np.float64)
    ref = helpers.random_table(1, 4, 2, dtype=np.float64)
    options = dict(logits_fn=helpers.table_logits(4, 2), mask_id=2)

    @jax.jit
    def run(table, ref, traced):
      rollout = ctmc.rollout(
        table,
        jax.random.key(0),
        num_samples=32,
        length=4,
        order=law,
        ref_params=ref,
        temperature=0.7,
        **options,
      )
      # Static block sizes and traced ones are two implementations.
      return rollout.log_ratio, [
        ctmc.path_log_ratio(
          table,
          rollout.samples,
          rollout.order,
          num_revealed,
          ref_params=ref,
          temperature=0.7,
          **options,
        )
        for num_revealed in (law.num_revealed, traced)
      ]

    found, again = run(table, ref, jnp.asarray(law.num_revealed))
    for log_ratio in again:
      np.testing.assert_allclose(log_ratio, found, atol=1e-12)


def test_bernoulli_reveals():
  with jax.enable_x64(True):
    table = helpers.random_table(0, 4, 2, dtype=np.float64)
    logits_fn = helpers.table_logits(4, 2)

    @jax.jit
    def run(table):
      rollout = ctmc.rollout(
        table,
        jax.random.key(0),
        logits_fn=logits_fn,
        mask_id=2,
        num_samples=4000,
        length=4,
        num_steps=3,
        schedule=schedules.masking.linear(),
      )
      return rollout, ctmc.path_log_ratio(
        table,
        rollout.samples,
        rollout.order,
        rollout.num_revealed,
        logits_fn=logits_fn,
        mask_id=2,
      )

    rollout, again = run(table)
    np.testing.assert_allclose(again, rollout.log_ratio, atol=1e-12)
    assert rollout.num_revealed.shape == (4000, 3)
    # Linear schedule: each step reveals a third of the sites on average; the
    # standard error of a mean count is 0.015.
    mean = np.asarray(rollout.num_revealed).mean(axis=0)
    np.testing.assert_allclose(mean, 4 / 3, atol=5 * 0.015)
    target = targets.ising(2, beta=0.4, periodic=False)
    log_w = mdns.log_weights(rollout, target)
    z = (weights.log_z(log_w) - target.log_z) / weights.log_z_se(log_w)
    assert abs(z) < 4


CASES = {
  "open": (lambda: targets.ising(3, beta=0.5, field=0.1, periodic=False), None),
  "periodic": (lambda: targets.ising(3, beta=0.28, field=0.1), None),
  "antiferro": (
    lambda: targets.ising(4, beta=0.25, coupling=-1.0, field=0.2),
    None,
  ),
  "blocks": (lambda: targets.ising(4, beta=0.28, field=0.1), 4),
  "potts": (lambda: targets.potts(3, 3, beta=0.8), None),
}


FIRST = ("antiferro", "even_odd"), ("potts", "chain")
# Blocks cut the random order alone. Every target and every order come first,
# their other pairs do not.
PAIRS = [
  pytest.param(
    name,
    law,
    marks=()
    if law == "random" or (name, law) in FIRST
    else pytest.mark.thorough,
  )
  for name in CASES
  for law in ("random", "even_odd", "chain")
  if law == "random" or not CASES[name][1]
]


@pytest.mark.parametrize("name, law", PAIRS)
def test_monte_carlo(name, law):
  make, num_steps = CASES[name]
  target = make()
  net = local(
    target.context(None, target.length - 1),
    np.zeros(target.length, int),
    target.num_tokens,
    hidden=(16, 16),
    see_masks=True,
  )
  params = helpers.perturbed(jax.jit(net.init)(jax.random.key(0)), 1, 0.1)
  order = target.orders[law]
  if num_steps:
    order = orders.uniform(target.length, num_steps)
  collect = jax.jit(
    mdns.collector(
      target,
      logits_fn=ctmc.precondition(net.apply, target.conditional),
      mask_id=target.num_tokens,
      num_samples=16384,
      order=order,
    )
  )
  log_w = collect(params, jax.random.key(2)).log_weights
  # Below this the standard error itself is not to be believed.
  assert weights.ess_fraction(log_w) > 0.005
  z = (weights.log_z(log_w) - target.log_z) / weights.log_z_se(log_w)
  assert abs(z) < 4
  # The ELBO is below by far more than its own error.
  assert weights.elbo(log_w) < target.log_z - 4 * log_w.std() / 128


def test_zero_variance_by_enumerated_conditionals():
  target = targets.ising(3, beta=0.4407)
  states = enumerate_lib.enumerate_states(9, 2)
  log_prob = np.asarray(jax.vmap(target.log_prob)(jnp.asarray(states)))
  lookup = {tuple(s): p for s, p in zip(states.tolist(), log_prob, strict=True)}
  table = helpers.conditional_table(lambda s: lookup[tuple(s.tolist())], 9, 2)
  params = jnp.asarray(table, jnp.float32)
  options = dict(
    logits_fn=helpers.table_logits(9, 2), mask_id=2, num_samples=512
  )
  collect = mdns.collector(target, **options)
  log_w = jax.jit(collect)(params, jax.random.key(0)).log_weights
  assert log_w.std() < 1e-4
  np.testing.assert_allclose(log_w.mean(), target.log_z, atol=1e-4)
  # Three sites a step are a product of marginals: weights must vary, Z not.
  collect = mdns.collector(target, num_steps=3, **options)
  log_w = jax.jit(collect)(params, jax.random.key(0)).log_weights
  assert 0.02 < weights.ess_fraction(log_w) < 0.9


@pytest.mark.parametrize("length, tolerance", [(64, 2e-4), (400, 3e-3)])
def test_zero_variance_of_an_urn(length, tolerance):
  target = targets.dirichlet_multinomial(length, [1.0, 0.5, 2.0])

  def logits_fn(params, tokens, t, sites=None):
    del params, t
    return target.conditional(tokens, sites)[0]

  collect = mdns.collector(
    target, logits_fn=logits_fn, mask_id=3, num_samples=64
  )
  log_w = jax.jit(collect)((), jax.random.key(0)).log_weights
  # Float32 sums of `length` terms; gammaln of the counts dominates at 400.
  np.testing.assert_allclose(log_w, target.log_z, atol=tolerance)


def test_uniform_reference():
  target = targets.ising(2, beta=0.3, field=0.1, periodic=False)
  table = helpers.random_table(0, 4, 2, scale=0.3)
  run = jax.jit(
    lambda key: ctmc.uniform_rollout(
      table,
      key,
      logits_fn=helpers.table_logits(4, 2),
      num_samples=20000,
      length=4,
      num_tokens=2,
      num_steps=5,
    )
  )
  log_w = mdns.log_weights(run(jax.random.key(0)), target)
  z = (weights.log_z(log_w) - target.log_z) / weights.log_z_se(log_w)
  assert abs(z) < 4 and weights.ess_fraction(log_w) > 0.005
