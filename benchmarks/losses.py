"""MDNS's four losses at equal steps on a target that can be enumerated.

  python -m benchmarks.losses [--steps=1000]

The 4x4 Ising model, beta 0.28, h 0.1, an MLP 2x128 and random orders, as in
the `smoke` variant; only the loss differs. Equal steps are not equal work: the
evaluations that a step pays for are printed, and times are set against WDCE.
Every number but the time comes from fresh rollouts of the averaged parameters.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.mdns import experiment, ising
from jdiff import ctmc, targets, training
from jdiff.core import weights
from jdiff.methods import mdns

LOSSES = ("wdce", "rerf", "lv", "ce")
BASELINE = "wdce"
NUM_DRAWS = 2**18
CHUNK = 2**14
COLUMNS = (
  "loss",
  "ESS fraction",
  "TV",
  "KL(empirical||exact)",
  "log Z - ELBO",
  "|log Z error|",
  "seconds",
  f"x {BASELINE}",
  "compile s",
)


def get_config(loss, num_steps):
  config = ising.get_config("smoke")
  config.loss = loss
  config.num_steps = num_steps
  return config


def train(config, mesh):
  """`(experiment, averaged params, compile seconds, seconds)`."""
  built = experiment.build(config)
  program = training.compile_experiment(built, mesh)
  state = jax.block_until_ready(program.init(jax.random.key(config.seed)))
  start = time.perf_counter()
  step = program.step.lower(state, None).compile()
  compiled = time.perf_counter()
  for _ in range(config.num_steps):
    state, metrics = step(state, None)
  jax.block_until_ready((state, metrics))
  seconds = time.perf_counter() - compiled
  return built, built.params(state), compiled - start, seconds


def draw(config, built, params, target):
  """Counts `[V ** L]` of fresh samples, and their log-weights `[N]`."""

  @jax.jit
  def chunk(params, key):
    rollout = ctmc.rollout(
      params,
      key,
      logits_fn=built.apply,
      num_samples=CHUNK,
      length=target.length,
      mask_id=target.num_tokens,
      order=target.orders[config.order],
    )
    return state_index(rollout.samples, target), mdns.log_weights(
      rollout, target
    )

  counts = np.zeros(target.num_tokens**target.length, np.int64)
  log_w = []
  key = jax.random.key(config.seed + 1)
  for i in range(NUM_DRAWS // CHUNK):
    index, part = jax.device_get(chunk(params, jax.random.fold_in(key, i)))
    counts += np.bincount(index, minlength=len(counts))
    log_w.append(part)
  return counts, jnp.asarray(np.concatenate(log_w))


def state_index(samples, target):
  """Where `targets.exact.enumeration` lists a state: last site fastest."""
  powers = target.num_tokens ** np.arange(target.length)[::-1]
  return (samples * powers[None].astype(np.int32)).sum(axis=1)


def distances(counts, log_pmf):
  """Total variation and `KL(empirical || exact)` of a histogram, in nats."""
  share = counts / counts.sum()
  seen = counts > 0
  kl = np.sum(share[seen] * (np.log(share[seen]) - log_pmf[seen]))
  return np.abs(share - np.exp(log_pmf)).sum() / 2, kl


def floor(log_pmf):
  """Expected TV of as many exact draws, each count taken as Gaussian."""
  p = np.exp(log_pmf)
  return np.sum(np.sqrt(2 * p * (1 - p) / (np.pi * NUM_DRAWS))) / 2


def work(config, length):
  """Network evaluations an example that one training step pays for."""
  if config.loss != "wdce":
    return f"{length} to roll out + {length} with gradient"
  share = config.buffer.num_samples / config.batch_size
  share = share / config.buffer.refresh_every
  return f"{share * length:.1f} to roll out + {config.num_masks} with gradient"


def table(rows):
  """Markdown, aligned so that it reads as plain text too."""
  rows = [COLUMNS, *rows]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    "| " + " | ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + " |"
    for r in rows
  ]
  rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
  return "\n".join([lines[0], rule, *lines[1:]])


def exact_row(log_pmf):
  """What a perfect sampler would show: the floor, measured."""
  p = np.exp(log_pmf)
  counts = np.random.default_rng(0).multinomial(NUM_DRAWS, p / p.sum())
  tv, kl = distances(counts, log_pmf)
  return (
    *("exact draws", "1", f"{tv:.4f}", f"{kl:.4f}", "0", "0"),
    *("-", "-", "-"),
  )


def measure(loss, num_steps, target, exact, mesh):
  config = get_config(loss, num_steps)
  built, params, compiling, seconds = train(config, mesh)
  counts, log_w = draw(config, built, params, target)
  tv, kl = distances(counts, exact["log_pmf"])
  gap = exact["log_z"] - float(weights.elbo(log_w))
  error = abs(float(weights.log_z(log_w)) - exact["log_z"])
  cells = (
    loss.upper(),
    f"{float(weights.ess_fraction(log_w)):.4f}",
    f"{tv:.4f}",
    f"{kl:.4f}",
    f"{gap:.4f} +- {float(log_w.std()) / NUM_DRAWS**0.5:.4f}",
    f"{error:.4f} (se {float(weights.log_z_se(log_w)):.4f})",
  )
  return cells, seconds, compiling


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=1000)
  num_steps = parser.parse_args().steps
  if num_steps < 1:
    parser.error(f"--steps must be >= 1, got {num_steps}")
  config = get_config(BASELINE, num_steps)
  target = targets.ising(
    config.target.size, beta=config.target.beta, field=config.target.field
  )
  exact = targets.exact.enumeration(target)
  mesh = training.make_mesh(devices=jax.devices()[:1])
  print(
    f"jax {jax.__version__}, {jax.devices()[0].device_kind}, float32, batch "
    f"{config.batch_size}, {num_steps} steps, seed {config.seed}; evaluation: "
    f"{NUM_DRAWS} rollouts of nfe {target.length}"
  )
  for loss in LOSSES:
    text = work(get_config(loss, num_steps), target.length)
    print(f"nfe an example and step, {loss.upper()}: {text}")
  print(
    f"TV of {NUM_DRAWS} exact draws, expected (Gaussian counts): "
    f"{floor(exact['log_pmf']):.4f}; exact log Z {exact['log_z']:.4f}",
    flush=True,
  )
  with jax.set_mesh(mesh):
    run = functools.partial(
      measure, num_steps=num_steps, target=target, exact=exact, mesh=mesh
    )
    results = {loss: run(loss) for loss in LOSSES}
  base = results[BASELINE][1]
  rows = [exact_row(exact["log_pmf"])]
  for cells, seconds, compiling in results.values():
    ratio = f"{seconds / base:.2f}"
    rows.append((*cells, f"{seconds:.1f}", ratio, f"{compiling:.1f}"))
  print(table(rows))


if __name__ == "__main__":
  main()
