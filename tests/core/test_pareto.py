import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.core import pareto

front = jax.jit(pareto.non_dominated)
volume = jax.jit(pareto.hypervolume)


def front_of(values, valid):
  """Two loops over the definition."""
  keep = valid & ~np.isnan(values).any(1)
  answer = keep.copy()
  for i, j in itertools.product(range(len(values)), repeat=2):
    if keep[j] and (values[j] >= values[i]).all():
      answer[i] &= not (values[j] > values[i]).any()
  return answer


def volume_of(values, reference):
  """Inclusion and exclusion over boxes, in float64."""
  heights = np.asarray(values, np.float64) - np.asarray(reference, np.float64)
  heights = heights[(heights > 0).all(1)]
  total = 0.0
  for size in range(1, len(heights) + 1):
    for subset in itertools.combinations(heights, size):
      total -= (-1) ** size * np.min(subset, axis=0).prod()
  return total


def draw(seed, num, size):
  """Points on a coarse grid, so that ties and copies occur."""
  rng = np.random.default_rng(seed)
  values = rng.integers(0, 6, (num, size)).astype(np.float32)
  return values, rng.random(num) < 0.8


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_front_is_that_of_the_definition(size):
  for seed in range(4):
    values, valid = draw(seed, 23, size)
    values[seed, seed % size] = np.nan
    values[seed + 5] = values[seed + 6]
    values[2, 0], values[3, -1] = np.inf, -np.inf
    want = front_of(values, valid)
    np.testing.assert_array_equal(front(values, valid), want)
    assert 0 < want.sum() < 23
  everything = front(values)
  np.testing.assert_array_equal(everything, front_of(values, np.ones(23, bool)))
  # The control: minimising asks for another front.
  assert (front(-values, valid) != want).any()


def test_front_over_several_blocks(monkeypatch):
  values, valid = draw(0, 50, 3)
  want = front_of(values, valid)
  for rows in (1, 8, 25):
    monkeypatch.setattr(pareto, "_ROWS_AT_ONCE", rows)
    again = jax.jit(lambda *x: pareto.non_dominated(*x))  # traced afresh
    np.testing.assert_array_equal(again(values, valid), want)


def test_front_holds_no_square_of_the_rows():
  num = 8192
  values = jax.ShapeDtypeStruct((num, 3), jnp.float32)
  memory = front.lower(values).compile().memory_analysis()
  # A block of 256 rows against all others is 2 MiB of booleans; all pairs
  # would be 64 MiB.
  assert memory.temp_size_in_bytes < 2**24


def test_front_of_copies_and_of_nothing():
  values = jnp.array([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [1.0, 1.0]])
  assert front(values).tolist() == [True, True, True, False]
  assert not front(values, jnp.zeros(4, bool)).any()
  # A row that does not count dominates nothing.
  alone = front(values, jnp.array([False, False, False, True]))
  assert alone.tolist() == [False, False, False, True]
  assert not front(jnp.full((3, 2), jnp.nan)).any()


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_volume_is_that_of_inclusion_and_exclusion(size):
  rng = np.random.default_rng(size)
  reference = rng.normal(size=size).astype(np.float32)
  for case in range(3):
    values = rng.normal(0.5, 1.0, (9, size)).astype(np.float32)
    values[:3] = reference + rng.uniform(0.1, 2.0, (3, size))
    if case == 1:
      values[4:7] = values[:3]  # copies
      values[7, 0] = values[0, 0]  # a tie in one objective
    valid = rng.random(9) < 0.8
    valid[:2] = True
    want = volume_of(values[valid], reference)
    got = volume(values, reference, valid)
    # Nine slices a level, each rounded at 6e-8 of the whole or less.
    np.testing.assert_allclose(got, want, rtol=2e-6)
    assert got.dtype == jnp.float32 and want > 0
  # The control: the volume under the mirrored points is another.
  mirrored = volume(-values, -reference, valid)
  assert abs(mirrored - want) > 1e-3 * want


