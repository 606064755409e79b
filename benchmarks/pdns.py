"""PDNS beside samplers of BlackJAX at equal evaluations of the energy.

  python -m benchmarks.pdns [--targets=gmm,many_well] [--seeds=0,1,2] \
      [--runs=DIR] [--smoke]

All go from the Gaussian `N(0, scale^2)` of the run's config to its target:
importance sampling; tempered SMC (HMC moves, temperatures by ESS); parallel
tempering (HMC, the rungs that a pilot of SMC chose). A budget is all that PDNS
asked of the target, for training and for its evaluation; training is paid once,
and draws after it are independent. Its monitoring along the way is not counted.

A leapfrog step is one gradient, and a gradient one evaluation, as the value
comes with it; what BlackJAX evaluates again at the same point counts once, and
the pilot not at all (SMC may then take a rung less or more). Rows `10x` have
ten times the budget. Of PDNS, `s` is the training at its steady pace, and
`other s` compilation, evaluation and saving; of others, the compilation.

`share` is the smallest mode's, the least over seeds; `z` the worst mode's
error over its standard error if draws were independent: those of SMC and
parallel tempering are not. `W2` is exact, of 2000 draws resampled by weight (if
there are fewer, some twice), beside the `floor` of two exact sets. Finished
runs in `DIR/TARGET/seed_N` are read, not run again.
"""

import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.smc import adaptive_tempered, resampling
from jax.scipy.special import logsumexp

from benchmarks import timing
from experiments.common import estimates, metrics
from experiments.pdns import defaults, gmm, laws, manywell
from jdiff import training

TARGETS = {"gmm": gmm, "many_well": manywell}
LEAPFROG = 4
NUM_MOVES = 3  # HMC moves a temperature of SMC: the best of 1 and 3.
NUM_REPLICAS = 32  # Chains a rung of parallel tempering.
ACCEPTANCE = 0.75  # That step sizes aim at.
MIN_ESS = 0.5  # Share of the particles, from a temperature to the next.
RAW = {"share": "mode_share_min_raw", "w2": "w2_raw"}
MAX_RUNGS = 64
NUM_PILOT = 2048  # Particles.


class Path(NamedTuple):
  """`log_base + lam * log_ratio`, from a Gaussian (0) to a target (1)."""

  log_base: Callable
  log_ratio: Callable
  scale: float
  dim: int

  def start(self, key, *shape):
    """Draws of the Gaussian, `[*shape, dim]`."""
    return self.scale * jax.random.normal(key, (*shape, self.dim))


class Draws(NamedTuple):
  """Draws `[N, dim]`, their log-weights and what they cost.

  `gradients` and `values` are evaluations with a gradient and without.
  """

  samples: jax.Array
  log_w: jax.Array
  log_z: jax.Array
  gradients: jax.Array | int
  values: jax.Array | int


def make_path(target, scale):
  """The path of a target of vectors."""

  def log_base(x):
    return jnp.sum(jax.scipy.stats.norm.logpdf(x, scale=scale))

  def log_ratio(x):
    return target.log_prob(x) - log_base(x)

  return Path(log_base, log_ratio, scale, target.dim)


def hmc_step(key, state, log_prob, step_size):
  """One move of BlackJAX's HMC, with a unit mass."""
  mass = jnp.ones(state.position.shape[-1])
  return blackjax.hmc.build_kernel()(
    key, state, log_prob, step_size, mass, LEAPFROG
  )


def tuned(step_size, acceptance, rate=1.0):
  """The next step size, given the share that was accepted."""
  return step_size * jnp.exp(rate * (acceptance - ACCEPTANCE))


def importance(key, path, num_samples):
  """Weighted draws of the Gaussian."""
  samples = path.start(key, num_samples)
  log_w = jax.vmap(path.log_ratio)(samples)
  log_z = logsumexp(log_w) - jnp.log(num_samples)
  return Draws(samples, log_w, log_z, 0, num_samples)


