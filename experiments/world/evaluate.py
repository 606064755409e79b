"""What a world model is asked: one step, rollouts, loops, other actions.

Pure functions over batches of episodes, with the memory on or off in one
program: the control has the same weights.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.world import parts as parts_lib
from jdiff import world
from jdiff.core import keys as keys_lib
from jdiff.world import layout as layout_lib
from jdiff.world import memory as memory_lib
from jdiff.world import metrics

MAX_IN_VIEW = 0.25
"""Share of its first frame that a loop may still see where it turns back."""


class OneStep(NamedTuple):
  """Counts `[3]` by class of cell, see `metrics.CLASSES`.

  And of whole frames, and of rewards' classes.
  """

  on: metrics.Tally
  off: metrics.Tally
  frames: metrics.Tally
  rewards: metrics.Tally


class Rollout(NamedTuple):
  """Imagined frames `[E, H]` beside the true ones.

  Attributes:
    tokens: `[E, H, N]` int32.
    known: Counts `[H]`: right cells among those that the prefix has shown,
      where the predicted pose is right.
    every: Counts `[H]` over all cells.
    pose: Counts `[H]` of right poses.
    horizon: `[E]` frames before the first whose pose or whose known cells are
      wrong.
  """

  tokens: jax.Array
  known: metrics.Tally
  every: metrics.Tally
  pose: metrics.Tally
  horizon: jax.Array


class Loops(NamedTuple):
  """Walks out and back, in imagination.

  Attributes:
    cells: Right cells on return, of loops that closed.
    exact: Loops that came back to exactly the same frame.
    closed: Loops whose predicted pose came back, and that had lost sight of
      their start.
    tokens: `[E, 2 k, N]` the frames.
    pose: `[E, 2 k, 3]`, where they were seen from.
  """

  cells: metrics.Tally
  exact: metrics.Tally
  closed: metrics.Tally
  tokens: jax.Array
  pose: jax.Array


class Meetings(NamedTuple):
  """What a second observer sees where a first one was before.

  Attributes:
    shared: Cells that agree, of those that neither had been shown, with one
      memory for both.
    apart: The same with nothing written to it on the way.
    left: `[2, E, T, N]` the first one's frames, shared and apart.
    seen: `[2, E, T, N]` the second one's.
  """

  shared: metrics.Tally
  apart: metrics.Tally
  left: jax.Array
  seen: jax.Array


def switch(state: Any, is_on: Any) -> Any:
  """The memory's state with its switch set; as it is if it has none."""
  if isinstance(state, memory_lib.Switched):
    return state._replace(is_on=jnp.asarray(is_on, bool))
  return state


def start(
  model: world.World, params: Any, clip: world.Clip, is_on: Any
) -> world.WorldState:
  """The state after the real frames of a clip `[T]`."""
  state = model.init(params)
  state = state._replace(memory=switch(state.memory, is_on))

  def absorb(state, frame):
    tokens, action, pose = frame
    return model.observe(params, state, tokens, action, pose), None

  state, _ = jax.lax.scan(absorb, state, (clip.tokens, clip.action, clip.pose))
  return state


