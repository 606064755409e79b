import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import ctmc, targets
from jdiff.nets.local import local
from tests import helpers


def block_net(target, num_neighbours=6, **options):
  law = target.orders["chain"]
  group = np.array([law.step_of_site[d] for d in range(target.length)])
  last = list(law.stages[-1].sites)
  group[last] = -1
  context = target.context(law, num_neighbours)
  net = local(context, group, target.num_tokens, hidden=(8, 8), **options)
  params = helpers.perturbed(jax.jit(net.init)(jax.random.key(0)), 1, 0.3)
  logits_fn = ctmc.precondition(
    net.apply, target.conditional, exact_sites=last, local_field=False
  )
  return law, params, logits_fn


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
  "target",
  [targets.ising(4, beta=0.4), targets.potts(4, 3, beta=0.9)],
  ids=["ising", "potts"],
)
def test_one_evaluation_gives_the_whole_path(target, symmetric):
  law, params, logits_fn = block_net(target, symmetric=symmetric)
  mask_id = target.num_tokens

  @jax.jit
  def run(params):
    rollout = ctmc.rollout(
      params,
      jax.random.key(0),
      logits_fn=logits_fn,
      num_samples=8,
      length=16,
      mask_id=mask_id,
      order=law,
    )
    return rollout.log_policy, [
      ctmc.path_log_prob(
        params,
        rollout.samples,
        rollout.order,
        law.num_revealed,
        logits_fn=logits_fn,
        mask_id=mask_id,
        causal=causal,
      )
      for causal in (True, False)
    ]

  want, again = run(params)
  for log_prob in again:
    np.testing.assert_allclose(log_prob, want, rtol=1e-5)


@pytest.mark.parametrize("num_tokens", [2, 3])
@pytest.mark.parametrize("see_masks", [False, True])
def test_symmetric_nets_are_equivariant(num_tokens, see_masks):
  rng = np.random.default_rng(0)
  context = targets.lattice.context(3, None, 8)
  net = local(
    context,
    np.arange(9) % 2,
    num_tokens,
    hidden=(8, 8),
    symmetric=True,
    see_masks=see_masks,
  )
  params = helpers.perturbed(jax.jit(net.init)(jax.random.key(0)), 1, 0.5)
  tokens = rng.integers(0, num_tokens + 1, (5, 9))
  shuffle = np.append(np.roll(np.arange(num_tokens), 1), num_tokens)
  t = jnp.ones(5)
  apply = jax.jit(net.apply)
  plain = apply(params, jnp.asarray(tokens), t)
  moved = apply(params, jnp.asarray(shuffle[tokens]), t)
  log_probs = jax.nn.log_softmax(plain)
  np.testing.assert_allclose(
    jax.nn.log_softmax(moved)[..., shuffle[:num_tokens]], log_probs, atol=1e-5
  )
  assert float(jnp.abs(log_probs + np.log(num_tokens)).max()) > 0.05


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("symmetric", [False, True])
def test_sites_pick_columns(groups, symmetric):
  net = local(
    targets.lattice.context(3, None, 8),
    np.arange(9) % groups,
    3,
    hidden=(4, 4),
    symmetric=symmetric,
    see_masks=True,
  )
  params = helpers.perturbed(jax.jit(net.init)(jax.random.key(0)), 1, 0.5)
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 4, (5, 9)))
  t = jnp.ones(5)
  shared = np.array([7, 2])
  own = jnp.asarray(np.random.default_rng(1).integers(0, 9, (5, 2)))

  @jax.jit
  def run(params):
    # Static sites and traced ones.
    found = (net.apply(params, tokens, t, sites) for sites in (shared, own))
    return net.apply(params, tokens, t), *found

  full, of_shared, of_own = run(params)
  np.testing.assert_allclose(of_shared, full[:, shared], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(
    of_own,
    jnp.take_along_axis(full, own[..., None], axis=1),
    rtol=1e-4,
    atol=1e-6,
  )


def test_untrained_is_uniform():
  net = local(np.array([[1], [0]]), np.array([0, -1]), 2)
  params = net.init(jax.random.key(0))
  logits = net.apply(params, jnp.zeros((3, 2), jnp.int32), jnp.ones(3))
  np.testing.assert_array_equal(logits, 0)


@pytest.mark.parametrize(
  "context, group, message",
  [
    (np.zeros((3, 2), int), np.zeros(2, int), r"context must be \[L, R\]"),
    (np.full((2, 2), 5), np.zeros(2, int), "sites in"),
    (np.zeros((2, 2), int), -np.ones(2, int), "at least one group"),
  ],
)
def test_bad_tables(context, group, message):
  with pytest.raises(ValueError, match=message):
    local(context, group, 2)
