"""Masking clean sequences: mask laws and the weights that undo them.

The identity behind both laws, exact for every sequence `x` and network `s`
(arXiv:2508.10684, sec. 3; tested by enumeration):

  E_order[-sum_j log s(x_before_j)_j] = int_0^1 dt/t E[-sum_masked log s]
                          = sum_m E_{|S|=m}[(1/m) sum_{d in S} -log s(x_S)_d],

so one forward pass on a masked sequence, weighted by `1/t` (Bernoulli masks)
or `n/m` (exact-count masks, far less variance), estimates the log-probability
of a whole path in uniformly random order.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jdiff.core import checks

DrawMasks = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""`(key, valid [L] bool) -> (mask [R, L] bool, weight [R])`, one sequence.

`R` is static. Masks fall on valid sites only, whose number is `n`; the estimate
is `mean_r weight_r * sum_masked log p`. Without a valid site masks are empty
and weights finite.
"""


def count_masks(
  num_masks: int = 1, *, antithetic: bool = False, stratified: bool = True
) -> DrawMasks:
  """Masks of exactly `m ~ Uniform{1..n}` valid sites, weight `n / m`.

  Args:
    num_masks: Masks `R` a sequence.
    antithetic: Pair each mask with its complement. The complement of an
      all-masked sequence holds no term, so that mask stands twice instead:
      without this the first-token marginal would lose half its weight.
    stratified: Whether the counts of one sequence's masks are a systematic
      sample of `{1..n}`: each uniform, together spread out. Else independent.
  """
  num_draws = _num_draws(num_masks, antithetic)

  def draw(key, valid):
    uniform, site_uniforms = uniforms(key, num_draws, valid)
    num_valid = jnp.sum(valid)
    position = _positions(uniform, stratified)
    count = 1 + jnp.minimum(
      jnp.floor(position * num_valid).astype(jnp.int32), num_valid - 1
    )
    mask = subsets(site_uniforms, count, valid)
    if antithetic:
      full = (count == num_valid)[:, None]
      mask = jnp.concatenate([mask, jnp.where(full, mask, valid[None] & ~mask)])
    return mask, num_valid / _at_least_one(jnp.sum(mask, axis=1))

  return draw


def bernoulli_masks(
  num_masks: int = 1,
  *,
  antithetic: bool = False,
  stratified: bool = True,
  min_time: float = 1e-3,
) -> DrawMasks:
  """Masks each site with probability `t ~ Uniform(min_time, 1)`, weight `1/t`.

  Args:
    num_masks: Masks `R` a sequence.
    antithetic: Pair `(t, mask)` with `(1 - t, complement)`, which has the same
      law: unbiased without a correction.
    stratified: Whether one sequence's times are a systematic sample, or
      independent.
    min_time: Times below it are not drawn, which leaves out a share of about
      `min_time` of the integral, and bounds the weight: without it the second
      moment diverges.
  """
  num_draws = _num_draws(num_masks, antithetic)
  checks.check_range("min_time", min_time, 0, 0.5, ends="()")

  def draw(key, valid):
    uniform, site_uniforms = uniforms(key, num_draws, valid)
    position = _positions(uniform, stratified)
    # The pair of t is 1 - t, so both ends are cut alike there.
    upper = 1 - min_time if antithetic else 1.0
    t = min_time + (upper - min_time) * position
    mask = site_uniforms < t[:, None]
    if antithetic:
      mask = jnp.concatenate([mask, ~mask])
      t = jnp.concatenate([t, 1 - t])
    return mask & valid[None], (upper - min_time) / t

  return draw


def uniforms(
  key: jax.Array, num_masks: int, valid: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """What masks are made of: `[R]` uniforms in `[0, 1)`, and `[R, L]` of them.

  One draw for both. Sites lead in it, so that (with JAX's default,
  counter-based bits) those of the first sites do not depend on how much padding
  follows.
  """
  drawn = jax.random.uniform(key, (1 + valid.shape[0], num_masks))
  return drawn[0], drawn[1:].T


def subsets(
  site_uniforms: jax.Array, count: jax.Array, valid: jax.Array
) -> jax.Array:
  """Uniform subsets of the valid sites: `[R, L]` bool, `count [R]` True.

  Args:
    site_uniforms: `[R, L]` in `[0, 1)`, from `uniforms`.
    count: `[R]` integers, at most the number of valid sites.
    valid: `[L]` bool.
  """
  length = valid.shape[0]
  # Integers without ties, a site's number below its random bits: one sort, of
  # keys alone, then finds the cut. Ranks by argsort take 15 times as long.
  low = max(1, (length - 1).bit_length())
  score = (site_uniforms * 2.0 ** (31 - low)).astype(jnp.int32) << low
  score = score | jnp.arange(length, dtype=jnp.int32)[None]
  score = jnp.where(valid[None], score, jnp.iinfo(jnp.int32).max)
  last = jnp.maximum(count - 1, 0)[:, None]
  cut = jnp.take_along_axis(jnp.sort(score, axis=1), last, axis=1)
  return (score <= cut) & (count > 0)[:, None] & valid[None]


def _positions(uniform, stratified):
  """`[R]` uniforms, as drawn or a systematic sample."""
  if not stratified:
    return uniform
  return (jnp.arange(uniform.shape[0]) + uniform[0]) / uniform.shape[0]


def _at_least_one(count):
  """Counts as floats to divide by: an empty mask has no term to weigh."""
  return jnp.maximum(count, 1).astype(jnp.result_type(float))


def _num_draws(num_masks: int, antithetic: bool) -> int:
  checks.check_int("num_masks", num_masks)
  if antithetic and num_masks % 2:
    raise ValueError(
      f"num_masks must be even for antithetic pairs, got {num_masks}."
    )
  return num_masks // 2 if antithetic else num_masks
