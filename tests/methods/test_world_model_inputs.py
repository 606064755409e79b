"""Losses of world models whose network is known: actions, noise, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import world
from jdiff.methods import world_model
from tests.world import worlds

KINDS, BATCH, LENGTH, WINDOW = 5, 3, 6, 2
VIEW = world.View(3, 3, (1, 1), worlds.COMPASS, (6, 7))
LAYOUT = world.Layout(9, KINDS, 5, 5)
LOSSES = {
  "single": world_model.single_target,
  "all": world_model.all_targets,
}


def clips(batch=BATCH, length=LENGTH):
  clip = worlds.clip(LAYOUT, VIEW, 0, batch, length)
  return clip._replace(alive=0 * clip.alive + 1)


def all_masked(key, valid):
  """Every site at once: one evaluation, weight 1."""
  del key
  return valid[None], jnp.ones(1)


def adding_parts(**changes):
  parts = world_model.Parts(
    worlds.adding(LAYOUT, move_of=lambda action: action),
    LAYOUT,
    VIEW,
    world.memory.none(),
    WINDOW,
  )
  return parts._replace(**changes)


def true_clips():
  """Clips of the world in which an action is added to all cells."""
  clip = clips()
  total = jnp.cumsum(clip.action.at[:, 0].set(0), axis=1)
  tokens = (clip.tokens[:, :1] + total[..., None]) % KINDS
  return clip._replace(tokens=tokens, move=clip.action)


@pytest.mark.parametrize("kind", LOSSES)
def test_an_action_leads_to_the_frame_of_its_index(kind):
  loss = jax.jit(LOSSES[kind](adding_parts(), context_noise=0.0))
  clip = true_clips()
  total, info = loss({}, jax.random.key(0), clip)
  np.testing.assert_allclose(info["nll"], 0, atol=1e-5)
  # Logits of 9 for the right move and 0 for four others.
  nats = np.log1p(4 * np.exp(-9.0))
  np.testing.assert_allclose(info["move_nll"], nats, rtol=1e-3)
  np.testing.assert_array_equal(info["move_accuracy"], 1)
  np.testing.assert_allclose(total, info["nll"] + info["move_nll"], rtol=1e-6)
  # Off by one, every frame is a surprise of 60 nats a cell or so.
  for shift in (1, -1):
    shifted = clip._replace(action=jnp.roll(clip.action, shift, axis=1))
    _, info = loss({}, jax.random.key(0), shifted)
    assert info["nll"].max() > 5 and info["move_accuracy"].min() < 1


def noisy_parts(logits_of):
  layout = world.Layout(9, 50, 5, 5)
  return adding_parts(
    network=worlds.table_network(layout, logits_of), layout=layout
  )


@pytest.mark.parametrize("kind", LOSSES)
def test_half_of_the_contexts_are_noisy_and_the_network_is_told(kind):
  """A network that answers what it was told, and one that counts."""

  def told(blocks, context):
    shape = (*blocks.shape[:2], 9, 50)
    share = context.noise[:, None, None, None]
    return (
      jnp.broadcast_to(10 * share, shape)
      * (jnp.arange(50) == 0)[None, None, None]
    )

  def counted(blocks, context):
    tokens = context.window.kv.key[0, ..., 0, 0]
    if tokens.ndim == 3:
      tokens = jnp.broadcast_to(tokens[:, None], context.window.valid.shape)
    wrong = (tokens != 0) & context.window.valid
    share = jnp.sum(wrong, (2, 3)) / jnp.sum(context.window.valid, (2, 3))
    shape = (*blocks.shape[:2], 9, 50)
    return (
      jnp.broadcast_to(10 * share[..., None, None], shape)
      * (jnp.arange(50) == 0)[None, None, None]
    )

  num = 400
  clip = clips(batch=1, length=4)._replace(tokens=jnp.zeros((1, 4, 9), int))
  clip = jax.tree.map(lambda x: jnp.repeat(x, num, axis=0), clip)
  shares = []
  for network in (told, counted):
    loss = LOSSES[kind](
      noisy_parts(network), context_noise=0.4, draw_masks=all_masked
    )
    _, info = jax.jit(loss)({}, jax.random.key(0), clip)
    # log(e^x + 49) - x = nll.
    nll = np.asarray(info["nll"], np.float64)
    shares.append(np.log(49 / np.expm1(nll)) / 10)
  told, counted = shares
  clean = told < 1e-5
  # Binomial: 4 standard deviations of 1 / 2 among 400.
  assert abs(clean.mean() - 0.5) < 0.1
  noise = told[~clean]
  # Uniform in [0, 0.4].
  assert noise.max() < 0.4 and abs(noise.mean() - 0.2) < 4 * 0.4 / 12**0.5 / 14
  assert (np.histogram(noise, 4, (0, 0.4))[0] > len(noise) / 8).all()
  # Where clean, nothing was touched; else the share told, a part of 50 of
  # which drew the token that had been there.
  np.testing.assert_allclose(counted[clean], 0, atol=1e-5)
  slope = np.sum(counted * told) / np.sum(told**2)
  # The mean of a convex function of counts lies a little beside.
  assert abs(slope - 49 / 50) < 0.1
  assert counted[~clean].max() > 0.2


def test_without_noise_clips_are_what_they_were():
  """The network is told of none, and sees none."""

  def logits_of(blocks, context):
    before = worlds.last_frame(context.window).astype(jnp.int32)
    clean = (before == 0).all(-1) & (context.noise == 0)[:, None]
    right = worlds.sharp(jnp.zeros_like(before), 50)
    return jnp.where(clean[..., None, None], right, 0.0)

  clip = clips()._replace(tokens=jnp.zeros((BATCH, LENGTH, 9), int))
  for noise, low, high in ((0.0, 0, 1e-5), (1.0, 0.5, 9)):
    loss = world_model.all_targets(noisy_parts(logits_of), context_noise=noise)
    _, info = jax.jit(loss)({}, jax.random.key(0), clip)
    assert low <= info["nll"].max() < high


def bad_clip(**changes):
  clip = clips()
  for name, change in changes.items():
    clip = clip._replace(**{name: change(getattr(clip, name))})
  loss = world_model.single_target(adding_parts())
  return loss({}, jax.random.key(0), clip)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(
  ("options", "changes", "message"),
  [
    (dict(context_noise=-0.1), {}, r"context_noise must lie in \[0, 1\]"),
    (dict(context_noise=1.5), {}, "got 1.5"),
    ({}, dict(window=0), "window must be >= 1, got 0"),
    (
      {},
      dict(window=5, memory=world.memory.bank(VIEW, capacity=4)),
      "capacity must be at least",
    ),
    ({}, dict(layout=world.Layout(8, 5, 5, 5)), "num_cells must be the view's"),
    ({}, dict(layout=world.Layout(9, 5, 5, 4)), "num_moves must be the view's"),
  ],
)
def test_bad_parts(kind, options, changes, message):
  with pytest.raises(ValueError, match=message):
    LOSSES[kind](adding_parts(**changes), **options)


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    (
      dict(tokens=lambda x: x + 5),
      ValueError,
      r"tokens must lie in \[0, 5\)",
    ),
    (dict(action=lambda x: x + 5), ValueError, r"action must lie in \[0, 5\)"),
    (dict(action=lambda x: x[0]), ValueError, r"action must have shape \[\*"),
    (
      dict(tokens=lambda x: x[..., 1:]),
      ValueError,
      r"tokens must have shape \[3, 6, 9\], got \[3, 6, 8\]",
    ),
    (dict(tokens=lambda x: x + 0.5), TypeError, "tokens must be integers"),
  ],
)
def test_bad_clips(changes, error, message):
  with pytest.raises(error, match=message):
    bad_clip(**changes)


def test_a_clip_must_have_a_frame_before_its_target():
  with pytest.raises(ValueError, match="at least 2 frames, got 1"):
    world_model.all_targets(adding_parts())(
      {}, jax.random.key(0), clips(length=1)
    )
