"""The axial network: places, two streams, the cache, and what may not leak."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import nets, world
from jdiff.core.frames import Context, Seen
from jdiff.methods import world_model
from jdiff.nets import slots
from jdiff.world import memory as memory_lib
from jdiff.world import rollout

KINDS, ACTIONS, WINDOW, LENGTH = 4, 3, 3, 12
WALK = ((0, 0, 0), (-1, 0, 0), (0, -1, 0), (0, 1, 0), (1, 0, 0))
TURN = ((0, 0, 0), (-1, 0, 0), (0, 0, 1), (0, 0, -1))
VIEWS = {
  # The tile, 3 x 3, divides one torus; the other's can only be all of it.
  "torus": world.View(3, 3, (1, 1), WALK, (6, 6)),
  "prime": world.View(3, 3, (1, 1), WALK, (5, 7)),
  "plane": world.View(3, 5, (1, 2), WALK),
  "turning": world.View(3, 5, (2, 2), TURN),
  "turning_torus": world.View(3, 3, (2, 1), TURN, (6, 6)),
  "column": world.View(3, 1, (2, 0), TURN),
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def make_clip(view, length, seed=0):
  """A walk `[T]` over random cells that do not stay what they were."""
  key_move, key_cells, key_action, key_reward = jax.random.split(
    jax.random.key(seed), 4
  )
  move = jax.random.randint(key_move, (length,), 0, view.num_moves)
  move = move.at[0].set(0)
  start = jnp.array([3, 4, 1 if view.moves == TURN else 0])

  def walk(pose, move):
    pose = view.move(pose, move)
    return pose, pose

  _, pose = jax.lax.scan(walk, start, move)
  shape = (length, view.num_cells)
  return world.Clip(
    jax.random.randint(key_cells, shape, 0, KINDS),
    jax.random.randint(key_action, (length,), 0, ACTIONS),
    move,
    pose,
    jax.random.randint(key_reward, (length,), 0, 2),
    jnp.ones(length, jnp.int32),
  )


def make_memory(kind, view):
  if kind == "bank":
    return memory_lib.bank(view, capacity=16, num_frames=2)
  return memory_lib.gated(view, num_tokens=KINDS, num_features=32)


def make_parts(name, kind="bank", **options):
  view = VIEWS[name]
  layout = world.Layout(
    view.num_cells, KINDS, ACTIONS, view.num_moves, (0.0, 1.0)
  )
  network = nets.axial(
    layout.allowed(),
    view.offsets,
    num_tokens=KINDS,
    num_actions=ACTIONS,
    num_moves=view.num_moves,
    width=16,
    num_heads=2,
    period=view.period,
    turns=view.moves == TURN,
    **options,
  )
  return world_model.Parts(
    network, layout, view, make_memory(kind, view), WINDOW
  )


@functools.cache
def make(name, kind="bank", num_layers=2):
  """Parts of a world, and parameters."""
  parts = make_parts(name, kind, num_layers=num_layers)
  return parts, jax.jit(parts.network.init)(jax.random.key(1))


def blocks_and_noisy(parts, clip):
  """Blocks `[T, G]`, and those with half of what is not given masked."""
  blocks = parts.layout.pack(clip)
  masked = jax.random.bernoulli(jax.random.key(7), 0.5, blocks.shape)
  masked = masked.at[:, : world.layout.NUM_GIVEN].set(False)
  return blocks, jnp.where(masked, parts.layout.mask_id, blocks)


@functools.partial(jax.jit, static_argnums=(0, 4))
def in_training(parts, params, clip, noisy, sites=None):
  """Key-values `[D, T, ...]` and logits `[T - 1, G, V]` of a clip at once."""
  seen, found, recalled = jax.vmap(
    lambda c: world_model.clip_context(parts, c)
  )(jax.tree.map(lambda x: x[None], clip))
  network, targets = parts.network, slice(1, None)
  kv = network.encode(params, parts.layout.pack(clip)[None], seen)
  window = Seen(*(x[:, targets] for x in seen[:3]), kv)
  if recalled is not None:
    recalled = recalled._replace(kv=network.recall(params, found))
  context = Context(window, recalled, jnp.zeros(1))
  sites = None if sites is None else np.array(sites)
  logits = network.logits(params, noisy[None, targets], context, sites)
  return jax.tree.map(lambda x: x[:, 0], kv), logits[0]


@functools.partial(jax.jit, static_argnums=0)
def in_play(parts, params, clip, noisy):
  """The same, frame by frame out of a world's state."""
  network, layout, view, memory, window = parts
  model = world.world(network, layout, view, memory, window=window)

  def frame(state, now):
    clip, noisy = now
    found = memory_lib.as_recalled(view, state.window)
    kv = jax.tree.map(lambda x: x[:, None], state.kv)
    last = rollout.see(view, clip.pose, state.time, found)._replace(kv=kv)
    recalled = None
    if memory.num_frames:
      found = memory.read(state.memory, world.Query(clip.pose, state.window))
      recalled = rollout.see(view, clip.pose, state.time, found)
      kv = network.recall(params, found.tokens[None, None])
      recalled = recalled._replace(kv=kv)
    context = Context(last, recalled, jnp.zeros(1))
    logits = network.logits(params, noisy[None, None], context)[0, 0]
    after = model.observe(params, state, clip.tokens, clip.action, clip.pose)
    slot = state.time % window
    return after, (jax.tree.map(lambda x: x[:, slot], after.kv), logits)

  _, (kv, logits) = jax.lax.scan(frame, model.init(params), (clip, noisy))
  return jax.tree.map(lambda x: x.swapaxes(0, 1), kv), logits[1:]


