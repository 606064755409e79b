"""Targets, methods, worlds and networks."""

import jax.numpy as jnp
import numpy as np

from jdiff import nets, targets
from jdiff.core.types import Pairs
from jdiff.methods import (
  collapse,
  consistency,
  dmpo,
  flow_matching,
  gdpo,
  meanflow,
  pdns,
  pruning,
  score_matching,
  shortcut,
  tr2d2,
  wdce,
)
from jdiff.targets import manifolds, maxcut, mixtures
from jdiff.world import memory as memory_lib
from jdiff.world import tokenizers
from tests.inputs.base import (
  KEY,
  LOG_WEIGHTS,
  LOGITS,
  ROWS,
  TABLE,
  TOKENS,
  VOCAB,
  case,
)


def _velocity(params, x, t, **label):
  del params, t, label
  return x


def _flow_map(params, x, t, s, **label):
  del params, t, s, label
  return x


def _mixture():
  return mixtures.mixture(np.full(2, 0.5), np.eye(2), np.ones(2))


_PAIR_LOSS = {"key": "key", "label_dropout": "share"}


def _pair_loss(**own):
  return lambda: (
    dict(
      params=None,
      key=KEY(),
      pairs=Pairs(jnp.asarray(ROWS), jnp.asarray(ROWS) + 1.0, None),
      null_label=None,
      label_dropout=0.0,
    )
    | own
  )


# Targets.
case(
  targets.ising,
  lambda: dict(size=3, beta=0.3, coupling=1.0, field=0.0),
  size="count",
  beta="finite",
  coupling="finite",
  field="finite",
)
case(
  targets.potts,
  lambda: dict(size=3, num_states=3, beta=0.3, coupling=1.0),
  _traced=False,
  size="count",
  num_states="two",
  beta="finite",
  coupling="finite",
)
case(
  targets.funnel,
  lambda: dict(dim=3, scale=3.0),
  dim="two",
  scale="positive",
)
case(
  targets.gmm40,
  lambda: dict(key=KEY(), dim=2, box=10.0, variance=1.0),
  key="key",
  dim="count",
  box="positive",
  variance="positive",
)
case(
  targets.many_well,
  lambda: dict(dim=3, num_wells=2, delta=4.0, beta=1.0),
  dim="count",
  delta="positive",
  beta="positive",
)
case(
  targets.lennard_jones,
  lambda: dict(num_particles=3, dim=3, epsilon=1.0, oscillator=1.0, beta=1.0),
  num_particles="two",
  dim="count",
  epsilon="positive",
  beta="positive",
)
case(
  targets.double_well_particles,
  lambda: dict(num_particles=3, dim=2, beta=1.0),
  num_particles="two",
  beta="positive",
)
case(
  targets.max_cut,
  lambda: dict(edges=maxcut.petersen(), num_nodes=10, beta=1.0),
  edges="tokens",
  num_nodes="count",
  beta="finite",
)
case(
  maxcut.regular,
  lambda: dict(num_nodes=6, degree=3, seed=0),
  num_nodes="count",
  degree="count",
  seed="natural",
)
case(
  targets.stress,
  lambda: dict(dim=4, num_eq=1, num_ineq=1, seed=0),
  dim="count",
  num_eq="natural",
  num_ineq="natural",
  seed="natural",
)
case(targets.polymer, lambda: dict(num_atoms=4), num_atoms="count")
case(manifolds.stiefel, lambda: dict(size=3), size="count")
case(
  manifolds.ball,
  lambda: dict(dim=2, precision=1.0),
  dim="count",
  precision="at_least_0",
)
case(
  mixtures.separated,
  lambda: dict(num_components=2, dim=2, separation=1.0, variance=0.25),
  num_components="count",
  dim="count",
  variance="positive",
)
case(
  mixtures.mixture,
  lambda: dict(
    weights=np.full(2, 0.5),
    means=np.eye(2),
    covariances=np.ones(2),
  ),
  weights="rows",
  means="rows",
)
case(
  mixtures.sample,
  lambda: dict(mixture=_mixture(), key=KEY(), num_samples=2),
  key="key",
  num_samples="count",
)
case(
  targets.dirichlet_multinomial,
  lambda: dict(length=3, alpha=np.ones(2)),
  length="count",
)

