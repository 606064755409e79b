"""Fixed-capacity buffers on the device: a ring, and admission by rank.

Admission keeps the best of what a buffer holds and what is offered to it, both
concatenated, the buffer first. It is one sort instead of a loop over the
candidates: pure, of static shapes, and with the same answer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jdiff.core import checks, pareto


class ReplayState(NamedTuple):
  """A ring of examples.

  Attributes:
    data: Pytree of `[capacity, ...]` arrays.
    num_added: Scalar int32, examples ever written.
  """

  data: Any
  num_added: jax.Array


def init(example: Any, capacity: int) -> ReplayState:
  """An empty buffer for examples shaped like `example` (no batch axis)."""
  checks.check_int("capacity", capacity)
  data = jax.tree.map(
    lambda x: jnp.zeros((capacity, *jnp.shape(x)), jnp.result_type(x)), example
  )
  return ReplayState(data, jnp.int32(0))


def size(state: ReplayState) -> jax.Array:
  """Examples held now, scalar int32."""
  return jnp.minimum(state.num_added, _capacity(state))


def add(state: ReplayState, batch: Any) -> ReplayState:
  """Writes a batch `[B, ...]` over the oldest entries; `B <= capacity`."""
  capacity = _capacity(state)
  sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(batch)}
  if len(sizes) != 1 or () in sizes or max(sizes) > (capacity,):
    raise ValueError(
      "batch leaves must share one leading size that fits the capacity of "
      f"{capacity}, got {sorted(n for size in sizes for n in size)}."
    )
  ((num,),) = sizes
  given, wanted = (str(jax.tree.structure(x)) for x in (batch, state.data))
  if given != wanted:
    raise ValueError(f"batch must be a {wanted}, got a {given}.")
  slots = (state.num_added + jnp.arange(num)) % capacity
  data = jax.tree.map(
    lambda old, new: old.at[slots].set(new.astype(old.dtype)),
    state.data,
    batch,
  )
  # Modulo arithmetic on a counter that saturates at 2 * capacity keeps both
  # the write slot and `size` right without ever overflowing int32.
  added = state.num_added + num
  added = jnp.where(added >= 2 * capacity, added - capacity, added)
  return ReplayState(data, added)


def valid(state: ReplayState) -> jax.Array:
  """`[capacity]` bool: which entries have been written."""
  return jnp.arange(_capacity(state)) < size(state)


def sample(key: jax.Array, state: ReplayState, num_samples: int) -> Any:
  """Draws `[num_samples, ...]` uniformly with replacement.

  An empty buffer has nothing to draw: entries are then all zeros.
  """
  checks.check_key(key)
  checks.check_int("num_samples", num_samples)
  index = jax.random.randint(
    key, (num_samples,), 0, jnp.maximum(size(state), 1)
  )
  return jax.tree.map(lambda x: x[index], state.data)


def first_copies(
  tokens: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
  """Which rows are no copies of an earlier one.

  Exact: rows are sorted by a hash, and compared token by token with the first
  row of that hash. Should others differ from it, they are compared with the
  first of those, and so on, until none is left.

  Args:
    tokens: `[B, L]` int.
    valid: `[B]` bool, or None for all.

  Returns:
    `[B]` bool, True at the first valid copy of each distinct row.
  """
  checks.check_tokens("tokens", tokens)
  num, length = tokens.shape
  place = jnp.arange(num, dtype=jnp.int32)
  if valid is None:
    valid = jnp.ones(num, bool)
  checks.check_shape("valid", valid, (num,))
  # Odd multipliers lose no bit of a single token.
  factors = np.random.default_rng(0).integers(0, 2**32, length, np.uint32) | 1
  hashes = jnp.sum(
    tokens.astype(jnp.uint32) * factors[None], axis=1, dtype=jnp.uint32
  )
  hashes, order = lax.sort((hashes, place), num_keys=1, is_stable=True)
  rows = jnp.asarray(tokens)[order]
  starts = jnp.concatenate([jnp.zeros(1, bool), hashes[1:] != hashes[:-1]])
  group = jnp.cumsum(starts.astype(jnp.int32))

  def settle(carry):
    first, open_ = carry
    leader = jax.ops.segment_min(
      jnp.where(open_, place, num), group, num, indices_are_sorted=True
    )[group]
    same = jnp.all(rows == rows[jnp.minimum(leader, num - 1)], axis=1)
    return first | (open_ & (leader == place)), open_ & ~same

  # A pass settles at least one row of every group, and all of a group's rows
  # unless two that differ share its hash.
  first, _ = lax.while_loop(
    lambda carry: jnp.any(carry[1]),
    settle,
    (jnp.zeros(num, bool), jnp.asarray(valid)[order]),
  )
  return jnp.zeros(num, bool).at[order].set(first)


def take_top(
  ranks: tuple[jax.Array, ...], keep: jax.Array, capacity: int
) -> tuple[jax.Array, jax.Array]:
  """Picks the kept rows with the largest ranks.

  Args:
    ranks: Arrays `[B]`, compared lexicographically: later ones decide where
      earlier ones are equal, and the lower index where all are. NaN is below
      everything, `-inf` too.
    keep: `[B]` bool: the rows that may be taken.
    capacity: Rows wanted, a Python int; may exceed `B`.

  Returns:
    `(index, taken)`, `[capacity]` int32 and bool, best first. Slots that stay
    empty have `taken` False and some index in `[0, B)`.

  Raises:
    ValueError: If `capacity < 1` or the shapes do not fit.
  """
  checks.check_int("capacity", capacity)
  checks.check_shape("keep", keep, (None,))
  (num,) = keep.shape
  for i, rank in enumerate(ranks):
    checks.check_shape(f"ranks[{i}]", rank, (num,))
  operands = (
    ~keep,
    *map(_reversed, ranks),
    jnp.arange(num, dtype=jnp.int32),
  )
  *_, index = lax.sort(operands, num_keys=1 + len(ranks), is_stable=True)
  index = jnp.pad(index[:capacity], (0, max(capacity - num, 0)))
  return index, jnp.arange(capacity) < jnp.sum(keep)


def unique_top(
  data: Any,
  valid: jax.Array,
  ranks: tuple[jax.Array, ...],
  tokens: jax.Array,
  capacity: int,
) -> tuple[Any, jax.Array]:
  """Admission by rank: the best `capacity` of the distinct rows.

  It holds what a buffer holds in the end that is offered the rows one by one,
  refuses duplicates, and once full replaces its smallest row by a larger one
  (TR2-D2: the ranks are reward and log-weight). That takes a first rank
  which copies share and distinct rows do not; where distinct rows share it,
  either may hold another of them.

  Args:
    data: Pytree of `[B, ...]` arrays, those that the buffer holds first.
    valid: `[B]` bool.
    ranks: As in `take_top`.
    tokens: `[B, L]` int; of equal rows the first valid one is kept, whatever
      its ranks.
    capacity: Rows to hold, a Python int; may exceed `B`.

  Returns:
    `(data, valid)` with `capacity` rows, best first. Rows that are not valid
    are copies of others.

  Raises:
    ValueError: As in `take_top`.
  """
  index, taken = take_top(ranks, first_copies(tokens, valid), capacity)
  return jax.tree.map(lambda x: jnp.asarray(x)[index], data), taken


def pareto_top(
  data: Any,
  valid: jax.Array,
  values: jax.Array,
  tokens: jax.Array,
  capacity: int,
) -> tuple[Any, jax.Array]:
  """Admission by dominance: distinct rows that no other row dominates.

  Where more than `capacity` are left, those with the largest sum of objectives
  stay. While the front fits, offering rows in parts gives the same set; later
  it may not, since what fell out for want of room dominates nothing any more.

  Args:
    data: Pytree of `[B, ...]` arrays, those that the buffer holds first.
    valid: `[B]` bool.
    values: `[B, K]`, all maximised; rows with a NaN count as not valid.
    tokens: `[B, L]` int; of equal rows the first valid one is kept.
    capacity: Rows to hold, a Python int; may exceed `B`.

  Returns:
    `(data, valid)` with `capacity` rows, the largest sums first. Rows that are
    not valid are copies of others.

  Raises:
    ValueError: As in `take_top`.
  """
  checks.check_shape("values", values, (np.shape(valid)[0], None))
  valid = valid & ~jnp.any(jnp.isnan(values), axis=1)
  keep = pareto.non_dominated(values, first_copies(tokens, valid))
  wide = jnp.promote_types(values.dtype, jnp.float32)
  total = jnp.sum(values.astype(wide), axis=1)
  index, taken = take_top((total,), keep, capacity)
  return jax.tree.map(lambda x: jnp.asarray(x)[index], data), taken


def _reversed(rank: jax.Array) -> jax.Array:
  """Sorts the other way round; NaN, which sorts last, stays there."""
  # The negative of the smallest integer is itself; its complement is not.
  return -rank if jnp.issubdtype(rank.dtype, jnp.floating) else ~rank


def _capacity(state: ReplayState) -> int:
  return jax.tree.leaves(state.data)[0].shape[0]