def smc(key, path, num_particles):
  """`(draws, ladder [MAX_RUNGS], count)`: `count` rungs from 0 to 1 in use.

  `log_z` is NaN if they do not reach 1.
  """
  kernel = adaptive_tempered.build_kernel(
    path.log_base,
    path.log_ratio,
    hmc_step,
    blackjax.hmc.init,
    resampling.systematic,
    MIN_ESS,
  )

  def advance(carry):
    key, state, step_size, log_z, ladder, count = carry
    key, key_step = jax.random.split(key)
    ladder = ladder.at[count].set(state.tempering_param)
    state, info = kernel(
      key_step, state, NUM_MOVES, {"step_size": step_size[None]}
    )
    step_size = tuned(step_size, info.update_info.acceptance_rate.mean())
    log_z += info.log_likelihood_increment
    return key, state, step_size, log_z, ladder, count + 1

  def unfinished(carry):
    # BlackJAX moves, then weighs: the last move is that from 1 to 1.
    *_, ladder, count = carry
    return (count < MAX_RUNGS) & (ladder[count - 1] < 1 - 1e-6)

  key_start, key = jax.random.split(key)
  state = adaptive_tempered.init(path.start(key_start, num_particles))
  state = state._replace(tempering_param=jnp.float32(0))
  step_size, log_z = jnp.float32(0.2 * path.scale), jnp.float32(0)
  ladder = jnp.zeros(MAX_RUNGS)
  carry = key, state, step_size, log_z, ladder, jnp.int32(0)
  _, state, _, log_z, ladder, count = jax.lax.while_loop(
    unfinished, advance, carry
  )
  log_z = jnp.where(state.tempering_param < 1 - 1e-6, jnp.nan, log_z)
  gradients = num_particles * (1 + NUM_MOVES * LEAPFROG * count)
  draws = state.particles, jnp.log(state.weights), log_z, gradients, 0
  return Draws(*draws), ladder, count


def parallel_tempering(key, path, ladder, num_iterations):
  """Draws of the last rung; those of the first half are thrown away.

  Neighbours swap in alternating pairs, the first rung is drawn anew each time,
  and `log_z` adds up the log-ratios of neighbours (stepping stones).

  Args:
    key: PRNG key; consumed.
    path: See `Path`.
    ladder: `[R]` rungs from 0 to 1.
    num_iterations: Of all rungs; step sizes adapt over the first half.
  """
  lam, num = jnp.asarray(ladder), len(ladder)
  rungs, half = jnp.arange(num), num_iterations // 2
  key_start, key = jax.random.split(key)
  keys = jax.random.split(key, num_iterations)

  def move(key, x, lam, step_size):
    def log_prob(x):
      return path.log_base(x) + lam * path.log_ratio(x)

    state = blackjax.hmc.init(x, log_prob)
    state, info = hmc_step(key, state, log_prob, step_size)
    return state.position, info.acceptance_rate

  move = jax.vmap(jax.vmap(move, (0, 0, None, None)))

  def iterate(carry, i):
    x, step_size = carry
    key_base, key_move, key_swap = jax.random.split(keys[i], 3)
    key_move = jax.random.split(key_move, (num - 1, NUM_REPLICAS))
    moved, accepted = move(key_move, x[1:], lam[1:], step_size)
    x = jnp.concatenate([path.start(key_base, 1, NUM_REPLICAS), moved])
    ratio = jax.vmap(jax.vmap(path.log_ratio))(x)
    partner = jnp.where((rungs + i) % 2 == 0, rungs + 1, rungs - 1)
    partner = jnp.where((partner < 0) | (partner == num), rungs, partner)
    # Both of a pair look at the number of its lower rung.
    uniform = jax.random.uniform(key_swap, (num, NUM_REPLICAS))
    uniform = uniform[jnp.minimum(rungs, partner)]
    gain = (lam - lam[partner])[:, None] * (ratio[partner] - ratio)
    swap = jnp.log(uniform) < gain
    x = jnp.where(swap[..., None], x[partner], x)
    ratio = jnp.where(swap, ratio[partner], ratio)
    stones = logsumexp(jnp.diff(lam)[:, None] * ratio[:-1], axis=1)
    adapted = tuned(step_size, accepted.mean(axis=1), 0.5)
    return (x, jnp.where(i < half, adapted, step_size)), (x[-1], stones)

  x = path.start(key_start, num, NUM_REPLICAS)
  first = jnp.full(num - 1, 0.2 * path.scale)
  _, (samples, stones) = jax.lax.scan(
    iterate, (x, first), jnp.arange(num_iterations)
  )
  samples, stones = samples[half:].reshape(-1, path.dim), stones[half:]
  log_z = jnp.sum(logsumexp(stones, axis=0) - jnp.log(len(samples)))
  values = num_iterations * NUM_REPLICAS
  gradients = (num - 1) * (LEAPFROG * values + NUM_REPLICAS)
  return Draws(samples, jnp.zeros(len(samples)), log_z, gradients, values)


