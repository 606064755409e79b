"""More worlds and networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import nets
from jdiff.methods import world_model
from jdiff.nets import llada, lora
from jdiff.world import (
  geometry,
  layout,
  memory,
  metrics,
  plan,
  rollout,
  sequence,
  tokenizers,
)
from tests.inputs.base import KEY, LENGTH, LOGITS, TABLE, TOKENS, VOCAB, case
from tests.world import worlds

VIEW = geometry.View(3, 3, (1, 1), worlds.COMPASS, (6, 7))
LAYOUT = layout.Layout(9, 5, 5, 5)
NETWORK = worlds.adding(LAYOUT)
CODES = np.zeros((2, 2), np.float32)
POSES = np.zeros((4, 3), np.int32)
BAD_POSE = ["x", POSES, POSES[0].astype(np.float32), POSES[0, 1:]]
BAD_POSES = ["x", POSES[0], POSES.astype(np.float32), POSES[:, 1:]]
PIXELS = np.zeros((2, 2, 3), np.float32)
FLAGS = np.ones((2, 3), bool)
BAD_FLAGS = ["x", FLAGS.astype(np.float32), FLAGS[:1]]


@functools.cache
def _model():
  return rollout.world(
    NETWORK, LAYOUT, VIEW, memory.none(), window=2, num_steps=1
  )


@functools.cache
def _state():
  return _model().init({})


@functools.cache
def _recalled():
  return memory.as_recalled(VIEW, _frames(2))


@functools.cache
def _frames(num):
  return memory.empty_frames(num, 9)


# Tokenizers.
_LEVELS = ["x", (0,), (2, 3), (1.5, 3), (True, 3), 3, ()]
case(
  tokenizers.fsq,
  lambda: dict(
    encoder_apply=lambda params, x: x,
    decoder_apply=lambda params, x: x,
    levels=(3, 3),
  ),
  levels=_LEVELS,
)
case(
  tokenizers.fsq_index,
  lambda: dict(codes=CODES, levels=(3, 3)),
  codes=["x", CODES[:, :1], CODES.astype(int), CODES > 0],
  levels=_LEVELS,
)
case(
  tokenizers.symbolic,
  lambda: dict(sizes=(3, 2), grid=(2, 2)),
  sizes=["x", 3, (), (0,), (1.5,), (True,), (2**20, 2**20)],
  grid=["x", 3, (2,), (0, 2), (1.5, 2), (True, 2)],
)
case(
  tokenizers.nearest_patch,
  lambda: dict(shape=(4, 4, 1), patch_size=2, capacity=3, threshold=0.0),
  shape=["x", 3, (4, 4), (0, 4, 1), (4.5, 4, 1), (4, 3, 1)],
  patch_size="count",
  capacity="count",
  threshold=["x", "1", True, -1.0, np.nan, np.inf],
)

# Memories and what is measured.
case(
  memory.bank,
  lambda: dict(view=VIEW, capacity=3, num_frames=2, rank="cover", min_gain=0.0),
  capacity="count",
  num_frames=["x", 0, 4, 1.5, True],
  rank="choice",
  min_gain="share",
)
case(
  memory.gated,
  lambda: dict(
    view=VIEW,
    num_tokens=5,
    num_features=4,
    decay=1.0,
    rate=1.0,
    threshold=0.5,
    key=KEY(),
  ),
  num_tokens="count",
  num_features="two",
  decay="share",
  rate="share",
  threshold="finite",
  key="key_or_none",
)
case(
  memory.world_map,
  lambda: dict(view=VIEW, shape=(6, 7)),
  shape=["x", 3, (6,), (6, 6), (6.5, 7)],
)
case(
  memory.as_recalled,
  lambda: dict(view=VIEW, frames=_frames(2)),
  frames=[
    _frames(2)._replace(pose=POSES[:2, 1:]),
    _frames(2)._replace(tokens=jnp.zeros((2, 8), int)),
  ],
)
case(
  layout.check_range,
  lambda: dict(name="value", value=np.array([0, 1]), size=2),
  _traced=False,
  value=["x", np.array([0.0]), np.array([2]), np.array([-1]), np.array([True])],
)
case(
  geometry.check_pose,
  lambda: dict(name="pose", pose=POSES[0]),
  pose=BAD_POSE,
)
case(
  rollout.check_sizes,
  lambda: dict(layout=LAYOUT, view=VIEW, memory=memory.none(), window=2),
  layout=[layout.Layout(8, 5, 5, 5), layout.Layout(9, 5, 5, 4)],
  memory=[memory.bank(VIEW, capacity=1, num_frames=1)],
  window="count",
)
case(
  rollout.see,
  lambda: dict(
    view=VIEW,
    pose=jnp.asarray(POSES[0]),
    time=jnp.int32(0),
    found=_recalled(),
  ),
  pose=BAD_POSE,
)
case(
  metrics.tally,
  lambda: dict(hit=FLAGS, trial=FLAGS),
  hit=BAD_FLAGS,
  trial=BAD_FLAGS,
)
case(
  metrics.exact_horizon,
  lambda: dict(wrong=FLAGS),
  wrong=["x", FLAGS.astype(np.float32), np.array(True)],
)
case(
  metrics.psnr,
  lambda: dict(image=PIXELS, reference=PIXELS),
  image=["x", PIXELS[None], PIXELS.astype(str), PIXELS[:1]],
  reference=["x", PIXELS[None], PIXELS.astype(str), PIXELS[:1]],
)
case(
  metrics.clip_features,
  lambda: dict(
    tokens=np.zeros((2, 2, 9), int),
    shape=(3, 3),
    num_tokens=5,
    num_features=2,
  ),
  tokens=["x", np.zeros((2, 9), int), np.zeros((2, 2, 8), int)],
  shape=["x", 3, (3,), (3, 2), (4.5, 2)],
  num_tokens="count",
  num_features="count",
)
case(
  metrics.cell_classes,
  lambda: dict(view=VIEW, pose=jnp.asarray(POSES), now=2, window=1),
  pose=BAD_POSES,
  window="count",
)
case(
  metrics.known_cells,
  lambda: dict(view=VIEW, prefix=jnp.asarray(POSES), pose=POSES[0]),
  prefix=BAD_POSES,
  pose=BAD_POSE,
)

# Worlds.
case(
  rollout.world,
  lambda: dict(
    network=NETWORK,
    layout=LAYOUT,
    view=VIEW,
    memory=memory.none(),
    window=2,
    num_steps=2,
    order="confidence",
    temperature=1.0,
    min_p=0.1,
  ),
  layout=[layout.Layout(8, 5, 5, 5)],
  window="count",
  num_steps=["x", 0, 10, 1.5, True],
  order="choice",
  temperature="at_least_0",
  min_p="share",
)


@functools.wraps(rollout.together)
def _together(key, actions):
  """What it answers is what takes arguments that can be wrong."""
  memories = memory.bank(VIEW, capacity=2)
  model = rollout.world(NETWORK, LAYOUT, VIEW, memories, window=2, num_steps=1)
  state = model.init({})
  states = jax.tree.map(lambda x: jnp.stack([x, x]), state)
  states = states._replace(memory=state.memory)
  return rollout.together(model, memories)({}, key, states, actions)


case(
  _together,
  lambda: dict(key=KEY(), actions=np.zeros(2, np.int32)),
  key="key",
  actions=["x", 0, np.zeros(2), np.zeros((2, 1), int)],
)
case(
  sequence.infill,
  lambda: dict(
    params=TABLE(),
    key=KEY(),
    canvases=jnp.asarray(TOKENS),
    given=(1,),
    logits_fn=LOGITS,
    mask_id=VOCAB,
    num_steps=2,
    order="confidence",
    temperature=1.0,
    min_p=0.0,
  ),
  key="key",
  canvases=["x", jnp.zeros((2, LENGTH)), jnp.zeros(LENGTH, int)],
  given=["x", (4,), (-1,), (1, 1), (0, 1, 2, 3), (0.5,), (True,)],
  num_steps="count",
  order="choice",
  temperature="at_least_0",
  min_p="share",
)
_SHOTS = dict(
  return_fn=lambda frames: jnp.sum(frames.log_prob),
  num_actions=5,
  horizon=2,
  num_samples=4,
  num_iterations=1,
  num_elites=2,
  smoothing=0.1,
)
case(
  plan.shoot,
  lambda: _SHOTS | dict(model=_model(), params={}, key=KEY(), state=_state()),
  key="key",
  num_actions="count",
  horizon="count",
  num_samples="count",
  num_iterations="count",
  num_elites=["x", 0, 5, 1.5, True],
  smoothing="share",
)
case(
  plan.recurrent_fn,
  lambda: dict(
    model=_model(),
    memory=(),
    reward_fn=lambda frame: frame.log_prob,
    value_fn=lambda state: 0.0,
    num_actions=5,
    discount=0.9,
    output=dict,
  ),
  num_actions="count",
  discount="share",
)


def _parts():
  return world_model.Parts(NETWORK, LAYOUT, VIEW, memory.none(), 2)


for _function in (world_model.single_target, world_model.all_targets):
  case(
    _function,
    lambda: dict(parts=_parts(), context_noise=0.1),
    context_noise="share",
  )

# Networks.
_FRAME = dict(
  allowed=LAYOUT.allowed(),
  offsets=VIEW.offsets,
  num_tokens=5,
  num_actions=5,
  num_moves=5,
  width=4,
  num_layers=1,
  num_heads=2,
  mlp_width=4,
  num_given=2,
)
_SIZES = dict.fromkeys(
  (
    "num_tokens",
    "num_actions",
    "num_moves",
    "width",
    "num_layers",
    "num_heads",
    "mlp_width",
    "num_given",
  ),
  "count",
)
_ALLOWED = ["x", LAYOUT.allowed()[0], LAYOUT.allowed()[:8]]
for _function in (nets.axial, nets.frame_attention):
  case(
    _function,
    lambda: _FRAME,
    allowed=_ALLOWED,
    offsets=["x", VIEW.offsets[:, 0], VIEW.offsets.astype(str)],
    **_SIZES,
    **(
      dict(period=["x", 3, (6,), (0, 7), (1.5, 7)])
      if _function is nets.axial
      else {}
    ),
  )
case(
  nets.clips,
  lambda: dict(
    allowed=np.ones((10, 3), bool),
    shape=(2, 2),
    num_frames=2,
    width=4,
    num_layers=1,
    num_heads=2,
    mlp_width=4,
  ),
  allowed=["x", np.ones(10, bool), np.ones((8, 3), bool)],
  shape=["x", 3, (2,), (0, 2), (1.5, 2)],
  num_frames="count",
  width="count",
  num_layers="count",
  num_heads="count",
  mlp_width="count",
)
case(
  nets.compact,
  lambda: dict(
    params={
      "blocks": {
        name: {"kernel": np.zeros((1, 2, 2, 2))}
        for name in ("query", "key", "value", "out")
      }
    },
    gates=np.ones((1, 2)),
  ),
  gates=["x", np.ones(2), np.full((1, 2), np.nan), np.ones((2, 2))],
)
case(
  nets.local,
  lambda: dict(
    context=np.array([[1], [0]]),
    group=np.zeros(2, int),
    num_tokens=2,
    hidden=(2, 2),
  ),
  context=["x", np.zeros(2, int), np.full((2, 1), 2), np.full((2, 1), 0.5)],
  group=["x", np.zeros(3, int), np.full(2, -1), np.full(2, 0.5)],
  num_tokens="count",
  hidden=["x", 3, (2,), (0, 2), (1.5, 2)],
)
case(
  nets.shifts,
  lambda: dict(shape=(2, 2), num_tokens=3, num_codes=2, reach=1, floor=0.01),
  shape=["x", 3, (2,), (0, 2), (1.5, 2)],
  num_tokens="count",
  num_codes="count",
  reach="natural",
  floor="share",
)
_BASE = {
  "blocks": {
    "query": {"kernel": jax.ShapeDtypeStruct((1, 4, 2, 2), jnp.float32)}
  }
}
_PLAIN = jax.tree.map(lambda x: jnp.zeros(x.shape), _BASE)
_ADAPTERS = {
  "blocks": {"query": {"a": jnp.zeros((1, 4, 1)), "b": jnp.zeros((1, 1, 2, 2))}}
}
_WRONG = {
  "blocks": {"query": {"a": jnp.zeros((1, 3, 1)), "b": jnp.zeros((1, 1, 2, 2))}}
}
case(
  lora.init,
  lambda: dict(key=KEY(), base=_BASE, rank=1, targets=("query",)),
  key="key",
  rank="count",
  targets=["x", (), ("no_such",), ("key",), 3],
)
case(
  lora.attach,
  lambda: dict(base=_PLAIN, adapters=_ADAPTERS, alpha=1.0),
  base=[lora.Adapted(_PLAIN, _ADAPTERS, 1.0)],
  adapters=[_WRONG, {"blocks": {"key": _ADAPTERS["blocks"]["query"]}}],
  alpha="positive",
)
case(
  lora.merge,
  lambda: dict(params=lora.attach(_PLAIN, _ADAPTERS, alpha=1.0)),
  params=[_PLAIN, 3, None],
)
_CONFIG = llada.Config(
  num_tokens=8,
  width=4,
  num_layers=1,
  num_heads=2,
  num_kv_heads=2,
  mlp_width=4,
  mask_id=7,
  eos_id=6,
  max_length=4,
)
case(
  llada.check_length,
  lambda: dict(config=_CONFIG, length=4),
  length=["x", "4", 0, 5, 1.5, True],
)
