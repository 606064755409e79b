"""More of the core, the masked and the Gaussian process, and transport."""

import functools

import jax.numpy as jnp
import numpy as np

from jdiff import ctmc, elbo, langevin, ot, schedules, sde, selection
from jdiff import search as search_lib
from jdiff.core import orders, replay, weights
from jdiff.langevin import constraints
from jdiff.ot import iteration, semidiscrete, table
from jdiff.schedules import grids
from tests.inputs.base import (
  KEY,
  LENGTH,
  LOG_WEIGHTS,
  LOGITS,
  ROWS,
  TABLE,
  TOKENS,
  VOCAB,
  case,
)

SHARES = np.full(6, 0.5, np.float32)
VALID = np.ones(6, bool)
STEPS = np.linspace(1.0, 0.0, 3)
BLOCKS = ["x", 3, [3], [[-1]], [[1.5]], [["x"]], [[True]]]


def _score(params, x, t, **label):
  del params, t, label
  return x


def _sphere(x):
  return jnp.sum(x * x)[None] - 1.0


def _paths():
  return dict(
    params=TABLE(),
    samples=TOKENS,
    order=np.tile(np.arange(4, dtype=np.int32), (2, 1)),
    num_revealed=np.ones(4, np.int32),
    logits_fn=LOGITS,
    mask_id=VOCAB,
    temperature=1.0,
  )


def _solution(classes=None):
  return semidiscrete.Solution(
    jnp.asarray(ROWS),
    jnp.full(6, 1 / 6),
    jnp.zeros(6),
    jnp.float32(0),
    jnp.float32(0),
    jnp.float32(0),
    jnp.array(True),
    jnp.int32(64),
    None,
    classes,
  )


def _cells():
  return iteration.cells(
    jnp.asarray(ROWS),
    jnp.full(6, 1 / 6),
    source=ot.standard_normal,
    mirrored=False,
  )


def _brownian():
  return sde.references.brownian(scale=1.0)


# Orders, buffers, weights, grids.
case(orders.blocks, lambda: dict(schedule=[[0], [1, 2]]), schedule=BLOCKS)
case(
  orders.as_order,
  lambda: dict(order="random", sites=range(4), num_steps=2),
  order=["no_such", "", *BLOCKS[1:]],
  num_steps="count",
)
case(
  replay.add,
  lambda: dict(state=replay.init(jnp.zeros(2), 4), batch=np.zeros((3, 2))),
  batch=[np.zeros(()), np.zeros((5, 2)), {"a": np.zeros((3, 2))}],
)
case(
  replay.take_top,
  lambda: dict(ranks=(LOG_WEIGHTS,), keep=VALID, capacity=3),
  keep=[VALID[None]],
  ranks=[(LOG_WEIGHTS[1:],)],
  capacity="count",
)
for _function, _ranks, _values in (
  (replay.unique_top, "ranks", (LOG_WEIGHTS,)),
  (replay.pareto_top, "values", ROWS),
):
  case(
    _function,
    lambda name=_ranks, values=_values: {
      "data": ROWS,
      "valid": VALID,
      "tokens": np.tile(TOKENS, (3, 1)),
      "capacity": 3,
      name: values,
    },
    valid="few",
    tokens="many_tokens",
    capacity="count",
  )
case(
  weights.temper,
  lambda: dict(log_weights=LOG_WEIGHTS, exponent=0.5),
  log_weights=["x", LOG_WEIGHTS.astype(str), VALID],
  exponent=["x", "1", True, None],
)
case(
  grids.as_grid,
  lambda: dict(num_steps=None, times=STEPS),
  num_steps=[3, -1, "x"],
  times=["x", STEPS[::-1], STEPS[:1], STEPS[None], STEPS.astype(str)],
)

