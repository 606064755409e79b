"""Gaussian processes: interpolants, samplers, exact-kernel rollouts."""

from jdiff.sde import references
from jdiff.sde.empirical import (
  LossGap,
  empirical_denoised,
  empirical_hessian,
  empirical_score,
  empirical_score_fn,
  empirical_velocity_fn,
  loss_gap,
  loss_gap_ceiling,
)
from jdiff.sde.interpolants import (
  Point,
  denoised_from_velocity,
  interpolate,
  noise_from_velocity,
  score_from_velocity,
  velocity_from_score,
)
from jdiff.sde.paths import (
  Bridge,
  bridge,
  path_log_ratio,
  reference_path,
  rollout,
  rollout_path,
)
from jdiff.sde.policies import fit_spread, langevin
from jdiff.sde.references import Reference, check_tails
from jdiff.sde.samplers import (
  Samples,
  Straightness,
  guided,
  sample_flow_map,
  sample_ode,
  sample_sde,
  straightness,
)

__all__ = [
  "Bridge",
  "LossGap",
  "Point",
  "Reference",
  "Samples",
  "Straightness",
  "bridge",
  "check_tails",
  "denoised_from_velocity",
  "empirical_denoised",
  "empirical_hessian",
  "empirical_score",
  "empirical_score_fn",
  "empirical_velocity_fn",
  "fit_spread",
  "guided",
  "interpolate",
  "langevin",
  "loss_gap",
  "loss_gap_ceiling",
  "noise_from_velocity",
  "path_log_ratio",
  "reference_path",
  "references",
  "rollout",
  "rollout_path",
  "sample_flow_map",
  "sample_ode",
  "sample_sde",
  "score_from_velocity",
  "straightness",
  "velocity_from_score",
]
