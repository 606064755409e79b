import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.targets import exact, maxcut


def random_graph(num_nodes, seed, share=0.4):
  """Edges and weights of both signs of a graph without its last two nodes."""
  rng = np.random.default_rng(seed)
  pairs = np.stack(np.triu_indices(num_nodes, 1), axis=1)
  edges = pairs[rng.random(len(pairs)) < share]
  # Either direction names a pair.
  flip = rng.random(len(edges)) < 0.5
  edges = np.where(flip[:, None], edges[:, ::-1], edges)
  return edges, rng.normal(size=len(edges)) + 0.5


@functools.cache
def weighted():
  edges, weights = random_graph(7, 0)
  # The last of eight nodes has no edges.
  return maxcut.max_cut(edges, 8, beta=0.9, weights=weights)


def adjacency(edges, num_nodes):
  linked = np.zeros((num_nodes, num_nodes), int)
  linked[edges[:, 0], edges[:, 1]] = linked[edges[:, 1], edges[:, 0]] = 1
  return linked


@pytest.mark.parametrize("beta, log_z", [(0.5, 11.1371030), (2.0, 27.0290690)])
def test_petersen_digits(beta, log_z):
  target = maxcut.max_cut(maxcut.petersen(), beta=beta)
  np.testing.assert_allclose(target.log_z, log_z, atol=6e-8)
  assert target.exact()["max_cut"] == 12.0
  assert maxcut.max_cut_value(maxcut.petersen()) == 12.0
  # A sign turned over rewards uncut edges.
  wrong = maxcut.max_cut(maxcut.petersen(), beta=-beta)
  assert abs(wrong.log_z - log_z) > 1


def test_petersen_is_the_strongly_regular_graph_of_its_parameters():
  # Degree 3, no triangle, one common neighbour of any two others.
  linked = adjacency(maxcut.petersen(), 10)
  assert len(maxcut.petersen()) == 15
  np.testing.assert_array_equal(
    linked @ linked + linked, 2 * np.eye(10) + np.ones((10, 10))
  )


def test_exact_against_enumeration():
  target = weighted()
  want = exact.enumeration(target)
  got = target.exact()
  for name in (
    "log_z",
    "cut",
    "cut_share",
    "magnetisation",
    "abs_magnetisation",
  ):
    np.testing.assert_allclose(got[name], want[name], atol=1e-10)
  np.testing.assert_allclose(target.log_z, want["log_z"], rtol=1e-12)
  log_pmf = want["log_pmf"]
  top = (log_pmf.max() + want["log_z"]) / 0.9
  np.testing.assert_allclose(got["max_cut"], top, rtol=1e-10)
  mode = np.exp(log_pmf)[log_pmf > log_pmf.max() - 1e-9].sum()
  np.testing.assert_allclose(got["p_max_cut"], mode, rtol=1e-9)


def test_log_prob_and_its_gauge_symmetry():
  edges, weights = random_graph(7, 0)
  x = np.random.default_rng(1).integers(0, 2, (32, 8))
  want = [
    0.9
    * sum(w for (i, j), w in zip(edges, weights, strict=True) if r[i] != r[j])
    for r in x
  ]
  log_prob = jax.vmap(weighted().log_prob)
  np.testing.assert_allclose(log_prob(jnp.asarray(x)), want, atol=1e-5)
  np.testing.assert_array_equal(
    log_prob(jnp.asarray(x)), log_prob(jnp.asarray(1 - x))
  )


def test_conditionals():
  """With everything but one node revealed they are exact."""
  target, rng = weighted(), np.random.default_rng(0)
  tokens = rng.integers(0, 2, (24, 8))
  sites = np.arange(24)[:, None] % 8
  rows = np.arange(24)[:, None]
  hidden = tokens.copy()
  hidden[rows, sites] = 2
  logits, known = target.conditional(jnp.asarray(hidden), jnp.asarray(sites))
  assert logits.shape == (24, 1, 2) and bool(known.all())
  full = []
  for v in range(2):
    filled = tokens.copy()
    filled[rows, sites] = v
    full.append(jax.vmap(target.log_prob)(jnp.asarray(filled)))
  want = jax.nn.log_softmax(jnp.stack(full, axis=-1))
  np.testing.assert_allclose(jax.nn.log_softmax(logits)[:, 0], want, atol=1e-5)
  every, _ = target.conditional(jnp.asarray(hidden))
  np.testing.assert_allclose(
    jnp.take_along_axis(every, jnp.asarray(sites)[..., None], axis=1), logits
  )
  shared, _ = target.conditional(jnp.asarray(hidden), np.array([5, 2]))
  np.testing.assert_allclose(shared, every[:, np.array([5, 2])])