# The masked process.
case(
  ctmc.path_log_ratio,
  _paths,
  samples="many_tokens",
  order="tokens",
  num_revealed=[np.ones(3, np.int32)],
  temperature="positive",
)
case(
  ctmc.branch,
  lambda: dict(
    params=TABLE(),
    key=KEY(),
    canvas=jnp.full(LENGTH, VOCAB, jnp.int32),
    step=0,
    logits_fn=LOGITS,
    num_branches=2,
    mask_id=VOCAB,
    num_steps=2,
    num_prompt=0,
    temperature=1.0,
  ),
  key="key",
  canvas=[jnp.zeros(LENGTH), jnp.zeros((1, LENGTH), jnp.int32), "x"],
  step=["x", -1, 2, 0.5],
  num_branches="count",
  num_steps="count",
  num_prompt="natural",
  temperature="positive",
)
case(
  ctmc.precondition,
  lambda: dict(
    logits_fn=LOGITS, conditional=lambda x, s: (x, x), exact_sites=(0, 2)
  ),
  exact_sites="sides",
)
case(
  elbo.estimate,
  lambda: dict(
    params=TABLE(),
    tokens=TOKENS,
    masks=elbo.Masks(jnp.ones((2, 1, LENGTH), bool), jnp.ones((2, 1))),
    logits_fn=LOGITS,
    mask_id=VOCAB,
    num_prompt=0,
    implementation="batch",
  ),
  tokens="tokens",
  masks=[
    elbo.Masks(jnp.ones((2, LENGTH), bool), jnp.ones((2, 1))),
    elbo.Masks(jnp.ones((2, 1, LENGTH), bool), jnp.ones(2)),
  ],
  num_prompt="natural",
  implementation="choice",
)

# The Gaussian process.
for _function in (sde.empirical_score_fn, sde.empirical_velocity_fn):
  case(
    _function,
    lambda: dict(schedule=schedules.gaussian.vp(), chunk_size=2),
    chunk_size="count",
  )
case(
  sde.loss_gap,
  lambda: dict(
    params=None,
    key=KEY(),
    data=ROWS,
    t=0.5,
    score_fn=_score,
    schedule=schedules.gaussian.vp(),
    num_samples=2,
    chunk_size=2,
  ),
  key="key",
  data=[ROWS.astype(str), "x", np.zeros(ROWS.shape, bool)],
  t=["x", SHARES],
  num_samples="two",
  chunk_size="count",
)
for _function, _name in (
  (sde.denoised_from_velocity, "velocity"),
  (sde.noise_from_velocity, "velocity"),
  (sde.score_from_velocity, "velocity"),
  (sde.velocity_from_score, "score"),
):
  case(
    _function,
    lambda name=_name: dict(x=ROWS, t=SHARES) | {name: ROWS},
    **{_name: "rows"},
    x="floats",
    t="rows",
  )
_RESIDUAL = dict(params=None, residual_fn=_score, reference=_brownian())
case(
  sde.fit_spread,
  lambda: _RESIDUAL | dict(key=KEY(), samples=ROWS, num_steps=2),
  key="key",
  samples=["x", ROWS.astype(str), np.zeros(ROWS.shape, bool), np.zeros(())],
  num_steps="count",
)
case(
  sde.path_log_ratio,
  lambda: _RESIDUAL | dict(path=np.stack([ROWS] * 3), times=STEPS, spread=None),
  path=["x", ROWS.astype(str), ROWS[:1], np.stack([ROWS] * 2)],
  times=["x", STEPS[::-1], STEPS[1:], STEPS[None]],
  spread=["x", np.ones(3), np.array([0.0, 1.0])],
)
case(
  sde.reference_path,
  lambda: dict(key=KEY(), data=ROWS, reference=_brownian(), num_steps=2),
  key="key",
  data=["x", ROWS.astype(str), np.zeros(ROWS.shape, bool), np.zeros(())],
  num_steps="count",
)
case(
  sde.references.vp,
  lambda: dict(schedule=schedules.gaussian.vp(), scale=1.0),
  scale="positive",
)
case(
  sde.langevin,
  lambda: dict(
    log_prob=lambda x: -jnp.sum(x * x), reference=_brownian(), max_norm=1.0
  ),
  max_norm="positive",
)
case(
  sde.guided,
  lambda: dict(velocity_fn=_score, scale=2.0, null_label=3),
  scale="finite",
  null_label="natural",
)
case(
  sde.straightness,
  lambda: dict(path=np.stack([ROWS] * 3), times=STEPS),
  path=["x", ROWS.astype(str), ROWS, np.zeros(3)],
  times=["x", STEPS[::-1], STEPS[1:], STEPS[None]],
)

# Transport.
for _function in (ot.histogram, ot.top_two):
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
for _function, _name in (
  (ot.bias_from_potential, "potential"),
  (ot.potential_from_bias, "bias"),
):
  case(
    _function,
    lambda name=_name: {"points": ROWS, name: LOG_WEIGHTS},
    points="floats",
    **{_name: "rows"},
  )
