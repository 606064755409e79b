"""A sphere with planes and obstacles: any dimension, any number of them."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jdiff.core import checks
from jdiff.core.types import ConstrainedTarget
from jdiff.targets import quadrature


def stress(
  dim: int,
  num_eq: int,
  num_ineq: int,
  *,
  radius: float = 5.0,
  blocked: float = 0.1,
  seed: int = 0,
) -> ConstrainedTarget:
  """A sphere cut by random planes, with ball obstacles that are met; `f = 0`.

  `num_eq - 1` planes `A x = b` and `|x|^2 = radius^2`; obstacle `j` is
  `|x - c_j|^2 >= r_j^2` with its centre on the set, large enough to cover the
  share `blocked` of it. `u = <x, c_1>` scaled to `[-1, 1]` has an exact law for
  one obstacle; for more, `sample` makes exact draws by rejection. Chains start
  uniformly on the set without its obstacles, which push them out.

  Args:
    dim: `d`.
    num_eq: `m >= 1`, the sphere included.
    num_ineq: `l` obstacles, 0 for none.
    radius: Of the sphere.
    blocked: Share of the set that an obstacle covers, in `(0, 1/2]`.
    seed: Of the instance.
  """
  checks.check_int("num_eq", num_eq)
  checks.check_int("num_ineq", num_ineq, 0)
  checks.check_int("dim", dim, num_eq + num_ineq + 2)
  checks.check_range("blocked", blocked, 0, 0.5, ends="(]")
  checks.check_int("seed", seed, 0)
  rng = np.random.default_rng(seed)
  planes = rng.normal(size=(num_eq - 1, dim))
  offsets = 0.1 * rng.normal(size=num_eq - 1)
  # The set is a sphere of dimension n - 1 in the planes' intersection.
  centre = np.linalg.pinv(planes) @ offsets if num_eq > 1 else np.zeros(dim)
  if not radius**2 > centre @ centre:
    raise ValueError(
      f"radius must exceed the planes' distance {centre @ centre:.3g}^0.5 from "
      f"the origin, got {radius}."
    )
  inner = np.sqrt(radius**2 - centre @ centre)
  basis = np.linalg.svd(planes)[2][num_eq - 1 :] if num_eq > 1 else np.eye(dim)
  n = len(basis)
  # (1 + u) / 2 is Beta((n-1)/2, (n-1)/2) on a uniform sphere.
  law = stats.beta((n - 1) / 2, (n - 1) / 2)
  edge = 2 * law.isf(blocked) - 1
  directions = rng.normal(size=(max(num_ineq, 1), n))
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  directions = directions @ basis
  centres = (centre + inner * directions)[:num_ineq]
  obstacle = 2 * inner**2 * (1 - edge)

  def eq_fn(x):
    plane = jnp.asarray(planes, x.dtype) @ x - jnp.asarray(offsets, x.dtype)
    return jnp.concatenate([plane, jnp.sum(x**2)[None] - radius**2])

  def ineq_fn(x):
    gaps = x[None] - jnp.asarray(centres, x.dtype)
    return obstacle - jnp.sum(gaps**2, axis=1)

  def observables(x):
    u = jnp.asarray(directions[0], x.dtype) @ (x - jnp.asarray(centre, x.dtype))
    u = u / inner
    return {"u": u, "u_squared": u**2, "radius_squared": jnp.sum(x**2)}

  def exact():
    known = {"radius_squared": radius**2}
    if num_ineq <= 1:
      top = edge if num_ineq else 1.0
      # u has a standard deviation of n^(-1/2); beyond 12 of them is nothing.
      reach = min(1.0, 12 / n**0.5)
      known |= quadrature.on_interval(
        -reach,
        min(top, reach),
        lambda u: (n - 3) / 2 * np.log1p(-(u**2)),
        "u",
      )
    return known

  def on_sphere(key, num):
    z = jax.random.normal(key, (num, n))
    z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
    return jnp.asarray(centre)[None] + inner * (z @ jnp.asarray(basis))

  def sample(key, num_samples):
    kept, have, i = [], 0, 0
    while have < num_samples:
      x = on_sphere(jax.random.fold_in(key, i), max(num_samples, 1024))
      ok = np.ones(len(x), bool)
      if num_ineq:
        ok = np.asarray(jax.vmap(ineq_fn)(x).max(axis=1) <= 0)
      kept.append(np.asarray(x)[ok])
      have, i = have + int(ok.sum()), i + 1
      if i == 1000:
        raise ValueError("fewer than one draw in 1000 misses all obstacles.")
    return jnp.asarray(np.concatenate(kept)[:num_samples])

  return ConstrainedTarget(
    potential_fn=lambda x: jnp.zeros((), x.dtype),
    dim=dim,
    init=on_sphere,
    eq_fn=eq_fn,
    ineq_fn=ineq_fn if num_ineq else None,
    observables=observables,
    exact=exact,
    sample=sample,
  )
