"""Weights, keys, buffers, schedules, and the masked process."""

import jax.numpy as jnp
import numpy as np

from jdiff import ctmc, elbo, schedules
from jdiff.core import ema, keys, orders, pareto, replay, weights
from jdiff.schedules import grids, masking, quadrature
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


def _sampling():
  return dict(
    params=TABLE(), key=KEY(), logits_fn=LOGITS, length=LENGTH, mask_id=VOCAB
  )


def _elbo():
  return dict(
    params=TABLE(), tokens=TOKENS, logits_fn=LOGITS, mask_id=VOCAB, num_prompt=0
  )


# Weights, keys, buffers, orders.
for _function in (
  weights.normalise,
  weights.relative,
  weights.log_mean_exp,
  weights.log_z,
  weights.log_z_se,
  weights.elbo,
  weights.ess,
  weights.ess_fraction,
  weights.kl,
):
  case(
    _function, lambda: dict(log_weights=LOG_WEIGHTS), log_weights="log_weights"
  )
case(
  weights.resample,
  lambda: dict(key=KEY(), log_weights=LOG_WEIGHTS, num_samples=3),
  key="key",
  log_weights="floats",
  num_samples="count",
)
case(
  weights.expectation,
  lambda: dict(log_weights=LOG_WEIGHTS, values=ROWS),
  values="few",
)
case(
  weights.solve_exponent,
  lambda: dict(log_weights=LOG_WEIGHTS, min_fraction=0.5, num_steps=8),
  min_fraction="share",
  num_steps="count",
)
case(
  weights.clip,
  lambda: dict(log_weights=LOG_WEIGHTS, max_ratio=2.0),
  max_ratio="ceiling",
)
case(
  keys.per_example,
  lambda: dict(key=KEY(), num_examples=3),
  key="key",
  num_examples="count",
)
case(
  ema.update,
  lambda: dict(ema=jnp.ones(2), params=jnp.zeros(2), ema_decay=0.9, count=1),
  ema_decay="share",
)
case(
  orders.uniform,
  lambda: dict(length=4, num_steps=2),
  length="count",
  num_steps="count",
)
case(
  replay.init,
  lambda: dict(example=jnp.zeros(2), capacity=4),
  capacity="count",
)
case(
  replay.sample,
  lambda: dict(key=KEY(), state=replay.init(jnp.zeros(2), 4), num_samples=2),
  key="key",
  num_samples="count",
)
case(
  replay.first_copies,
  lambda: dict(tokens=TOKENS),
  tokens="tokens",
)
case(
  pareto.non_dominated,
  lambda: dict(values=ROWS, valid=np.ones(6, bool)),
  values="floats",
  valid="few",
)
case(
  pareto.hypervolume,
  lambda: dict(values=ROWS, reference=np.zeros(2, np.float32)),
  values="floats",
  reference="rows",
)

# Schedules.
case(
  schedules.gaussian.vp,
  lambda: dict(beta_min=0.1, beta_max=20.0),
  beta_min="at_least_0",
  beta_max="positive",
)
case(
  schedules.gaussian.ve,
  lambda: dict(sigma_min=0.01, sigma_max=8.0),
  sigma_min="positive",
  sigma_max="positive",
)
case(
  grids.edm,
  lambda: dict(num_steps=4, sigma_min=0.01, sigma_max=8.0, rho=7.0),
  num_steps="count",
  sigma_min="positive",
  sigma_max="positive",
  rho="positive",
)
case(grids.time_grid, lambda: dict(num_steps=3), num_steps="count")
case(masking.polynomial, lambda: dict(power=2.0), power="positive")
case(
  quadrature.quadrature,
  lambda: dict(rule="gauss", num_nodes=3),
  rule="choice",
  num_nodes="count",
)

# The masked process.
case(
  ctmc.rollout,
  lambda: _sampling() | dict(num_samples=2, num_steps=4, temperature=1.0),
  key="key",
  num_samples="count",
  length="count",
  num_steps="count",
  temperature="positive",
)
case(
  ctmc.decode,
  lambda: (
    _sampling()
    | dict(
      prompt=None,
      num_samples=2,
      block_size=2,
      num_steps=2,
      order="confidence",
      temperature=1.0,
      min_p=0.0,
    )
  ),
  key="key",
  num_samples="count",
  length="count",
  block_size="count",
  num_steps="count",
  order="choice",
  temperature="at_least_0",
  min_p="share",
)
case(
  ctmc.uniform_rollout,
  lambda: dict(
    params=None,
    key=KEY(),
    logits_fn=lambda params, tokens, t, sites=None: jnp.zeros(
      (*tokens.shape, VOCAB)
    ),
    num_samples=2,
    length=LENGTH,
    num_tokens=VOCAB,
    num_steps=2,
  ),
  key="key",
  num_samples="count",
  length="count",
  num_tokens="two",
  num_steps="count",
)
case(
  ctmc.path_log_prob,
  lambda: dict(
    params=TABLE(),
    samples=TOKENS,
    order=np.tile(np.arange(4, dtype=np.int32), (2, 1)),
    num_revealed=np.ones(4, np.int32),
    logits_fn=LOGITS,
    mask_id=VOCAB,
    temperature=1.0,
  ),
  samples="many_tokens",
  order="tokens",
  temperature="positive",
)
case(
  ctmc.corrupt_uniform,
  lambda: dict(
    key=KEY(),
    tokens=TOKENS,
    noise_prob=np.full(2, 0.5, np.float32),
    num_tokens=VOCAB,
  ),
  key="key",
  tokens="tokens",
  num_tokens="two",
)
case(ctmc.count_masks, lambda: dict(num_masks=2), num_masks="count")
case(
  ctmc.bernoulli_masks,
  lambda: dict(num_masks=2, min_time=0.01),
  num_masks="count",
  min_time="share",
)
case(
  ctmc.validate,
  lambda: dict(logits_fn=LOGITS, params=TABLE(), length=LENGTH, mask_id=VOCAB),
  length="count",
)
case(
  elbo.node_masks,
  lambda: dict(num_nodes=2, num_masks=1, law="mid", rule="gauss"),
  num_nodes="count",
  num_masks="count",
  law="choice",
  rule="choice",
)
case(
  elbo.double_monte_carlo,
  lambda: dict(num_draws=2, law="bernoulli", min_time=0.01),
  num_draws="count",
  law="choice",
  min_time="share",
)
case(
  elbo.masked_cross_entropy,
  lambda: _elbo() | dict(key=KEY(), implementation="batch"),
  key="key",
  tokens="tokens",
  num_prompt="natural",
  implementation="choice",
)
case(
  elbo.draw_masks,
  lambda: dict(key=KEY(), tokens=TOKENS, law=elbo.node_masks(2), num_prompt=0),
  key="key",
  tokens="tokens",
  num_prompt="natural",
)
case(
  elbo.estimator,
  lambda: dict(
    logits_fn=LOGITS,
    mask_id=VOCAB,
    law=elbo.node_masks(2),
    num_prompt=0,
    implementation="batch",
  ),
  num_prompt="natural",
  implementation="choice",
)
for _function in (elbo.exact_elbo, elbo.exact_log_prob):
  case(_function, _elbo, tokens="tokens", num_prompt="natural")
case(
  elbo.streamed,
  lambda: dict(hidden_fn=LOGITS, head_fn=LOGITS, chunk_size=2, mask_id=VOCAB),
  chunk_size="count",
)
