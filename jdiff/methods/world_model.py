"""Losses of masked world models: the frame, the move, with context noise.

A frame's loss is the masked cross-entropy of its block (`elbo`), given what
play gives: the action and the move, the last frames, and the answer of the SAME
memory that play reads, written frame by frame from the clip. The two ways to
take targets from a clip share everything else.

Source: "From Masks to Worlds" (arXiv:2510.20668) for the parts; the noise on
the context after GameNGen (arXiv:2408.14837), here uniform tokens. The two
streams, clean and noisy, are those of block diffusion (arXiv:2503.09573).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdiff import elbo
from jdiff.core import checks
from jdiff.core import keys as keys_lib
from jdiff.core.frames import Context, Seen, WorldNetwork
from jdiff.core.types import Params
from jdiff.ctmc import masks as masks_lib
from jdiff.world import layout as layout_lib
from jdiff.world import memory as memory_lib
from jdiff.world import rollout
from jdiff.world.geometry import View
from jdiff.world.layout import Clip, Layout
from jdiff.world.memory import Frames, Memory, Query


class Parts(NamedTuple):
  """What a loss is made of; the same that `world.world` plays with.

  Attributes:
    network: A `WorldNetwork`.
    layout: Sizes of its blocks.
    view: The observer's.
    memory: A memory of it.
    window: Frames `W` that the network sees in full.
  """

  network: WorldNetwork
  layout: Layout
  view: View
  memory: Memory
  window: int


def single_target(
  parts: Parts,
  *,
  context_noise: float = 0.15,
  draw_masks: masks_lib.DrawMasks | None = None,
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
  """One frame of each clip is the target, drawn uniformly.

  Up to the frame that ended the episode, if one did. For networks whose
  `encode` does not look at other frames, as `nets.frame_attention`.

  Args:
    parts: The world's parts.
    context_noise: Half of the examples have a share of their context, uniform
      in `[0, context_noise]`, replaced by uniform tokens. Not by masks: masks
      are honest, a model's own errors are not.
    draw_masks: A mask law; `ctmc.count_masks()` by default.

  Returns:
    `loss(params, key, clip [B, T]) -> (per_example [B], info)`, in nats a
    block site plus nats a move.

  Raises:
    ValueError: If sizes do not fit, or the share is out of range.
  """
  _check(parts, context_noise)

  def loss(params: Params, key: jax.Array, clip: Clip):
    num, length = _clip_shape(parts, clip)
    key_time, key_noise, key_mask = _split_each(key, num, 3)
    last = jnp.maximum(jnp.sum(_counts(clip), axis=1), 1)
    target = jax.vmap(lambda k, n: jax.random.randint(k, (), 1, n + 1))(
      key_time, last
    )
    noisy, share = _corrupt(parts, key_noise, clip, context_noise)
    seen, recalled = jax.vmap(lambda c, t: _single(parts, c, t))(noisy, target)
    window, found = seen
    # A leading B, and one query each.
    window = jax.tree.map(lambda x: x[:, 0], window)
    recalled = jax.tree.map(lambda x: x[:, 0], recalled)
    network = parts.network
    blocks = parts.layout.pack(noisy)
    blocks = jax.vmap(lambda b, t: b[_slots(t, parts.window)])(blocks, target)
    window = window._replace(kv=network.encode(params, blocks, window))
    if found is not None:
      recalled = recalled._replace(kv=network.recall(params, found))
    context = Context(window, recalled, share)
    at = jax.vmap(lambda b, t: b[t])(parts.layout.pack(clip), target)
    per_site = _denoising(
      parts, params, key_mask, at[:, None], context, draw_masks
    )
    return _total(parts, params, clip, per_site[:, 0])

  return loss


def all_targets(
  parts: Parts,
  *,
  context_noise: float = 0.15,
  draw_masks: masks_lib.DrawMasks | None = None,
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
  """Every frame of a clip is a target: a clean stream, and a noisy one.

  The clean stream's key-values are those that play caches. Arguments and
  answer as in `single_target`.
  """
  _check(parts, context_noise)

  def loss(params: Params, key: jax.Array, clip: Clip):
    num, length = _clip_shape(parts, clip)
    key_noise, key_mask = _split_each(key, num, 2)
    noisy, share = _corrupt(parts, key_noise, clip, context_noise)
    seen, found, recalled = jax.vmap(lambda c: clip_context(parts, c))(noisy)
    network = parts.network
    kv = network.encode(params, parts.layout.pack(noisy), seen)
    targets = slice(1, length)
    window = Seen(
      seen.cells[:, targets], seen.age[:, targets], seen.valid[:, targets], kv
    )
    if recalled is not None:
      recalled = recalled._replace(kv=network.recall(params, found))
    context = Context(window, recalled, share)
    blocks = parts.layout.pack(clip)[:, targets]
    per_site = _denoising(parts, params, key_mask, blocks, context, draw_masks)
    return _total(parts, params, clip, _mean(per_site, _counts(clip)))

  return loss


def move_loss(
  network: WorldNetwork, params: Params, clip: Clip
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy of the moves of clips `[B, T]`, and how many are right.

  Returns:
    `([B], [B])`: nats a move, and the share predicted, over frames 1 to T - 1.
  """
  batch, length = clip.action.shape
  before = clip.tokens[:, :-1].reshape(-1, clip.tokens.shape[-1])
  logits = network.move(params, before, clip.action[:, 1:].reshape(-1))
  label = clip.move[:, 1:].reshape(-1)
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, label)
  right = jnp.argmax(logits, axis=-1) == label
  shape, counts = (batch, length - 1), _counts(clip)
  right = right.astype(nats.dtype)
  return _mean(nats.reshape(shape), counts), _mean(right.reshape(shape), counts)