def one_step(
  system: parts_lib.System, params: Any, clip: world.Clip, first: int
) -> OneStep:
  """The next frame at once, all cells hidden, likeliest tokens.

  Args:
    system: The parts of the run.
    params: Of the network.
    clip: Episodes `[E, T]`.
    first: Frames from this one on are targets.
  """
  model, view, window = system.world, system.parts.view, system.parts.window
  sizes = system.parts.layout

  def guess(state, action):
    logits_fn, given, _ = model.denoiser(params, state, action)
    blocks = jnp.full((1, sizes.length), sizes.mask_id, jnp.int32)
    blocks = blocks.at[0, : layout_lib.NUM_GIVEN].set(given)
    logits = logits_fn(params, blocks, jnp.ones(1))
    block = jnp.argmax(logits[0], axis=-1)
    return sizes.cells(block), sizes.answers(block)[0]

  def episode(clip):
    head, tail = _cut(clip, first)
    state = start(model, params, head, True)

    def frame(state, xs):
      tokens, action, pose, reward, now = xs

      # One program for both, not two copies of the network.
      def ask(is_on):
        asked = state._replace(memory=switch(state.memory, is_on))
        cells, answer = guess(asked, action)
        return cells == tokens, answer == reward

      found, rewarded = jax.lax.map(ask, jnp.array([True, False]))
      classes = metrics.cell_classes(view, clip.pose, now, window=window)
      counts = [
        metrics.tally(jnp.broadcast_to(f[None], classes.shape), classes, 1)
        for f in found
      ]
      state = model.observe(params, state, tokens, action, pose)
      return state, (*counts, found[0].all(), rewarded[0])

    now = first + jnp.arange(tail.action.shape[0])
    _, (on, off, exact, rewarded) = jax.lax.scan(
      frame, state, (tail.tokens, tail.action, tail.pose, tail.reward, now)
    )
    return OneStep(
      *jax.tree.map(lambda x: x.sum(0), (on, off)),
      metrics.tally(exact, jnp.ones_like(exact)),
      metrics.tally(rewarded, jnp.ones_like(rewarded)),
    )

  return jax.tree.map(lambda x: x.sum(0), jax.vmap(episode)(clip))


def rollouts(
  system: parts_lib.System,
  params: Any,
  key: jax.Array,
  clip: world.Clip,
  prefix: int,
  is_on: Any,
) -> Rollout:
  """Imagines the frames after a real prefix, under the true actions."""
  model, view = system.world, system.parts.view

  def episode(key, clip):
    head, tail = _cut(clip, prefix)
    state = start(model, params, head, is_on)
    _, frames = model.imagine(params, key, state, tail.action)
    known = jax.vmap(metrics.known_cells, in_axes=(None, None, 0))(
      view, head.pose, tail.pose
    )
    right = frames.tokens == tail.tokens
    gap = view.nearest((frames.pose - tail.pose)[..., :2])
    same_pose = jnp.all(gap == 0, -1) & (frames.pose == tail.pose)[..., 2]
    # After one wrong turn later poses are right by chance at most.
    known = known & same_pose[:, None]
    counts = (
      metrics.tally(right, known, 1),
      metrics.tally(right, jnp.ones_like(right), 1),
      metrics.tally(same_pose, jnp.ones_like(same_pose), ()),
    )
    wrong = jnp.any(known & ~right, axis=1) | ~same_pose
    return frames.tokens, counts, metrics.exact_horizon(wrong)

  keys = keys_lib.per_example(key, clip.action.shape[0])
  tokens, counts, horizon = jax.vmap(episode)(keys, clip)
  counts = jax.tree.map(lambda x: x.sum(0), counts)
  return Rollout(tokens, *counts, horizon)


def loops(
  system: parts_lib.System,
  params: Any,
  key: jax.Array,
  clip: world.Clip,
  actions: jax.Array,
  is_on: Any,
) -> Loops:
  """From one real frame each, out by `actions [E, k]` and back.

  The way back undoes each action by its opposite, last one first; the world
  is imagined both ways.
  """
  opposite = jnp.asarray(system.env.opposite)
  model, view = system.world, system.parts.view

  def episode(key, clip, out):
    head, _ = _cut(clip, 1)
    state = start(model, params, head, is_on)
    path = jnp.concatenate([out, opposite[out[::-1]]])
    _, frames = model.imagine(params, key, state, path)
    gap = view.nearest((frames.pose[-1] - state.pose)[:2])
    closed = jnp.all(gap == 0) & (frames.pose[-1, 2] == state.pose[2])
    # Loops that never lost sight of their start show nothing.
    turn = frames.pose[out.shape[0] - 1]
    in_view = view.visible(turn, view.cells(state.pose))
    closed &= jnp.mean(in_view) <= MAX_IN_VIEW
    same = frames.tokens[-1] == state.tokens
    return (
      metrics.tally(same, jnp.broadcast_to(closed, same.shape)),
      metrics.tally(same.all(), closed),
      metrics.tally(closed, jnp.array(True)),
      (frames.tokens, frames.pose),
    )

  keys = keys_lib.per_example(key, actions.shape[0])
  *counts, frames = jax.vmap(episode)(keys, clip, actions)
  return Loops(*jax.tree.map(lambda x: x.sum(0), counts), *frames)


