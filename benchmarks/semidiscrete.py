"""Solving the semi-discrete dual: `ot.solve` against OTT-JAX, equal samples.

  python -m benchmarks.semidiscrete [digits] [large] [plane]

`digits`: 1797 points of dimension 64, and what the peer needs for our error.
`large`: 20,000 of dimension 784. `plane`: 2000 of dimension 2.

Errors are `ot.marginal_error` of the hard cells, on the same fresh noise in
every row, and `TV` is what they imply. CPU seconds are the process's, without
compilation and error estimates; wall seconds depend on what else runs. Our
rows include the start, which draws some 1000 samples that are not counted.

The peer (`SemidiscreteSolver` of OTT-JAX) has no step size and starts from
zeros. Its rates are in units of the mean of our preconditioner (Adam's in the
potential's), and where it is given our start, that time is not counted.
"""

import functools
import os
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

# LAPACK's threads wait by spinning, which would be counted where cores are
# shared.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from ott.geometry import semidiscrete_pointcloud as clouds  # noqa: E402
from ott.problems.linear import (  # noqa: E402
  semidiscrete_linear_problem as problems,
)
from ott.solvers.linear import semidiscrete as peers  # noqa: E402

from benchmarks import timing  # noqa: E402
from experiments.common import data  # noqa: E402
from jdiff import ot  # noqa: E402
from jdiff.ot import duplicates, iteration  # noqa: E402


class Problem(NamedTuple):
  """Points, and what all rows share.

  Attributes:
    points: `[M, D]`.
    start: `[M]`, the closed-form bias.
    scale: The peer's rate that is one in units of our preconditioner.
    seconds: CPU and wall seconds of the start.
    error: `bias -> error`, what the table shows.
    quick: The same on fewer samples, other ones, to tune the peer by.
  """

  points: jax.Array
  start: jax.Array
  scale: float
  seconds: tuple[float, float]
  error: Callable
  quick: Callable


class Row(NamedTuple):
  """What a solver found; `goal` is 1.5 times the floor that ours states."""

  name: str
  num_samples: int
  cpu: float
  wall: float
  error: float
  goal: float | None = None


class Setting(NamedTuple):
  """The peer's optimizer, rate, `potential_ema`, start and epsilon."""

  kind: str
  rate: float
  ema: float = 0.99
  zeros: bool = False
  epsilon: float | None = 0.0

  def __str__(self):
    start = ", zeros" if self.zeros else ""
    smooth = "" if self.epsilon == 0 else f", epsilon {self.epsilon}"
    return f"{self.kind} {self.rate:g}, ema {self.ema:g}{start}{smooth}"


DEFAULTS = Setting("constant", 0.1, zeros=True)


def timed(run, *args):
  """`(result, CPU seconds, wall seconds)` of a blocking call."""
  wall, cpu = time.perf_counter(), time.process_time()
  result = jax.block_until_ready(run(*args))
  return result, time.process_time() - cpu, time.perf_counter() - wall


def prepare(title, points, num_eval, num_quick):
  """The `Problem`, and a heading."""
  points = jnp.asarray(points, jnp.float32)
  num_points = len(points)
  weights = jnp.full(num_points, 1 / num_points)

  def begin(key, points):
    problem = iteration.cells(
      points, weights, source=ot.standard_normal, mirrored=True
    )
    _, step = iteration.extreme_value_start(problem)
    return iteration.best_start(key, problem), step.mean()

  def error(seed, num_samples):
    run = jax.jit(functools.partial(ot.marginal_error, num_samples=num_samples))
    return lambda bias: float(run(jax.random.key(seed), points, bias))

  key = jax.random.key(100)
  begin = jax.jit(begin).lower(key, points).compile()
  (start, step), *seconds = timed(begin, key, points)
  _, look, _ = timed(duplicates.find, np.asarray(points), np.asarray(weights))
  scale = 2 * float(step) * num_points
  print(
    f"\n{title}: {num_points} points of dimension {points.shape[1]}; "
    f"{timing.where()}\nerrors on {num_eval} fresh samples, +- "
    f"{(2 * num_points) ** 0.5 / num_eval:.1g}; a rate of 1 is {scale:.4g} to "
    f"the peer; looking for equal points took {look:.2f} CPU s\n\npeer's "
    f"tuning, errors +- {(2 * num_points) ** 0.5 / num_quick:.1g}:",
    flush=True,
  )
  return Problem(
    points, start, scale, seconds, error(200, num_eval), error(201, num_quick)
  )


