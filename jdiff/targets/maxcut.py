"""Max-cut: a Gibbs law over the two-part splits of a graph's nodes.

The law of arXiv:2510.03824's combinatorial task. Exchanging the two parts
changes no cut, so that `x` and `1 - x` weigh the same: every token's marginal
is uniform, and a sampler that has lost one of each pair can look right in every
observable but `magnetisation`, whose mean is zero.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, sparse, special
from scipy.sparse import csgraph

from jdiff.core import checks, orders
from jdiff.core.types import Target
from jdiff.targets.ising import lattice_values

MAX_NODES = 20
"""Up to here every split is looked at: half a million after the symmetry."""


def max_cut(
  edges,
  num_nodes: int | None = None,
  *,
  beta: float | jax.Array,
  weights=None,
) -> Target:
  """`log_prob = beta sum_(i, j) w_ij 1[x_i != x_j]`, tokens `{0, 1}`.

  Orders: `"random"`; `"cover"`, a vertex cover in random order, one node at a
  time, then the rest, which is independent given the cover, together;
  `"chain"`, the same with the cover in a fixed order, highest degree first.

  Args:
    edges: `[E, 2]` integers, `E >= 1`: a simple graph, each pair once, in
      either direction.
    num_nodes: Nodes `n`; the largest endpoint plus one by default. Nodes
      without edges are allowed: their tokens are uniform.
    beta: Inverse temperature; may be traced, without exact answers then.
    weights: `[E]` finite, of either sign, not all zero; ones by default.

  Returns:
    A `Target`. Observables: `cut`, `cut_share` (of the sum of `|w|`),
    `magnetisation` and `abs_magnetisation`, of the spins `2 x - 1`. Up to
    `MAX_NODES` nodes, `exact` has their means, `log_z`, `max_cut` and
    `p_max_cut`, the probability of a maximal cut, and `sample` makes exact
    draws, on the host. `context` ranks by distance in the graph; nodes that no
    path reaches are left out.

  Raises:
    ValueError: If the graph is not simple, an endpoint is out of range, or an
      argument has a wrong shape or is not finite.
    TypeError: If the endpoints are not integers, or `beta` is not a number.
  """
  graph = _graph(edges, num_nodes, weights)
  checks.check_finite("beta", beta)
  num = graph.num_nodes
  near, strength = _neighbours(graph)
  total = np.abs(graph.weights).sum()

  def cut(x):
    wide = jnp.promote_types(jnp.result_type(float), jnp.float32)
    parted = x[graph.edges[:, 0]] != x[graph.edges[:, 1]]
    return jnp.sum(jnp.asarray(graph.weights, wide) * parted)

  def observables(x):
    value = cut(x)
    m = jnp.mean((2 * x - 1).astype(value.dtype))
    return {
      "cut": value,
      "cut_share": value / total,
      "magnetisation": m,
      "abs_magnetisation": jnp.abs(m),
    }

  def conditional(tokens, sites=None):
    seen, exists = lattice_values(tokens, near, sites)
    revealed = (seen >= 0) & (seen < 2)
    s = jnp.where(revealed, 2.0 * seen - 1.0, 0.0)
    w = jnp.asarray(strength, s.dtype)
    w = w if sites is None else w[sites]
    w = w if w.ndim == 3 else w[None]
    odds = -0.5 * beta * (w * s).sum(axis=-1)
    return jnp.stack([-odds, odds], -1), (revealed | ~exists).all(axis=-1)

  cover, rest = _cover(graph)
  degree = np.bincount(graph.edges.ravel(), minlength=num)
  ranked = sorted(cover, key=lambda i: (-degree[i], i))
  target = Target(
    log_prob=lambda x: beta * cut(x),
    length=num,
    num_tokens=2,
    observables=observables,
    conditional=conditional,
    orders={
      "random": orders.uniform(num),
      "cover": orders.Order(
        (orders.Stage(cover, len(cover)), orders.Stage(rest, 1))
      ),
      "chain": orders.blocks([*([i] for i in ranked), rest]),
    },
    context=functools.partial(_context, graph),
  )
  if num > MAX_NODES or not checks.is_concrete(beta):
    return target
  answers = functools.cache(functools.partial(_exact, graph, float(beta)))
  return target._replace(
    exact=answers,
    log_z=answers()["log_z"],
    sample=functools.partial(_sample, graph, float(beta)),
  )


def max_cut_value(
  edges,
  num_nodes: int | None = None,
  *,
  weights=None,
  time_limit: float | None = None,
) -> float:
  """The largest cut, proven by mixed-integer programming on the host.

  By SciPy's HiGHS: random graphs of degree 3 with 100 nodes, degree 6 with 40
  and degree 10 with 30 took 5 to 8 s on a busy core.

  Args:
    edges: `[E, 2]` integers, a simple graph.
    num_nodes: Nodes.
    weights: `[E]`, or None for ones.
    time_limit: Seconds, or None.

  Raises:
    ValueError, TypeError: As `max_cut`.
    RuntimeError: If optimality is not proven within the limit.
  """
  graph = _graph(edges, num_nodes, weights)
  if time_limit is not None:
    checks.check_finite("time_limit", time_limit, positive=True)
  num, count = graph.num_nodes, len(graph.edges)
  # y_e <= x_i + x_j and y_e <= 2 - x_i - x_j where a cut edge gains;
  # y_e >= |x_i - x_j| where it costs. Then y_e = 1[x_i != x_j] at the optimum.
  row = np.arange(count)
  ones = np.ones(count)
  first, second = (
    sparse.csr_array((ones, (row, graph.edges[:, j])), (count, num))
    for j in (0, 1)
  )
  gains = graph.weights > 0
  y = sparse.eye_array(count, format="csr")
  plus, minus = first + second, first - second
  matrix = sparse.vstack(
    [
      sparse.hstack([plus[gains], -y[gains]]),
      sparse.hstack([-plus[gains], -y[gains]]),
      sparse.hstack([minus[~gains], y[~gains]]),
      sparse.hstack([-minus[~gains], y[~gains]]),
    ]
  )
  lower = np.repeat(
    [0.0, -2.0, 0.0, 0.0], [gains.sum()] * 2 + [(~gains).sum()] * 2
  )
  upper_bound = np.ones(num + count)
  upper_bound[graph.edges[0, 0]] = 0  # Of x and 1 - x, one.
  result = optimize.milp(
    np.concatenate([np.zeros(num), -graph.weights]),
    integrality=np.concatenate([np.ones(num), np.zeros(count)]),
    bounds=optimize.Bounds(0, upper_bound),
    constraints=optimize.LinearConstraint(matrix, lb=lower),
    options={"mip_rel_gap": 0.0}
    | ({} if time_limit is None else {"time_limit": time_limit}),
  )
  if result.status != 0:
    raise RuntimeError(f"max-cut was not solved: {result.message}")
  x = np.rint(result.x[:num])
  parted = x[graph.edges[:, 0]] != x[graph.edges[:, 1]]
  return float(graph.weights[parted].sum())


def petersen() -> np.ndarray:
  """`[15, 2]` edges of the Petersen graph, 10 nodes; its largest cut is 12."""
  i = np.arange(5)
  outer = np.stack([i, (i + 1) % 5], axis=1)
  spokes = np.stack([i, i + 5], axis=1)
  inner = np.stack([i + 5, (i + 2) % 5 + 5], axis=1)
  return np.concatenate([outer, spokes, inner])


def regular(num_nodes: int, degree: int, *, seed: int = 0) -> np.ndarray:
  """`[n d / 2, 2]` edges of a random graph whose nodes all have one degree.

  Args:
    num_nodes: Nodes `n`.
    degree: `d`, `1 <= d < n`, with `n d` even.
    seed: Of NumPy's generator.

  Raises:
    ValueError: If there is no such graph.

  Source:
    Steger and Wormald, Combin. Probab. Comput. 8, 377 (1999): half-edges are
    paired at random, pairs that would make a loop or a double edge are drawn
    again; uniform in the limit of large `n`. Dense graphs are complements.
  """
  checks.check_int("num_nodes", num_nodes, 2)
  checks.check_int("degree", degree)
  if degree >= num_nodes or num_nodes * degree % 2:
    raise ValueError(
      "degree must be below num_nodes and num_nodes * degree even, got "
      f"num_nodes={num_nodes}, degree={degree}."
    )
  checks.check_int("seed", seed, 0)
  rng = np.random.default_rng(seed)
  dense = 2 * degree >= num_nodes
  linked = None
  while linked is None:
    linked = _pairing(
      rng, num_nodes, num_nodes - 1 - degree if dense else degree
    )
  return np.argwhere(np.triu(~linked if dense else linked, k=1))


class _Graph(NamedTuple):
  edges: np.ndarray
  num_nodes: int
  weights: np.ndarray


def _graph(edges, num_nodes: int | None, weights) -> _Graph:
  """The arguments as arrays, or the error that names what is wrong."""
  edges = np.asarray(edges)
  checks.check_shape("edges", edges, (None, 2))
  if not len(edges):
    raise ValueError("edges must hold at least one edge, got none.")
  if not np.issubdtype(edges.dtype, np.integer):
    raise TypeError(f"edges must be integers, got dtype {edges.dtype}.")
  edges = edges.astype(np.int32)
  if num_nodes is None:
    num_nodes = int(edges.max()) + 1
  checks.check_int("num_nodes", num_nodes)
  seen: dict[tuple[int, int], int] = {}
  for e, (i, j) in enumerate(edges.tolist()):
    if not (0 <= i < num_nodes and 0 <= j < num_nodes):
      raise ValueError(
        f"edges must join nodes in [0, num_nodes = {num_nodes}), got edge {e} "
        f"= ({i}, {j})."
      )
    if i == j:
      raise ValueError(
        f"edges must join two different nodes, got edge {e} = ({i}, {j})."
      )
    other = seen.setdefault((min(i, j), max(i, j)), e)
    if other != e:
      raise ValueError(
        "edges must hold each pair once, in one direction, got "
        f"({i}, {j}) as edges {other} and {e}."
      )
  if weights is None:
    weights = np.ones(len(edges))
  checks.check_shape("weights", weights, (len(edges),), "One for each edge.")
  weights = np.asarray(weights, np.float64)
  if not np.isfinite(weights).all():
    e = int(np.flatnonzero(~np.isfinite(weights))[0])
    raise ValueError(
      f"weights must be finite, got {weights[e]} at edge {e} = "
      f"{tuple(edges[e].tolist())}."
    )
  if not weights.any():
    raise ValueError("weights must not all be zero.")
  return _Graph(edges, num_nodes, weights)


def _neighbours(graph: _Graph) -> tuple[np.ndarray, np.ndarray]:
  """Neighbours `[n, D]` int32 in ascending order, -1 padded, and weights."""
  both = np.concatenate([graph.edges, graph.edges[:, ::-1]])
  weights = np.tile(graph.weights, 2)
  sort = np.lexsort((both[:, 1], both[:, 0]))
  both, weights = both[sort], weights[sort]
  degree = np.bincount(both[:, 0], minlength=graph.num_nodes)
  start = np.cumsum(degree) - degree
  column = np.arange(len(both)) - start[both[:, 0]]
  near = np.full((graph.num_nodes, degree.max()), -1, np.int32)
  strength = np.zeros(near.shape)
  near[both[:, 0], column] = both[:, 1]
  strength[both[:, 0], column] = weights
  return near, strength


def _cover(graph: _Graph) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """A vertex cover and the independent rest, by lowest degree first."""
  around: list[set[int]] = [set() for _ in range(graph.num_nodes)]
  for i, j in graph.edges.tolist():
    around[i].add(j)
    around[j].add(i)
  left = set(range(graph.num_nodes))
  cover: set[int] = set()
  while left:
    i = min(left, key=lambda i: (len(around[i] & left), i))
    cover |= around[i] & left
    left -= around[i] | {i}
  rest = set(range(graph.num_nodes)) - cover
  return tuple(sorted(cover)), tuple(sorted(rest))


def _context(
  graph: _Graph, order: orders.Order | None, num_neighbours: int
) -> np.ndarray:
  """`[n, R]` int32: for each node the nearest ones, -1 where there are fewer.

  Args:
    graph: The graph.
    order: Only nodes revealed in earlier steps of this law, which must have
      fixed blocks; None takes every other node.
    num_neighbours: `R`.

  Raises:
    ValueError: If the law shuffles nodes within a stage.
  """
  checks.check_int("num_neighbours", num_neighbours)
  num = graph.num_nodes
  ones = np.ones(len(graph.edges))
  links = sparse.csr_array((ones, tuple(graph.edges.T)), (num, num))
  distance = csgraph.shortest_path(links, directed=False, unweighted=True)
  step = np.zeros(num, np.int64)
  if order is not None:
    steps = order.step_of_site
    step = np.array([steps[i] for i in range(num)])
  table = np.full((num, num_neighbours), -1, np.int32)
  for i in range(num):
    near = np.argsort(distance[i], kind="stable")
    allowed = near != i if order is None else step[near] < step[i]
    near = near[allowed & np.isfinite(distance[i][near])][:num_neighbours]
    table[i, : len(near)] = near
  return table


def _splits(graph: _Graph) -> np.ndarray:
  """`[2 ** (n - 1)]` cuts; bit `i` of the index is node `i`, the last is 0."""
  index = np.arange(2 ** (graph.num_nodes - 1))
  cuts = np.zeros(len(index))
  for (i, j), w in zip(graph.edges.tolist(), graph.weights, strict=True):
    cuts += w * ((index >> i ^ index >> j) & 1)
  return cuts


def _exact(graph: _Graph, beta: float) -> dict[str, float]:
  cuts = _splits(graph)
  log_half = special.logsumexp(beta * cuts)
  pmf = np.exp(beta * cuts - log_half)
  ones = np.bitwise_count(np.arange(len(cuts)))
  best = cuts.max()
  cut = float(pmf @ cuts)
  return {
    # Each split stands for itself and its mirror image.
    "log_z": float(log_half + np.log(2)),
    "cut": cut,
    "cut_share": cut / float(np.abs(graph.weights).sum()),
    "magnetisation": 0.0,
    "abs_magnetisation": float(pmf @ np.abs(2 * ones / graph.num_nodes - 1)),
    "max_cut": float(best),
    # Sums of real weights round differently along equal cuts.
    "p_max_cut": float(pmf[cuts >= best - 1e-9 * np.abs(best)].sum()),
  }


def _sample(
  graph: _Graph, beta: float, key: jax.Array, num_samples: int
) -> jax.Array:
  """`[N, n]` int32 exact draws, by the inverse of the law over all splits."""
  checks.check_key(key)
  checks.check_int("num_samples", num_samples)
  cuts = _splits(graph)
  cdf = np.cumsum(np.exp(beta * cuts - (beta * cuts).max()))
  bits = np.asarray(jax.random.bits(key, (num_samples, 3), jnp.uint32))
  # float32 has not the digits for half a million states.
  u = (bits[:, 0] + bits[:, 1] * 2.0**-32) * 2.0**-32
  index = np.searchsorted(cdf, u * cdf[-1], side="right")
  index = np.minimum(index, len(cdf) - 1)
  tokens = index[:, None] >> np.arange(graph.num_nodes)[None] & 1
  return jnp.asarray(tokens ^ (bits[:, 2:] & 1), jnp.int32)


def _pairing(rng, num_nodes: int, degree: int) -> np.ndarray | None:
  """`[n, n]` bool adjacency by random pairing, or None where it got stuck."""
  linked = np.zeros((num_nodes, num_nodes), bool)
  stubs = np.repeat(np.arange(num_nodes), degree)
  while len(stubs):
    left = []
    for i, j in rng.permutation(stubs).reshape(-1, 2):
      if i == j or linked[i, j]:
        left += [i, j]
      else:
        linked[i, j] = linked[j, i] = True
    if len(left) == len(stubs):
      return None
    stubs = np.array(left, np.int64)
  return linked