def history(memory: Memory, frames: Frames, now: jax.Array) -> Any:
  """The state of a memory to which the frames before time `now` were written.

  Args:
    memory: The memory.
    frames: `[T]`, in order, their times ascending.
    now: Scalar; frames of this time and later are left out.
  """

  def write(state, frame):
    valid = frame.valid & (frame.time < now)
    return memory.write(state, frame._replace(valid=valid)), None

  state, _ = jax.lax.scan(write, memory.init(), frames)
  return state


def clip_context(
  parts: Parts, clip: Clip
) -> tuple[Seen, jax.Array | None, Seen | None]:
  """What every frame of one clip `[T]` sees of it; no leading `B`.

  Returns:
    `(seen, tokens, recalled)`: the clip as each of its frames sees it, `Q` and
    `F` of `T`, those in the window valid; what the memory answers frames 1 to
    `T - 1`, `[T - 1, K, N]` tokens or probabilities of them, and as they see
    it. Both None without a memory.
  """
  frames = _frames(clip)
  length = clip.action.shape[0]
  cells = memory_lib.as_recalled(parts.view, frames)

  def look(now, pose):
    seen = rollout.see(parts.view, pose, now, cells)
    age = now - jnp.arange(length)
    inside = (age > 0) & (age <= parts.window)
    return Seen(
      seen.cells[0, 0],
      seen.age[0, 0],
      seen.valid[0, 0] & inside[:, None],
    )

  seen = jax.vmap(look)(jnp.arange(length), clip.pose)
  if not parts.memory.num_frames:
    return seen, None, None

  def read(state, now):
    frame = jax.tree.map(lambda x: x[now - 1], frames)
    state = parts.memory.write(state, frame)
    last = _window(frames, now, parts.window)
    found = parts.memory.read(state, Query(clip.pose[now], last))
    recalled = rollout.see(parts.view, clip.pose[now], now, found)
    return state, (found.tokens, jax.tree.map(lambda x: x[0, 0], recalled))

  _, (found, recalled) = jax.lax.scan(
    read, parts.memory.init(), jnp.arange(1, length)
  )
  return seen, found, recalled


def _frames(clip: Clip) -> Frames:
  """A clip `[T]` as frames, numbered from 0."""
  length = clip.action.shape[0]
  return Frames(
    clip.tokens, clip.pose, jnp.arange(length), jnp.ones(length, bool)
  )


def _slots(now, window):
  """Indices of the frames before `now`, the oldest first."""
  return jnp.clip(now - window + jnp.arange(window), 0)


