"""Worlds in NumPy, and networks of worlds that are known exactly."""

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import world
from jdiff.core.frames import KeyValues, WorldNetwork

COMPASS = ((0, 0, 0), (-1, 0, 0), (0, -1, 0), (0, 1, 0), (1, 0, 0))
TANK = ((0, 0, 0), (-1, 0, 0), (0, 0, -1), (0, 0, 1), (1, 0, 0))


def turned(offsets, heading):
  """Offsets `[..., 2]` by powers of -i: east is 1, north is i."""
  offsets = np.asarray(offsets)
  at = (offsets[..., 1] - 1j * offsets[..., 0]) * (-1j) ** (heading % 4)
  return np.stack([-at.imag, at.real], axis=-1).round().astype(int)


def turned_in(view, offsets, heading):
  """Offsets from the observer, in the world: it may be one that never turns."""
  if not any(turn for _, _, turn in view.moves):
    return np.asarray(offsets)
  return turned(offsets, heading)


def wrapped(view, cells):
  """Cells modulo the period, if there is one."""
  return cells if view.period is None else np.asarray(cells) % view.period


def cells_of(view, pose):
  """`[N, 2]` world coordinates that a pose sees, wrapped."""
  row, col, heading = (int(x) for x in pose)
  offsets = [
    (i - view.origin[0], j - view.origin[1])
    for i in range(view.rows)
    for j in range(view.cols)
  ]
  return wrapped(view, np.array([row, col]) + turned_in(view, offsets, heading))


def shows(view, pose, cells):
  """`[N]`: which of wrapped cells a pose sees, by looking each up."""
  seen = set(map(tuple, cells_of(view, pose).tolist()))
  return np.array([tuple(c) in seen for c in np.asarray(cells).tolist()])


def walk(view, seed, length, start=(0, 0, 0)):
  """`(poses [T, 3], moves [T])` of a random walk, in NumPy."""
  rng = np.random.default_rng(seed)
  poses, moves = [np.array(start)], [0]
  for _ in range(length - 1):
    index = int(rng.integers(view.num_moves))
    row, col, turn = view.moves[index]
    place = poses[-1][:2] + turned_in(view, (row, col), poses[-1][2])
    heading = (poses[-1][2] + turn) % 4
    poses.append(np.append(wrapped(view, place), heading))
    moves.append(index)
  return np.array(poses, np.int32), np.array(moves, np.int32)


def clip(layout, view, seed, batch, length):
  """Random frames along random walks; each action is drawn on its own."""
  rng = np.random.default_rng(seed)
  paths = [walk(view, 100 * seed + i, length) for i in range(batch)]
  poses, moves = (np.stack(x) for x in zip(*paths, strict=True))

  def draw(size, *shape):
    return jnp.asarray(rng.integers(size, size=(batch, length, *shape)))

  return jax.tree.map(
    lambda x: jnp.asarray(x, jnp.int32),
    world.Clip(
      draw(layout.num_tokens, layout.num_cells),
      draw(layout.num_actions),
      moves,
      poses,
      draw(max(1, len(layout.rewards))),
      draw(2),
    ),
  )


def kept(tokens):
  """Key-values that are the tokens themselves, one layer and head."""
  kept = tokens[None, ..., None, None].astype(jnp.float32)
  return KeyValues(kept, kept)


def table_network(layout, logits_of, move_of=lambda action: 0 * action):
  """A network without parameters.

  Args:
    layout: Sizes of its blocks.
    logits_of: `(blocks [B, Q, G], context) -> [B, Q, N, num_tokens]`.
    move_of: `(action [B]) -> move [B]`.
  """

  def encode(params, blocks, seen):
    del params, seen
    return kept(layout.cells(blocks))

  def recall(params, tokens):
    del params
    return kept(tokens)

  def logits(params, blocks, context, sites=None):
    del params
    shape = (*blocks.shape, layout.mask_id)
    cells = logits_of(blocks, context)
    full = (
      jnp.zeros(shape)
      .at[..., -layout.num_cells :, : cells.shape[-1]]
      .set(cells)
    )
    allowed = jnp.broadcast_to(jnp.asarray(layout.allowed()), shape)
    full = jnp.where(allowed, full, -jnp.inf)
    return full if sites is None else full[:, :, sites]

  def move(params, tokens, action):
    del params, tokens
    return 9.0 * jax.nn.one_hot(move_of(action), layout.num_moves)

  return WorldNetwork(lambda key: {}, encode, recall, logits, move)