case(
  ot.pair,
  lambda: dict(key=KEY(), solution=_solution(), batch_size=2, chunk_size=2),
  key="key",
  batch_size="count",
  chunk_size="count",
  label=[np.zeros(2, np.int32)],
)
_CLASSES = np.arange(6, dtype=np.int32).reshape(2, 3)
case(
  ot.transport,
  lambda: dict(
    noise=ROWS,
    solution=_solution(jnp.asarray(_CLASSES)),
    label=np.zeros(6, np.int32),
    chunk_size=2,
  ),
  noise="floats",
  label=[None, "x", SHARES, np.zeros(5, np.int32)],
  chunk_size="count",
)
case(
  ot.rebalance,
  lambda: dict(
    index=np.arange(6),
    quota=np.ones(6, np.int64),
    gap=LOG_WEIGHTS,
    group=np.zeros(6, np.int64),
  ),
  index=["x", ROWS, SHARES, np.full(6, 6), np.full(6, -1)],
  quota=["x", SHARES, np.ones((6, 1), int), np.full(6, 2)],
  gap=["x", LOG_WEIGHTS[1:]],
  group=["x", SHARES, np.zeros(5, int), np.full(6, -1)],
)
case(
  ot.solve_classes,
  lambda: dict(
    key=KEY(),
    points=ROWS,
    labels=_CLASSES.ravel() // 3,
    num_samples=64,
    weights=np.full(6, 1 / 6),
    batch_size=16,
    method="averaged",
  ),
  key="key",
  points="floats",
  labels=["x", SHARES, np.zeros(5, int), np.full(6, -1), np.arange(6)],
  num_samples="count",
  weights=["x", np.full(5, 1 / 5)],
  batch_size="count",
  method="choice",
)
case(
  iteration.averaged,
  lambda: dict(problem=_cells(), batch_size=2, num_burn_in=0),
  batch_size="count",
  num_burn_in="natural",
)
case(
  table.make,
  lambda: dict(
    solution=_solution(),
    seed=0,
    num_pairs=6,
    batch_size=6,
    chunk_size=2,
    rebalanced=False,
  ),
  _traced=False,
  seed="natural",
  num_pairs="count",
  batch_size="count",
  chunk_size="count",
)
case(
  table.noise,
  lambda: dict(seed=0, pair_id=np.arange(3), dim=2),
  pair_id=["x", SHARES, _CLASSES],
  dim="count",
)
case(
  table.fingerprint,
  lambda: dict(points=ROWS, seed=0, labels=None, weights=None),
  _traced=False,
  points=["x", ROWS[0]],
  seed="natural",
  labels=["x", SHARES, np.zeros(5, int)],
  weights=["x", SHARES[1:]],
)

# Langevin samplers, search and selection.
case(
  langevin.newton_retract,
  lambda: dict(
    constraints=constraints.stack(_sphere, None, jnp.ones(2)),
    x=jnp.ones(2),
    num_iters=2,
  ),
  x=[jnp.ones((1, 2)), np.ones(2, bool), "x"],
  num_iters="count",
)
case(
  langevin.stack,
  lambda: dict(eq_fn=_sphere, ineq_fn=None, position=jnp.ones(2)),
  eq_fn=[None, jnp.sum, lambda x: 1.0, lambda x: jnp.arange(2)],
  ineq_fn=[jnp.sum, lambda x: 1.0, lambda x: jnp.arange(2)],
)


@functools.cache
def _linearised():
  stacked = constraints.stack(None, _sphere, jnp.ones(2))
  return dict(
    constraints=stacked, lin=constraints.linearise(stacked, jnp.ones(2))
  )


case(
  langevin.auto_epsilon,
  lambda: _linearised() | dict(step_size=0.1, landing=0.5),
  step_size="positive",
  landing=["x", "1", True, 0, 2.0, np.nan],
)
case(
  search_lib.rules.softmax,
  lambda: dict(temperature=1.0, top=2),
  temperature="positive",
  top="count",
)
case(
  selection.frechet,
  lambda: dict(x=ROWS, y=ROWS),
  x=["x", ROWS.astype(str), ROWS[:, :1], ROWS[:1], np.zeros((6, 2), bool)],
  y=["x", ROWS.astype(str), ROWS[:, :1], ROWS[:1], np.zeros((6, 2), bool)],
)
case(
  selection.generalisation_score,
  lambda: dict(samples=ROWS, data=ROWS, metric="l2", chunk_size=2),
  samples=["x", ROWS.astype(str), ROWS[:, :1], np.zeros((6, 2), bool)],
  data=["x", ROWS.astype(str), ROWS[:, :1], np.zeros((6, 2), bool)],
  metric="choice",
  chunk_size="count",
)
