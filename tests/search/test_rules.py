"""Scores are their formulas, and picks draw as they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import search
from jdiff.search import rules

CHILDREN = rules.Children(
  value=jnp.array([[0.2, 0.4], [0.9, 0.1], [0.5, 0.5], [1.0, 1.0]]),
  visits=jnp.array([1.0, 4.0, 2.0, 3.0]),
  log_policy_step=jnp.log(jnp.array([0.2, 0.1, 0.3, 0.1])),
  parent_visits=jnp.float32(8),
  is_open=jnp.array([True, True, True, False]),
)


def test_scores_are_their_formulas():
  value, visits, p, num = (
    np.asarray(CHILDREN.value),
    np.asarray(CHILDREN.visits),
    np.array([0.2, 0.1, 0.3, 0.1]),
    8.0,
  )
  for score, bonus in {
    search.uct(0.3): 0.3 * np.sqrt(np.log(num) / visits),
    search.puct(0.3): 0.3 * p / p.sum() * np.sqrt(num) / (1 + visits),
    search.tr2d2(0.3): 0.3 * np.log(p) * np.sqrt(num) / visits,
  }.items():
    np.testing.assert_allclose(
      score(CHILDREN), value + bonus[:, None], rtol=1e-5
    )


@pytest.mark.parametrize(
  "pick, want",
  [
    # Means 0.3, 0.5, 0.5, and 1 that is closed.
    (rules.best, [0, 0.5, 0.5, 0]),
    (rules.non_dominated, [0, 0.5, 0.5, 0]),
    (rules.softmax(0.1), np.exp([3, 5, 5, -np.inf])),
    (rules.softmax(0.1, top=2), [0, 0.5, 0.5, 0]),
    (rules.softmax(0.1, top=9), np.exp([3, 5, 5, -np.inf])),
  ],
)
def test_picks_draw_as_they_say(pick, want):
  num = 4000
  keys = jax.random.split(jax.random.key(0), num)
  drawn = jax.jit(jax.vmap(lambda k: pick(k, CHILDREN.value, CHILDREN.is_open)))
  share = np.bincount(drawn(keys), minlength=4) / num
  want = np.asarray(want) / np.sum(want)
  error = np.sqrt(want * (1 - want) / num)
  assert (np.abs(share - want) <= 5 * error).all()


def test_all_open_children_may_be_picked():
  is_open = jnp.ones(4, bool)
  for pick in (rules.best, rules.non_dominated, rules.softmax(1e-3)):
    assert pick(jax.random.key(0), CHILDREN.value, is_open) == 3


@pytest.mark.parametrize(
  "call, error, message",
  [
    (lambda: search.uct("a"), TypeError, "exploration must be a finite"),
    (lambda: search.puct(float("nan")), ValueError, "exploration must lie in"),
    (lambda: search.tr2d2(float("inf")), ValueError, "exploration must lie in"),
    (lambda: rules.softmax(0.0), ValueError, "temperature must be positive"),
    (lambda: rules.softmax(top=0), ValueError, "top must be >= 1"),
  ],
)
def test_bad_rules(call, error, message):
  with pytest.raises(error, match=message):
    call()