def _window(frames: Frames, now, window) -> Frames:
  before = now - window + jnp.arange(window)
  found = jax.tree.map(lambda x: x[_slots(now, window)], frames)
  return found._replace(valid=before >= 0)


def _single(parts, clip, now):
  """What the target at `now` sees of a clip `[T]`; a leading `B = 1`."""
  frames = _frames(clip)
  pose = clip.pose[now]
  last = _window(frames, now, parts.window)
  seen = rollout.see(
    parts.view, pose, now, memory_lib.as_recalled(parts.view, last)
  )
  if not parts.memory.num_frames:
    return (seen, None), None
  state = history(parts.memory, frames, now)
  found = parts.memory.read(state, Query(pose, last))
  recalled = rollout.see(parts.view, pose, now, found)
  return (seen, found.tokens[None]), recalled


def _corrupt(parts, keys, clip, context_noise):
  """Clips with uniform tokens among their cells, and the share of each."""
  if not context_noise:
    return clip, jnp.zeros(clip.action.shape[0])

  def corrupt(key, tokens):
    key_is, key_share, key_where, key_what = jax.random.split(key, 4)
    share = context_noise * jax.random.uniform(key_share)
    share = jnp.where(jax.random.bernoulli(key_is), share, 0.0)
    where = jax.random.uniform(key_where, tokens.shape) < share
    what = jax.random.randint(
      key_what, tokens.shape, 0, parts.layout.num_tokens
    )
    return jnp.where(where, what, tokens), share

  tokens, share = jax.vmap(corrupt)(keys, clip.tokens)
  return clip._replace(tokens=tokens), share


def _denoising(parts, params, keys, blocks, context, draw_masks):
  """Nats a site `[B, Q]` of blocks `[B, Q, G]`."""
  batch, num_targets, length = blocks.shape
  given = layout_lib.NUM_GIVEN

  def logits_fn(params, tokens, t, sites=None):
    del t
    tokens = tokens.reshape(batch, num_targets, length)
    logits = parts.network.logits(params, tokens, context, sites)
    return logits.reshape(batch * num_targets, *logits.shape[2:])

  if num_targets > 1:
    keys = jax.vmap(lambda k: keys_lib.per_example(k, num_targets))(
      keys
    ).reshape(-1)
  if draw_masks is None:
    draw_masks = masks_lib.count_masks()
  # One mask at a time: the context belongs to a batch of this size.
  nll, _ = elbo.masked_cross_entropy(
    params,
    keys,
    blocks.reshape(-1, length),
    logits_fn=logits_fn,
    mask_id=parts.layout.mask_id,
    draw_masks=draw_masks,
    num_prompt=given,
    implementation="scan",
  )
  return nll.reshape(batch, num_targets) / (length - given)


def _counts(clip):
  """Which of frames 1 to T - 1 follow one after which the episode went on."""
  return jnp.cumprod(clip.alive[:, :-1], axis=1) == 1


def _mean(values, counts):
  """Means over the frames `[B, T - 1]` that count."""
  total = jnp.sum(jnp.where(counts, values, 0), axis=1)
  return total / jnp.maximum(jnp.sum(counts, axis=1), 1)


def _total(parts, params, clip, per_site):
  info = {"nll": per_site}
  if parts.layout.num_moves > 1:
    nats, right = move_loss(parts.network, params, clip)
    info |= {"move_nll": nats, "move_accuracy": right}
    return per_site + nats, info
  return per_site, info


def _split_each(key, num, parts):
  keys = keys_lib.per_example(key, num)
  split = jax.vmap(lambda k: jax.random.split(k, parts))(keys)
  return tuple(split[:, i] for i in range(parts))


def _clip_shape(parts, clip):
  checks.check_shape("action", clip.action, (None, None))
  parts.layout.check_clip(clip)
  num, length = clip.action.shape
  if length < 2:
    raise ValueError(f"clips must have at least 2 frames, got {length}.")
  return num, length


def _check(parts, context_noise):
  rollout.check_sizes(parts.layout, parts.view, parts.memory, parts.window)
  checks.check_range("context_noise", context_noise, 0, 1)
