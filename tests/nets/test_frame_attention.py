"""The small network of frames: what it keeps, what it sees, what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import nets, world
from jdiff.core.frames import Context, KeyValues, Seen
from jdiff.nets import frames as frames_lib
from tests.world import worlds

KINDS, FRAMES, BATCH, QUERIES = 5, 3, 2, 2
VIEW = world.View(3, 3, (1, 1), worlds.COMPASS)
LAYOUT = world.Layout(9, KINDS, 4, 5, (0.0, 1.0))
SIZES = dict(
  num_tokens=KINDS, num_actions=4, num_moves=5, width=16, num_layers=2
)
ALLOWED = LAYOUT.allowed()


@functools.cache
def made(**options):
  network = nets.frame_attention(ALLOWED, VIEW.offsets, **SIZES | options)
  return network, worlds.random_params(network)


@functools.cache
def program(name, **options):
  network, params = made(**options)
  return functools.partial(jax.jit(getattr(network, name)), params)


def some_blocks(seed=0, hidden=0.5):
  """`[B, Q, G]` blocks, some of whose sites are masked."""
  rng = np.random.default_rng(seed)
  clip = worlds.clip(LAYOUT, VIEW, seed, BATCH, QUERIES)
  blocks = np.array(LAYOUT.pack(clip))
  mask = rng.uniform(size=blocks.shape) < hidden
  mask[..., :2] = False
  return jnp.asarray(np.where(mask, LAYOUT.mask_id, blocks))


def some_seen(seed=0, own=False):
  """`(tokens, Seen)` of `F` frames about the observer; some cells invalid."""
  rng = np.random.default_rng(100 + seed)
  shape = (BATCH, QUERIES, FRAMES) if own else (BATCH, FRAMES)
  tokens = jnp.asarray(rng.integers(KINDS, size=(*shape, 9)), jnp.int32)
  kv = program("recall")(tokens if own else tokens[:, None])
  if not own:
    kv = jax.tree.map(lambda x: x[:, :, 0], kv)
  shift = rng.integers(-2, 3, size=(BATCH, QUERIES, FRAMES, 1, 2))
  shape = (BATCH, QUERIES, FRAMES, 9)
  age = rng.integers(1, 9, size=(*shape[:3], 1)).repeat(9, axis=3)
  return tokens, Seen(
    jnp.asarray(VIEW.offsets + shift, jnp.float32),
    jnp.asarray(age, jnp.float32),
    jnp.asarray(rng.uniform(size=shape) < 0.8),
    kv,
  )


def some_context(seed=0, noise=0.0):
  _, window = some_seen(seed)
  _, recalled = some_seen(seed + 1, own=True)
  return Context(window, recalled, jnp.full(BATCH, noise))


def close(a, b, atol=1e-5):
  a, b = np.asarray(a), np.asarray(b)
  np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
  finite = np.isfinite(a)
  np.testing.assert_allclose(a[finite], b[finite], atol=atol)


def differ(a, b):
  finite = np.isfinite(np.asarray(a))
  return np.abs(np.asarray(a)[finite] - np.asarray(b)[finite]).max() > 1e-3


def test_logits_of_all_sites_and_of_some():
  blocks, context = some_blocks(), some_context()
  logits = program("logits")(blocks, context)
  shape = (BATCH, QUERIES, LAYOUT.length, LAYOUT.mask_id)
  assert logits.shape == shape and logits.dtype == jnp.float32
  np.testing.assert_array_equal(
    np.isfinite(logits), np.broadcast_to(ALLOWED, shape)
  )
  # Sites that are known, traced, and each row's own.
  network, params = made()
  sites = np.array([2, 5, 12])
  close(network.logits(params, blocks, context, sites), logits[:, :, sites])
  some = program("logits")(blocks, context, jnp.asarray(sites))
  close(some, logits[:, :, sites])
  sites = np.array([[3, 2, 8], [9, 12, 4]])
  rows = program("logits")(blocks, context, jnp.asarray(sites))
  close(rows, np.stack([logits[b][:, sites[b]] for b in range(BATCH)]))


def test_what_is_kept_is_of_the_cells_alone():
  tokens, _ = some_seen(own=True)
  kept = program("recall")(tokens)
  assert kept.key.shape == (2, BATCH, QUERIES, FRAMES, 9, 2, 8)
  assert kept.value.shape == kept.key.shape
  # One-hot probabilities are tokens; others are means.
  recall = program("recall")
  one_hot = jax.nn.one_hot(tokens, KINDS)
  jax.tree.map(close, recall(one_hot), kept)
  other = recall((tokens + 1) % KINDS)
  mean = recall((one_hot + jnp.roll(one_hot, 1, axis=-1)) / 2)
  jax.tree.map(lambda a, b, c: close(a, (b + c) / 2), mean, kept, other)
  # Blocks of those cells are kept alike, whatever stands before the cells.
  blocks = some_blocks(hidden=0)
  encoded = program("encode")(blocks, None)
  assert encoded.key.shape == (2, BATCH, QUERIES, 9, 2, 8)
  cells = recall(LAYOUT.cells(blocks)[:, None])
  jax.tree.map(lambda a, b: close(a, b[:, :, 0]), encoded, cells)


def test_shared_frames_and_frames_of_ones_own_are_looked_at_alike():
  blocks, context = some_blocks(), some_context()
  window = context.window
  own = jax.tree.map(
    lambda x: jnp.broadcast_to(
      x[:, :, None], (*x.shape[:2], QUERIES, *x.shape[2:])
    ),
    window.kv,
  )
  logits = program("logits")
  first = logits(blocks, context)
  close(logits(blocks, context._replace(window=window._replace(kv=own))), first)
  # All in one part, in another order.
  recalled, order = context.recalled, np.array([4, 0, 3, 1, 5, 2])
  joined = Seen(
    *(
      jnp.concatenate([getattr(window, k), getattr(recalled, k)], 2)[
        :, :, order
      ]
      for k in ("cells", "age", "valid")
    ),
    jax.tree.map(
      lambda a, b: jnp.concatenate([a, b], axis=3)[:, :, :, order],
      own,
      recalled.kv,
    ),
  )
  close(logits(blocks, Context(joined, None, context.noise)), first)


def test_cells_that_are_not_valid_do_not_matter():
  blocks, context = some_blocks(), some_context()
  logits = program("logits")
  first = logits(blocks, context)

  def spoilt(seen, where):
    wild = jnp.where(where[..., None], 7.0, seen.cells)
    kv = jax.tree.map(
      lambda x: jnp.where(where[None, ..., None, None], 3 + x, x), seen.kv
    )
    return seen._replace(cells=wild, kv=kv)

  recalled = context.recalled
  lost = context._replace(recalled=spoilt(recalled, ~recalled.valid))
  close(logits(blocks, lost), first)
  assert differ(
    logits(blocks, context._replace(recalled=spoilt(recalled, recalled.valid))),
    first,
  )
  # A part without a valid cell is no part; and nothing at all is no accident.
  none = recalled._replace(valid=jnp.zeros_like(recalled.valid))
  close(
    logits(blocks, context._replace(recalled=none)),
    logits(blocks, context._replace(recalled=None)),
  )
  blind = context._replace(
    window=context.window._replace(valid=jnp.zeros_like(context.window.valid)),
    recalled=None,
  )
  alone = logits(blocks, blind)
  assert np.isfinite(np.asarray(alone)[..., ALLOWED]).all()
  assert differ(alone, first)


def test_what_logits_depend_on():
  blocks, context = some_blocks(), some_context()
  logits = program("logits")
  first = logits(blocks, context)
  window = context.window
  for name, change in (
    ("cells", lambda x: x + jnp.array([1.0, 0.0])[None, None, None, None]),
    ("age", lambda x: x + 4),
    ("valid", lambda x: x.at[:, :, 0].set(False)),
    ("kv", lambda kv: jax.tree.map(lambda x: x + 0.5, kv)),
  ):
    seen = window._replace(**{name: change(getattr(window, name))})
    assert differ(logits(blocks, context._replace(window=seen)), first), name
  # Each site of a block, the action, the move and the masks among them.
  for site in range(LAYOUT.length):
    tokens = blocks.at[:, :, site].set(jnp.where(blocks[:, :, site] == 0, 1, 0))
    assert differ(logits(tokens, context), first), site
  told = logits(blocks, context._replace(noise=jnp.full(BATCH, 0.3)))
  assert differ(told, first)
  # A query sees itself alone, and an example too.
  one = blocks.at[0, 1].set(some_blocks(3)[0, 1])
  changed = np.asarray(logits(one, context) != first).any((2, 3))
  np.testing.assert_array_equal(changed, [[False, True], [False, False]])


def test_a_shift_of_the_world_does_not_matter_a_shift_of_the_observer_does():
  """Logits are of distances: seen from elsewhere, cells are elsewhere."""
  pose = jnp.array([[4, 7, 0], [3, 7, 0], [4, 9, 0]], jnp.int32)
  blocks, tokens = some_blocks()[:1, :1], some_seen()[0][:1]
  kv = jax.tree.map(lambda x: x[:, :, 0], program("recall")(tokens[:, None]))

  def logits(pose, observer):
    place = jnp.broadcast_to(observer[None], pose.shape)
    cells = VIEW.relative(place, VIEW.cells(pose)).astype(jnp.float32)
    shape = (1, 1, FRAMES, 9)
    seen = Seen(cells[None, None], jnp.ones(shape), jnp.ones(shape, bool), kv)
    context = Context(seen, None, jnp.zeros(1))
    return program("logits")(blocks, context)

  observer = jnp.array([4, 8, 0], jnp.int32)
  shift = jnp.array([-5, 2, 0], jnp.int32)
  first = logits(pose, observer)
  close(logits(pose + shift[None], observer + shift), first)
  assert differ(logits(pose, observer + shift), first)


def test_nearer_and_fresher_frames_count_for_more():
  """With equal keys shares fall with squared distance and log age, by rates

  that are learnt ten times as fast as they say.
  """
  look = frames_lib.Look(1, 4, ((0.0, 0.0),), jnp.float32)
  cells = jnp.array([[0.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
  age = jnp.array([1.0, 1.0, 1.0, 3.0])
  values = jnp.eye(4)[None, None, :, None, :]
  seen = Seen(
    cells[None, None, None],
    age[None, None, None],
    jnp.ones((1, 1, 1, 4), bool),
    KeyValues(jnp.zeros((1, 1, 4, 1, 4)), values),
  )
  x = jnp.ones((1, 1, 1, 4))
  params = look.init(jax.random.key(0), x, (seen,))["params"]
  params = params | {
    "out": {"kernel": jnp.eye(4)[None]},
    "distance_rate": jnp.array([0.03]),
    "age_rate": jnp.array([-0.02]),
    "nothing": jnp.array([0.5]),
  }
  shares = look.apply({"params": params}, x, (seen,))[0, 0, 0]
  near, fresh = np.log1p(np.exp(0.3)), np.log1p(np.exp(-0.2))
  logits = [
    -near * d - fresh * np.log1p(a) for d, a in ((0, 1), (1, 1), (4, 1), (0, 3))
  ]
  # The last part of the sum is the share of nothing.
  expected = np.exp(logits) / (np.exp(logits).sum() + np.exp(0.5))
  np.testing.assert_allclose(shares, expected, rtol=1e-5)


@pytest.mark.parametrize("size", [6, frames_lib.ONE_HOT_SIZE + 1])
def test_look_up(size):
  """A product of matrices, or a gather."""
  rng = np.random.default_rng(0)
  table = jnp.asarray(rng.normal(size=(size, 2, 3)), jnp.float32)
  tokens = rng.integers(size, size=(4, 5))
  found = frames_lib.look_up(table, jnp.asarray(tokens))
  np.testing.assert_allclose(found, np.asarray(table)[tokens], rtol=1e-6)
  probs = rng.dirichlet(np.ones(4), size=(3,)).astype(np.float32)
  np.testing.assert_allclose(
    frames_lib.look_up(table, jnp.asarray(probs)),
    np.einsum("av,vbc->abc", probs, np.asarray(table)[:4]),
    rtol=1e-5,
    atol=1e-6,
  )


def test_the_move_head_asks_a_cell_that_the_action_points_at():
  network, params = made()
  rng = np.random.default_rng(0)
  tokens = jnp.asarray(rng.integers(KINDS, size=(6, 9)), jnp.int32)
  action = jnp.asarray(rng.integers(4, size=6), jnp.int32)
  logits = network.move(params, tokens, action)
  assert logits.shape == (6, 5) and logits.dtype == jnp.float32
  # Pointed at cell 4 alone, other cells do not matter.
  places = jnp.zeros((4, 9)).at[:, 4].set(10.0)
  pointed = params | {"mover": params["mover"] | {"places": places}}
  first = network.move(pointed, tokens, action)
  others = jnp.where(jnp.arange(9)[None] == 4, tokens, (tokens + 1) % KINDS)
  np.testing.assert_allclose(
    network.move(pointed, others, action), first, atol=1e-5
  )
  here = tokens.at[:, 4].set((tokens[:, 4] + 1) % KINDS)
  assert differ(network.move(pointed, here, action), first)
  assert differ(network.move(pointed, tokens, (action + 1) % 4), first)


def test_initial_parameters():
  network, _ = made()
  params = jax.jit(network.init)(jax.random.key(0))
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
  # A world model that knows nothing is not told of noise.
  blocks, context = some_blocks(), some_context()
  logits = jax.jit(network.logits)
  np.testing.assert_array_equal(
    logits(params, blocks, context),
    logits(params, blocks, context._replace(noise=jnp.full(BATCH, 0.3))),
  )
  # Actions point at no cell yet.
  tokens = jnp.arange(9)[None] % KINDS
  moved = network.move(params, jnp.roll(tokens, 1, axis=1), jnp.zeros(1, int))
  np.testing.assert_allclose(
    network.move(params, tokens, jnp.zeros(1, int)), moved, atol=1e-5
  )


def test_half_precision():
  network, params = made(compute_dtype=jnp.bfloat16)
  tokens, seen = some_seen()
  kept = network.recall(params, tokens[:, None])
  assert kept.key.dtype == jnp.bfloat16
  window = seen._replace(kv=jax.tree.map(lambda x: x[:, :, 0], kept))
  context = some_context()._replace(window=window, recalled=None)
  blocks = some_blocks()
  logits = jax.jit(network.logits)(params, blocks, context)
  assert logits.dtype == jnp.float32
  full = program("logits")(blocks, some_context()._replace(recalled=None))
  # Eight bits of mantissa through two layers.
  close(logits, full, atol=0.2)


def build(allowed=ALLOWED, offsets=VIEW.offsets, **changes):
  return nets.frame_attention(allowed, offsets, **SIZES | changes)


def call(name, *args):
  network, params = made()
  return getattr(network, name)(params, *args)


@pytest.mark.parametrize(
  ("run", "error", "message"),
  [
    (lambda: build(width=0), ValueError, "width must be >= 1, got 0"),
    (lambda: build(num_layers=1.0), TypeError, "num_layers must be an integer"),
    (
      lambda: build(width=9),
      ValueError,
      "num_heads must divide width=9, got 2",
    ),
    (lambda: build(num_tokens=0), ValueError, "num_tokens must be >= 1"),
    (
      lambda: build(allowed=ALLOWED[0]),
      ValueError,
      r"allowed must be \[G, V\] with G at least the 9 cells",
    ),
    (lambda: build(allowed=ALLOWED[:8]), ValueError, r"allowed must be \[G, V"),
    (
      lambda: build(offsets=VIEW.offsets[:, :1]),
      ValueError,
      r"offsets must have shape \[\*, 2\], got \[9, 1\]",
    ),
    (lambda: build(compute_dtype=jnp.int32), TypeError, "compute_dtype"),
    (lambda: build(mlp_width=0), ValueError, "mlp_width must be >= 1"),
    (
      lambda: call("logits", some_blocks()[..., 1:], some_context()),
      ValueError,
      r"blocks must have shape \[\*, \*, 13\], got \[2, 2, 12\]",
    ),
    (
      lambda: call("logits", some_blocks() * 1.0, some_context()),
      TypeError,
      "blocks must be integer tokens, got dtype float32",
    ),
    (
      lambda: call("encode", some_blocks()[0], None),
      ValueError,
      r"blocks must have shape \[\*, \*, 13\]",
    ),
    (
      lambda: call("recall", jnp.zeros((2, 3, 9), jnp.int32)),
      ValueError,
      "tokens must have shape",
    ),
    (
      lambda: call("recall", jnp.zeros((2, 1, 3, 9))),
      ValueError,
      "tokens must have shape",
    ),
    (
      lambda: call("move", jnp.zeros((2, 8), jnp.int32), jnp.zeros(2, int)),
      ValueError,
      r"tokens must have shape \[\*, 9\], got \[2, 8\]",
    ),
    (
      lambda: call("move", jnp.zeros((2, 9), jnp.int32), jnp.zeros(3, int)),
      ValueError,
      r"action must have shape \[2\], got \[3\]",
    ),
  ],
)
def test_bad_input(run, error, message):
  with pytest.raises(error, match=message):
    run()