# Methods.
case(
  flow_matching.flow_matching, _pair_loss(velocity_fn=_velocity), **_PAIR_LOSS
)
case(
  flow_matching.logit_normal,
  lambda: dict(mean=0.0, std=1.0),
  mean="finite",
  std="positive",
)
case(
  flow_matching.beta,
  lambda: dict(a=0.8, b=2.0),
  a="positive",
  b="positive",
)
case(
  flow_matching.log_uniform,
  lambda: dict(t_min=0.1, t_max=1.0),
  t_min="positive",
  t_max="positive",
)
case(
  score_matching.score_matching, _pair_loss(noise_fn=_velocity), **_PAIR_LOSS
)
case(
  meanflow.meanflow,
  _pair_loss(flow_map_fn=_flow_map, ratio=0.25, power=1.0, constant=1e-3),
  **_PAIR_LOSS,
  ratio="share",
  power="finite",
  constant="positive",
)
case(
  shortcut.shortcut,
  _pair_loss(flow_map_fn=_flow_map, num_steps=8, bootstrap_every=2),
  **_PAIR_LOSS,
  num_steps="count",
  bootstrap_every="count",
)
case(
  consistency.consistency_training,
  _pair_loss(flow_map_fn=_flow_map, num_steps=8),
  **_PAIR_LOSS,
  num_steps="count",
)
case(
  consistency.live_reflow,
  _pair_loss(velocity_fn=_velocity, reflow_every=2, num_steps=2),
  **_PAIR_LOSS,
  num_steps="count",
  reflow_every="count",
)
case(
  wdce.wdce,
  lambda: dict(
    params=TABLE(),
    key=KEY(),
    samples=TOKENS,
    log_weights=np.zeros(2, np.float32),
    logits_fn=LOGITS,
    mask_id=VOCAB,
    num_prompt=0,
    implementation="batch",
  ),
  key="key",
  samples="tokens",
  log_weights="rows",
  num_prompt="natural",
  implementation="choice",
)
case(
  wdce.coefficients,
  lambda: dict(log_weights=LOG_WEIGHTS, group_size=3),
  group_size="count",
)
case(
  wdce.draw,
  lambda: dict(
    key=KEY(), samples=jnp.asarray(ROWS), log_weights=LOG_WEIGHTS, num_samples=3
  ),
  key="key",
  log_weights="rows",
  num_samples="count",
)
case(
  gdpo.group_advantages,
  lambda: dict(rewards=ROWS),
  rewards="floats",
)
case(
  gdpo.kl_estimate,
  lambda: dict(log_ref_ratio=LOG_WEIGHTS, kind="k3"),
  kind="choice",
)
case(
  dmpo.log_weights,
  lambda: dict(
    log_ratio=LOG_WEIGHTS.reshape(2, 3),
    rewards=LOG_WEIGHTS.reshape(2, 3),
    reward_temperature=0.5,
    coefficient=1.0,
  ),
  reward_temperature="positive",
  rewards="few",
)
case(
  dmpo.exact_target,
  lambda: dict(
    log_ref=LOG_WEIGHTS, rewards=LOG_WEIGHTS, reward_temperature=0.5
  ),
  reward_temperature="positive",
)
case(
  pdns.anchored,
  lambda: dict(min_fraction=0.5),
  min_fraction="share",
)
case(
  pdns.relative,
  lambda: dict(max_kl=0.5, min_remaining=0.05),
  max_kl="positive",
  min_remaining="share",
)
case(
  pruning.make_gates,
  lambda: dict(importance=np.abs(ROWS), fraction=0.2, scope="global"),
  importance="floats",
  fraction="share",
  scope="choice",
)
case(
  collapse.next_dataset,
  lambda: dict(key=KEY(), sizes=(6, 6), num=4, paradigm="accumulate"),
  key="key",
  num="count",
  paradigm="choice",
)
case(
  tr2d2.weighted,
  lambda: dict(objective_weights=(0.5, 0.5)),
  objective_weights="numbers",
)

# Worlds.
case(
  tokenizers.fsq_quantize,
  lambda: dict(z=ROWS, levels=(3, 3)),
  levels="counts",
)
case(
  tokenizers.fsq_codes,
  lambda: dict(tokens=TOKENS, levels=(3, 3)),
  tokens="integers",
  levels="counts",
)
case(
  memory_lib.empty_frames,
  lambda: dict(num_frames=2, num_cells=3),
  num_frames="count",
  num_cells="count",
)
# Networks.
_NET = dict(width=8, num_layers=1, num_heads=2)
case(
  nets.transformer,
  lambda: dict(length=4, num_tokens=3, mlp="gelu", mlp_ratio=4, **_NET),
  length="count",
  num_tokens="count",
  width="count",
  num_layers="natural",
  num_heads="count",
  mlp="choice",
  mlp_ratio="count",
)
case(
  nets.dit,
  lambda: dict(shape=(4, 4, 1), patch_size=2, num_classes=0, **_NET),
  shape="counts",
  patch_size="count",
  width="count",
  num_heads="count",
  num_classes="natural",
)
case(
  nets.egnn,
  lambda: dict(num_particles=3, dim=2, width=8, num_layers=1, length=1.0),
  num_particles="count",
  dim="count",
  width="count",
  num_layers="count",
  length="positive",
)
case(
  nets.mlp,
  lambda: dict(length=4, num_tokens=3, hidden=(8,)),
  length="count",
  num_tokens="count",
  hidden="counts",
)
case(
  nets.dilated,
  lambda: dict(length=4, num_tokens=3, width=8, kernel_size=3, num_stacks=1),
  num_tokens="count",
  width="count",
  kernel_size="count",
  num_stacks="count",
)
case(
  nets.velocity_mlp,
  lambda: dict(dim=2, hidden=(8,), num_classes=0),
  dim="count",
  hidden="counts",
  num_classes="natural",
)
case(
  nets.autoencoder,
  lambda: dict(
    shape=(4, 4, 1), num_latents=2, patch_size=2, width=8, num_layers=0
  ),
  shape="counts",
  num_latents="count",
  patch_size="count",
  width="count",
  num_layers="natural",
)
