"""Unnormalised laws that know their exact answers."""

from jdiff.core.types import ConstrainedTarget, Target
from jdiff.targets import (
  exact,
  internal,
  lattice,
  manifolds,
  maxcut,
  mixtures,
  molecules,
  planar,
  torus,
  transfer,
)
from jdiff.targets.densities import funnel, gmm40, student_mixture
from jdiff.targets.dirichlet_multinomial import dirichlet_multinomial
from jdiff.targets.fairness import fair_bnn, with_test_rows
from jdiff.targets.ising import ising
from jdiff.targets.maxcut import max_cut
from jdiff.targets.mixtures import gaussian_mixture
from jdiff.targets.particles import double_well_particles, lennard_jones
from jdiff.targets.polymer import polymer
from jdiff.targets.potts import potts
from jdiff.targets.stress import stress
from jdiff.targets.tempering import temper
from jdiff.targets.trees import TreeEnsemble
from jdiff.targets.wells import many_well, many_well_pairs

__all__ = [
  "ConstrainedTarget",
  "Target",
  "TreeEnsemble",
  "dirichlet_multinomial",
  "double_well_particles",
  "exact",
  "fair_bnn",
  "funnel",
  "gaussian_mixture",
  "gmm40",
  "internal",
  "ising",
  "lattice",
  "lennard_jones",
  "manifolds",
  "many_well",
  "many_well_pairs",
  "max_cut",
  "maxcut",
  "mixtures",
  "molecules",
  "planar",
  "polymer",
  "potts",
  "stress",
  "student_mixture",
  "temper",
  "torus",
  "transfer",
  "with_test_rows",
]
