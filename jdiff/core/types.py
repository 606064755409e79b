"""Types that every layer shares: callables' contracts, rollouts, targets."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jdiff.core.orders import Order

Params = Any
"""A pytree of arrays."""

Array = jax.Array
Sites = jax.Array | np.ndarray
"""Site indices: `[m]` (shared by the batch) or `[B, m]`, int32."""

LogProb = Callable[[jax.Array], jax.Array]
"""Unnormalised log-density or log-mass of one configuration, in nats."""


class LogitsFn(Protocol):
  """A denoiser of masked sequences.

  `tokens` is `[B, L]` int32 with the mask id at hidden sites and `t` is `[B]`
  float32 in `[0, 1]`, the masked share of the completion (1 = noise). Without
  `sites` the answer is `[B, L, V]`. With `sites`, `[m]` or `[B, m]`, it is
  `[B, m, V]`, for those sites alone: a network that can should pay only for
  them. Concrete (NumPy) sites let a network specialise while tracing. If the
  mask id lies inside `V`, its column must be `-inf`.
  """

  def __call__(
    self,
    params: Params,
    tokens: jax.Array,
    t: jax.Array,
    sites: Sites | None = None,
  ) -> jax.Array: ...


class ScoreFn(Protocol):
  """The score of a diffused density: `(params, x[B, ...], t[B])`."""

  def __call__(
    self, params: Params, x: jax.Array, t: jax.Array
  ) -> jax.Array: ...


class VelocityFn(Protocol):
  """A velocity field `E[dx_t / dt | x_t]`: `(params, x[B, ...], t[B])`.

  Callers that have labels, `[B]` int32, pass them as `label=`, and no keyword
  otherwise.
  """

  def __call__(
    self, params: Params, x: jax.Array, t: jax.Array, **label: jax.Array
  ) -> jax.Array: ...


class FlowMapFn(Protocol):
  """An average velocity: `x_s = x_t - (t - s) u(params, x_t, t, s)`.

  `t` and `s` are `[B]`, `0 <= s <= t <= 1`; at `s = t` it is the velocity.
  MeanFlow's `u(z, r, t)` and Shortcut's `s(x, t, d = t - s)` are both this.
  Labels as in `VelocityFn`.
  """

  def __call__(
    self,
    params: Params,
    x: jax.Array,
    t: jax.Array,
    s: jax.Array,
    **label: jax.Array,
  ) -> jax.Array: ...


class Pairs(NamedTuple):
  """Noise matched with data: what every flow loss trains on.

  Attributes:
    noise: `[B, ...]` float, the path's end at `t = 1`.
    data: `[B, ...]` float, the path's end at `t = 0`.
    label: `[B]` int32, or None.
  """

  noise: jax.Array
  data: jax.Array
  label: jax.Array | None = None


class Rollout(NamedTuple):
  """Simulated paths, seen from their data end.

  Attributes:
    samples: `[N, L]` int32, the whole canvas with its prompt, or `[N, ...]`
      float positions: the data end, `t = 0`.
    log_policy: `[N]` float32, log-probability of what was revealed under the
      law really sampled (temperature included), in nats.
    log_ratio: `[N]` float32, log dP_ref/dP_policy along the path, with no
      reward in it. None when the reveal order depends on the network.
    order: `[N, G]` int32, the j-th revealed site, ascending inside a block.
      None for processes that reveal nothing.
    num_revealed: `[K]` int32 (`[N, K]` under Bernoulli reveals), the sites
      revealed at each step. A NumPy array where it is static.
    nfe: `[N]` int32, network evaluations.
  """

  samples: jax.Array
  log_policy: jax.Array | None
  log_ratio: jax.Array | None
  order: jax.Array | None
  num_revealed: Sites | None
  nfe: jax.Array


class Target(NamedTuple):
  """An unnormalised law that knows what can be known of it exactly.

  Attributes:
    log_prob: Unnormalised `log_prob` of one configuration (`[L]` int32, or
      float of the target's `shape`); batch it with `jax.vmap`.
    length: Sites of a discrete configuration, else None.
    num_tokens: Tokens a site, else None.
    dim: Dimension of a continuous configuration, else None.
    log_z: The exact log partition function in nats, or None.
    sample: `(key, num_samples) -> [N, ...]` draws, exact or by well-mixed
      MCMC as its docstring says, or None.
    exact: `() -> {name: value}`, exact expectations in float64, or None.
    observables: `x -> {name: value}` of one configuration, the functions
      whose expectations `exact` reports; or None.
    conditional: `(tokens [B, L], sites) -> (logits [B, m, V], known [B, m])`:
      the law's conditional at each site given its revealed neighbours, taking
      hidden ones as absent, and whether it is exact because all are revealed;
      or None.
    orders: Named order laws natural to the law's geometry.
    context: `(order) -> [L, R]` int32 table of the sites that matter most to
      each site among those revealed before it, -1 where there are fewer; or
      None.
    particles: `(n, d)`: configurations are `[n, d]` positions whose centre of
      mass is zero, and `log_prob` is a density on that subspace, of
      `dim = (n - 1) d` dimensions; else None.
  """

  log_prob: LogProb
  length: int | None = None
  num_tokens: int | None = None
  dim: int | None = None
  log_z: float | None = None
  sample: Callable[[jax.Array, int], jax.Array] | None = None
  exact: Callable[[], dict[str, Any]] | None = None
  observables: Callable[[jax.Array], dict[str, jax.Array]] | None = None
  conditional: Callable[..., tuple[jax.Array, jax.Array]] | None = None
  orders: Mapping[str, Order] = {}
  context: Callable[..., np.ndarray] | None = None
  particles: tuple[int, int] | None = None

  @property
  def shape(self) -> tuple[int, ...]:
    """One configuration's shape; a ValueError for a discrete target."""
    if self.dim is None:
      raise ValueError(
        "target must be continuous, with a dim; got "
        f"length={self.length}, num_tokens={self.num_tokens}, dim=None."
      )
    return self.particles or (self.dim,)

  def discrete(self) -> tuple[int, int]:
    """`(length, num_tokens)`, or a ValueError for a continuous target."""
    if self.length is None or self.num_tokens is None:
      raise ValueError(
        "target must be discrete, with length and num_tokens; got "
        f"length={self.length}, num_tokens={self.num_tokens}."
      )
    return self.length, self.num_tokens


class ConstrainedTarget(NamedTuple):
  """`exp(-potential_fn) dsigma` on a set, and what is known of it exactly.

  `dsigma` is the surface measure of `{eq_fn = 0, ineq_fn <= 0}`.

  Attributes:
    potential_fn: `f(x [dim])`, scalar.
    dim: Dimension of the space around the set.
    init: `(key, num_chains) -> [C, dim]` points on or near the set, spread out.
    eq_fn: `h(x) -> [m]`, or None.
    ineq_fn: `g(x) -> [l]`, feasible where `<= 0`, or None.
    observables: `x -> {name: value}`, scalars of one point.
    exact: `() -> {name: value}`, exact expectations of some of the observables,
      float64.
    sample: `(key, num_samples) -> [N, dim]` exact draws, or None.
  """

  potential_fn: Callable[[jax.Array], jax.Array]
  dim: int
  init: Callable[[jax.Array, int], jax.Array]
  eq_fn: Callable[[jax.Array], jax.Array] | None = None
  ineq_fn: Callable[[jax.Array], jax.Array] | None = None
  observables: Callable[[jax.Array], dict[str, jax.Array]] = lambda x: {}
  exact: Callable[[], dict[str, float]] = dict
  sample: Callable[[jax.Array, int], jax.Array] | None = None


class Kernel(NamedTuple):
  """An iteration as two pure functions: a chain's, a solver's.

  Attributes:
    init: `init(position) -> state`.
    step: `step(key, state) -> (state, info)`.
  """

  init: Callable[..., Any]
  step: Callable[..., tuple[Any, Any]]


class Method(NamedTuple):
  """An on-policy method: what it gathers, and what it minimises.

  Attributes:
    collect: `(params, key) -> batch`; no gradient flows through it.
    loss: `(params, key, batch) -> (per_example [B], info)`; the mean over
      examples is the objective.
  """

  collect: Callable[..., Any]
  loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