def test_hidden_neighbours_count_as_absent():
  edges = [[0, 1], [1, 2], [2, 3]]
  target = maxcut.max_cut(edges, beta=0.7, weights=[1.0, 3.0, 1.0])
  logits, known = target.conditional(jnp.asarray([[2, 0, 2, 1]]))
  odds = logits[0, :, 1] - logits[0, :, 0]
  # Node 1 sees nobody; node 2 is pulled from 1 by 3 and from 3 by 1.
  np.testing.assert_allclose(odds, [0.7, 0.0, 0.7 * (3 - 1), 0.0], atol=1e-6)
  assert known[0].tolist() == [True, False, True, False]


@pytest.mark.parametrize(
  "edges", [maxcut.petersen(), random_graph(12, 3)[0], [[0, 1], [2, 5]]]
)
def test_orders(edges):
  target = maxcut.max_cut(edges, beta=1.0)
  length = target.length
  for law in target.orders.values():
    assert sorted(law.sites) == list(range(length))
  linked = adjacency(np.asarray(edges), length)
  cover, chain = target.orders["cover"], target.orders["chain"]
  assert [s.num_steps for s in cover.stages] == [len(cover.stages[0].sites), 1]
  assert cover.num_steps == chain.num_steps
  degree = linked.sum(axis=0)
  first = [s.sites[0] for s in chain.stages[:-1]]
  assert (np.diff(degree[first]) <= 0).all()
  # What comes together at the end is independent given the cover.
  for law in (cover, chain):
    last = np.asarray(law.stages[-1].sites)
    assert not linked[last[:, None], last[None]].any()
    tokens = jnp.zeros((1, length), jnp.int32).at[:, last].set(2)
    assert bool(target.conditional(tokens, last)[1].all())


def test_context_is_the_nearest_of_the_earlier():
  edges = maxcut.petersen()
  target = maxcut.max_cut(edges, beta=1.0)
  law = target.orders["chain"]
  table, step = target.context(law, 6), law.step_of_site
  linked = adjacency(edges, 10)
  for i, row in enumerate(table):
    seen = row[row >= 0]
    assert len(seen) == min(6, sum(step[j] < step[i] for j in range(10)))
    assert all(step[int(j)] < step[i] for j in seen)
    # Of diameter two: neighbours come before all others.
    near = linked[i, seen]
    earlier = sum(step[j] < step[i] for j in np.flatnonzero(linked[i]))
    assert near.sum() == min(6, earlier) and (np.diff(near) <= 0).all()
  path = maxcut.max_cut([[0, 1], [1, 2], [2, 3], [4, 5]], beta=1.0)
  np.testing.assert_array_equal(
    path.context(None, 4)[[0, 2, 5]],
    [[1, 2, 3, -1], [1, 3, 0, -1], [4, -1, -1, -1]],
  )
  with pytest.raises(ValueError, match="shuffles"):
    path.context(path.orders["random"], 2)


def test_draws_follow_the_law():
  target, num = weighted(), 2**14
  draws = np.asarray(target.sample(jax.random.key(0), num))
  assert draws.shape == (num, 8) and draws.dtype == np.int32
  law = np.exp(exact.enumeration(target)["log_pmf"])
  count = np.bincount(draws @ 2 ** np.arange(8)[::-1], minlength=256)
  want = num * law
  cells = want > 5
  score = (count - want)[cells] / np.sqrt(want * (1 - law))[cells]
  assert cells.sum() > 100 and np.abs(score).max() < 4.5
  assert 0.7 < (score**2).mean() < 1.3


def test_twenty_nodes():
  edges = maxcut.regular(20, 3, seed=1)
  target = maxcut.max_cut(edges, beta=1.5)
  answer, num = target.exact(), 4096
  assert answer["max_cut"] == maxcut.max_cut_value(edges)
  draws = target.sample(jax.random.key(0), num)
  values = jax.vmap(target.observables)(draws)
  for name, value in values.items():
    se = float(value.std()) / num**0.5
    assert abs(float(value.mean()) - answer[name]) < 4.5 * se
  hits = np.mean(np.asarray(values["cut"]) == answer["max_cut"])
  p = answer["p_max_cut"]
  assert abs(hits - p) < 4.5 * np.sqrt(p * (1 - p) / num)
  larger = maxcut.max_cut(maxcut.regular(22, 3), beta=1.0)
  assert larger.log_z is larger.exact is larger.sample is None