def sharp(tokens, num_tokens):
  """Logits that leave no doubt."""
  return 60.0 * jax.nn.one_hot(tokens, num_tokens)


def last_frame(window):
  """`[B, Q, N]` tokens of the youngest valid frame of key-values `kept`."""
  tokens = window.kv.key[0, ..., 0, 0]
  if tokens.ndim == 3:
    tokens = jnp.broadcast_to(tokens[:, None], window.valid.shape)
  age = jnp.where(window.valid, window.age, jnp.inf)
  youngest = jnp.argmin(age[..., 0], axis=2)[..., None, None]
  return jnp.take_along_axis(tokens, youngest, axis=2)[:, :, 0]


def adding(layout, move_of=lambda action: 0 * action):
  """Cells of a frame are those of the one before plus its action, modulo V."""

  def logits_of(blocks, context):
    before = last_frame(context.window).astype(jnp.int32)
    action = blocks[..., 0] - layout.starts[1]
    after = (before + action[..., None]) % layout.num_tokens
    return sharp(after, layout.num_tokens)

  return table_network(layout, logits_of, move_of)


def copying(layout, view, move_of):
  """Cells seen before are what they were when last seen; others uniform."""
  offsets = jnp.asarray(view.offsets, jnp.float32)

  def logits_of(blocks, context):
    ages, tokens = [], []
    for seen in (context.window, context.recalled):
      if seen is None:
        continue
      batch, num = seen.valid.shape[:2]
      cells = seen.cells.reshape(batch, num, 1, -1, 2)
      shape = (batch, num, layout.num_cells, cells.shape[3], 2)
      here = jnp.broadcast_to(offsets[None, None, :, None], shape)
      same = jnp.all(jnp.broadcast_to(cells, shape) == here, axis=-1)
      same = same & seen.valid.reshape(batch, num, 1, -1)
      age = seen.age.reshape(batch, num, 1, -1)
      ages.append(jnp.where(same, age, jnp.inf))
      token = seen.kv.key[0, ..., 0, 0]
      if token.ndim == 3:
        token = jnp.broadcast_to(token[:, None], seen.valid.shape)
      tokens.append(
        jnp.broadcast_to(token.reshape(batch, num, 1, -1), same.shape)
      )
    age, token = (jnp.concatenate(x, axis=-1) for x in (ages, tokens))
    youngest = jnp.argmin(age, axis=-1)[..., None]
    found = jnp.take_along_axis(token, youngest, axis=-1)[..., 0]
    known = jnp.isfinite(jnp.min(age, axis=-1))
    logits = sharp(found.astype(jnp.int32), layout.num_tokens)
    return jnp.where(known[..., None], logits, 0.0)

  return table_network(layout, logits_of, move_of)


