"""PDNS: the weights of stages are exact, and so are the optima they lead to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import targets
from jdiff.methods import pdns, wdce
from jdiff.sde import references
from jdiff.targets import enumerate as enumerate_lib
from tests import helpers

# Weights of stages.

STAGES = (0.9, 0.4, 0.0)


def check_normalisers(buffer, exact):
  """`E[exp(stage weights)]` against exact values at several `lam`."""
  found = {}
  for lam in STAGES:
    log_w = np.asarray(pdns.stage_log_weights(buffer, lam), np.float64)
    w = np.exp(log_w - exact(lam))
    error = w.std() / len(w) ** 0.5
    assert error < 0.02
    assert abs(w.mean() - 1) < 5 * error
    found[lam] = w.mean() * np.exp(exact(lam)), error
  # The control: the normaliser of another stage is far away.
  value, error = found[0.4]
  assert abs(value / np.exp(exact(0.5)) - 1) > 10 * error


@pytest.mark.parametrize("size", [2, 3])
def test_masked_stages(size):
  target = targets.ising(size, beta=0.6 / size, field=0.1)
  length = size**2
  sampler = pdns.masked(
    target, logits_fn=helpers.table_logits(length, 2), mask_id=2
  )
  table = helpers.random_table(0, length, 2, scale=0.3)
  collect = jax.jit(sampler.collect, static_argnums=2)
  buffer = collect(table, jax.random.key(0), 30_000)
  states = enumerate_lib.enumerate_states(length, 2)
  log_prob = np.float64(jax.vmap(target.log_prob)(jnp.asarray(states)))

  def exact(lam):
    tilted = (1 - lam) * log_prob
    return np.logaddexp.reduce(tilted) - lam * length * np.log(2)

  np.testing.assert_allclose(exact(0.0), target.log_z, rtol=1e-5)
  check_normalisers(buffer, exact)
  # The sampler is not its reference, nor the target.
  assert buffer.log_ratio.std() > 0.2


MEAN, STD, SCALE = 0.8, 0.5, 1.5


def narrow():
  law = targets.mixtures.mixture([1.0], [[MEAN]], STD**2)
  return targets.gaussian_mixture(law, log_z=0.7)


def residual(params, x, t):
  """Neither zero nor good."""
  return params["net"] * (jnp.sin(2 * x + 1) - 0.5 * jnp.cos(3 * t)[:, None])


def controlled(target, residual_fn=residual):
  return pdns.gaussian(
    target,
    residual_fn=residual_fn,
    reference=references.brownian(scale=SCALE),
    num_steps=8,
    spread=lambda params: params["spread"],
  )


@pytest.mark.slow
def test_gaussian_stages():
  law = targets.mixtures.mixture([0.7, 0.3], [[1.0], [-1.0]], 0.5)
  target = targets.gaussian_mixture(law, log_z=0.4)
  sampler = controlled(target)
  params = {"net": 0.3, "spread": jnp.linspace(1.0, 0.8, 8)}
  collect = jax.jit(sampler.collect, static_argnums=2)
  buffer = collect(params, jax.random.key(0), 20_000)

  with jax.enable_x64(True):
    grid = jnp.linspace(-12, 12, 4001)
    step = float(grid[1] - grid[0])
    log_prob = np.asarray(jax.vmap(target.log_prob)(grid[:, None]))
    log_ref = np.asarray(
      jax.scipy.stats.norm.logpdf(grid, jnp.float64(0), SCALE)
    )

  def exact(lam):
    mixed = (1 - lam) * log_prob + lam * log_ref
    return np.logaddexp.reduce(mixed) + np.log(step)

  np.testing.assert_allclose(exact(0.0), 0.4, atol=1e-6)
  np.testing.assert_allclose(exact(1.0), 0.0, atol=1e-6)
  check_normalisers(buffer, exact)
  assert buffer.log_ratio.std() > 0.2
  upper = jax.jit(sampler.eubo)(
    params, jax.random.key(1), target.sample(jax.random.key(2), 4000)
  )
  upper = np.float64(upper)
  error = upper.std() / 4000**0.5
  # E_P*[W] - log Z is a KL, of a policy that is far from the best.
  assert upper.mean() - 0.4 > 5 * error
  inverse = np.exp(0.4 - upper)
  assert abs(inverse.mean() - 1) < 5 * inverse.std() / 4000**0.5


def test_collection_has_no_gradient():
  sampler = controlled(narrow())

  def total(net):
    params = {"net": net, "spread": jnp.ones(8)}
    buffer = sampler.collect(params, jax.random.key(0), 8)
    return buffer.log_ratio.sum() + buffer.samples.sum()

  assert jax.jit(jax.grad(total))(0.3) == 0


def test_bad_samplers():
  with pytest.raises(ValueError, match="reference.centred must be set"):
    controlled(targets.double_well_particles(3))
  with pytest.raises(ValueError, match="reference.centred must be set"):
    pdns.gaussian(
      narrow(),
      residual_fn=residual,
      reference=references.brownian(centred=True),
    )
  with pytest.raises(ValueError, match="target must be discrete"):
    pdns.masked(narrow(), logits_fn=None, mask_id=2)
  with pytest.raises(ValueError, match="target must be continuous"):
    controlled(targets.ising(2, beta=0.3))
  rollout = jax.eval_shape(
    lambda: controlled(narrow()).collect(
      {"net": 0.1, "spread": jnp.ones(8)}, jax.random.key(0), 2
    )
  )
  with pytest.raises(ValueError, match="no exact log_ratio"):
    pdns.weigh(rollout._replace(log_ratio=None), lambda x: x.sum())


# What a stage's regression comes to.


def every_mask(key, valid):
  """The law of masks with uniform counts, summed instead of drawn."""
  del key
  masks = np.argwhere(np.ones((2,) * valid.shape[0]))[1:].astype(bool)
  count = masks.sum(axis=1)
  choose = np.array([1, 4, 6, 4, 1])[count]
  return jnp.asarray(masks), jnp.asarray(len(masks) / (count * choose))


def test_a_masked_stage_ends_at_the_tempered_conditionals():
  with jax.enable_x64(True):
    target = targets.ising(2, beta=0.4, field=0.3)
    states = jnp.asarray(enumerate_lib.enumerate_states(4, 2))
    sampler = pdns.masked(
      target,
      logits_fn=helpers.table_logits(4, 2),
      mask_id=2,
      draw_masks=every_mask,
    )
    # What the untrained sampler draws, each state as often as it does.
    buffer = pdns.Buffer(
      states, jnp.zeros(16), jax.vmap(sampler.reward)(states)
    )

    @jax.jit
    def slope(table, log_w):
      return jax.grad(
        lambda p: sampler.loss(p, jax.random.key(0), states, log_w)[0].mean()
      )(table)

    def optimum(lam):
      table = helpers.conditional_table(
        lambda x: (1 - lam) * float(target.log_prob(jnp.asarray(x))), 4, 2
      )
      return jnp.asarray(table)

    log_w = pdns.stage_log_weights(buffer, 0.6)
    np.testing.assert_allclose(slope(optimum(0.6), log_w), 0, atol=1e-12)
    # The controls: another stage's optimum, and no weights.
    assert jnp.abs(slope(optimum(0.0), log_w)).max() > 1e-3
    assert jnp.abs(slope(optimum(0.6), jnp.zeros(16))).max() > 1e-3


@pytest.mark.slow
def test_a_gaussian_stage_ends_at_the_tempered_expectation():
  # Linear in four parameters, the best of which are known: the law
  # target^(1 - lam) reference^lam is Gaussian, exp(h x - p x^2 / 2) times the
  # reference, and its residual (h - p x) s sqrt(t) / (1 + p s^2 t).
  lam = 0.4
  precision = (1 - lam) * (1 / STD**2 - 1 / SCALE**2)
  slope = (1 - lam) * MEAN / STD**2

  def basis(x, t):
    noise = SCALE * jnp.sqrt(t)[:, None]
    factor = noise / (1 + precision * noise**2)
    return jnp.stack([factor, factor * x, noise, noise * x])

  def linear(params, x, t):
    return jnp.tensordot(params, basis(x, t), 1)

  drawn = controlled(narrow())
  reference = references.brownian(scale=SCALE)
  policy = {"net": 0.3, "spread": jnp.full(8, 0.9)}

  @jax.jit
  def fit(key):
    key_draw, key_fit = jax.random.split(key)
    buffer = drawn.collect(policy, key_draw, 4096)
    log_w = pdns.stage_log_weights(buffer, lam)

    def solve(log_w):
      def loss(params):
        value, _ = wdce.bridge_wdce(
          params,
          key_fit,
          buffer.samples,
          log_w,
          residual_fn=linear,
          reference=reference,
        )
        return value.mean()

      # Quadratic: one Newton step is the solution.
      start = jnp.zeros(4)
      return -jnp.linalg.solve(jax.hessian(loss)(start), jax.grad(loss)(start))

    return solve(log_w), solve(jnp.zeros(4096))

  keys = jax.random.split(jax.random.key(0), 32)
  weighted, plain = (np.float64(a) for a in jax.lax.map(fit, keys))
  # The second pair is not needed, and comes out as zero.
  want = np.array([slope, -precision, 0, 0])

  # By answers: the parameters themselves are nearly collinear.
  x, t = jnp.linspace(-1.0, 2.0, 12)[:, None], jnp.linspace(0.05, 0.95, 12)
  shapes = np.asarray(basis(x, t), np.float64)[..., 0]
  answers, exact = weighted @ shapes, want @ shapes
  error = answers.std(axis=0, ddof=1) / 32**0.5
  assert error.max() < 0.03
  # The self-normalised weights' bias is a tenth of the error.
  assert (np.abs(answers.mean(axis=0) - exact) < 5 * error).all()
  # The control: without weights it is the law that was drawn.
  assert np.abs(plain.mean(axis=0) @ shapes - exact).max() > 20 * error.max()
