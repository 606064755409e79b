"""Schedules: how much noise at which time."""

from jdiff.schedules import gaussian, grids, masking, quadrature
from jdiff.schedules.gaussian import GaussianSchedule
from jdiff.schedules.masking import MaskSchedule

__all__ = [
  "GaussianSchedule",
  "MaskSchedule",
  "gaussian",
  "grids",
  "masking",
  "quadrature",
]
