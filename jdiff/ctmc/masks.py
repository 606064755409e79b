"""Masking clean sequences: mask laws and the weights that undo them.

The identity behind both laws, exact for every sequence `x` and network `s`
(arXiv:2508.10684, sec. 3; tested by enumeration):

  E_order[-sum_j log s(x_before_j)_j] = int_0^1 dt/t E[-sum_masked log s]
                          = sum_m E_{|S|=m}[(1/m) sum_{d in S} -log s(x_S)_d],

so one forward pass on a masked sequence, weighted by `1/t` (Bernoulli masks)
or `L/m` (exact-count masks, far less variance), estimates the log-probability
of a whole path in uniformly random order.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jdiff.core import checks
from jdiff.core import keys as keys_lib

DrawMasks = Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]
"""`(key, length) -> (mask [R, length] bool, weight [R])` for one sequence."""


def count_masks(num_masks: int = 1, *, antithetic: bool = False) -> DrawMasks:
  """Masks of exactly `m ~ Uniform{1..L}` sites, weight `L / m`.

  The counts of one sequence's masks are a systematic sample of `{1..L}`: each
  is uniform, together they are spread out.

  Args:
    num_masks: Masks `R` a sequence.
    antithetic: Pair each mask with its complement. The complement of an
      all-masked sequence holds no term, so that mask stands twice instead:
      without this the first-token marginal would lose half its weight.
  """
  num_draws = _num_draws(num_masks, antithetic)

  def draw(key, length):
    key_count, key_sites = jax.random.split(key)
    position = (jnp.arange(num_draws) + jax.random.uniform(key_count)) / (
      num_draws
    )
    count = 1 + jnp.minimum(jnp.floor(position * length), length - 1).astype(
      jnp.int32
    )
    mask = _exact_count(key_sites, count, length)
    if antithetic:
      full = (count == length)[:, None]
      mask = jnp.concatenate([mask, jnp.where(full, mask, ~mask)])
    return mask, length / jnp.sum(mask, axis=1).astype(jnp.float32)

  return draw


def bernoulli_masks(
  num_masks: int = 1, *, antithetic: bool = False, min_time: float = 1e-3
) -> DrawMasks:
  """Masks each site with probability `t ~ Uniform(min_time, 1)`, weight `1/t`.

  Args:
    num_masks: Masks `R` a sequence; their times are a systematic sample.
    antithetic: Pair `(t, mask)` with `(1 - t, complement)`, which has the same
      law: unbiased without a correction.
    min_time: Times below it are not drawn, which leaves out a share of about
      `min_time` of the integral, and bounds the weight.
  """
  num_draws = _num_draws(num_masks, antithetic)
  if not 0 < min_time < 0.5:
    raise ValueError(f"min_time must lie in (0, 0.5), got {min_time}.")

  def draw(key, length):
    key_time, key_sites = jax.random.split(key)
    position = (jnp.arange(num_draws) + jax.random.uniform(key_time)) / (
      num_draws
    )
    # The pair of t is 1 - t, so both ends are cut alike there.
    upper = 1 - min_time if antithetic else 1.0
    t = min_time + (upper - min_time) * position
    mask = jax.random.uniform(key_sites, (num_draws, length)) < t[:, None]
    if antithetic:
      mask = jnp.concatenate([mask, ~mask])
      t = jnp.concatenate([t, 1 - t])
    return mask, (upper - min_time) / t

  return draw


def corrupt(
  key: jax.Array,
  tokens: jax.Array,
  *,
  mask_id: int,
  draw_masks: DrawMasks | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Masks each sequence of a batch `R` times.

  Args:
    key: One PRNG key, or `[B]` keys, one a sequence; consumed.
    tokens: `[B, L]` int32 clean sequences.
    mask_id: Token written at hidden sites.
    draw_masks: Mask law, `count_masks()` by default.

  Returns:
    `(masked [B, R, L], mask [B, R, L] bool, weight [B, R])`.

  Raises:
    ValueError: If `tokens` is not `[B, L]` or holds the mask id.
  """
  checks.check_tokens("tokens", tokens, mask_id=mask_id)
  batch, length = tokens.shape
  draw = count_masks() if draw_masks is None else draw_masks
  keys = keys_lib.per_example(key, batch)
  mask, weight = jax.vmap(lambda k: draw(k, length))(keys)
  masked = jnp.where(mask, jnp.asarray(mask_id, tokens.dtype), tokens[:, None])
  return masked, mask, weight


def _exact_count(key, count, length):
  """`[R, length]` bool with exactly `count [R]` True, uniformly placed."""
  scores = jax.random.uniform(key, (count.shape[0], length))
  rank = jnp.argsort(jnp.argsort(scores, axis=1), axis=1)
  return rank < count[:, None]


def _num_draws(num_masks: int, antithetic: bool) -> int:
  checks.check_int("num_masks", num_masks)
  if antithetic and num_masks % 2:
    raise ValueError(
      f"num_masks must be even for antithetic pairs, got {num_masks}."
    )
  return num_masks // 2 if antithetic else num_masks
