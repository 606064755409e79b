"""Mask laws of ELBO estimates: fixed times (GDPO), and iid draws to compare.

The masked ELBO is an integral over time of an average over masks. Nearly all of
a Monte Carlo estimate's variance comes from the time once sequences are long,
and the integrand is smooth: a few fixed nodes remove it (GDPO,
arXiv:2510.08554). What is left to choose is which masks stand for a node; the
released code's choice (`"floor"`) is biased, `"mid"` hardly is.
"""

import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.ctmc import masks as masks_lib
from jdiff.schedules import quadrature

LAWS = ("mid", "round", "floor", "bernoulli")


def node_masks(
  num_nodes: int,
  num_masks: int = 1,
  *,
  law: str = "mid",
  rule: str = "gauss",
) -> masks_lib.DrawMasks:
  """Semi-deterministic Monte Carlo: masks at the nodes of a quadrature rule.

  With `n` valid sites, node `t` and its weight `w` in the rule, the laws are:

  - `"mid"`: `c = clip(t n + 1/2, 1, n)` masked sites on average, one of the two
    integers around `c`, weight `w n / count`. The ELBO is a sum over counts,
    which the integral of its summand meets half a count off; hence the 1/2.
  - `"round"`: the nearest count to `t n`, at least 1, weight `w n / count`.
  - `"floor"`: the count `int(t n)`, at least 1, weight `w / t`: the released
    code's, biased by about a factor `int(t n) / (t n)` a node.
  - `"bernoulli"`: each site with probability `t`, weight `w / t`. Its bias is
    the rule's alone, none for `"gauss"` if `num_nodes >= n / 2`, but its
    variance is far larger: the count is random.

  Sequences of `n <= num_nodes` sites get each count `1..n` instead, whatever
  the law: no bias and no variance from the time. Rows left over weigh 0.

  Args:
    num_nodes: Nodes `N`; two or three do at completion length.
    num_masks: Masks a node `K`.
    law: See above.
    rule: A rule of `schedules.quadrature`.

  Returns:
    A `DrawMasks` of `R = N K` rows, node by node.

  Raises:
    ValueError: If a number, the law or the rule is not known, or if a node at
      `t = 0` would weigh `w / 0`.

  Source:
    "Improving Reasoning for Diffusion Language Models via Group Diffusion
    Policy Optimization" (GDPO, arXiv:2510.08554), eq. 5. Differs: laws by count
    weigh `n / count`; `"mid"` is new here.
  """
  num_masks = checks.check_int("num_masks", num_masks)
  t, share = quadrature.quadrature(rule, num_nodes)
  if law not in LAWS:
    raise ValueError(f"law must be one of {LAWS}, got {law!r}.")
  if law in ("floor", "bernoulli") and t.min() <= 0:
    raise ValueError(
      f"rule must have no node at t = 0 for law={law!r}, which weighs by 1/t, "
      f"got rule={rule!r}."
    )
  # An estimate is a mean over rows, so a row's share is N times its node's.
  t = np.repeat(t, num_masks)
  share = np.repeat(num_nodes * share, num_masks)
  every_count = np.repeat(np.arange(1, num_nodes + 1), num_masks)

  def draw(key, valid):
    uniform, site_uniforms = masks_lib.uniforms(key, t.size, valid)
    dtype = jnp.result_type(float)
    num_valid = jnp.sum(valid)
    count = _counts(uniform, law, jnp.asarray(t, dtype), num_valid)
    weight = jnp.asarray(share, dtype)
    if law in ("floor", "bernoulli"):
      weight = weight / jnp.asarray(t, dtype)
    else:
      weight = weight * num_valid / jnp.maximum(count, 1)

    few = num_valid <= num_nodes
    used = every_count <= num_valid
    count = jnp.where(few, jnp.where(used, every_count, 0), count)
    weight = jnp.where(
      few,
      jnp.where(used, jnp.asarray(num_nodes / every_count, dtype), 0),
      weight,
    )
    mask = masks_lib.subsets(site_uniforms, count, valid)
    if law == "bernoulli":
      drawn = (site_uniforms < jnp.asarray(t, dtype)[:, None]) & valid[None]
      mask = jnp.where(few, mask, drawn)
    return mask, weight

  return draw


def double_monte_carlo(
  num_draws: int, law: str = "count", min_time: float = 1e-3
) -> masks_lib.DrawMasks:
  """Independent draws of time and mask: the baseline, not the choice.

  Args:
    num_draws: Draws `R`, the network evaluations a sequence.
    law: `"count"` (a uniform count, LLaDA's evaluator) or `"bernoulli"` (a
      uniform time, biased by about `min_time`).
    min_time: As in `ctmc.bernoulli_masks`; `"count"` does not use it.
  """
  checks.check_int("num_draws", num_draws)
  if law == "count":
    return masks_lib.count_masks(num_draws, stratified=False)
  if law == "bernoulli":
    return masks_lib.bernoulli_masks(
      num_draws, stratified=False, min_time=min_time
    )
  raise ValueError(f"law must be 'count' or 'bernoulli', got {law!r}.")


def _counts(uniform, law, t, num_valid):
  """`[R]` int32 masked sites at times `t [R]`; not used by `"bernoulli"`."""
  last = jnp.maximum(num_valid, 1)
  if law == "mid":
    middle = jnp.clip(t * num_valid + 0.5, 1, last)
    low = jnp.floor(middle)
    up = uniform < middle - low
    return low.astype(jnp.int32) + up
  nearest = jnp.round if law == "round" else jnp.floor
  return jnp.clip(nearest(t * num_valid), 1, last).astype(jnp.int32)
