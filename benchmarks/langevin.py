"""OLLA against projected and adjusted samplers, in one frame and dtype.

  python -m benchmarks.langevin [TABLE ...]

`steps`: time of a step on spheres cut by planes with obstacles. `accuracy`:
error of known expectations, violation and ESS a second. `memory`: bytes of a
compiled step against chains, dimension and constraints. `step_size`: violation
and error with and without the curvature drift. `bias`: the O(sqrt(dt))
error of a fixed epsilon, and corners. `convergence`: W2 to the exact law
against time. All but the first and third write figures to `benchmarks/figures`.
All tables, without arguments. float64, so that Newton reaches its tolerance.
"""

import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from scipy import special

from benchmarks import timing
from experiments.common import metrics
from jdiff import langevin, targets
from jdiff.core.types import ConstrainedTarget
from jdiff.targets import manifolds, quadrature

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

FIGURES = pathlib.Path(__file__).parent / "figures"


def samplers(target, step_size, leapfrog):
  """Every sampler of a target, at one Langevin step and one leapfrog step."""
  parts = target.potential_fn, target.eq_fn, target.ineq_fn
  return {
    "projected, fresh": langevin.projected_langevin(
      *parts, step_size=step_size
    ),
    "projected, frozen": langevin.projected_langevin(
      *parts, step_size=step_size, frozen=True
    ),
    "HMC": langevin.constrained_hmc(*parts, step_size=leapfrog),
    "OLLA, 1 probe": langevin.olla(*parts, step_size=step_size),
    "OLLA, exact trace": langevin.olla(
      *parts, step_size=step_size, num_probes=None
    ),
  }


def steps():
  """Microseconds a chain-step; the first row is the baseline."""
  num_chains, num_steps = 64, 10
  for dim in (100, 1000):
    for num, num_ineq in ((2, 0), (10, 0), (20, 0), (40, 0), (20, 10)):
      target = targets.stress(dim, num - num_ineq, num_ineq)
      x = target.init(jax.random.key(0), num_chains).astype(float)
      runs = {}
      for name, kernel in samplers(target, 2e-3, 0.06).items():
        if name == "OLLA, exact trace" and dim > 100:
          continue  # d nested derivatives a step: minutes.
        run = jax.jit(
          lambda key, x, kernel=kernel: langevin.run_chains(
            key, kernel, x, num_samples=1, thinning=num_steps
          )
        )
        runs[name] = lambda run=run, x=x: run(jax.random.key(1), x)
      times = timing.measure(runs, rounds=3)
      base = next(iter(times.values()))[0]
      print(
        f"\nd {dim}, {num - num_ineq} equalities, {num_ineq} inequalities, "
        f"{num_chains} chains, float64"
      )
      for name, (seconds, compiling) in times.items():
        _, summary = runs[name]()
        violation = float(summary.max["eq_residual"].max())
        micro = 1e6 * seconds / num_steps / num_chains
        title = f"step, d {dim}, {num - num_ineq} + {num_ineq} constraints"
        timing.keep(title, name, base / seconds, next(iter(times)))
        print(
          f"  {name:18s} {micro:9.1f} us  ratio {base / seconds:6.2f}  "
          f"max |h| {violation:.1e}  compile {compiling:.1f} s",
          flush=True,
        )


def measured(target, kernel, name, *, num_chains, num_steps, burn_in, seed=0):
  """`(mean, se, ess, seconds, max |h|)` of one observable; float64."""
  x = target.init(jax.random.key(seed), num_chains).astype(float)

  def run(key, x):
    samples, summary = langevin.run_chains(
      key, kernel, x, num_samples=num_steps, num_burn_in=burn_in
    )
    values = jax.vmap(jax.vmap(target.observables))(samples)[name]
    return values, summary

  compiled = jax.jit(run).lower(jax.random.key(1), x).compile()
  start = time.perf_counter()
  values, summary = jax.device_get(compiled(jax.random.key(1), x))
  seconds = time.perf_counter() - start
  means = values.mean(axis=0)
  ess = float(metrics.ess(values.T))
  residual = summary.max["eq_residual"]
  worst = float(residual.max()) if residual.size else 0.0
  return means.mean(), means.std() / num_chains**0.5, ess, seconds, worst


