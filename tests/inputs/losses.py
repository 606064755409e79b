"""More methods: weights, losses, collectors and rules."""

import jax.numpy as jnp
import numpy as np

from jdiff import schedules, sde, targets
from jdiff.core import replay
from jdiff.core.types import Pairs, Rollout, Target
from jdiff.methods import (
  collapse,
  diffu_grpo,
  dmpo,
  flow_matching,
  gdpo,
  latent_action,
  mdns,
  meanflow,
  pdns,
  pruning,
  score_matching,
  shortcut,
  tr2d2,
  wdce,
)
from jdiff.search import Proposal
from tests.inputs.base import (
  KEY,
  LOG_WEIGHTS,
  LOGITS,
  ROWS,
  TOKENS,
  VOCAB,
  case,
)

TWO = np.zeros(2, np.float32)
PAIR = np.zeros((2, 2), np.float32)
BAD_TWO = ["x", TWO[1:], TWO.astype(str)]
BAD_PAIR = ["x", PAIR[1:], TWO]
SIX = LOG_WEIGHTS


def _discrete():
  return Target(lambda x: 0.0 * x[0], length=4, num_tokens=2)


def _binary(params, tokens, t, sites=None):
  del params, t
  size = tokens.shape[1] if sites is None else sites.shape[-1]
  return jnp.zeros((tokens.shape[0], size, 2))


def _elbo(params, key, tokens, valid=None):
  del params, key, valid
  return jnp.zeros(tokens.shape[0])


def _log_probs(params, key, tokens, valid=None):
  del params, key, valid
  return jnp.zeros((tokens.shape[0], 2))


def _field(params, x, *t, **label):
  del params, t, label
  return x


def _brownian():
  return sde.references.brownian(scale=1.0)


def _rows():
  return tr2d2.Rows(
    jnp.asarray(TOKENS), TWO, TWO, PAIR, np.zeros(2, int), np.ones(2, bool)
  )


def _rollout(**changes):
  parts = dict(
    samples=jnp.asarray(TOKENS),
    log_policy=TWO,
    log_ratio=TWO,
    order=None,
    num_revealed=None,
    nfe=np.ones(2, np.int32),
  )
  return Rollout(**(parts | changes))


NO_RATIO = _rollout(log_ratio=None)

# MDNS.
for _function in (
  mdns.rerf,
  mdns.log_variance,
  mdns.cross_entropy,
  mdns.cross_entropy_cv,
):
  case(
    _function,
    lambda: dict(log_weights=SIX, path_weights=SIX),
    log_weights="rows",
    path_weights="rows",
  )
case(
  mdns.log_weights,
  lambda: dict(rollout=_rollout(), target=_discrete()),
  rollout=[NO_RATIO],
)
_SAMPLER = dict(logits_fn=_binary, mask_id=2, num_samples=2)
for _function in (mdns.collector, mdns.path_method, mdns.wdce_method):
  _own = _function is mdns.path_method
  case(
    _function,
    lambda own=_own: (
      _SAMPLER
      | dict(target=_discrete(), order="random", num_steps=2)
      | (dict(num_terms=2, max_log_weight=1.0) if own else {})
    ),
    num_samples="count",
    order=["no_such", 3],
    num_steps="count",
    **(dict(num_terms="count", max_log_weight="positive") if _own else {}),
  )
case(
  mdns.udns_method,
  lambda: dict(
    target=_discrete(),
    logits_fn=_binary,
    num_samples=2,
    num_steps=2,
    min_time=0.01,
  ),
  num_samples="count",
  num_steps="count",
  min_time="share",
)
case(
  mdns.eubo,
  lambda: dict(
    params=None,
    key=KEY(),
    samples=np.zeros((2, 4), np.int32),
    target=_discrete(),
    logits_fn=_binary,
    mask_id=2,
    order="random",
    num_steps=2,
  ),
  key="key",
  samples=["x", np.zeros((2, 4)), np.zeros((2, 3), int), np.zeros(4, int)],
  order=["no_such", 3],
  num_steps="count",
)


def _buffer():
  example = mdns.Batch(jnp.zeros(4, jnp.int32), jnp.zeros(()), None)
  return replay.init(example, 4)


case(
  mdns.draw_weighted,
  lambda: dict(key=KEY(), buffer=_buffer(), num_samples=2),
  key="key",
  num_samples="count",
)
case(mdns.summary, lambda: dict(log_weights=SIX), log_weights="log_weights")

