"""Schedules: how much noise at which time."""

from jdiff.schedules import masking
from jdiff.schedules.masking import MaskSchedule

__all__ = ["MaskSchedule", "masking"]
