"""Runs chains on a target and compares averages with exact answers."""

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import langevin


def averages(
  kernel,
  target,
  *,
  step_size,
  time,
  num_chains=500,
  burn_in=0.3,
  thinning=10,
  positions=None,
  seed=0,
):
  """`({name: (mean, se)}, summary)` over chains, in float64.

  `time` is in units of the dynamics and `burn_in` the share of it left out.
  Chains are independent, so that the spread of their averages is the error.
  """
  num_steps = int(time / step_size)
  num_burn_in = int(burn_in * num_steps)
  with jax.enable_x64(True):
    if positions is None:
      positions = target.init(jax.random.key(seed + 100), num_chains)

    def run(key, positions):
      samples, summary = langevin.run_chains(
        key,
        kernel,
        positions,
        num_samples=(num_steps - num_burn_in) // thinning,
        thinning=thinning,
        num_burn_in=num_burn_in,
      )
      return jax.vmap(jax.vmap(target.observables))(samples), summary

    values, summary = jax.device_get(
      jax.jit(run)(jax.random.key(seed), jnp.asarray(positions, jnp.float64))
    )
  means = {name: value.mean(axis=0) for name, value in values.items()}
  return {
    name: (m.mean(), m.std() / len(m) ** 0.5) for name, m in means.items()
  }, summary


def check(found, exact, *, num_se=4.5, bias=0.0):
  """Every exact expectation within `num_se` errors and a stated bias."""
  for name, value in exact.items():
    mean, se = found[name]
    np.testing.assert_array_less(
      abs(mean - value), num_se * se + bias, err_msg=name
    )