@pytest.mark.parametrize("num_nodes", [10, 11, 12, 13, 14])
def test_programming_against_enumeration(num_nodes):
  edges, weights = random_graph(num_nodes, num_nodes)
  target = maxcut.max_cut(edges, num_nodes, beta=1.0, weights=weights)
  got = maxcut.max_cut_value(edges, num_nodes, weights=weights)
  np.testing.assert_allclose(got, target.exact()["max_cut"], rtol=1e-12)


def test_programming_in_closed_form():
  cycle = np.stack([np.arange(31), (np.arange(31) + 1) % 31], axis=1)
  assert maxcut.max_cut_value(cycle) == 30
  assert maxcut.max_cut_value(cycle[:-1]) == 30
  assert maxcut.max_cut_value(cycle, weights=-np.ones(31)) == 0
  clique = np.stack(np.triu_indices(9, 1), axis=1)
  assert maxcut.max_cut_value(clique) == 20


def test_programming_says_when_it_gives_up():
  edges = maxcut.regular(60, 20)
  with pytest.raises(RuntimeError, match="max-cut was not solved"):
    maxcut.max_cut_value(edges, time_limit=0.05)


@pytest.mark.parametrize(
  "num_nodes, degree", [(10, 3), (50, 4), (12, 9), (7, 6), (9, 4), (2, 1)]
)
def test_regular(num_nodes, degree):
  edges = maxcut.regular(num_nodes, degree, seed=3)
  assert len(edges) == num_nodes * degree // 2
  linked = adjacency(edges, num_nodes)
  assert (linked.sum(axis=0) == degree).all() and not linked.diagonal().any()
  again = maxcut.regular(num_nodes, degree, seed=3)
  np.testing.assert_array_equal(edges, again)
  if num_nodes == 50:
    assert (adjacency(maxcut.regular(50, 4, seed=4), 50) != linked).any()


def test_traced_beta():
  def log_prob(beta):
    target = maxcut.max_cut([[0, 1], [1, 2]], beta=beta)
    assert target.log_z is target.exact is target.sample is None
    return target.log_prob(jnp.asarray([0, 1, 1]))

  assert float(jax.jit(jax.grad(log_prob))(0.3)) == 1.0


@pytest.mark.parametrize(
  "edges, options, error, message",
  [
    ([[0, 1], [2, 2]], {}, ValueError, r"two different nodes.*1 = \(2, 2\)"),
    (
      [[0, 1], [1, 2], [1, 0]],
      {},
      ValueError,
      r"each pair once.*\(1, 0\) as edges 0 and 2",
    ),
    (
      [[0, 1], [1, 5]],
      {"num_nodes": 5},
      ValueError,
      r"\[0, num_nodes = 5\), got edge 1 = \(1, 5\)",
    ),
    ([[0, 1], [-1, 2]], {}, ValueError, r"got edge 1 = \(-1, 2\)"),
    ([[0.0, 1.0]], {}, TypeError, "edges must be integers, got dtype float64"),
    ([0, 1], {}, ValueError, r"edges must have shape \[\*, 2\]"),
    (np.zeros((0, 2), int), {}, ValueError, "at least one edge"),
    ([[0, 1]], {"weights": [1.0, 2.0]}, ValueError, "weights must have shape"),
    (
      [[0, 1], [0, 2]],
      {"weights": [1.0, np.inf]},
      ValueError,
      r"weights must be finite, got inf at edge 1 = \(0, 2\)",
    ),
    ([[0, 1]], {"weights": [0.0]}, ValueError, "must not all be zero"),
    ([[0, 1]], {"num_nodes": 2.0}, TypeError, "num_nodes must be an integer"),
    ([[0, 1]], {"beta": np.nan}, ValueError, "beta must be finite"),
  ],
)
def test_bad_arguments(edges, options, error, message):
  with pytest.raises(error, match=message):
    maxcut.max_cut(edges, **{"beta": 1.0} | options)


@pytest.mark.parametrize("num_nodes, degree", [(5, 3), (4, 4)])
def test_bad_degrees(num_nodes, degree):
  with pytest.raises(ValueError, match="degree must be below num_nodes"):
    maxcut.regular(num_nodes, degree)
