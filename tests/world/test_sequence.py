"""Canvases of words and cells, and decoding with sites given anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.targets import enumerate as enumerate_lib
from jdiff.world import sequence


def canvas():
  return sequence.Canvas((2, 2), 3, 4, (2, 5), 2)


def test_sites_and_tokens_are_told_apart():
  made = canvas()
  assert made.length == 2 * 2 + 3 * 4
  assert made.mask_id == 4 + 2 + 5
  sites = np.concatenate([made.word_sites.ravel(), made.frame_sites.ravel()])
  np.testing.assert_array_equal(sites, np.arange(made.length))
  allowed = made.allowed()
  np.testing.assert_array_equal(allowed.sum(1), [2, 5, 2, 5] + [4] * 12)
  # Every token belongs somewhere, and words share none with cells.
  assert allowed.any(0).all()
  assert not (allowed[:4].any(0) & allowed[4:].any(0)).any()


def test_pack_and_its_inverses():
  made = canvas()
  rng = np.random.default_rng(0)
  words = np.stack([rng.integers(0, n, (3, 7, 2)) for n in (2, 5)], axis=-1)
  frames = rng.integers(0, 4, (3, 7, 3, 4))
  packed = made.pack(words, frames)
  assert packed.shape == (3, 7, 16)
  assert packed.dtype == jnp.int32
  np.testing.assert_array_equal(made.words(packed), words)
  np.testing.assert_array_equal(made.frames(packed), frames)
  allowed = made.allowed()
  assert allowed[np.arange(16), packed].all()


def test_pack_rejects_what_does_not_fit():
  made = canvas()
  words, frames = np.zeros((2, 2), int), np.zeros((3, 4), int)
  with pytest.raises(ValueError, match=r"words must have shape \[2, 2\]"):
    made.pack(words[:1], frames)
  with pytest.raises(ValueError, match=r"frames must lie in \[0, 4\)"):
    made.pack(words, frames + 4)
  with pytest.raises(ValueError, match=r"words\[..., 0\] must lie in \[0, 2\)"):
    made.pack(words + 2, frames)
  with pytest.raises(ValueError, match="slots must hold"):
    sequence.Canvas((2, 2), 3, 4, (), 2)


@pytest.mark.parametrize("given", [(), (1,), (3, 0)])
@pytest.mark.parametrize("order", ["random", "confidence"])
def test_infill_draws_from_the_conditional(given, order):
  """The exact denoiser of a table, one site a step: exact in random order.

  Under confidence the order depends on draws and the law is another, but sites
  that are given stay and the support is kept.
  """
  rng = np.random.default_rng(1)
  length, vocab, num = 4, 2, 4096
  log_pmf = rng.normal(size=(vocab,) * length)
  log_pmf[0, :, :, 1] = -np.inf
  values = {1: 1, 3: 0, 0: 1}
  # What open sites hold is not looked at.
  canvases = rng.integers(0, vocab + 1, (num, length)).astype(np.int32)
  for site in given:
    canvases[:, site] = values[site]
  decoded = sequence.infill(
    None,
    jax.random.key(2),
    jnp.asarray(canvases),
    given,
    logits_fn=enumerate_lib.denoiser(log_pmf),
    mask_id=vocab,
    order=order,
  )
  mass = np.exp(log_pmf)
  states = enumerate_lib.enumerate_states(length, vocab)
  for site in given:
    held = [values[site] == state[site] for state in states]
    mass = mass * np.reshape(held, mass.shape)
  mass = (mass / mass.sum()).ravel()
  samples = np.asarray(decoded.samples)
  counts = np.bincount(
    samples @ vocab ** np.arange(length)[::-1], minlength=mass.size
  )
  assert counts[mass == 0].sum() == 0
  if order == "random":
    # Five standard deviations of a binomial count, 14 counts or fewer.
    band = 5 * np.sqrt(num * mass * (1 - mass))
    assert (np.abs(counts - num * mass) <= band).all()
  assert decoded.commit_step.shape == (num, length - len(given))
  assert (np.asarray(decoded.nfe) == length - len(given)).all()


def test_infill_shows_networks_the_canvas_as_it_is():
  """Each site copies the one before it: only the true order makes a count."""
  length, vocab = 6, 8

  def logits_fn(params, tokens, t, sites=None):
    del params, t
    sites = jnp.arange(length) if sites is None else jnp.asarray(sites)
    before = tokens[:, (sites - 1) % length]
    known = before < vocab
    nxt = jax.nn.one_hot((before + 1) % vocab, vocab)
    return jnp.where(known[..., None], 50.0 * nxt, 0.0)

  canvases = jnp.zeros((2, length), jnp.int32)
  canvases = canvases.at[:, 2].set(jnp.array([3, 5]))
  decoded = sequence.infill(
    None,
    jax.random.key(0),
    canvases,
    np.array([2]),
    logits_fn=logits_fn,
    mask_id=vocab,
    temperature=0.0,
  )
  expected = (np.array([[3], [5]]) + (np.arange(length) - 2) % length) % vocab
  np.testing.assert_array_equal(decoded.samples, expected)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ((4,), r"given must lie in \[0, 4\)"),
    ((1, 1), "given must name each site once"),
    ((0, 1, 2, 3), "given must leave a site open"),
  ],
)
def test_infill_rejects_sites(given, message):
  logits_fn = enumerate_lib.denoiser(np.zeros((2,) * 4))
  with pytest.raises(ValueError, match=message):
    sequence.infill(
      None,
      jax.random.key(0),
      jnp.zeros((1, 4), jnp.int32),
      given,
      logits_fn=logits_fn,
      mask_id=2,
    )
