"""Actions inferred from frames, against the moves that made them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.world import envs, latent, tile_world
from jdiff import nets
from jdiff.methods import latent_action

ENV = tile_world.env(size=12, view=5)


def clips(seed, num):
  clip = envs.record(ENV, jax.random.key(seed), num, 16)
  return jax.tree.map(np.asarray, clip)


def test_the_posterior_is_bayes_by_hand():
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((3, 4, 2, 5))
  logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  tokens = rng.integers(0, 5, (3, 2))
  after = rng.integers(0, 5, (3, 2))
  found = latent_action.posterior(
    jnp.asarray(logp, jnp.float32),
    jnp.asarray(tokens),
    jnp.asarray(after),
    transition_fn=lambda params, tokens: params,
  )
  for b in range(3):
    joint = np.array(
      [
        np.exp(sum(logp[b, a, n, after[b, n]] for n in range(2))) / 4
        for a in range(4)
      ]
    )
    np.testing.assert_allclose(found.log_prob[b], np.log(joint.sum()), 1e-5)
    np.testing.assert_allclose(
      np.exp(found.log_code[b]), joint / joint.sum(), 1e-4
    )


def test_shifts_are_laws_and_shift():
  network = nets.shifts((2, 3), 4, 3)
  params = network.init(jax.random.key(0))
  tokens = jnp.array([[0, 1, 2, 3, 0, 1]])
  probs = jnp.exp(network.apply(params, tokens))
  np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)
  # All on one offset: a cell shows its right neighbour.
  params["shift"] = jnp.full((3, 9), -50.0).at[:, 5].set(50.0)
  params["fresh"] = jnp.float32(-50)
  probs = np.exp(network.apply(params, tokens))[0, 0].reshape(2, 3, 4)
  for r, c in itertools.product(range(2), range(2)):
    assert probs[r, c].argmax() == int(tokens[0, r * 3 + c + 1])
    assert probs[r, c].max() > 0.99
  # From beyond the edge comes the law.
  np.testing.assert_allclose(probs[:, 2], 0.25, atol=1e-3)


@pytest.mark.thorough
def test_codes_are_the_moves():
  params, network = latent.fit(
    ENV, clips(0, 48), jax.random.key(0), num_codes=8, num_steps=150
  )
  test = clips(1, 32)
  coded = latent.label(params, network, test)
  codes, moves = coded.action[:, 1:], test.move[:, 1:]
  assert latent.purity(codes, moves) > 0.98
  # Not by having a code for each transition, nor by chance.
  assert codes.max() < 8
  shuffled = np.random.default_rng(0).permutation(codes.ravel())
  assert latent.purity(shuffled, moves) < 0.7
  assert (coded.action[:, 0] == 0).all()
  opposite = latent.opposites(codes, moves, ENV, 8)
  for code, other in enumerate(opposite):
    if other != code:
      at, back = (
        ENV.view.moves[np.bincount(moves[codes == c]).argmax()]
        for c in (code, other)
      )
      assert tuple(-x for x in at) == tuple(back)


def test_shapes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match=r"after must have shape \(?\[?2, 3"):
    latent_action.posterior(
      None,
      jnp.zeros((2, 3), int),
      jnp.zeros((2, 4), int),
      transition_fn=None,
    )
  with pytest.raises(ValueError, match="transition_fn's answer"):
    latent_action.loss(
      None,
      jnp.zeros((2, 3), int),
      jnp.zeros((2, 3), int),
      transition_fn=lambda params, tokens: jnp.zeros((2, 3)),
    )
  for options in ({"num_codes": 0}, {"reach": -1}, {"floor": 1.0}):
    with pytest.raises(ValueError, match=next(iter(options))):
      nets.shifts((2, 3), 4, **({"num_codes": 2} | options))