class Judge:
  """Errors of weighted draws, as `experiments.pdns.report` measures them."""

  def __init__(self, target, num_reference):
    self.target, self.num = target, num_reference
    draws = np.asarray(target.sample(jax.random.key(10**6), 2 * num_reference))
    self.exact, other = np.split(draws, 2)
    self.floor = metrics.w2(self.exact, other)

  def __call__(self, draws, seed):
    share = jax.vmap(self.target.observables)(draws.samples)["mode_share"]
    log_w = np.asarray(draws.log_w, np.float64)
    found = estimates.of_observables(
      log_w, {"mode_share": share}, self.target.exact()
    )
    weight = np.exp(log_w - log_w.max())
    equal = np.ptp(weight) == 0
    index = np.random.default_rng(seed).choice(
      len(weight),
      self.num,
      replace=not equal or len(weight) < self.num,
      p=weight / weight.sum(),
    )
    values = {
      "error": float(draws.log_z) - self.target.log_z,
      "share": found["mode_share_min"]["value"],
      "z": found["mode_share_worst_z"]["value"],
      "w2": metrics.w2(np.asarray(draws.samples)[index], self.exact),
    }
    if not equal:
      values["ess"] = weight.sum() ** 2 / (weight**2).sum() / len(weight)
    return values


def peers(target, scale, budget, factors, seeds, judge):
  """Prints the rows of the samplers that are not trained."""
  path = make_path(target, scale)
  pilot = jax.jit(lambda key: smc(key, path, NUM_PILOT)[1:])
  ladder, count = pilot(jax.random.key(10**6))
  ladder, num_rungs = np.asarray(ladder)[: int(count)], int(count)
  if ladder[-1] < 1 - 1e-6:
    raise RuntimeError(f"MAX_RUNGS={MAX_RUNGS} temperatures are too few.")
  # A particle's cost, and that of a replica at each iteration.
  moves = 1 + num_rungs * NUM_MOVES * LEAPFROG
  sweep = NUM_REPLICAS * (1 + (num_rungs - 1) * LEAPFROG)
  print(f"  rungs of the pilot: {num_rungs}")
  for factor in factors:
    total = factor * budget
    programs = {
      "importance sampling": lambda key, n=total: importance(key, path, n),
      "tempered SMC": lambda key, n=total // moves: smc(key, path, n)[0],
      "parallel tempering": lambda key, n=total // sweep: parallel_tempering(
        key, path, ladder, n
      ),
    }
    for name, program in programs.items():
      start = time.perf_counter()
      compiled = jax.jit(program).lower(jax.random.key(0)).compile()
      compiling = time.perf_counter() - start
      found, costs, seconds = [], [], []
      for seed in seeds:
        start = time.perf_counter()
        draws = jax.block_until_ready(compiled(jax.random.key(seed)))
        seconds.append(time.perf_counter() - start)
        found.append(judge(draws, seed))
        gradients = int(draws.gradients)
        costs.append((gradients + int(draws.values), gradients, 0))
      label = name if factor == 1 else f"{name}, {factor}x"
      row(label, found, costs, np.mean(seconds), compiling)


