"""The loop: caches, keys, branches, what a frame can see, several observers."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import nets, world
from jdiff.core.frames import Context, Seen
from jdiff.world import memory as memory_lib
from jdiff.world import rollout
from tests import helpers
from tests.world import worlds

WINDOW, KINDS, REAL, TOTAL = 3, 5, 5, 9
VIEW = world.View(3, 3, (1, 1), worlds.COMPASS, (6, 7))
LAYOUT = world.Layout(9, KINDS, 5, 5, (-1.0, 0.0, 1.0))
BANK = world.memory.switched(world.memory.bank(VIEW, capacity=8))
NETWORKS = {
  "frame_attention": nets.frame_attention,
  "axial": functools.partial(nets.axial, period=VIEW.period, turns=False),
}
# Layers whose key-values are of frames that saw others.
REACH = {"frame_attention": WINDOW, "axial": 2 * WINDOW}


@functools.cache
def made(name):
  """A random network's world, and its parameters."""
  network = NETWORKS[name](
    LAYOUT.allowed(),
    VIEW.offsets,
    num_tokens=KINDS,
    num_actions=5,
    num_moves=5,
    width=8,
    num_layers=2 if name == "axial" else 1,
    num_heads=2,
  )
  params = worlds.random_params(network)
  model = world.world(network, LAYOUT, VIEW, BANK, window=WINDOW, num_steps=2)
  return network, params, model


def leaping():
  """Frames that a memory is for: the first two beside where the others are."""
  clip = recording()
  pose = jnp.array([[3, 4, 0], [1, 2, 0], *[[2, 3, 0]] * (REAL - 2)])
  return clip._replace(pose=pose, move=0 * clip.move)


def recording(seed=0, length=REAL):
  return worlds.recording(LAYOUT, VIEW, seed, length)


ACTIONS = jnp.array([1, 3, 4, 2], jnp.int32)


class Programs(NamedTuple):
  """A world after five real frames, and its programs, compiled once."""

  network: Any
  params: Any
  model: Any
  clip: Any
  start: Any
  state: Any
  step: Any
  imagine: Any
  traces: list[str]


@functools.cache
def programs(name):
  network, params, model = made(name)
  start = jax.jit(functools.partial(worlds.absorbed, model, params))
  clip = leaping()
  traces = []

  def counted(function):
    @functools.wraps(function)
    def traced(*args):
      traces.append(function.__name__)
      return function(*args)

    return traced

  return Programs(
    network,
    params,
    model,
    clip,
    start,
    start(clip, True),
    jax.jit(counted(model.step)),
    jax.jit(counted(model.imagine)),
    traces,
  )


@pytest.fixture(params=NETWORKS)
def p(request):
  return programs(request.param)


@pytest.mark.slow
def test_a_step_is_an_element_of_imagination(p):
  key, state = jax.random.key(3), p.state
  end, frames = p.imagine(p.params, key, state, ACTIONS)
  for t, action in enumerate(ACTIONS):
    state, frame = p.step(p.params, key, state, action)
    # Bit for bit.
    worlds.same(frame, jax.tree.map(lambda x, t=t: x[t], frames))
  worlds.same(state, end)
  assert (end.time, end.memory.state.num_written) == (TOTAL, TOTAL)
  # A later frame of one key is not an earlier one, nor is one of another key.
  _, later = p.imagine(p.params, key, end, ACTIONS)
  _, other = p.imagine(p.params, jax.random.key(4), p.state, ACTIONS)
  for changed in (later, other):
    assert (changed.tokens != frames.tokens).any()
  # States of all times are one program's.
  assert sorted(set(p.traces)) == sorted(p.traces) == ["imagine", "step"]


def test_a_world_of_which_nothing_was_seen(p):
  state = p.model.init(p.params)
  assert state.time == 0 and not state.window.valid.any()
  assert state.kv.key.shape[1:3] == (WINDOW, 9)
  # It can be imagined from nothing, in the program of all others.
  state, frame = p.step(p.params, jax.random.key(0), state, jnp.int32(0))
  assert np.isfinite(frame.log_prob) and state.time == 1
  assert ((frame.tokens >= 0) & (frame.tokens < KINDS)).all()
  assert frame.reward in (0, 1, 2) and frame.alive in (0, 1)
  assert p.traces.count("step") == 1


