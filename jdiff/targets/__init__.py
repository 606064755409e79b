"""Unnormalised laws that know their exact answers."""

from jdiff.core.types import ConstrainedTarget, Target
from jdiff.targets import exact, lattice, manifolds, mixtures, planar, torus
from jdiff.targets.dirichlet_multinomial import dirichlet_multinomial
from jdiff.targets.fairness import fair_bnn, with_test_rows
from jdiff.targets.ising import ising
from jdiff.targets.mixtures import gaussian_mixture
from jdiff.targets.polymer import polymer
from jdiff.targets.potts import potts
from jdiff.targets.stress import stress
from jdiff.targets.tempering import temper

__all__ = [
  "ConstrainedTarget",
  "Target",
  "dirichlet_multinomial",
  "exact",
  "fair_bnn",
  "gaussian_mixture",
  "ising",
  "lattice",
  "manifolds",
  "mixtures",
  "planar",
  "polymer",
  "potts",
  "stress",
  "temper",
  "torus",
  "with_test_rows",
]