def measure(error, run, seeds):
  """Mean error and least time over seeds; `run(seed) -> bias`."""
  runs = []
  for seed in range(seeds):
    bias, cpu, wall = timed(run, seed)
    runs.append((cpu, wall, error(bias)))
  cpus, walls, errors = zip(*runs, strict=True)
  return Row("", 0, min(cpus), min(walls), float(np.mean(errors)))


def ours(problem, name, num_samples, *, seeds=1, **options):
  """`ot.solve`, its start included."""
  # Two samples: the error is estimated for all rows alike, and not timed.
  options = {"num_samples": num_samples, "num_eval": 2} | options

  def solve(key, points):
    solution = ot.solve(key, points, **options)
    # All that it computes: XLA would leave out an estimate that is dropped.
    return (
      solution.bias,
      solution.marginal_error,
      solution.num_samples,
      solution.floor,
    )

  solve = jax.jit(solve).lower(jax.random.key(0), problem.points).compile()
  found = []

  def run(seed):
    bias, *rest = solve(jax.random.key(seed), problem.points)
    found.append(rest)
    return bias

  row = measure(problem.error, run, seeds)
  _, drawn, floor = found[0]
  return row._replace(
    name=name, num_samples=int(drawn), goal=1.5 * float(floor)
  )


def start_row(problem):
  """The closed-form start without steps."""
  error = problem.error(problem.start)
  samples = iteration.start_samples(len(problem.points))
  return Row("ours, the start alone", samples, *problem.seconds, error)


@functools.cache
def peer(kind, num_steps, batch_size, epsilon):
  """The peer, traced once for all rates and averages."""

  def run(key, points, potential, rate, ema):
    rates = {
      "constant": lambda step: rate,
      "linear": optax.linear_schedule(rate, 0.01 * rate, num_steps),
      "adam": lambda step: rate * (1 + jnp.cos(jnp.pi * step / num_steps)) / 2,
    }
    make = optax.adam if kind == "adam" else optax.sgd
    solver = peers.SemidiscreteSolver(
      num_iterations=num_steps,
      batch_size=batch_size,
      optimizer=make(rates[kind]),
      # It runs on to its next error: by default 1000 steps, however few were
      # asked for. Of two samples, that error costs nothing.
      error_eval_every=num_steps,
      error_batch_size=2,
      error_num_repeats=1,
      potential_ema=ema,
    )
    cloud = clouds.SemidiscretePointCloud(
      jax.random.normal, points, epsilon=epsilon
    )
    linear = problems.SemidiscreteLinearProblem(cloud)
    return solver(key, linear, potential).g

  return jax.jit(run)


def theirs(
  problem, name, setting, num_samples, batch_size, *, seeds=1, error=None
):
  """OTT-JAX under one setting."""
  num_steps = num_samples // batch_size
  run = peer(setting.kind, num_steps, batch_size, setting.epsilon)
  init = ot.potential_from_bias(problem.start, problem.points)
  init = jnp.zeros_like(init) if setting.zeros else init
  scale = 1.0 if setting.kind == "adam" else problem.scale
  args = (
    problem.points,
    init,
    jnp.float32(setting.rate * scale),
    jnp.float32(setting.ema),
  )
  run = run.lower(jax.random.key(0), *args).compile()

  def solve(seed):
    potential = run(jax.random.key(seed), *args)
    return ot.bias_from_potential(potential, problem.points)

  row = measure(error or problem.error, solve, seeds)
  return row._replace(name=name, num_samples=num_steps * batch_size)


def tune(problem, settings, num_samples, batch_size):
  """Settings, best first, each printed."""
  found = []
  for setting in settings:
    row = theirs(
      problem, "", setting, num_samples, batch_size, error=problem.quick
    )
    print(
      f"  {row.error:9.4f}  {row.cpu:6.2f} CPU s  {row.num_samples} samples, "
      f"{setting}",
      flush=True,
    )
    # Where it diverged nothing is left to compare.
    found.append((row.error if np.isfinite(row.error) else np.inf, setting))
  return [setting for _, setting in sorted(found, key=lambda pair: pair[0])]