def swap(
  system: parts_lib.System,
  params: Any,
  key: jax.Array,
  clip: world.Clip,
  prefix: int,
) -> metrics.Tally:
  """First imagined frames under the true action and under its opposite.

  Frames whose true action has an opposite and moved the observer alone count.

  Returns:
    Counts `[2]` of right cells: true action, opposite.
  """
  opposite = jnp.asarray(system.env.opposite)
  model = system.world

  def episode(key, clip):
    head, tail = _cut(clip, prefix)
    state = start(model, params, head, True)
    action = tail.action[0]
    counts = (opposite[action] != action) & (tail.move[0] != 0)

    def act(chosen):
      _, frame = model.step(params, key, state, chosen, True)
      right = frame.tokens == tail.tokens[0]
      return metrics.tally(right, jnp.broadcast_to(counts, right.shape))

    return jax.lax.map(act, jnp.stack([action, opposite[action]]))

  keys = keys_lib.per_example(key, clip.action.shape[0])
  return jax.tree.map(lambda x: x.sum(0), jax.vmap(episode)(keys, clip))


def meetings(
  system: parts_lib.System,
  params: Any,
  key: jax.Array,
  clip: world.Clip,
  steps: int,
) -> Meetings:
  """Two observers, one walks away and comes back, the other follows later.

  The first walks `steps` one way and stays; the second, from the same frame,
  then walks the same way. Whether what it sees agrees with what the first has
  left, on cells that neither had been shown: with one memory for both, and
  with the frames of neither written to it.

  Returns:
    `Meetings`, `T = steps`.
  """
  model, memory = system.world, system.parts.memory
  view = system.parts.view
  together = world.together(model, memory)

  def episode(key, clip, action, shared):
    head, _ = _cut(clip, 1)
    state = start(model, params, head, True)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    states = states._replace(memory=state.memory)
    still = jnp.int32(0)
    first = jnp.stack([jnp.full(steps, action), jnp.full(steps, still)], 1)
    second = first[:, ::-1]

    def walk(states, actions):
      before = states.memory
      states, frames = together(
        params, jax.random.fold_in(key, 1), states, actions
      )
      # Apart, the second observer's memory never learns of the first's frames.
      memory = jax.tree.map(
        lambda a, b: jnp.where(shared, a, b), states.memory, before
      )
      return states._replace(memory=memory), frames

    path = jnp.concatenate([first, second])
    _, frames = jax.lax.scan(walk, states, path)
    left = jax.tree.map(lambda x: x[:steps, 0], frames)
    seen = jax.tree.map(lambda x: x[steps:, 1], frames)
    same_pose = jnp.all(left.pose == seen.pose, -1)
    known = jax.vmap(metrics.known_cells, in_axes=(None, None, 0))(
      view, head.pose, seen.pose
    )
    trial = ~known & same_pose[:, None]
    agree = metrics.tally(left.tokens == seen.tokens, trial)
    return agree, (left.tokens, seen.tokens)

  num = clip.action.shape[0]
  keys = keys_lib.per_example(key, num)
  moving = [a for a, b in enumerate(system.env.opposite) if a != b]
  action = jnp.asarray(moving)[jnp.arange(num) % len(moving)]

  def run(shared):
    counts, frames = jax.vmap(episode, in_axes=(0, 0, 0, None))(
      keys, clip, action, shared
    )
    return jax.tree.map(lambda x: x.sum(0), counts), frames

  counts, frames = jax.lax.map(run, jnp.array([True, False]))
  both = (jax.tree.map(lambda x, i=i: x[i], counts) for i in range(2))
  return Meetings(*both, *frames)


def _cut(clip, at):
  return (
    jax.tree.map(lambda x: x[:at], clip),
    jax.tree.map(lambda x: x[at:], clip),
  )
