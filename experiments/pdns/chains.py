"""Long Markov chains: reference samples where there are no exact ones."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import metrics
from jdiff.core.types import Target

NUM_CHAINS = 64
NUM_WARMUP = 1000
NUM_LEAPFROG = 24
THIN = 10


def sample(target: Target, key: jax.Array, num_samples: int) -> np.ndarray:
  """Draws `[num_samples, ...]` by Hamiltonian Monte Carlo (blackjax).

  Chains start at `N(0, 1)`, adapt their step and their diagonal mass over the
  warm-up, and are then thinned; draws are in the order of time, so that the two
  halves of an answer are far apart.

  Args:
    target: A continuous target. The centre of mass of particles moves freely
      while they are sampled, which does not touch the rest, and is taken away.
    key: PRNG key; consumed.
    num_samples: Draws wanted.

  Warns:
    UserWarning: If the chains' log-densities have an R-hat above 1.05.
  """
  draws, log_prob = _run(
    target.log_prob, key, target.shape, -(-num_samples // NUM_CHAINS)
  )
  mixed = float(metrics.r_hat(np.asarray(log_prob).T))
  if not mixed < 1.05:
    warnings.warn(
      f"reference chains have not mixed: R-hat of the log-density is "
      f"{mixed:.3f}. They are longer with a larger NUM_WARMUP or THIN.",
      stacklevel=2,
    )
  draws = np.asarray(draws).reshape(-1, *target.shape)[:num_samples]
  if target.particles is not None:
    draws = draws - draws.mean(axis=1, keepdims=True)
  return draws


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _run(log_prob, key, shape, num):
  # A second and a half to import, needed here alone.
  import blackjax

  keys = jax.random.split(key, NUM_CHAINS)

  def flat(x):
    return log_prob(x.reshape(shape))

  adaptation = blackjax.window_adaptation(
    blackjax.hmc, flat, num_integration_steps=NUM_LEAPFROG
  )

  def chain(key):
    key_start, key_warm, key_run = jax.random.split(key, 3)
    start = jax.random.normal(key_start, (int(np.prod(shape)),))
    (state, parameters), _ = adaptation.run(key_warm, start, NUM_WARMUP)
    step = blackjax.hmc(flat, **parameters).step

    def one(state, key):
      def inner(state, key):
        return step(key, state)[0], None

      state, _ = jax.lax.scan(inner, state, jax.random.split(key, THIN))
      return state, (state.position, state.logdensity)

    _, (x, value) = jax.lax.scan(one, state, jax.random.split(key_run, num))
    return x, value

  x, value = jax.vmap(chain)(keys)
  return jnp.moveaxis(x, 0, 1), value.T