def accuracy():
  """Errors of known expectations, and effective samples a second."""
  cases = (
    ("ellipse", manifolds.ellipse(), "x1_squared", 1e-2, 0.4, 64, 4000),
    ("cap", manifolds.cap(), "z", 2.5e-3, 0.4, 64, 4000),
    *(
      (
        f"stress d {dim}, {num} constraints",
        targets.stress(dim, num - 1, 1),
        "u",
        2e-3 if dim == 100 else 1e-3,
        0.3 if dim == 100 else 0.1,
        64 if dim == 100 else 16,
        1000 if dim == 100 else 300,
      )
      for dim in (100, 1000)
      for num in (2, 10, 40)
    ),
  )
  rates = {}
  for label, target, name, dt, leapfrog, num_chains, num_steps in cases:
    exact = target.exact()[name]
    print(f"\n{label}: E {name} = {exact:.5f}, {num_chains} chains")
    for sampler, kernel in samplers(target, dt, leapfrog).items():
      if sampler == "OLLA, exact trace" and target.dim > 100:
        continue
      mean, se, ess, seconds, worst = measured(
        target,
        kernel,
        name,
        num_chains=num_chains,
        num_steps=num_steps,
        burn_in=num_steps // 4,
      )
      rates.setdefault(sampler, {})[label] = ess / seconds
      print(
        f"  {sampler:18s} error {mean - exact:+.5f} +- {se:.5f}  "
        f"max |h| {worst:.1e}  ESS/s {ess / seconds:9.0f}  ({seconds:.1f} s)",
        flush=True,
      )
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
  for axis, dim in zip(axes, (100, 1000), strict=True):
    for sampler, values in rates.items():
      known = [
        (num, values[f"stress d {dim}, {num} constraints"])
        for num in (2, 10, 40)
        if f"stress d {dim}, {num} constraints" in values
      ]
      if known:
        axis.loglog(*zip(*known, strict=True), "o-", label=sampler)
    axis.set_xlabel(f"constraints (dimension {dim})")
  axes[0].set_ylabel("ESS per second")
  axes[0].legend(fontsize=7)
  save(figure, "ess_per_second.png")