@pytest.mark.parametrize(
  "name, kind",
  [
    ("torus", "bank"),
    pytest.param("turning", "gated", marks=pytest.mark.thorough),
  ],
)
def test_play_equals_training(name, kind):
  parts, params = make(name, kind)
  clip = make_clip(parts.view, LENGTH)
  _, noisy = blocks_and_noisy(parts, clip)
  kept, logits = in_training(parts, params, clip, noisy)
  ring, played = in_play(parts, params, clip, noisy)
  # Sums of some dozens of numbers of order 1, in another order, two layers.
  for got, want in zip(ring, kept, strict=True):
    np.testing.assert_allclose(got, want, atol=2e-5)
  np.testing.assert_allclose(played, logits, atol=2e-5)
  # Were the window not seen at all, this would be seen.
  masked = jnp.where(
    jnp.arange(LENGTH)[:, None] == 4, clip.tokens[0], clip.tokens
  )
  other, _ = in_training(parts, params, clip._replace(tokens=masked), noisy)
  assert jnp.abs(other.key - kept.key)[-1, 5].max() > 1e-3


@pytest.mark.parametrize("name", VIEWS)
def test_cells_are_matched_where_places_are_one(name):
  view, length = VIEWS[name], 30
  parts = make_parts(name)
  clip = make_clip(view, length, seed=3)
  sorter = slots.make_sorter(view.offsets, view.period, view.moves == TURN)

  @jax.jit
  def sort(clip):
    batch = jax.tree.map(lambda x: x[None], clip)
    unread = parts._replace(window=10, memory=memory_lib.none())
    every = functools.partial(world_model.clip_context, unread)
    seen, _, _ = jax.vmap(every)(batch)
    return seen, *slots.sort(sorter, seen, jnp.float32)

  seen, window, places = jax.tree.map(np.asarray, sort(clip))
  # Each cell has a slot of its own, and is there.
  for held in (window.query, window.key):
    np.testing.assert_array_equal(held.sum(axis=2), 1)
    assert held.sum(axis=3).max() == 1
  slot = np.argmax(window.query, axis=2)
  at = np.take_along_axis(places, slot[..., None], axis=2)
  np.testing.assert_array_equal(at, np.broadcast_to(view.offsets, at.shape))
  # By the book: cell k of frame f lies where the query has its cell n.
  cells = np.asarray(seen.cells)
  match = (cells[:, :, :, None] == view.offsets[:, None]).all(-1)
  match &= np.asarray(seen.valid)[:, :, :, None]
  assert match.any() and not match.any(axis=(3, 4)).all()
  got = np.einsum(
    "bqsn,bqfs,bfsk->bqfnk",
    window.query,
    window.same.astype(np.float32),
    window.key,
    optimize=True,
  )
  np.testing.assert_array_equal(got > 0, match)


