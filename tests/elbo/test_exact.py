"""The identities of the masked ELBO, against sums over all orders in NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import elbo
from jdiff.schedules.quadrature import quadrature
from jdiff.targets import enumerate as enumerate_lib
from tests import helpers
from tests.elbo import networks

LENGTH, VOCAB = 6, 3
PARAMS = networks.sine_params(0, LENGTH, VOCAB)
TOKENS = np.array([[0, 2, 1, 1, 0, 2], [2, 2, 0, 1, 1, 0]])
OPTIONS = dict(logits_fn=networks.sine_logits, mask_id=VOCAB)


@pytest.fixture(scope="module")
def tables():
  return [networks.sine_table(PARAMS, x) for x in TOKENS]


def exact(fn, params=PARAMS, tokens=TOKENS, **options):
  with jax.enable_x64(True):
    options = OPTIONS | options
    return np.asarray(
      jax.jit(functools.partial(fn, **options))(params, jnp.asarray(tokens))
    )


def test_orders(tables):
  """The ELBO is the orders' average; the likelihood that of their exps."""
  paths = np.array([networks.over_orders(t, LENGTH) for t in tables])
  bound, log_prob = exact(elbo.exact_elbo), exact(elbo.exact_log_prob)
  np.testing.assert_allclose(bound, paths.mean(axis=1), rtol=1e-12)
  want = np.log(np.exp(paths).mean(axis=1))
  np.testing.assert_allclose(log_prob, want, rtol=1e-12)
  assert np.all(bound < log_prob)


def test_turns_give_what_one_evaluation_gives(monkeypatch):
  want = exact(elbo.exact_log_prob)
  monkeypatch.setattr(elbo.exact, "ROWS", 20)
  np.testing.assert_allclose(exact(elbo.exact_log_prob), want, rtol=1e-14)


def test_count_form(tables):
  """Counts uniform on 1..L, weight L / k, in NumPy."""
  want = []
  for table in tables:
    s = networks.sums(table)
    total = 0.0
    for k in range(1, LENGTH + 1):
      mean = np.mean([v for a, v in s.items() if len(a) == k])
      total += LENGTH / k * mean / LENGTH
    want.append(total)
  np.testing.assert_allclose(exact(elbo.exact_elbo), want, rtol=1e-12)


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4, 40])
def test_gauss_is_exact_from_half_the_length(num_nodes, tables):
  """With all Bernoulli masks summed, no bias is left if N >= L / 2."""
  t, weight = quadrature("gauss", num_nodes)
  got = []
  for table in tables:
    integrand = sum(
      s * t ** (len(a) - 1) * (1 - t) ** (LENGTH - len(a))
      for a, s in networks.sums(table).items()
      if a
    )
    got.append(weight @ integrand)
  error = np.abs(got - exact(elbo.exact_elbo))
  if 2 * num_nodes >= LENGTH:
    assert np.all(error < 1e-12)
  else:
    assert np.all(error > 1e-4)


def test_likelihood_is_normalised():
  length, vocab = 5, 2
  params = networks.sine_params(1, length, vocab)
  states = enumerate_lib.enumerate_states(length, vocab)
  log_prob = exact(elbo.exact_log_prob, params, states, mask_id=vocab)
  bound = exact(elbo.exact_elbo, params, states, mask_id=vocab)
  np.testing.assert_allclose(np.exp(log_prob).sum(), 1, rtol=1e-12)
  assert np.all(bound <= log_prob) and np.exp(bound).sum() < 1


def test_consistent_network_has_no_gap():
  """Conditionals of one mixture: ELBO = log p whatever the order."""
  length, vocab = 4, 3
  rng = np.random.default_rng(2)
  parts = rng.dirichlet(np.ones(vocab), (2, length))

  def log_mixture(x):
    each = parts[:, np.arange(length), x].prod(axis=1)
    return np.log(0.3 * each[0] + 0.7 * each[1])

  table = helpers.conditional_table(log_mixture, length, vocab)
  states = enumerate_lib.enumerate_states(length, vocab)
  options = dict(logits_fn=helpers.table_logits(length, vocab), mask_id=vocab)
  want = np.array([log_mixture(x) for x in states])
  bound = exact(elbo.exact_elbo, table, states, **options)
  np.testing.assert_allclose(bound, want, rtol=1e-12)
  log_prob = exact(elbo.exact_log_prob, table, states, **options)
  np.testing.assert_allclose(log_prob, want, rtol=1e-12)


def test_prompt_is_given():
  """A prompt of two: orders of the other sites alone, `t` their share."""
  num_prompt = 2

  def shifted(params, tokens, t, sites=None):
    # The table's network takes the share of the canvas.
    t = t * (LENGTH - num_prompt) / LENGTH
    return networks.sine_logits(params, tokens, t, sites)

  table = networks.sine_table(PARAMS, TOKENS[0])
  inner = {
    frozenset(i - num_prompt for i in a): p[num_prompt:]
    for a, p in table.items()
    if min(a, default=LENGTH) >= num_prompt
  }
  paths = networks.over_orders(inner, LENGTH - num_prompt)
  options = dict(logits_fn=shifted, num_prompt=num_prompt)
  bound = exact(elbo.exact_elbo, tokens=TOKENS[:1], **options)
  np.testing.assert_allclose(bound, paths.mean(), rtol=1e-12)
  log_prob = exact(elbo.exact_log_prob, tokens=TOKENS[:1], **options)
  np.testing.assert_allclose(log_prob, np.log(np.exp(paths).mean()), rtol=1e-12)


def test_gradient_is_the_sum_over_masks():
  """Every mask with its weight through `estimate`: value and gradient."""
  masks = np.array(
    [[i in a for i in range(LENGTH)] for a in networks.every_subset(LENGTH)]
  )[1:]
  size = masks.sum(axis=1)
  number = np.array([math.comb(LENGTH, k) for k in size])
  weight = len(masks) / (size * number)

  def by_masks(params, tokens):
    drawn = elbo.Masks(
      jnp.broadcast_to(jnp.asarray(masks), (len(tokens), *masks.shape)),
      jnp.broadcast_to(jnp.asarray(weight), (len(tokens), len(masks))),
    )
    return elbo.estimate(params, tokens, drawn, **OPTIONS)

  def value_and_grad(fn):
    def mean(scale, tokens):
      return fn({**PARAMS, "scale": scale}, tokens).mean()

    return jax.jit(jax.value_and_grad(mean))(1.5, jnp.asarray(TOKENS))

  with jax.enable_x64(True):
    got = value_and_grad(by_masks)
    want = value_and_grad(functools.partial(elbo.exact_elbo, **OPTIONS))
    like = jax.jit(
      jax.grad(
        lambda s: elbo.exact_log_prob(
          {**PARAMS, "scale": s}, jnp.asarray(TOKENS), **OPTIONS
        ).mean()
      )
    )(1.5)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    ends = [
      exact(elbo.exact_log_prob, {**PARAMS, "scale": 1.5 + e}).mean()
      for e in (1e-5, -1e-5)
    ]
    np.testing.assert_allclose(like, (ends[0] - ends[1]) / 2e-5, rtol=1e-7)


def test_bad_arguments():
  tokens = jnp.zeros((1, 15), jnp.int32)
  with pytest.raises(ValueError, match="max_length=14.* got 15"):
    elbo.exact_elbo(PARAMS, tokens, **OPTIONS)
  with pytest.raises(ValueError, match="must hold no mask id"):
    elbo.exact_log_prob(PARAMS, tokens + VOCAB, **OPTIONS)