def catch_up(problem, settings, row, goal, batch_size, limit, seeds=3):
  """The peer with as many samples as it needs for an error of `goal`.

  Doubles the samples until about `limit` CPU seconds; a longer run may average
  longer, which is tried too.
  """
  print(f"{row.name}: more samples, until its error is {goal:.4f}")
  before = after = row
  spent = 0.0
  while after.error > goal and spent < limit:
    before, num_samples, shorter = after, 2 * after.num_samples, settings
    longer = [s._replace(ema=s.ema / 2) for s in settings if s.ema < 0.5]
    settings = tune(problem, settings + longer, num_samples, batch_size)[:2]
    run = functools.partial(theirs, problem, row.name, settings[0])
    after = run(num_samples, batch_size)
    spent += 3 * after.cpu
  if after is row:
    return row
  if after.error > goal:
    return after._replace(name=f"{row.name}, more samples")
  # Between two lengths the error goes as a power of the samples.
  part = np.log(before.error / goal) / np.log(before.error / after.error)
  num_samples = int(before.num_samples * 2**part)
  # What is best there may be what was best at either.
  best = tune(problem, settings + shorter[:2], num_samples, batch_size)[0]
  run = functools.partial(theirs, problem, row.name, best)
  equal = run(num_samples, batch_size, seeds=seeds)
  return equal._replace(name=f"{row.name}, our error")


def table(problem, rows, baseline):
  """Prints rows; ratios are the baseline's CPU time and error over theirs.

  `floor` is what an efficient estimator would have from all samples; `goal` is
  1.5 times what it would from the share that is averaged.
  """
  others = len(problem.points) - 1
  base = next(row for row in rows if row.name == baseline)
  title = f"baseline: {baseline}"
  width = max(len(name) for name in (title, *(row.name for row in rows)))
  print(
    f"\n{title:{width}}  samples   CPU s  wall s    error   floor    goal"
    "     TV  CPU ratio  error ratio"
  )
  for row in rows:
    floor = f"{others / row.num_samples:.4f}"
    goal = f"{row.goal:.4f}" if row.goal else ""
    # It is for small deviations, as of Gaussians.
    tv = f"{0.4 * max(row.error, 0) ** 0.5:.3f}" if row.error < 1 else ""
    size = f"{others + 1} points"
    timing.keep(f"CPU time, {size}", row.name, base.cpu / row.cpu, baseline)
    timing.keep(f"error, {size}", row.name, base.error / row.error, baseline)
    print(
      f"{row.name:{width}}  {row.num_samples:7d}  {row.cpu:6.2f}  "
      f"{row.wall:6.2f}  {row.error:7.4f}  {floor:>6}  {goal:>6}  {tv:>5}  "
      f"{base.cpu / row.cpu:9.2f}  {base.error / row.error:11.2f}",
      flush=True,
    )


def verdict(row, equals=()):
  """The goals in words: 1.5 times the floor; a fifth of the peer's time."""
  met = "met" if row.error <= row.goal else "MISSED"
  print(f"\n{row.name}: error {row.error:.4f}, goal {row.goal:.4f}: {met}")
  for equal in equals:
    ratio = equal.cpu / row.cpu
    met = "met" if ratio >= 5 else "MISSED"
    print(
      f"{equal.name}: {ratio:.1f} times our CPU time, at an error of "
      f"{equal.error:.4f}; goal 5: {met}",
      flush=True,
    )


def digits(num_samples=204_800, batch_size=1024):
  """Scikit-learn's digits."""
  from sklearn import datasets

  points = datasets.load_digits().data / 8 - 1
  problem = prepare("digits", points, 2**18, 2**16)
  search = functools.partial(
    tune, problem, num_samples=num_samples, batch_size=batch_size
  )
  solve = functools.partial(ours, problem, num_samples=num_samples, seeds=3)
  means = (0.99, 0.01, 0.005)
  hard = [Setting("constant", r, e) for r in (0.03, 0.1, 0.3) for e in means]
  hard += [Setting("linear", r, e) for r in (0.03, 0.1, 0.3) for e in means]
  hard += [Setting("linear", rate) for rate in (0.01, 0.02, 0.05)]
  hard += [Setting("adam", r, e) for r in (0.03, 0.1, 0.3) for e in (0.99, 0.1)]
  hard = search(hard)
  soft = search(
    [s._replace(epsilon=e) for s in hard[:2] for e in (0.1, 0.3, 1.0, None)]
  )
  alone = [DEFAULTS, Setting("constant", 0.1, 0.01, True)]
  alone += [
    Setting("linear", rate, ema, True)
    for rate in (0.1, 0.3, 1.0)
    for ema in (0.99, 0.02)
  ]
  alone += [Setting("adam", rate, zeros=True) for rate in (0.3, 1.0)]
  alone = search(alone)[:2]
  alone = search(alone + [s._replace(epsilon=0.3) for s in alone])
  tuned = {
    "peer, from zeros": alone,
    "peer, our start": hard,
    "peer, our start, entropic": soft,
  }
  main = solve("ours", batch_size=batch_size)
  rows, equals = [], []
  run = functools.partial(theirs, problem)
  for name, settings in ({"peer, defaults": [DEFAULTS]} | tuned).items():
    print(f"{name}: {settings[0]}")
    rows.append(run(name, settings[0], num_samples, batch_size, seeds=3))
  for row, settings in zip(rows[1:], tuned.values(), strict=True):
    equals.append(
      catch_up(problem, settings[:2], row, main.error, batch_size, 30.0)
    )
  baseline = min(rows, key=lambda row: row.error).name
  # Timed once more, near the last of the peers.
  again = solve("ours", batch_size=batch_size)
  main = main._replace(cpu=min(main.cpu, again.cpu))
  rows += [equal for equal in equals if equal not in rows]
  rows += [
    start_row(problem),
    main,
    solve("ours, mirrored=False", mirrored=False),
    solve("ours, batch_size=512", batch_size=512),
    solve("ours, batch_size=2048", batch_size=2048),
    solve("ours, num_eval=2**17", num_eval=2**17),
  ]
  table(problem, rows, baseline)
  verdict(main, equals)


