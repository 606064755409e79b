"""Unnormalised laws that know their exact answers."""

from jdiff.core.types import ConstrainedTarget, Target
from jdiff.targets import exact, lattice, manifolds, planar, torus
from jdiff.targets.dirichlet_multinomial import dirichlet_multinomial
from jdiff.targets.ising import ising
from jdiff.targets.potts import potts
from jdiff.targets.stress import stress
from jdiff.targets.tempering import temper

__all__ = [
  "ConstrainedTarget",
  "Target",
  "dirichlet_multinomial",
  "exact",
  "ising",
  "lattice",
  "manifolds",
  "planar",
  "potts",
  "stress",
  "temper",
  "torus",
]