def test_nothing_leaks_and_the_past_is_seen():
  parts, params = make("torus", "bank")
  clip = make_clip(parts.view, LENGTH)
  _, noisy = blocks_and_noisy(parts, clip)
  now = 6
  _, want = in_training(parts, params, clip, noisy)

  def changed(frames, noisy=noisy):
    """The greatest change of the target's logits if frames are others."""
    at = jnp.isin(jnp.arange(LENGTH), jnp.array(frames))[:, None]
    tokens = jnp.where(at, (clip.tokens + 1) % KINDS, clip.tokens)
    action = jnp.where(at[:, 0], (clip.action + 1) % ACTIONS, clip.action)
    other = clip._replace(tokens=tokens, action=action)
    _, got = in_training(parts, params, other, noisy)
    gap = jnp.where(jnp.isfinite(want), got - want, 0.0)[now - 1]
    return float(jnp.abs(gap).max())

  # Its own clean cells and action are in no stream that it looks at; what is
  # given of it is in its noisy block.
  assert changed([now]) == 0.0
  assert changed(list(range(now, LENGTH))) == 0.0
  assert changed([now - 1]) > 1e-3
  assert changed([now - WINDOW]) > 1e-4
  # By way of the window's frames and by the memory.
  assert changed([0]) > 1e-5
  assert changed([], noisy.at[now, -1].set(0).at[now, -2].set(1)) > 1e-3


def test_a_frame_s_answers_are_not_kept():
  parts, params = make("torus", "bank")
  clip = make_clip(parts.view, LENGTH)
  _, noisy = blocks_and_noisy(parts, clip)
  kept, _ = in_training(parts, params, clip, noisy)
  rewarded = clip._replace(reward=1 - clip.reward, alive=0 * clip.alive)
  again, _ = in_training(parts, params, rewarded, noisy)
  np.testing.assert_array_equal(kept.key, again.key)


@pytest.mark.thorough
def test_sites_remat_and_low_precision():
  parts, params = make("torus", "bank")
  clip = make_clip(parts.view, LENGTH)
  batch = jax.tree.map(lambda x: jnp.stack([x, x]), clip)
  key = jax.random.key(3)

  @functools.partial(jax.jit, static_argnums=0)
  def gradient(parts, params):
    loss = world_model.all_targets(parts)
    return jax.value_and_grad(lambda p: loss(p, key, batch)[0].mean())(params)

  value, want = gradient(parts, params)
  assert all(jnp.abs(x).max() > 0 for x in jax.tree.leaves(want))
  again, got = gradient(make_parts("torus", num_layers=2, remat=True), params)
  np.testing.assert_allclose(again, value, rtol=1e-5)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  half = make_parts("torus", num_layers=2, compute_dtype=jnp.bfloat16)
  _, noisy = blocks_and_noisy(parts, clip)
  _, logits = in_training(parts, params, clip, noisy)
  _, rough = in_training(half, params, clip, noisy)
  assert rough.dtype == jnp.float32
  # Eight bits a number, 2^-9 each, over two layers.
  finite = jnp.isfinite(logits)
  np.testing.assert_allclose(rough[finite], logits[finite], atol=0.1)

  sites = np.array([5, 2])
  _, some = in_training(parts, params, clip, noisy, (5, 2))
  np.testing.assert_allclose(some, logits[:, sites], atol=1e-6)


def test_bad_input():
  view = VIEWS["torus"]
  layout = world.Layout(view.num_cells, KINDS, ACTIONS, view.num_moves)
  sizes = dict(num_tokens=KINDS, num_actions=ACTIONS, num_moves=view.num_moves)
  build = functools.partial(nets.axial, layout.allowed(), **sizes)
  with pytest.raises(ValueError, match=r"rectangle of cells, row by row"):
    build(view.offsets[::-1])
  with pytest.raises(
    ValueError, match=r"period must be at least 3 .* \(2, 6\)"
  ):
    build(view.offsets, period=(2, 6))
  with pytest.raises(ValueError, match="turns must be False on a torus"):
    build(view.offsets, period=(6, 9))
  with pytest.raises(ValueError, match="num_heads must divide"):
    build(view.offsets, num_heads=3, width=16)
  # A target alone does not say what the frames before it saw.
  parts = make_parts("torus")
  params = jax.eval_shape(parts.network.init, jax.random.key(0))
  batch = jax.tree.map(lambda x: x[None], make_clip(view, LENGTH))
  with pytest.raises(ValueError, match=r"seen.cells must have shape \[1, 3"):
    jax.eval_shape(
      world_model.single_target(parts), params, jax.random.key(0), batch
    )
