"""OLLA on sets that can be drawn or integrated exactly.

  python -m experiments.main --config=experiments/olla/toys.py:VARIANT \
      --workdir=W

Every set runs on 2 CPU cores in under half a minute; `paper` is the released
toy setting (200 chains, step 5e-4, 1000 steps) on the seven-lobed star, `pod`
the star with 16384 chains (v5e:4x4, compiled only).

| variant | set | known exactly |
|---|---|---|
| smoke | circle, f = -2 x_1 | moments |
| cpu | ellipse | moments (surface measure: E x_1^2 = 1.6803) |
| skewed | a circle written with an uneven gradient | E x_1 = 0 |
| torus, rotations | torus; SO(3) with f = -tr X | moments |
| cap, half_space, ball, simplex | inequalities | moments |
| star, polynomial | a curve cut by an inequality | moments, by quadrature |
| two_lobe | two disconnected crescents | moments, by a grid |
"""

import functools

from experiments.common import config as config_lib
from experiments.olla import defaults


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _toy(kind, *, step_size=1e-2, num_steps=100, num_chains=1000, **target):
  config = defaults.base(kind, **target)
  config.step_size = step_size
  config.num_steps = num_steps
  config.num_chains = num_chains
  return config


def _paper():
  config = _toy("star", step_size=5e-4, num_steps=100, num_chains=200)
  config.burn_in = 0.0
  return config


def _pod():
  config = _toy("star", step_size=5e-4, num_steps=2000, num_chains=16384)
  config.num_traced = 64
  return config


VARIANTS = {
  "smoke": functools.partial(_toy, "circle", kappa=2.0, num_chains=256),
  "cpu": functools.partial(_toy, "ellipse", num_steps=200, num_chains=2000),
  "skewed": functools.partial(_toy, "circle", skewed=True),
  "torus": functools.partial(
    _toy, "torus", tilt=(1.0, 0.0, 0.5), step_size=2e-2, num_steps=400
  ),
  "rotations": functools.partial(_toy, "stiefel", size=3, kappa=1.0),
  "cap": functools.partial(_toy, "cap", step_size=2.5e-3, num_steps=200),
  "half_space": functools.partial(_toy, "half_space", dim=2, num_steps=150),
  "ball": functools.partial(_toy, "ball", dim=3, step_size=1e-3),
  "simplex": functools.partial(_toy, "simplex", dim=2, step_size=5e-4),
  "star": functools.partial(_toy, "star", step_size=5e-4, num_steps=400),
  "polynomial": functools.partial(
    _toy, "quadratic_poly", step_size=1e-3, num_steps=300
  ),
  "two_lobe": functools.partial(
    _toy, "two_lobe", step_size=2e-3, num_steps=300
  ),
  "paper": _paper,
  "pod": _pod,
}