def fresh_keys(network, params, clip):
  """Key-values of all frames of a clip at once, each seeing its window."""
  length = len(clip.action)
  pose = jnp.broadcast_to(clip.pose[:, None], (length, length, 3))
  cells = VIEW.cells(clip.pose)
  cells = jnp.broadcast_to(cells[None], (length, *cells.shape))
  age = np.arange(length)[:, None] - np.arange(length)
  inside = (age > 0) & (age <= WINDOW)
  seen = Seen(
    VIEW.relative(pose, cells).astype(jnp.float32)[None],
    jnp.asarray(np.maximum(age, 0)[None, ..., None].repeat(9, 3), jnp.float32),
    jnp.asarray(inside[None, ..., None].repeat(9, 3)),
  )
  return network.encode(params, LAYOUT.pack(clip)[None], seen)


def next_logits(model, params, state, action):
  """`[G, V]` logits of the next frame, some of whose cells are known."""
  logits_fn, given, pose = model.denoiser(params, state, action)
  blocks = jnp.full((1, LAYOUT.length), LAYOUT.mask_id).at[0, :2].set(given)
  blocks = blocks.at[0, 6:9].set(jnp.array([0, 3, 1]))
  return logits_fn(params, blocks, jnp.ones(1))[0], blocks, pose


def way_on(p, tokens):
  """An action that the network takes for a move, and the move."""
  tokens = jnp.broadcast_to(tokens[None], (5, 9))
  moves = jnp.argmax(p.network.move(p.params, tokens, jnp.arange(5)), axis=1)
  action = jnp.argmax(moves > 0)
  assert moves[action] > 0
  return action.astype(jnp.int32), moves[action]


@pytest.mark.slow
def test_the_cache_is_what_a_fresh_encoding_is(p):
  """After real frames and imagined ones; the ring has gone round twice."""
  state, frames = p.imagine(p.params, jax.random.key(5), p.state, ACTIONS)
  imagined = world.Clip(
    frames.tokens,
    ACTIONS,
    frames.move,
    frames.pose,
    frames.reward,
    frames.alive,
  )
  joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), p.clip, imagined)
  # Whichever way it goes on, the memory has been there.
  action, _ = way_on(p, state.tokens)
  for move in range(1, 5):
    there = VIEW.move(state.pose, jnp.int32(move))
    frame = memory_lib.Frames(
      p.clip.tokens[move], there, jnp.int32(0), jnp.array(True)
    )
    state = state._replace(memory=BANK.write(state.memory, frame))
  # Which time stands in which slot.
  slots = np.arange(TOTAL - WINDOW, TOTAL)
  slots = slots[np.argsort(slots % WINDOW)]
  np.testing.assert_array_equal(state.window.time, slots)
  np.testing.assert_array_equal(state.window.tokens, joined.tokens[slots])
  np.testing.assert_array_equal(state.window.pose, joined.pose[slots])

  @jax.jit
  def both(state):
    cached, blocks, pose = next_logits(p.model, p.params, state, action)
    kv = fresh_keys(p.network, p.params, joined)
    place = jnp.broadcast_to(pose[None], (WINDOW, 3))
    cells = VIEW.relative(place, VIEW.cells(joined.pose[slots]))
    age = (TOTAL - slots)[None, None, :, None].repeat(9, 3)
    window = Seen(
      cells.astype(jnp.float32)[None, None],
      jnp.asarray(age, jnp.float32),
      jnp.ones((1, 1, WINDOW, 9), bool),
      jax.tree.map(lambda x: x[:, :, slots], kv),
    )
    found = BANK.read(state.memory, world.Query(pose, state.window))
    recalled = rollout.see(VIEW, pose, state.time, found)
    kv = p.network.recall(p.params, found.tokens[None, None])
    context = Context(window, recalled._replace(kv=kv), jnp.zeros(1))
    fresh = p.network.logits(p.params, blocks[:, None], context)[0, 0]
    return cached, fresh

  on, off = both(state), both(worlds.switch(state, False))
  allowed = LAYOUT.allowed()
  for cached, fresh in (on, off):
    np.testing.assert_array_equal(np.isfinite(cached), allowed)
    np.testing.assert_allclose(
      np.asarray(cached)[allowed], np.asarray(fresh)[allowed], atol=5e-6
    )
  # What is compared says something, and the memory is a part of it.
  assert np.ptp(np.asarray(on[0])[allowed]) > 0.3
  assert np.abs(np.asarray(on[0] - off[0])[allowed]).max() > 1e-4