def summing(layout, view):
  """A network that all it may see goes into, and cheap to compile.

  Logits of a cell are linear in the tokens of its block, in those of finished
  frames, weighed by distance and age, and in the noise it is told of.
  """
  offsets = jnp.asarray(view.offsets, jnp.float32)
  vocab, num_cells = layout.mask_id, layout.num_cells

  def init(key):
    keys = jax.random.split(key, 4)
    shapes = {
      "block": (layout.length, vocab + 1, vocab),
      "seen": (layout.num_tokens, num_cells, vocab),
      "noise": (vocab,),
      "move": (layout.num_actions, layout.num_tokens, layout.num_moves),
    }
    return {
      name: jax.random.normal(k, shape)
      for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }

  def encode(params, blocks, seen):
    del params, seen
    return kept(layout.cells(blocks))

  def recall(params, tokens):
    del params
    if tokens.ndim == 5:
      tokens = tokens @ jnp.arange(tokens.shape[-1], dtype=tokens.dtype)
    return kept(tokens)

  def look(seen):
    """`[B, Q, N, K]`: how much of each kind there is about each cell."""
    batch, num = seen.valid.shape[:2]
    tokens = seen.kv.key[0, ..., 0, 0]
    if tokens.ndim == 3:
      tokens = jnp.broadcast_to(tokens[:, None], seen.valid.shape)
    cells = seen.cells.reshape(batch, num, -1, 2)
    gaps = [
      cells[:, :, None, :, i] - offsets[None, None, :, None, i] for i in (0, 1)
    ]
    near = jnp.exp(-0.5 * (gaps[0] ** 2 + gaps[1] ** 2))
    weight = jnp.where(seen.valid, 1 / (1 + seen.age), 0)
    near = near * weight.reshape(batch, num, 1, -1)
    kinds = jnp.arange(layout.num_tokens, dtype=jnp.float32)
    # Between kinds for means of several, as some memories answer.
    there = jnp.maximum(
      1 - abs(tokens.reshape(batch, num, -1, 1) - kinds[None, None, None]), 0
    )
    return jnp.einsum("bqnc,bqck->bqnk", near, there)

  def logits(params, blocks, context, sites=None):
    own = jax.nn.one_hot(blocks, vocab + 1)
    # Every site sees every other one, by the same weights.
    all_sites = jnp.einsum("bqgv,gvw->bqw", own, params["block"])
    told = context.noise[:, None] * params["noise"][None]
    logits = (0.3 * all_sites + told[:, None])[:, :, None]
    logits = jnp.broadcast_to(logits, (*blocks.shape, vocab))
    for seen in (context.window, context.recalled):
      if seen is not None:
        about = jnp.einsum("bqnk,knw->bqnw", look(seen), params["seen"])
        logits = logits.at[:, :, -num_cells:].add(about)
        answers = logits.shape[2] - num_cells
        mean = jnp.broadcast_to(
          about.mean(2)[:, :, None], (*blocks.shape[:2], answers, vocab)
        )
        logits = logits.at[:, :, :answers].add(mean)
    allowed = jnp.broadcast_to(jnp.asarray(layout.allowed()), logits.shape)
    logits = jnp.where(allowed, logits, -jnp.inf)
    return logits if sites is None else logits[:, :, sites]

  def move(params, tokens, action):
    kinds = jax.nn.one_hot(tokens, layout.num_tokens).sum(axis=1)
    return jnp.einsum("bk,bkm->bm", kinds, params["move"][action])

  return WorldNetwork(init, encode, recall, logits, move)


def random_params(network, seed=0, scale=0.4):
  """Parameters of the right shapes without compiling `init`."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(network.init, jax.random.key(0))
  return jax.tree.map(
    lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), x.dtype), shapes
  )


def recording(layout, view, seed, length):
  """One clip as `observe` packs it: without rewards, alive."""
  one = clip(layout, view, seed, 1, length)
  one = jax.tree.map(lambda x: x[0], one)
  return one._replace(reward=0 * one.reward, alive=0 * one.alive + 1)


def switch(state, is_on):
  memory = state.memory._replace(is_on=jnp.asarray(is_on))
  return state._replace(memory=memory)


def absorbed(model, params, clip, is_on=None, with_pose=True):
  """The state after a clip's frames."""
  state = model.init(params)
  if is_on is not None:
    state = switch(state, is_on)

  def observe(state, frame):
    tokens, action, pose = frame
    given = pose if with_pose else None
    return model.observe(params, state, tokens, action, given), None

  return jax.lax.scan(observe, state, (clip.tokens, clip.action, clip.pose))[0]


def same(a, b, atol=0.0):
  """Leaf by leaf: floats up to a tolerance, integers exactly."""

  def check(x, y):
    assert x.dtype == y.dtype
    np.testing.assert_allclose(x, y, rtol=0, atol=atol)

  jax.tree.map(check, a, b)