def trained(name, seeds, directory, smoke):
  """Runs PDNS, or reads its runs, and prints its rows; returns the budget."""
  found, raw, costs, seconds, others = [], [], [], [], []
  for seed in seeds:
    config = get_config(name, seed, smoke)
    experiment = training.build(config)
    workdir = directory / name / f"seed_{seed}"
    report = training.run(experiment, config, workdir, progress=False)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    history = [r for r in map(json.loads, lines) if "loss" in r]
    measured = {k: v["value"] for k, v in report["metrics"].items()}
    found.append(
      {
        "error": measured["log_z"] - report["metrics"]["log_z"]["exact"],
        "share": measured["mode_share_min"],
        "z": measured["mode_share_worst_z"],
        "w2": measured["w2"],
        "ess": measured["ess_fraction"],
      }
    )
    raw.append({k: measured[v] for k, v in RAW.items()})
    num_stages = -(-config.num_steps // config.stages.inner_steps)
    energy = measured["energy_evaluations"] + config.num_eval
    paths = energy
    if config.reference.fit_spread:
      paths += (num_stages - 1) * config.batch_size
    network = paths * report["nfe"] + config.num_steps * config.batch_size
    costs.append((energy, 0, network))
    # The first stage compiles, and some are followed by an evaluation.
    stage = np.median(np.diff([r["wall_seconds"] for r in history]))
    seconds.append(num_stages * stage)
    others.append(report["wall_seconds"] - num_stages * stage)
  row("PDNS", found, costs, np.mean(seconds), np.mean(others))
  row("PDNS, unweighted", raw, costs, np.mean(seconds), np.mean(others))
  return int(costs[0][0])


def get_config(name, seed, smoke):
  """The config of a run."""
  config = TARGETS[name].get_config("smoke" if smoke else "cpu")
  config.seed = seed
  if smoke:
    defaults.stages(config, num_stages=4, inner_steps=20)
    config.reference.fit_spread = False  # It takes long to compile.
  return config


def row(name, found, costs, seconds, other):
  """Prints means over seeds; of the share the least, of z the largest."""

  def column(key, reduce=np.mean, form=".3f"):
    values = [f[key] for f in found if key in f]
    return format(reduce(values), form) if values else "-"

  error = "-"
  if "error" in found[0]:
    errors = np.array([f["error"] for f in found])
    error = f"{errors.mean():+.3f}"
    if len(errors) > 1:
      error += f" +- {errors.std(ddof=1) / len(errors) ** 0.5:.3f}"
  energy, gradients, network = np.mean(costs, axis=0)
  print(
    f"  {name:24} {energy:10.3g} {gradients:9.3g} "
    f"{network:9.3g} {seconds:7.2f} {other:7.1f}  {error:>16} "
    f"{column('share', min):>6} {column('z', max, '.1f'):>6} "
    f"{column('w2'):>6} {column('ess', form='.2g'):>8}",
    flush=True,
  )


def table(name, seeds, directory, smoke):
  """PDNS and its peers on one target."""
  config = get_config(name, seeds[0], smoke)
  target = laws.continuous(config.target)
  judge = Judge(target, config.num_reference)
  least = np.min(target.exact()["mode_share"])
  print(
    f"\n{name}, {target.dim} dimensions, log Z {target.log_z:.4f}, smallest "
    f"share {least:.4f}, W2 floor {judge.floor:.3f} at {judge.num} draws; "
    f"float32, seeds {', '.join(map(str, seeds))}"
  )
  print(
    f"  {'':24} {'energy':>10} {'gradients':>9} {'network':>9} {'s':>7} "
    f"{'other s':>7}  {'log Z error':>16} {'share':>6} {'z':>6} {'W2':>6} "
    f"{'ESS/N':>8}"
  )
  budget = trained(name, seeds, directory, smoke)
  factors = (1,) if smoke else (1, 10)
  peers(target, config.reference.scale, budget, factors, seeds, judge)


def main(arguments):
  """Parses the few arguments."""
  smoke = "--smoke" in arguments
  options = dict(
    a.removeprefix("--").split("=", 1) for a in arguments if a != "--smoke"
  )
  names = options.get("targets", "gmm" if smoke else "gmm,many_well").split(",")
  if unknown := set(names) - set(TARGETS):
    raise ValueError(f"--targets must be of {[*TARGETS]}, got {unknown}.")
  seeds = options.get("seeds", "0" if smoke else "0,1,2").split(",")
  print(timing.where())
  with tempfile.TemporaryDirectory() as nowhere:
    directory = pathlib.Path(options.get("runs", nowhere))
    for name in names:
      table(name, [int(seed) for seed in seeds], directory, smoke)


if __name__ == "__main__":
  main(sys.argv[1:])