# PDNS.
_BUFFER = pdns.Buffer(jnp.asarray(ROWS), SIX, SIX)
case(
  pdns.draw,
  lambda: dict(key=KEY(), buffer=_BUFFER, log_weights=SIX, num_samples=3),
  key="key",
  log_weights=["x", SIX[1:], SIX.astype(str)],
  num_samples=["x", 0, -1, 1.5, True, 7],
)
case(
  pdns.stage_log_weights,
  lambda: dict(buffer=_BUFFER, remaining=0.5),
  remaining=["x", True, None],
)
case(
  pdns.scheduled,
  lambda: dict(remaining=np.array([1.0, 0.0])),
  _traced=False,
  remaining=["x", 0.5, np.array([0.0, 1.0]), np.array([2.0]), np.zeros(0)],
)
case(
  pdns.masked,
  lambda: dict(
    target=_discrete(),
    logits_fn=_binary,
    mask_id=2,
    order="random",
    num_steps=2,
  ),
  order=["no_such", 3],
  num_steps="count",
)
case(
  pdns.gaussian,
  lambda: dict(
    target=targets.funnel(dim=2),
    residual_fn=_field,
    reference=_brownian(),
    num_steps=2,
  ),
  num_steps="count",
  reference=[sde.references.brownian(scale=1.0, centred=True)],
)
case(
  pdns.weigh,
  lambda: dict(rollout=_rollout(), reward=lambda x: 0.0 * x[0]),
  rollout=[NO_RATIO],
)
case(
  wdce.bridge_wdce,
  lambda: dict(
    params=None,
    key=KEY(),
    samples=ROWS,
    log_weights=SIX,
    residual_fn=_field,
    reference=_brownian(),
  ),
  key="key",
  samples=["x", ROWS[1:], ROWS.astype(str), np.zeros((6, 2), bool)],
  log_weights=["x", SIX[1:], SIX.astype(str), np.zeros(6, bool)],
)
case(
  wdce.in_groups,
  lambda: dict(name="values", values=SIX, group_size=3),
  values=[SIX[1:], np.zeros(())],
  group_size="two",
)

# Policy gradients.
case(
  gdpo.check_options,
  lambda: dict(clip=0.2, kl_weight=0.0, kl="k3", ref=None, ref_name="ref"),
  clip="positive",
  kl_weight="finite",
  kl="choice",
)
_CLIPPED = {"clip": "positive", "kl_weight": "finite", "kl": "choice"}
_CLIP = dict(params=None, key=KEY(), clip=0.2, kl_weight=0.0, kl="k3")
_GDPO = gdpo.Batch(TOKENS, TWO, TWO + 4, TWO, TWO)
case(
  gdpo.loss,
  lambda: _CLIP | dict(batch=_GDPO, elbo_fn=_elbo, ratio_norm="length"),
  batch=[
    _GDPO._replace(advantages=TWO[1:]),
    _GDPO._replace(lengths=TWO[1:]),
    _GDPO._replace(elbo_old="x"),
    _GDPO._replace(elbo_ref=PAIR[:1]),
  ],
  ratio_norm="choice",
  **_CLIPPED,
)
case(
  gdpo.old_elbos,
  lambda: dict(
    params=None, keys=jnp.stack([KEY()]), samples=TOKENS, elbo_fn=_elbo
  ),
  keys=[*["x", 3, None], KEY()],
)
_GRPO = diffu_grpo.Batch(TOKENS, TWO, PAIR, PAIR)
case(
  diffu_grpo.loss,
  lambda: _CLIP | dict(batch=_GRPO, log_probs_fn=_log_probs),
  batch=[
    _GRPO._replace(advantages=TWO[1:]),
    _GRPO._replace(log_probs_old=TWO),
    _GRPO._replace(log_probs_ref=TWO),
    _GRPO._replace(valid=np.ones(2, bool)),
  ],
  **_CLIPPED,
)
case(
  diffu_grpo.one_step,
  lambda: dict(
    logits_fn=LOGITS, mask_id=VOCAB, num_prompt=1, prompt_mask_prob=0.1
  ),
  logits_fn=[None],
  num_prompt="natural",
  prompt_mask_prob="share",
)
_WEIGHTED = dict(
  log_ratio=PAIR,
  rewards=PAIR,
  reward_temperature=1.0,
  coefficient=1.0,
  min_ess_fraction=0.5,
)
case(
  dmpo.make_batch,
  lambda: _WEIGHTED | dict(samples=np.tile(TOKENS, (2, 1))),
  samples=["x", TOKENS],
  log_ratio=BAD_PAIR,
  rewards=[*BAD_PAIR, PAIR[:, :1], np.full((2, 2), np.nan)],
  reward_temperature="positive",
  coefficient="share",
  min_ess_fraction="share",
)
case(
  dmpo.baseline,
  lambda: dict(kind="model", log_weights=PAIR, elbo=PAIR, elbo_old=PAIR),
  kind="choice",
  log_weights=BAD_PAIR,
  elbo=[None, PAIR[1:]],
  elbo_old=[None, PAIR[1:]],
)
_DMPO = dmpo.Batch(TOKENS, TWO, TWO, np.ones(2, bool))
case(
  dmpo.loss,
  lambda: dict(
    params=None,
    key=KEY(),
    batch=_DMPO,
    elbo_fn=_elbo,
    group_size=2,
    baseline="group",
    strength=1.0,
  ),
  batch=[_DMPO._replace(log_weights=TWO[1:]), _DMPO._replace(keep="x")],
  group_size="two",
  baseline="choice",
  strength="finite",
)