def pictures(num_points=20_000, size=28, seed=0):
  """Digits enlarged, turned, scaled and shifted, with a little noise."""
  from scipy import ndimage
  from sklearn import datasets

  images = datasets.load_digits().images / 8 - 1
  small, middle = images.shape[1], np.full(2, (size - 1) / 2)
  rng = np.random.default_rng(seed)
  rows = np.empty((num_points, size * size), np.float32)
  for row in rows:
    angle, zoom = rng.uniform(-0.3, 0.3), rng.uniform(0.8, 1.2)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) * small / (size * zoom)
    centre = (small - 1) / 2 + rng.uniform(-0.5, 0.5, 2)
    row[:] = ndimage.affine_transform(
      images[rng.integers(len(images))],
      turn,
      centre - turn @ middle,
      (size, size),
      order=1,
      cval=-1,
    ).ravel()
  return rows + 0.05 * rng.standard_normal(rows.shape).astype(np.float32)


def large(num_samples=204_800, batch_size=512):
  """Twenty thousand pictures of 28 x 28; tuned on an eighth of the samples."""
  problem = prepare("large", pictures(), 2**16, 2**14)
  grid = [Setting("linear", 0.003), Setting("linear", 0.01)]
  grid.append(Setting("constant", 0.01, 0.02))
  best = tune(problem, grid, num_samples // 8, batch_size)[0]
  soft = best._replace(epsilon=1.0)
  tune(problem, [soft], num_samples // 8, batch_size)
  rows = [ours(problem, "ours", num_samples, batch_size=batch_size)]
  tuned = {"peer, our start": best, "peer, our start, entropic": soft}
  for name, setting in tuned.items():
    # A run so much longer gains by longer averages.
    now = setting._replace(ema=0.01) if setting.ema < 0.5 else setting
    print(f"{name}: {now}", flush=True)
    rows.append(theirs(problem, name, now, num_samples, batch_size))
  rows.append(start_row(problem))
  table(problem, rows, "peer, our start, entropic")
  verdict(rows[0])


def plane(num_samples=800_000, batch_size=1024):
  """The checkerboard, where cells have few neighbours."""
  points = data.load("checkerboard").train
  problem = prepare("plane", points, 2**18, 2**17)
  search = functools.partial(tune, problem, batch_size=batch_size)
  grid = [
    Setting("constant", 0.03, 0.005),
    *(Setting("linear", rate) for rate in (0.01, 0.03, 0.1)),
    *(Setting("adam", rate) for rate in (0.003, 0.01, 0.03, 0.1)),
  ]
  best = search(grid, num_samples)
  more = [best[0]._replace(epsilon=e) for e in (0.001, 0.003, 0.03)]
  more += [best[0]._replace(zeros=True, rate=rate) for rate in (0.03, 0.1, 0.3)]
  best = search(best[:2] + more, num_samples)
  main = ours(problem, "ours, Newton", num_samples, method="newton")
  run = functools.partial(theirs, problem, num_samples=num_samples)
  rows = [
    run("peer, defaults", DEFAULTS, batch_size=batch_size),
    run("peer, best tuning", best[0], batch_size=batch_size),
  ]
  equal = catch_up(problem, best[:3], rows[1], main.error, batch_size, 80.0, 1)
  rows += [
    equal,
    start_row(problem),
    ours(problem, "ours, averaged", num_samples, method="averaged"),
    main,
  ]
  print(f"defaults: {DEFAULTS}; best tuning: {best[0]}")
  table(problem, rows, "peer, best tuning")
  verdict(main, [equal])


TABLES = {"digits": digits, "large": large, "plane": plane}


if __name__ == "__main__":
  for chosen in sys.argv[1:] or TABLES:
    TABLES[chosen]()
