"""Unnormalised laws that know their exact answers."""

from jdiff.core.types import Target
from jdiff.targets import exact, lattice, torus
from jdiff.targets.dirichlet_multinomial import dirichlet_multinomial
from jdiff.targets.ising import ising
from jdiff.targets.potts import potts
from jdiff.targets.tempering import temper

__all__ = [
  "Target",
  "dirichlet_multinomial",
  "exact",
  "ising",
  "lattice",
  "potts",
  "temper",
  "torus",
]