@pytest.mark.slow
def test_worlds_in_a_batch_are_worlds_alone():
  p = programs("frame_attention")
  states = [p.start(recording(seed), True) for seed in range(3)]
  keys = jax.random.split(jax.random.key(6), 3)
  actions = jnp.stack([ACTIONS, ACTIONS[::-1], 0 * ACTIONS])
  together = jax.jit(jax.vmap(p.model.imagine, (None, 0, 0, 0)))(
    p.params, keys, jax.tree.map(lambda *x: jnp.stack(x), *states), actions
  )
  for i in range(3):
    alone = p.imagine(p.params, keys[i], states[i], actions[i])
    worlds.same(jax.tree.map(lambda x, i=i: x[i], together), alone, 1e-5)


@pytest.mark.slow
def test_branches_share_a_frozen_memory():
  p = programs("frame_attention")
  frozen = functools.partial(p.model.imagine, freeze_memory=True)
  # Over actions alone; and the memory is no branch's own.
  out = rollout.WorldState(0, 0, 0, 0, 0, None)
  branch = jax.jit(jax.vmap(frozen, (None, None, None, 0), out_axes=(out, 0)))
  actions, key = jnp.stack([ACTIONS, 0 * ACTIONS]), jax.random.key(7)
  ends, frames = branch(p.params, key, p.state, actions)
  worlds.same(ends.memory, p.state.memory)
  np.testing.assert_array_equal(ends.time, TOTAL)
  for i in range(2):
    # The first frame is drawn before anything would be written.
    _, free = p.imagine(p.params, key, p.state, actions[i])
    for name in ("tokens", "pose"):
      frozen, written = getattr(frames, name)[i], getattr(free, name)
      np.testing.assert_array_equal(frozen[0], written[0])
  # It is read: turned off, the law is another.
  _, blind = branch(p.params, key, worlds.switch(p.state, False), actions)
  assert (blind.log_prob != frames.log_prob).any()


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", helpers.thorough(NETWORKS, first=["frame_attention"])
)
def test_frames_out_of_sight_are_out_of_mind(name):
  """With the memory off the next frame does not see beyond the window."""
  p = programs(name)
  clip, action = recording(length=8), 2

  @jax.jit
  def logits(tokens, pose, is_on, action):
    changed = clip._replace(tokens=tokens, pose=pose)
    state = worlds.absorbed(p.model, p.params, changed, is_on)
    return next_logits(p.model, p.params, state, action)[0]

  allowed, other = LAYOUT.allowed(), (clip.tokens + 1) % KINDS
  before = logits(clip.tokens, clip.pose, False, action)
  for first in range(8):
    tokens = clip.tokens.at[first].set(other[first])
    after = logits(tokens, clip.pose, False, action)
    gap = np.abs(np.asarray(after) - np.asarray(before))[allowed].max()
    if first < 8 - REACH[name]:
      assert gap == 0
    elif first >= 8 - WINDOW:
      assert gap > 1e-4
  # The control: turned on, the first frame matters, where it stands where the
  # next one will and all others stay here.
  action, move = way_on(p, clip.tokens[-1])
  here = jnp.array([2, 3, 0], jnp.int32)
  there = VIEW.move(here, move)
  pose = jnp.broadcast_to(here[None], (8, 3)).at[0].set(there)
  tokens = clip.tokens.at[0].set(other[0])
  for is_on in (False, True):
    one, two = (logits(t, pose, is_on, action) for t in (clip.tokens, tokens))
    assert (one != two).any() == is_on
