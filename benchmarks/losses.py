"""MDNS's four losses on the 4x4 Ising model, at equal steps.

python -m benchmarks.losses [steps]

The target is the paper's (beta 0.28, h 0.1), the network an MLP, the order
uniformly random. Path losses pay 16 differentiated evaluations a step.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from experiments.mdns import experiment, ising
from jdiff import targets
from jdiff.core import weights
from jdiff.methods import mdns
from jdiff.targets import exact

NUM_EVAL, CHUNK = 2**18, 2**14


def main(num_steps):
  """Trains each loss and prints the table."""
  target = targets.ising(4, beta=0.28, field=0.1)
  answer = exact.enumeration(target)
  pmf = np.exp(answer["log_pmf"])
  floor = 0.5 * np.sqrt(2 * pmf * (1 - pmf) / (np.pi * NUM_EVAL)).sum()
  print(f"{timing.where()}; {num_steps} steps, batch 256, nfe 16 a rollout")
  print(f"TV of {NUM_EVAL} perfect draws: {floor:.4f}")
  print("loss   ESS     TV      KL(emp|pi)  log Z - ELBO  |log Z err|  seconds")
  for loss in ("rerf", "lv", "ce", "wdce"):
    config = ising.get_config("smoke")
    config.loss, config.num_steps = loss, num_steps
    built = experiment.build(config)
    state = jax.jit(built.init)(jax.random.key(0))
    step = jax.jit(built.step, donate_argnums=0)
    start = time.perf_counter()
    for _ in range(num_steps):
      state, metrics = step(state, None)
    jax.block_until_ready(metrics)
    seconds = time.perf_counter() - start
    collect = jax.jit(
      mdns.collector(
        target, logits_fn=built.apply, mask_id=2, num_samples=CHUNK
      )
    )
    counts, log_w = np.zeros(2**16), []
    powers = 2 ** np.arange(16)[::-1]
    for i in range(NUM_EVAL // CHUNK):
      batch = collect(state.ema, jax.random.key(1000 + i))
      index = np.asarray(batch.samples) @ powers
      counts += np.bincount(index, minlength=2**16)
      log_w.append(batch.log_weights)
    log_w = jnp.concatenate(log_w)
    share = counts / NUM_EVAL
    seen = share > 0
    kl = np.sum(share[seen] * (np.log(share[seen]) - answer["log_pmf"][seen]))
    print(
      f"{loss:5s} {float(weights.ess_fraction(log_w)):.4f}  "
      f"{0.5 * np.abs(share - pmf).sum():.4f}  {kl:10.4f}  "
      f"{answer['log_z'] - float(weights.elbo(log_w)):12.4f}  "
      f"{abs(float(weights.log_z(log_w)) - answer['log_z']):11.5f}  "
      f"{seconds:7.1f}",
      flush=True,
    )


if __name__ == "__main__":
  main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
