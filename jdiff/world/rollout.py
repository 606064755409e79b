"""The loop: absorb real frames, imagine the next ones, remember both.

Functions of one world; `jax.vmap` them for many worlds, or over actions alone
to branch. The sampler is `ctmc.decode`, given the network and a context.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdiff import ctmc
from jdiff.core import checks
from jdiff.core import keys as keys_lib
from jdiff.core.frames import Context, KeyValues, Seen, WorldNetwork
from jdiff.core.types import Params
from jdiff.world import geometry
from jdiff.world import layout as layout_lib
from jdiff.world import memory as memory_lib
from jdiff.world.geometry import View
from jdiff.world.layout import Layout
from jdiff.world.memory import Frames, Memory, Query, Recalled


class WorldState(NamedTuple):
  """Where a world stands, between two frames.

  Attributes:
    tokens: `[N]` int32, the last frame.
    pose: `[3]` int32, where it was seen from.
    time: Scalar int32, frames so far.
    window: The last `W` frames, frame `t` in slot `t % W`.
    kv: What the network keeps of them, `[D, W, N, H, d]`.
    memory: The memory's state.
  """

  tokens: jax.Array
  pose: jax.Array
  time: jax.Array
  window: Frames
  kv: KeyValues
  memory: Any


class Frame(NamedTuple):
  """One imagined frame.

  Attributes:
    tokens: `[N]` int32 cells.
    pose: `[3]` int32.
    move: Scalar int32, the way the observer moved.
    reward: Scalar int32, class of the reward; see `Layout.rewards`.
    alive: Scalar int32, 1 where the world goes on.
    log_prob: Scalar float32, of what was sampled under the law it was drawn
      from, given the order, in nats.
  """

  tokens: jax.Array
  pose: jax.Array
  move: jax.Array
  reward: jax.Array
  alive: jax.Array
  log_prob: jax.Array


class World(NamedTuple):
  """A world model as pure functions.

  Attributes:
    init: `(params) -> state` of a world of which nothing was seen.
    observe: `(params, state, tokens [N], action, pose=None) -> state`: takes
      in a real frame that `action` has led to. Without a pose the model
      predicts it.
    step: `(params, key, state, action, freeze_memory=False) -> (state, Frame)`:
      imagines the frame that `action` leads to. Actions out of range are
      refused where their values are known, which under `jit` they are not.
    imagine: `(params, key, state, actions [T], freeze_memory=False) -> (state,
      Frame [T])`, equal to `T` steps with the same key, bit for bit: step `t`
      draws from `fold_in(key, state.time)`. Frozen, a memory is read and not
      written, so that branches share it.
    denoiser: `(params, state, action) -> (LogitsFn, given [2], pose)`: the
      network with the context of the next frame; what `ctmc` and `elbo` call.
  """

  init: Callable[..., WorldState]
  observe: Callable[..., WorldState]
  step: Callable[..., tuple[WorldState, Frame]]
  imagine: Callable[..., tuple[WorldState, Frame]]
  denoiser: Callable[..., Any]


def see(view: View, pose: jax.Array, time: jax.Array, found: Recalled) -> Seen:
  """Frames `[F]` as the observer at `pose` sees them, with `B = Q = 1`."""
  geometry.check_pose("pose", pose)
  cells = view.relative(pose, found.cells).astype(jnp.float32)
  age = jnp.maximum(time - found.time, 0).astype(jnp.float32)
  return Seen(cells[None, None], age[None, None], found.valid[None, None])


def world(
  network: WorldNetwork,
  layout: Layout,
  view: View,
  memory: Memory,
  *,
  window: int,
  num_steps: int = 4,
  order: str = "confidence",
  temperature: float = 1.0,
  min_p: float = 0.1,
) -> World:
  """Joins a network, a memory and the masked sampler into a world.

  Args:
    network: A `WorldNetwork`.
    layout: Sizes of its blocks.
    view: The observer's.
    memory: A memory of it.
    window: Frames `W` that the network sees in full.
    num_steps: Unmasking steps `S` a frame.
    order: As in `ctmc.decode`.
    temperature: As in `ctmc.decode`.
    min_p: As in `ctmc.decode`. Drift is sampling noise on cells that the model
      knows: plain sampling at temperature 1 loses a world within a dozen
      frames, and cutting unlikely tokens does not.

  Raises:
    ValueError: If sizes do not fit one another.
  """
  check_sizes(layout, view, memory, window)
  num_open = layout.length - layout_lib.NUM_GIVEN
  if checks.check_int("num_steps", num_steps) > num_open:
    raise ValueError(
      f"num_steps must be at most the {num_open} open sites of a block, got "
      f"{num_steps}."
    )
  if order not in ("confidence", "random"):
    raise ValueError(f"order must be 'confidence' or 'random', got {order!r}.")
  checks.check_range("temperature", temperature, 0, jnp.inf, ends="[)")
  checks.check_range("min_p", min_p, 0, 1, ends="[)")
  decode = functools.partial(
    ctmc.decode,
    length=layout.length,
    mask_id=layout.mask_id,
    num_samples=1,
    num_steps=num_steps,
    order=order,
    temperature=temperature,
    min_p=min_p,
  )

  def init(params: Params) -> WorldState:
    blocks = jnp.zeros((1, 1, layout.length), jnp.int32)
    frames = memory_lib.empty_frames(window, layout.num_cells)
    nowhere = jnp.zeros(3, jnp.int32)
    found = memory_lib.as_recalled(view, frames)
    seen = see(view, nowhere, jnp.int32(0), found)
    shapes = jax.eval_shape(network.encode, params, blocks, seen)
    kv = jax.tree.map(
      lambda x: jnp.zeros((x.shape[0], window, *x.shape[3:]), x.dtype), shapes
    )
    return WorldState(
      tokens=jnp.zeros(layout.num_cells, jnp.int32),
      pose=nowhere,
      time=jnp.int32(0),
      window=frames,
      kv=kv,
      memory=memory.init(),
    )

  def look(state, pose):
    """What a frame at `pose` sees of the window."""
    found = memory_lib.as_recalled(view, state.window)
    kv = jax.tree.map(lambda x: x[:, None], state.kv)
    return see(view, pose, state.time, found)._replace(kv=kv)

  def absorb(params, state, block, pose, freeze_memory):
    """The state after a finished block."""
    kv = network.encode(params, block[None, None], look(state, pose))
    tokens = layout.cells(block)
    frame = Frames(tokens, pose, state.time, jnp.array(True))
    slot = state.time % window
    remembered = state.memory
    if not freeze_memory:
      remembered = memory.write(remembered, frame)
    return WorldState(
      tokens=tokens,
      pose=pose,
      time=state.time + 1,
      window=memory_lib.put(state.window, frame, slot),
      kv=jax.tree.map(
        lambda ring, new: jax.lax.dynamic_update_slice_in_dim(
          ring, new[:, 0].astype(ring.dtype), slot, 1
        ),
        state.kv,
        kv,
      ),
      memory=remembered,
    )

  def predict_move(params, state, action):
    if layout.num_moves == 1:
      return jnp.int32(0)
    logits = network.move(params, state.tokens[None], action[None])[0]
    move = jnp.argmax(logits).astype(jnp.int32)
    # Nothing was seen to move from.
    return jnp.where(state.time == 0, 0, move)

  def observe(params, state, tokens, action, pose=None):
    checks.check_shape("tokens", tokens, (layout.num_cells,))
    layout_lib.check_range("tokens", tokens, layout.num_tokens)
    action = _action(action, layout)
    tokens = jnp.asarray(tokens)
    if pose is None:
      move = predict_move(params, state, action)
      pose = view.move(state.pose, move)
    else:
      checks.check_shape("pose", pose, (3,))
      if not jnp.issubdtype(jnp.result_type(pose), jnp.integer):
        raise TypeError(
          f"pose must be integers, got dtype {jnp.result_type(pose)}."
        )
      pose = jnp.asarray(pose, jnp.int32)
      # Somewhere out of reach, as after a reset: as if it had stayed.
      move = jnp.maximum(view.move_between(state.pose, pose), 0)
      move = jnp.where(state.time == 0, 0, move)
    block = layout.pack(
      layout_lib.Clip(tokens, action, move, pose, jnp.int32(0), jnp.int32(1))
    )
    return absorb(params, state, block, pose, False)

  def denoiser(params, state, action):
    action = _action(action, layout)
    move = predict_move(params, state, action)
    pose = view.move(state.pose, move)
    recalled = None
    if memory.num_frames:
      found = memory.read(state.memory, Query(pose, state.window))
      recalled = see(view, pose, state.time, found)
      kv = network.recall(params, found.tokens[None, None])
      recalled = recalled._replace(kv=kv)
    context = Context(look(state, pose), recalled, jnp.zeros(1))

    def logits_fn(params, tokens, t, sites=None):
      del t  # The network counts the masks itself.
      return network.logits(params, tokens[:, None], context, sites)[:, 0]

    return logits_fn, layout.given(action, move), pose

  def step(params, key, state, action, freeze_memory=False):
    checks.check_key(key)
    logits_fn, given, pose = denoiser(params, state, action)
    decoded = decode(
      params,
      jax.random.fold_in(key, state.time),
      given[None].astype(jnp.int32),
      logits_fn=logits_fn,
    )
    block = decoded.samples[0]
    reward, alive = layout.answers(block)
    frame = Frame(
      tokens=layout.cells(block),
      pose=pose,
      move=given[1] - layout.starts[2],
      reward=reward,
      alive=alive,
      log_prob=decoded.log_policy[0],
    )
    return absorb(params, state, block, pose, freeze_memory), frame

  def imagine(params, key, state, actions, freeze_memory=False):
    checks.check_shape("actions", actions, (None,))
    layout_lib.check_range("actions", actions, layout.num_actions)
    return jax.lax.scan(
      lambda state, action: step(params, key, state, action, freeze_memory),
      state,
      jnp.asarray(actions),
    )

  return World(init, observe, step, imagine, denoiser)


def together(
  model: World, memory: Memory
) -> Callable[..., tuple[WorldState, Frame]]:
  """Several observers in one world: one memory, written by all of them.

  Args:
    model: A world over `memory`.
    memory: The memory that they share.

  Returns:
    `step(params, key, states, actions [A]) -> (states, Frame [A])`: `states`
    are the observers', stacked, whose `memory` is one state without the
    leading axis. All read what was written before this step; their frames are
    then written in the order of observers.
  """
  axes = WorldState(0, 0, 0, 0, 0, None)  # type: ignore[arg-type]

  def step(params, key, states, actions):
    checks.check_integers("actions", actions)
    checks.check_shape("actions", actions, (None,))
    keys = keys_lib.per_example(key, actions.shape[0])
    moved, frames = jax.vmap(
      lambda key, state, action: model.step(params, key, state, action, True),
      in_axes=(0, axes, 0),
      out_axes=(axes, 0),
    )(keys, states, actions)
    written = Frames(
      frames.tokens,
      frames.pose,
      states.time,
      jnp.ones(actions.shape[0], bool),
    )
    shared, _ = jax.lax.scan(
      lambda state, frame: (memory.write(state, frame), None),
      states.memory,
      written,
    )
    return moved._replace(memory=shared), frames

  return step


def check_sizes(
  layout: Layout, view: View, memory: Memory, window: int
) -> None:
  """Raises unless a model's parts fit one another."""
  checks.check_int("window", window)
  for name in ("num_cells", "num_moves"):
    if getattr(layout, name) != getattr(view, name):
      raise ValueError(
        f"layout.{name} must be the view's {getattr(view, name)}, got "
        f"{getattr(layout, name)}."
      )
  for name in ("num_cells", "num_tokens"):
    given, wanted = getattr(memory, name), getattr(layout, name)
    if given not in (None, wanted):
      raise ValueError(
        f"memory.{name} must be the layout's {wanted}, got {given}."
      )
  if memory.capacity is not None and memory.capacity < window:
    raise ValueError(
      f"memory's capacity must be at least the window of {window} frames, got "
      f"{memory.capacity}."
    )


def _action(action, layout):
  layout_lib.check_range("action", action, layout.num_actions)
  checks.check_shape("action", action, ())
  return jnp.asarray(action, jnp.int32)
