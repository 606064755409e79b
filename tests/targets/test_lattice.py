import numpy as np
import pytest

from jdiff.targets import lattice


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("size", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("name", ["chain", "even_odd"])
def test_laws_partition_the_lattice(name, size, periodic):
  law = getattr(lattice, name)(size, periodic=periodic)
  assert sorted(law.sites) == list(range(size * size))
  near = lattice.neighbours(size, periodic=periodic)
  last = set(law.stages[-1].sites)
  if law.stages[-1].num_steps == 1 and len(last) > 1:
    # What is revealed together at the end has no bonds inside.
    assert not any(n in last for s in last for n in near[s])


def test_chain_blocks():
  law = lattice.chain(16)
  runs = [(s.num_blocks, s.block_size) for s in law.segments()]
  assert runs == [(16, 1), (8, 2), (8, 4), (8, 8), (1, 128)]
  assert lattice.chain(8).num_steps == 25
  few = lattice.chain(16, num_subsets=2)
  assert few.num_steps == 15
  wide = [(s.num_blocks, s.block_size) for s in lattice.chain(24).segments()]
  assert wide == [(72, 1), (8, 9), (8, 18), (1, 288)]
  # Sites of a block are far apart: never neighbours.
  for size in (12, 16, 24):
    near = lattice.neighbours(size)
    for stage in lattice.chain(size).stages:
      sites = set(stage.sites)
      assert not any(n in sites for s in sites for n in near[s])
  with pytest.raises(ValueError, match="power of two"):
    lattice.chain(8, num_subsets=3)


def test_context_is_earlier_and_shared():
  size = 8
  law = lattice.chain(size)
  table = lattice.context(size, law, 12)
  step = law.step_of_site
  for stage in law.stages[:-1]:
    shifts = []
    for site in stage.sites:
      row = table[site]
      seen = row[row >= 0]
      assert all(step[int(n)] < step[site] for n in seen)
      shift = np.stack(np.divmod(seen, size)) - np.array(
        [[site // size], [site % size]]
      )
      shifts.append((shift % size).tolist())
    # Weights are shared over a block, so displacements must agree in order.
    assert all(s == shifts[0] for s in shifts)
  last = law.stages[-1].sites
  near = lattice.neighbours(size)
  assert all(set(near[s]) == set(table[s][:4]) for s in last)


def test_context_of_random_orders_is_everything():
  table = lattice.context(4, None, 15)
  for site, row in enumerate(table):
    assert sorted(row) == [s for s in range(16) if s != site]


def test_neighbours():
  assert sorted(lattice.neighbours(4)[0]) == [1, 3, 4, 12]
  assert sorted(lattice.neighbours(4, periodic=False)[0]) == [-1, -1, 1, 4]
  assert sorted(lattice.neighbours(2)[0]) == [1, 1, 2, 2]