def test_volume_of_many_points_in_four_objectives():
  # On a grid: the cells of {1, ..., 6}^4 that some point covers.
  values, valid = draw(1, 40, 4)
  cells = np.indices((6,) * 4).reshape(4, -1).T + 1
  covered = (values[valid][:, None] >= cells[None]).all(2).any(0)
  assert volume(values, np.zeros(4), valid) == covered.sum()


def test_volume_over_several_blocks(monkeypatch):
  values, valid = draw(2, 40, 3)
  want = volume(values, np.zeros(3), valid)
  monkeypatch.setattr(pareto, "_ROWS_AT_ONCE", 16)
  again = jax.jit(lambda *x: pareto.hypervolume(*x))
  assert again(values, np.zeros(3), valid) == want


@pytest.mark.parametrize("size", [2, 3, 4])
def test_what_leaves_the_volume_alone(size):
  values, _ = draw(3, 12, size)
  reference = np.full(size, 0.5, np.float32)
  want = volume(values, reference)
  everything = np.ones(12, bool)
  order = np.random.default_rng(0).permutation(12)
  np.testing.assert_allclose(volume(values[order], reference), want, rtol=1e-6)
  np.testing.assert_allclose(
    volume(values, reference, front(values)), want, rtol=1e-6
  )
  # One more: dominated, on the reference in one objective, invalid, unknown.
  spare = values.copy()
  spare[5] = spare[6]
  base = volume(spare, reference)
  for row, counts in [
    (spare[6] - 0.25, True),
    (np.r_[np.full(size - 1, 9.0), 0.5], True),
    (np.full(size, 9.0), False),
    (np.r_[np.full(size - 1, 9.0), np.nan], True),
    (np.r_[np.full(size - 1, 9.0), -np.inf], True),
  ]:
    spare[5], everything[5] = row, counts
    got = volume(spare, reference, everything)
    np.testing.assert_allclose(got, base, rtol=1e-6)
  # The control: a better point adds to it.
  spare[5], everything[5] = 9.0, True
  assert volume(spare, reference, everything) > base
  assert volume(values, np.full(size, 7.0)) == 0


def test_vmap_and_one_trace():
  cases = [draw(seed, 12, 3) for seed in range(3)]
  values, valid = map(np.stack, zip(*cases, strict=True))

  def one(values, valid):
    reference = jnp.zeros(3)
    return (
      pareto.non_dominated(values, valid),
      pareto.hypervolume(values, reference, valid),
    )

  both = jax.jit(jax.vmap(chex.assert_max_traces(one, n=1)))
  both(values[::-1], valid[::-1])
  fronts, volumes = both(values, valid)
  for i in range(3):
    np.testing.assert_array_equal(fronts[i], front_of(values[i], valid[i]))
    got = volume(values[i], np.zeros(3), valid[i])
    np.testing.assert_allclose(volumes[i], got, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int32])
def test_other_dtypes(dtype):
  values, valid = draw(4, 12, 3)
  want = volume(values, np.zeros(3), valid)
  got = volume(jnp.asarray(values, dtype), jnp.zeros(3, dtype), valid)
  assert got.dtype == jnp.float32 and got == want
  np.testing.assert_array_equal(
    front(jnp.asarray(values, dtype), valid), front(values, valid)
  )


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: pareto.non_dominated(jnp.zeros(3)), "values must have shape"),
    (
      lambda: pareto.non_dominated(jnp.zeros((3, 2)), jnp.ones(2, bool)),
      r"valid must have shape \[3\]",
    ),
    (
      lambda: pareto.hypervolume(jnp.zeros((3, 2)), jnp.zeros(3)),
      r"reference must have shape \[2\]",
    ),
    (
      lambda: pareto.hypervolume(jnp.zeros((3, 5)), jnp.zeros(5)),
      "at most 4 objectives .* got 5",
    ),
  ],
)
def test_bad_arguments(call, message):
  with pytest.raises(ValueError, match=message):
    call()