# TR2-D2.
case(
  tr2d2.from_rollout,
  lambda: dict(rollout=_rollout(), rewards=PAIR),
  rollout=[NO_RATIO, _rollout(log_policy=None)],
  rewards=["x", PAIR[1:], PAIR[None]],
)
_PROPOSAL = Proposal(TOKENS, TWO, TWO, *[jnp.zeros((), int)] * 2, True, None)
_PROPOSAL = _PROPOSAL._replace(valid=jnp.array(True))
case(
  tr2d2.from_proposals,
  lambda: dict(proposals=_PROPOSAL, rewards=PAIR),
  rewards=["x", PAIR[1:], PAIR[None]],
)
case(
  tr2d2.chebyshev,
  lambda: dict(objective_weights=(0.5, 0.5), ideal=(1.0, 1.0)),
  objective_weights="numbers",
  ideal=["x", (), (np.nan, 1.0), (1.0,)],
)
case(
  tr2d2.log_weights,
  lambda: dict(rows=_rows(), reward_temperature=1.0, min_ess_fraction=0.5),
  reward_temperature="positive",
  min_ess_fraction="share",
)
case(
  tr2d2.pareto_front,
  lambda: dict(rows=_rows(), log_weights=TWO, capacity=2),
  capacity="count",
)

# Flows, scores, pruning, collapse, latent actions.
_ALONG = dict(params=None, x=ROWS, t=SIX, flow_map_fn=_field)
case(
  shortcut.two_half_steps,
  lambda: _ALONG | dict(step_size=SIX, num_steps=8, clip=1.0),
  t="rows",
  step_size="rows",
  num_steps="count",
  clip="positive",
)
case(
  meanflow.average_and_target,
  lambda: _ALONG | dict(s=SIX, velocity=ROWS),
  t="rows",
  s="rows",
  velocity="rows",
)
for _function in (score_matching.edm_noise_fn, score_matching.edm_weighting):
  case(
    _function,
    lambda network=_function is score_matching.edm_noise_fn: (
      dict(schedule=schedules.gaussian.vp(), sigma_data=0.5)
      | (dict(network_fn=_field) if network else {})
    ),
    sigma_data="positive",
  )
case(
  flow_matching.within,
  lambda: dict(draw_time=flow_matching.uniform, t_min=0.1, t_max=1.0),
  t_min="share",
  t_max="share",
)
case(
  flow_matching.prepare,
  lambda: dict(
    key=KEY(),
    pairs=Pairs(ROWS, ROWS, np.zeros(6, int)),
    null_label=1,
    label_dropout=0.1,
  ),
  key="key",
  pairs=[
    Pairs(ROWS, ROWS[1:], None),
    Pairs(ROWS > 0, ROWS, None),
    Pairs(ROWS, ROWS, SIX),
    Pairs(ROWS, ROWS, np.zeros(5, int)),
  ],
  null_label=["x", -1, 1.5, None],
  label_dropout="share",
)
case(
  flow_matching.check_every,
  lambda: dict(name="every", every=2, batch=4),
  every=["x", 0, 1, 3, 1.5, True],
)
case(
  pruning.head_importance,
  lambda: dict(
    gates=np.ones((1, 2), np.float32),
    key=KEY(),
    batches=ROWS,
    loss_fn=lambda gates, key, batch: gates.sum() * batch.sum(),
    criterion="taylor",
  ),
  gates=["x", TWO, np.ones((1, 2), bool)],
  key="key",
  batches=[np.zeros(()), np.zeros((0, 2)), (ROWS, ROWS[1:])],
  loss_fn=[None],
  criterion="choice",
)
case(
  pruning.apply_masks,
  lambda: dict(masks={"w": np.ones(2)}, tree={"w": jnp.ones(2)}),
  masks=[{"w": np.ones(3)}, {"w": "x"}],
)
_LOOP = dict(fit=lambda key, data: data, sample=lambda params, key, n: params)
case(
  collapse.self_consuming,
  lambda: (
    _LOOP
    | dict(
      paradigm="replace",
      num=4,
      oversample=1,
      num_probe=2,
    )
  ),
  paradigm="choice",
  num="count",
  oversample="count",
  fresh_share=["x", 0.5],
  features=[lambda x: x],
  num_probe="count",
)
case(
  collapse.candidates,
  lambda: dict(sizes=(6, 6), num=4, paradigm="accumulate"),
  sizes=["x", 3, (6,), (3, 6), (6.5, 6), ("6", 6)],
  num="count",
  paradigm="choice",
)


def _state():
  real = np.zeros(6, np.int32)
  return collapse.State(jnp.asarray(ROWS), real, (np.arange(6),), None)


case(
  collapse.dataset,
  lambda: dict(state=_state(), generation=1),
  generation=["x", 0, 2, 1.5, True],
)
case(
  collapse.share_of_real,
  lambda: dict(indices=np.arange(6), labels=np.zeros(6, np.int32)),
  indices=["x", SIX],
)


def _transitions(params, tokens):
  del params
  return jnp.zeros((tokens.shape[0], 2, tokens.shape[1], VOCAB))


for _function in (latent_action.posterior, latent_action.loss):
  case(
    _function,
    lambda: dict(
      params=None, tokens=TOKENS, after=TOKENS, transition_fn=_transitions
    ),
    tokens="many_tokens",
    after="many_tokens",
  )