def memory():
  """Temporaries of one vmapped OLLA step; the 4096-chain one is run too."""
  print("\nchains     d   constraints   temporaries MiB   bytes / (C d p)")
  for num_chains, dim, num in (
    (1024, 100, 20),
    (4096, 100, 20),
    (1024, 400, 20),
    (1024, 100, 40),
  ):
    target = targets.stress(dim, num // 2, num - num // 2)
    kernel = langevin.olla(
      target.potential_fn, target.eq_fn, target.ineq_fn, step_size=2e-3
    )
    x = target.init(jax.random.key(0), num_chains).astype(jnp.float32)
    states = jax.vmap(kernel.init)(x)
    keys = jax.random.split(jax.random.key(1), num_chains)
    compiled = jax.jit(jax.vmap(kernel.step)).lower(keys, states).compile()
    used = compiled.memory_analysis().temp_size_in_bytes
    print(
      f"{num_chains:6d} {dim:5d} {num:13d} {used / 2**20:17.1f} "
      f"{used / (num_chains * dim * num):17.2f}",
      flush=True,
    )
    if num_chains == 4096:
      jax.block_until_ready(compiled(keys, states))
      start = time.perf_counter()
      _, info = jax.block_until_ready(compiled(keys, states))
      print(
        f"       one step of 4096 chains, float32: "
        f"{time.perf_counter() - start:.3f} s, all finite: "
        f"{bool((info.status < langevin.Status.NOT_FINITE).all())}"
      )


def step_size():
  """Violation and error against the step size, at a fixed landing rate."""
  target, rate = manifolds.ellipse(), 25.0
  exact = target.exact()["x1_squared"]
  rules = {
    "1 probe": dict(),
    "exact trace": dict(num_probes=None),
    "no curvature": dict(num_probes=0, without_curvature=True),
  }
  sizes = (0.04, 0.02, 0.01, 0.005)
  print(f"\nellipse, landing rate {rate}: E |h| and error of E x1^2 at {sizes}")
  figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
  for rule, options in rules.items():
    violations, errors, ses = [], [], []
    for dt in sizes:
      kernel = langevin.olla(
        target.potential_fn,
        target.eq_fn,
        step_size=dt,
        landing=rate * dt,
        **options,
      )
      x = target.init(jax.random.key(0), 2000).astype(float)
      run = jax.jit(
        lambda key, x, kernel=kernel, dt=dt: langevin.run_chains(
          key,
          kernel,
          x,
          num_samples=int(0.8 / dt),
          thinning=10,
          num_burn_in=int(2 / dt),
        )[0]
      )
      samples = run(jax.random.key(1), x)
      h = jax.vmap(jax.vmap(target.eq_fn))(samples)
      means = (samples[..., 0] ** 2).mean(axis=0)
      violations.append(float(jnp.abs(h).mean()))
      errors.append(float(means.mean()) - exact)
      ses.append(float(means.std()) / len(means) ** 0.5)
    print(
      f"  {rule:14s} "
      + "  ".join(
        f"{v:.4f}, {e:+.3f} +- {s:.3f}"
        for v, e, s in zip(violations, errors, ses, strict=True)
      ),
      flush=True,
    )
    axes[0].loglog(sizes, violations, "o-", label=rule)
    axes[1].errorbar(sizes, errors, yerr=2 * np.array(ses), label=rule)
  axes[0].set_title("E |h|")
  axes[1].set_title("error of E x1^2")
  axes[1].axhline(0, color="k", lw=0.5)
  for axis in axes:
    axis.set_xlabel("step size")
    axis.legend()
  save(figure, "step_size.png")


def two_caps():
  """Two oblique caps of the sphere at once: `z >= 0` and `n . x >= 0`."""
  normal = np.array([np.sin(2.0), 0.0, np.cos(2.0)])
  cap = manifolds.cap()

  def exact():
    angle, z = np.meshgrid(
      quadrature.angles(2000), (np.arange(2000) + 0.5) / 2000
    )
    rho = np.sqrt(1 - z**2)
    feasible = rho * np.cos(angle) * normal[0] + z * normal[2] >= 0
    return {"z": float(z[feasible].mean())}

  def init(key, num_chains):
    x = cap.init(key, 8 * num_chains)
    return x[jnp.argsort(-(x @ normal))[:num_chains]]

  return cap._replace(
    init=init,
    ineq_fn=lambda x: -jnp.stack([x[2], x @ normal]),
    exact=exact,
    observables=lambda x: {"z": x[2]},
  )


def square():
  """The unit square: right-angled corners."""
  return ConstrainedTarget(
    potential_fn=lambda x: jnp.zeros((), x.dtype),
    dim=2,
    init=lambda key, n: jax.random.uniform(key, (n, 2)),
    ineq_fn=lambda x: jnp.concatenate([-x, x - 1]),
    observables=lambda x: {"spread": (x[0] - 0.5) ** 2},
    exact=lambda: {"spread": 1 / 12},
  )


def bias():
  """Error of an expectation against the step size, for the rules of epsilon."""
  cases = {
    "cap": (manifolds.cap(), "z", 2.0),
    "interval": (manifolds.interval(), "x_squared", 1.5),
    "square": (square(), "spread", 0.5),
    "simplex (45 degrees)": (manifolds.simplex(2), "x1_squared", 0.5),
    "two caps (65 degrees)": (two_caps(), "z", 1.5),
  }
  rules = {
    "epsilon = 0.05": dict(epsilon=0.05),
    "epsilon = 1": dict(epsilon=1.0),
    "auto, landing 0.5": dict(),
    "auto, landing 1": dict(landing=1.0),
    "auto, landing 1.5": dict(landing=1.5),
  }
  sizes = (8e-3, 4e-3, 2e-3)
  figure, axes = plt.subplots(1, len(cases), figsize=(3.2 * len(cases), 3.2))
  for axis, (label, (target, name, span)) in zip(
    axes, cases.items(), strict=True
  ):
    exact = target.exact()[name]
    print(f"\n{label}: E {name} = {exact:.5f}; error at dt = {sizes}")
    for rule, options in rules.items():
      errors, ses = [], []
      for dt in sizes:
        kernel = langevin.olla(
          target.potential_fn,
          target.eq_fn,
          target.ineq_fn,
          step_size=dt,
          **options,
        )
        num_steps = int(span / dt)
        mean, se, *_ = measured(
          target,
          kernel,
          name,
          num_chains=3000,
          num_steps=num_steps,
          burn_in=num_steps // 3,
        )
        errors.append(mean - exact)
        ses.append(se)
      print(
        f"  {rule:18s} "
        + "  ".join(
          f"{e:+.4f} +- {s:.4f}" for e, s in zip(errors, ses, strict=True)
        ),
        flush=True,
      )
      axis.errorbar(sizes, errors, yerr=2 * np.array(ses), label=rule)
    axis.axhline(0, color="k", lw=0.5)
    axis.set_xscale("log")
    axis.set_xlabel("step size")
    axis.set_title(label, fontsize=9)
  axes[0].set_ylabel("error of an exact expectation")
  axes[0].legend(fontsize=6)
  save(figure, "boundary_bias.png")


def convergence():
  """W2 of one coordinate to its exact law: a lower bound on W2, and its rate.

  Chains start at one point. The generator's first eigenvalue is 2 on the unit
  sphere of R^3 and `(2 pi / length)^2` on a closed curve.
  """
  theta = quadrature.angles(2**16)
  length = np.hypot(2 * np.sin(theta), np.cos(theta))
  ellipse_x = np.sort(2 * np.cos(theta))
  order = np.argsort(2 * np.cos(theta))
  cdf = np.cumsum(length[order]) / length.sum()
  perimeter = 8 * special.ellipe(0.75)
  num_chains, dt, every = 40_000, 5e-3, 20
  share = (np.arange(num_chains) + 0.5) / num_chains
  cases = {
    "sphere": (manifolds.sphere(3), [0, 0, 1.0], 2, 2 * share - 1, 2.0, 30),
    "ellipse": (
      manifolds.ellipse(),
      [2.0, 0],
      0,
      np.interp(share, cdf, ellipse_x),
      (2 * np.pi / perimeter) ** 2,
      80,
    ),
  }
  figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
  for axis, (label, case) in zip(axes, cases.items(), strict=True):
    target, start, coordinate, quantiles, rate, num = case
    kernel = langevin.olla(target.potential_fn, target.eq_fn, step_size=dt)
    x = jnp.tile(jnp.array([start]), (num_chains, 1))
    run = jax.jit(
      lambda key, x, kernel=kernel, num=num: langevin.run_chains(
        key, kernel, x, num_samples=num, thinning=every
      )[0]
    )
    samples = np.sort(np.asarray(run(jax.random.key(0), x))[..., coordinate])
    w2 = np.sqrt(np.mean((samples - quantiles[None]) ** 2, axis=1))
    t = dt * every * np.arange(1, num + 1)
    floor = np.median(w2[-5:])
    fit = (w2 > 5 * floor) & (t > 1 / rate / 2)
    slope = -np.polyfit(t[fit], np.log(w2[fit]), 1)[0]
    print(
      f"\n{label}: W2 falls at rate {slope:.3f}, theory {rate:.3f} (fitted on "
      f"t in [{t[fit][0]:.2f}, {t[fit][-1]:.2f}]); floor {floor:.4f} at "
      f"{num_chains} chains, dt {dt}"
    )
    axis.semilogy(t, w2, ".", label="W2 of a coordinate")
    middle = t[fit][len(t[fit]) // 2]
    level = w2[fit][len(t[fit]) // 2]
    axis.semilogy(
      t, level * np.exp(-rate * (t - middle)), "k--", label=f"rate {rate:.3f}"
    )
    axis.set_ylim(floor / 2, 3)
    axis.set_xlabel("time")
    axis.set_title(label)
    axis.legend()
  save(figure, "convergence.png")


def save(figure, name):
  FIGURES.mkdir(exist_ok=True)
  figure.tight_layout()
  figure.savefig(FIGURES / name, dpi=110)
  plt.close(figure)


TABLES = (steps, accuracy, memory, step_size, bias, convergence)


def main(names):
  jax.config.update("jax_enable_x64", True)
  print(timing.where())
  for table in TABLES:
    if not names or table.__name__ in names:
      table()


if __name__ == "__main__":
  main(sys.argv[1:])
