"""The Gaussian process, transport, Langevin samplers, search, selection."""

import jax.numpy as jnp
import numpy as np

from jdiff import langevin, schedules, sde, selection
from jdiff import search as search_lib
from jdiff.ot import laguerre, marginals, pairing, semidiscrete
from tests.inputs.base import KEY, LENGTH, LOGITS, ROWS, VOCAB, case


def _quadratic(x):
  return 0.5 * jnp.sum(x * x)


def _sphere(x):
  return jnp.sum(x * x)[None] - 1.0


def _velocity(params, x, t, **label):
  del params, t, label
  return x


def _flow_map(params, x, t, s, **label):
  del params, t, s, label
  return x


def _reference():
  return sde.references.brownian(scale=1.0)


# The Gaussian process.
for _function in (
  sde.empirical_score,
  sde.empirical_denoised,
  sde.empirical_hessian,
):
  case(
    _function,
    lambda: dict(x=ROWS, data=ROWS, alpha=1.0, sigma=0.5, chunk_size=2),
    x="floats",
    data="floats",
    chunk_size="count",
  )
case(
  sde.loss_gap_ceiling,
  lambda: dict(dim=2, variance=1.0, alpha=1.0, sigma=0.5),
  dim="count",
)
for _function in (sde.rollout, sde.rollout_path):
  case(
    _function,
    lambda: dict(
      params=None,
      key=KEY(),
      residual_fn=_velocity,
      reference=_reference(),
      num_samples=2,
      shape=(2,),
      num_steps=2,
    ),
    key="key",
    num_samples="count",
    shape="sides",
    num_steps="count",
  )
case(
  sde.references.brownian,
  lambda: dict(scale=1.0),
  scale="positive",
)
case(
  sde.bridge,
  lambda: dict(
    key=KEY(),
    data=ROWS,
    t=np.full(6, 0.5, np.float32),
    reference=_reference(),
  ),
  key="key",
  t="rows",
)
case(
  sde.interpolate,
  lambda: dict(noise=ROWS, data=ROWS, t=np.full(6, 0.5, np.float32)),
  noise="few",
  t="rows",
)
case(
  sde.sample_ode,
  lambda: dict(
    params=None, noise=ROWS, velocity_fn=_velocity, num_steps=2, method="euler"
  ),
  num_steps="count",
  method="choice",
)
case(
  sde.sample_sde,
  lambda: dict(
    params=None,
    key=KEY(),
    noise=ROWS,
    score_fn=_velocity,
    schedule=schedules.gaussian.vp(),
    num_steps=2,
  ),
  key="key",
  num_steps="count",
)
case(
  sde.sample_flow_map,
  lambda: dict(params=None, noise=ROWS, flow_map_fn=_flow_map, num_steps=2),
  num_steps="count",
)

# Transport.
_SOLVE = dict(points=ROWS, num_samples=64, batch_size=16)
case(
  semidiscrete.solve,
  lambda: _SOLVE | dict(key=KEY(), method="averaged"),
  key="key",
  points="floats",
  num_samples="count",
  batch_size="count",
  method="choice",
)
case(
  semidiscrete.marginal_error,
  lambda: _SOLVE | dict(key=KEY(), bias=np.zeros(6, np.float32)),
  key="key",
  bias="rows",
  num_samples="count",
  batch_size="count",
)
for _function in (laguerre.assign, laguerre.assign_with_gap):
  case(
    _function,
    lambda: dict(
      noise=ROWS, points=ROWS, bias=np.zeros(6, np.float32), chunk_size=2
    ),
    noise="floats",
    points="floats",
    bias="rows",
    chunk_size="count",
  )
case(
  pairing.minibatch,
  lambda: dict(noise=ROWS, data=ROWS),
  noise="rows",
  data="rows",
)
case(
  marginals.quotas,
  lambda: dict(weights=np.full(6, 1 / 6), num_pairs=12, count=6),
  num_pairs="count",
)

# Langevin samplers.
case(
  langevin.ula,
  lambda: dict(potential_fn=_quadratic, step_size=0.1),
  step_size="positive",
)
case(
  langevin.mala,
  lambda: dict(potential_fn=_quadratic, step_size=0.1),
  step_size="positive",
)
case(
  langevin.olla,
  lambda: dict(
    potential_fn=_quadratic,
    eq_fn=_sphere,
    step_size=0.01,
    landing=0.5,
    num_probes=1,
  ),
  step_size="positive",
  landing="positive",
  num_probes="count",
)
case(
  langevin.projected_langevin,
  lambda: dict(
    potential_fn=_quadratic,
    eq_fn=_sphere,
    step_size=0.01,
    max_iters=2,
    tolerance=1e-6,
  ),
  step_size="positive",
  max_iters="count",
  tolerance="positive",
)
case(
  langevin.constrained_hmc,
  lambda: dict(
    potential_fn=_quadratic,
    eq_fn=_sphere,
    step_size=0.01,
    num_steps=1,
    persistence=0.0,
    max_iters=2,
  ),
  step_size="positive",
  num_steps="count",
  persistence="share",
  max_iters="count",
)
case(
  langevin.run_chains,
  lambda: dict(
    key=KEY(),
    kernel=langevin.ula(_quadratic, step_size=0.1),
    positions=jnp.asarray(ROWS),
    num_samples=2,
    thinning=1,
    num_burn_in=0,
  ),
  key="key",
  num_samples="count",
  thinning="count",
  num_burn_in="natural",
)

# Search and selection.
for _function in (search_lib.uct, search_lib.puct, search_lib.tr2d2):
  case(
    _function,
    lambda: dict(exploration=0.1),
    _name=f"search.{_function.__name__}",
    exploration="at_least_0",
  )
case(
  search_lib.tree_search,
  lambda: dict(
    logits_fn=LOGITS,
    length=LENGTH,
    mask_id=VOCAB,
    num_children=2,
    num_expansions=2,
    num_objectives=1,
    num_prompt=0,
    temperature=1.0,
  ),
  length="count",
  num_children="count",
  num_expansions="count",
  num_objectives="count",
  num_prompt="natural",
  temperature="positive",
)
case(
  selection.kl_entropy,
  lambda: dict(x=ROWS, k=1),
  x="floats",
  k="count",
)
case(
  selection.precision_recall,
  lambda: dict(samples=ROWS, data=ROWS, k=3),
  samples="floats",
  data="floats",
  k="count",
)
case(
  selection.nearest,
  lambda: dict(queries=ROWS, points=ROWS, k=2, chunk_size=2),
  queries="floats",
  points="floats",
  k="count",
  chunk_size="count",
)
case(
  selection.memorised,
  lambda: dict(samples=ROWS, data=ROWS, ratio=0.3),
  samples="floats",
  data="floats",
  ratio="positive",
)
case(
  selection.greedy,
  lambda: dict(features=ROWS, num=2, key=KEY()),
  features="floats",
  num="count",
  key="key_or_none",
)
case(
  selection.threshold_decay,
  lambda: dict(features=ROWS, num=2, threshold=1.0, decay=0.9, key=KEY()),
  num="count",
  threshold="at_least_0",
  decay="share",
)
