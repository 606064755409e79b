"""The denoiser of clips with words: what it sees, and what it may answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import nets
from jdiff.nets.clips import Neighbours
from jdiff.world import sequence


def canvas():
  return sequence.Canvas((3, 4), 3, 4, (2, 3), 2)


def network(**options):
  sizes = dict(width=8, num_layers=1, num_heads=2)
  return nets.clips(
    canvas().allowed(), shape=(3, 4), num_frames=3, **(sizes | options)
  )


def tokens(num=2):
  made = canvas()
  rng = np.random.default_rng(0)
  words = np.stack([rng.integers(0, n, (num, 2)) for n in (2, 3)], axis=-1)
  return made.pack(words, rng.integers(0, 4, (num, 3, 12)))


def test_answers_what_sites_may_hold():
  net, made = network(), canvas()
  params = jax.jit(net.init)(jax.random.key(0))
  apply = jax.jit(net.apply)
  logits = apply(params, tokens(), jnp.ones(2))
  assert logits.shape == (2, made.length, made.mask_id)
  finite = np.asarray(jnp.isfinite(logits))
  np.testing.assert_array_equal(finite, np.stack([made.allowed()] * 2))
  some = np.array([5, 0, 30])
  np.testing.assert_allclose(
    apply(params, tokens(), jnp.ones(2), some), logits[:, some], rtol=1e-5
  )


@pytest.mark.thorough
def test_remat_changes_memory_alone():
  params = jax.jit(network().init)(jax.random.key(0))

  def gradient(net):
    def loss(params):
      logits = net.apply(params, tokens(), jnp.ones(2), np.arange(4, 40))
      return jax.nn.log_softmax(logits)[..., 0].sum()

    return jax.jit(jax.grad(loss))(params)

  jax.tree.map(
    # Float32 sums of some hundred terms, in another order.
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    gradient(network(remat=True)),
    gradient(network()),
  )


def test_cells_attend_to_neighbours_alone():
  """Each cell is changed in turn; what changes with it is what sees it."""
  layer = Neighbours((3, 3, 4), 2, jnp.float32)
  x = jax.random.normal(jax.random.key(0), (1, 36, 4))
  rows = jnp.concatenate([x, x + jnp.eye(36)[:, :, None]])
  params = jax.jit(layer.init)(jax.random.key(1), x)
  answers = jax.jit(layer.apply)(params, rows)
  change = jnp.abs(answers[1:] - answers[:1]).max(-1)
  # Far above rounding, far below what a change of one makes.
  sees = np.asarray(change > 1e-4)
  place = np.indices((3, 3, 4)).reshape(3, -1)
  gap = np.abs(place[:, :, None] - place[:, None, :])
  expected = (gap[0] == 1) & (gap[1] + gap[2] <= 1) | (gap.sum(0) == 0)
  np.testing.assert_array_equal(sees, expected)


def test_what_does_not_fit_is_named():
  with pytest.raises(ValueError, match="num_heads must divide width=8, got 3"):
    network(num_heads=3)
  with pytest.raises(ValueError, match="num_layers must be >= 1, got 0"):
    network(num_layers=0)
  with pytest.raises(ValueError, match="with L above the 36 cells"):
    nets.clips(
      canvas().allowed()[:36],
      shape=(3, 4),
      num_frames=3,
      width=8,
      num_layers=1,
      num_heads=2,
    )
