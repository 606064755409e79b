"""Order laws: in which order the sites of a masked sequence are revealed.

A law is a sequence of stages. A stage owns some sites and reveals them in
`num_steps` blocks: with one step all of them together, with more steps in
uniformly random order, cut into blocks whose sizes are fixed. Neither the
network nor the tokens are looked at, so the law cancels from every path ratio
and importance weights stay exact for all of them (arXiv:2508.10684, sec. 3;
any-law extension verified in `tests/ctmc`).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks


class Stage(NamedTuple):
  """Sites revealed in `num_steps` blocks, shuffled if `num_steps > 1`."""

  sites: tuple[int, ...]
  num_steps: int


class Segment(NamedTuple):
  """Consecutive blocks of one size: the unit that one scan runs over.

  Attributes:
    start: Rank of the first site of the segment.
    num_blocks: Blocks in the segment.
    block_size: Sites a block.
    sites: `[num_blocks, block_size]` int32 if the law fixes them, else None.
  """

  start: int
  num_blocks: int
  block_size: int
  sites: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Order:
  """A static order law over some of the sites of a sequence.

  Attributes:
    stages: The stages, first revealed first. Hashable, so that a law may be a
      static argument of a jitted function.
  """

  stages: tuple[Stage, ...]

  def __post_init__(self):
    sites = [s for stage in self.stages for s in stage.sites]
    if not sites:
      raise ValueError("order must hold at least one site, got none.")
    if min(sites) < 0:
      raise ValueError(f"order sites must be >= 0, got {min(sites)}.")
    if len(set(sites)) != len(sites):
      twice = sorted({s for s in sites if sites.count(s) > 1})
      raise ValueError(
        f"order must name each site once, got {twice[:5]} more than once."
      )
    for stage in self.stages:
      if not 1 <= stage.num_steps <= len(stage.sites):
        raise ValueError(
          "a stage's num_steps must lie in [1, its number of sites = "
          f"{len(stage.sites)}], got {stage.num_steps}."
        )

  @property
  def sites(self) -> tuple[int, ...]:
    """Every site of the law, stage after stage."""
    return tuple(s for stage in self.stages for s in stage.sites)

  @property
  def num_revealed(self) -> np.ndarray:
    """`[K]` int32: how many sites each step reveals."""
    return np.concatenate([_block_sizes(*s) for s in self.stages])

  @property
  def num_steps(self) -> int:
    """Steps, which is network evaluations a sample."""
    return sum(stage.num_steps for stage in self.stages)

  @property
  def step_of_site(self) -> dict[int, int]:
    """The step that reveals each site; only for laws without shuffling."""
    steps: dict[int, int] = {}
    for k, stage in enumerate(self.stages):
      if stage.num_steps > 1:
        raise ValueError(
          "this law shuffles sites within a stage; pass a law whose stages "
          "all have num_steps=1 (orders.blocks)."
        )
      steps.update(dict.fromkeys(stage.sites, k))
    return steps

  def segments(self) -> tuple[Segment, ...]:
    """Splits the law into runs of equal blocks, shuffled or not."""
    runs: list[list] = []  # [start, block_size, shuffled, [blocks]]
    start = 0
    for stage in self.stages:
      shuffled = stage.num_steps > 1
      position = 0
      for size in _block_sizes(*stage):
        block = sorted(stage.sites[position : position + size])
        if runs and runs[-1][1:3] == [size, shuffled]:
          runs[-1][3].append(block)
        else:
          runs.append([start, size, shuffled, [block]])
        position += size
        start += size
    return tuple(
      Segment(
        first,
        len(blocks),
        int(size),
        None if shuffled else np.asarray(blocks, np.int32),
      )
      for first, size, shuffled, blocks in runs
    )

  def draw(self, key: jax.Array) -> jax.Array:
    """Draws one order `[G]` int32, ascending inside each block.

    Args:
      key: PRNG key; consumed.
    """
    parts = []
    for i, stage in enumerate(self.stages):
      sites = jnp.asarray(stage.sites, jnp.int32)
      if stage.num_steps == 1:
        parts.append(jnp.sort(sites))
        continue
      sites = jax.random.permutation(jax.random.fold_in(key, i), sites)
      sizes = _block_sizes(*stage)
      start = 0
      for size in np.unique(sizes):  # At most two, the smaller first.
        num = int(np.sum(sizes == size))
        run = sites[start : start + num * size].reshape(num, size)
        parts.append(jnp.sort(run, axis=1).ravel())
        start += num * size
    return jnp.concatenate(parts)


def uniform(length: int, num_steps: int | None = None) -> Order:
  """Uniformly random order over all sites: MDNS's own law.

  Args:
    length: Number of sites.
    num_steps: Blocks of near-equal fixed size; None reveals one at a time.
  """
  checks.check_int("length", length)
  if num_steps is None:
    num_steps = length
  checks.check_int("num_steps", num_steps)
  if not 1 <= num_steps <= length:
    raise ValueError(
      f"num_steps must lie in [1, length = {length}], got {num_steps}."
    )
  return Order((Stage(tuple(range(length)), int(num_steps)),))


def blocks(schedule: Iterable[Sequence[int]]) -> Order:
  """A fixed schedule of blocks, each revealed together.

  Args:
    schedule: The blocks' sites, first revealed first.
  """
  if isinstance(schedule, str) or not isinstance(schedule, Iterable):
    raise TypeError(
      "an order's schedule must hold blocks of sites, got "
      f"{schedule!r} of type {type(schedule).__name__}."
    )
  name = "a block of an order's schedule"
  return Order(
    tuple(Stage(checks.check_sizes(name, block, 0), 1) for block in schedule)
  )


def as_order(order, sites: Sequence[int], num_steps: int | None) -> Order:
  """Resolves the `order` argument of a rollout over the given free sites.

  Args:
    order: `"random"`, an `Order`, or a schedule of blocks of sites.
    sites: The sites to reveal.
    num_steps: Steps of a `"random"` order; None reveals one at a time.

  Raises:
    ValueError: If the law does not cover exactly `sites`, or if `num_steps`
      is given beside a law that fixes its own.
  """
  sites = tuple(int(s) for s in sites)
  if isinstance(order, str):
    if order != "random":
      raise ValueError(
        f"order must be 'random', an Order or a schedule, got {order!r}."
      )
    steps = len(sites) if num_steps is None else num_steps
    checks.check_int("num_steps", steps)
    if not 1 <= steps <= len(sites):
      raise ValueError(
        f"num_steps must lie in [1, {len(sites)} sites], got {num_steps}."
      )
    return Order((Stage(sites, steps),))
  law = order if isinstance(order, Order) else blocks(order)
  if num_steps is not None and num_steps != law.num_steps:
    raise ValueError(
      f"this order law has {law.num_steps} steps; pass num_steps=None, "
      f"got {num_steps}."
    )
  if sorted(law.sites) != sorted(sites):
    raise ValueError(
      f"order must cover the {len(sites)} sites to reveal exactly once, got "
      f"{len(law.sites)} sites from {min(law.sites)} to {max(law.sites)}."
    )
  return law


def _block_sizes(sites: tuple[int, ...], num_steps: int) -> np.ndarray:
  """Near-equal block sizes, larger ones last where few sites are hidden."""
  small, extra = divmod(len(sites), num_steps)
  sizes = np.full(num_steps, small, np.int32)
  sizes[num_steps - extra :] += 1
  return sizes
