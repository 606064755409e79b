"""Solving the semi-discrete dual: `ot.solve` against OTT-JAX, equal samples.

  python -m benchmarks.semidiscrete [digits] [large] [plane]

`digits`: 1797 points of dimension 64, and what the peer needs for our error.
`large`: 20,000 of dimension 784. `plane`: 2000 of dimension 2. Errors are
`ot.marginal_error` of the hard cells, on the same fresh noise in every row.
CPU seconds are those of the process, without compilation and error estimates;
wall seconds depend on what else runs.

The peer (`SemidiscreteSolver` of OTT-JAX) has no step size and starts from
zeros. It is given the rates that fit the problem's scale, in units of the mean
of our preconditioner, and our start, whose time is not counted against it.
"""

import functools
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ott.geometry import semidiscrete_pointcloud as clouds
from ott.problems.linear import semidiscrete_linear_problem as problems
from ott.solvers.linear import semidiscrete as peers

from benchmarks import timing
from experiments.common import data
from jdiff import ot
from jdiff.ot import duplicates, iteration, newton

SHARE = 0.8
"""Of the samples, what the averaged iteration averages over."""


class Problem(NamedTuple):
  """Points, and what all rows share.

  Attributes:
    points: `[M, D]`.
    start: `[M]`, the closed-form bias.
    scale: The peer's rate that is one in units of our preconditioner.
    start_seconds: CPU and wall seconds of the start.
    error: `bias -> error`, compiled.
    deviation: Of `error` where the bias is right.
  """

  points: jax.Array
  start: jax.Array
  scale: float
  start_seconds: tuple[float, float]
  error: object
  deviation: float


class Row(NamedTuple):
  """One solver's result; `floor` is nan where there are no samples."""

  name: str
  num_samples: int
  cpu: float
  wall: float
  error: float
  share: float | None = None


class Setting(NamedTuple):
  """The peer's: kind of optimizer, rate, `potential_ema`, start, epsilon."""

  kind: str
  rate: float
  ema: float
  zeros: bool = False
  epsilon: float | None = 0.0

  def __str__(self):
    start = ", zeros" if self.zeros else ""
    smooth = "" if self.epsilon == 0 else f", epsilon {self.epsilon}"
    return f"{self.kind} {self.rate:g}, ema {self.ema:g}{start}{smooth}"


def timed(run, *args):
  """`(result, CPU seconds, wall seconds)` of a blocking call."""
  wall, cpu = time.perf_counter(), time.process_time()
  result = jax.block_until_ready(run(*args))
  return result, time.process_time() - cpu, time.perf_counter() - wall


def prepare(title, points, num_eval):
  """The shared part, and a heading."""
  points = jnp.asarray(points, jnp.float32)
  num_points = len(points)
  weights = jnp.full(num_points, 1 / num_points)

  def begin(key, points):
    problem = iteration.cells(
      points, weights, source=ot.standard_normal, mirrored=True
    )
    _, step = iteration.extreme_value_start(problem)
    return iteration.best_start(key, problem), step.mean()

  key = jax.random.key(100)
  begin = jax.jit(begin).lower(key, points).compile()
  (start, step), *seconds = timed(begin, key, points)
  _, look, _ = timed(duplicates.find, np.asarray(points), np.asarray(weights))
  error = jax.jit(
    lambda bias: ot.marginal_error(
      jax.random.key(200), points, bias, num_samples=num_eval
    )
  )
  deviation = (2 * num_points) ** 0.5 / num_eval
  scale = 2 * float(step) * num_points
  print(
    f"\n{title}: {num_points} points of dimension {points.shape[1]}; "
    f"{timing.where()}\nerrors on {num_eval} fresh samples, +- "
    f"{deviation:.1g}; a rate of 1 is {scale:.4g} to the peer's optimizer; "
    f"looking for equal points: {look:.2f} CPU s",
    flush=True,
  )
  return Problem(points, start, scale, tuple(seconds), error, deviation)


def ours(problem, name, num_samples, *, seeds=1, share=SHARE, **options):
  """`ot.solve`, start included: mean error, least time."""
  # Two samples: the error is estimated for all rows alike, and not timed.
  options = {"num_eval": 2} | options
  solve = functools.partial(ot.solve, num_samples=num_samples, **options)
  solve = jax.jit(lambda key, points: solve_bias(solve, key, points))
  key = jax.random.key(0)
  solve = solve.lower(key, problem.points).compile()
  cpus, walls, errors = [], [], []
  for seed in range(seeds):
    bias, cpu, wall = timed(solve, jax.random.key(seed), problem.points)
    cpus.append(cpu)
    walls.append(wall)
    errors.append(float(problem.error(bias)))
  return Row(
    name, num_samples, min(cpus), min(walls), float(np.mean(errors)), share
  )


def solve_bias(solve, key, points):
  """The bias alone, so that nothing else is copied out."""
  return solve(key, points).bias


def start_row(problem):
  """The closed-form start without steps."""
  error = float(problem.error(problem.start))
  samples = iteration.START_SAMPLES
  return Row("ours, start alone", samples, *problem.start_seconds, error)


@functools.cache
def peer(kind, num_steps, batch_size, epsilon):
  """The peer, traced once for all rates, averages and points."""

  def run(key, points, potential, rate, ema):
    schedules = {
      "constant": lambda step: rate,
      "linear": optax.linear_schedule(rate, 0.01 * rate, num_steps),
      "adam": lambda step: rate * 0.5 * (1 + jnp.cos(jnp.pi * step / num_steps)),
    }
    make = optax.adam if kind == "adam" else optax.sgd
    solver = peers.SemidiscreteSolver(
      num_iterations=num_steps,
      batch_size=batch_size,
      optimizer=make(schedules[kind]),
      # Its loop always runs to the next error: with the default of 1000 it
      # would make 1000 steps. Two samples, so that the error costs nothing.
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


def theirs(problem, name, setting, num_samples, batch_size, *, seeds=1):
  """OTT-JAX under one setting: mean error, least time."""
  num_steps = num_samples // batch_size
  run = peer(setting.kind, num_steps, batch_size, setting.epsilon)
  init = ot.potential_from_bias(problem.start, problem.points)
  init = jnp.zeros_like(init) if setting.zeros else init
  # Adam's steps are in the potential's units, whatever the gradient's.
  scale = 1.0 if setting.kind == "adam" else problem.scale
  rate = jnp.float32(setting.rate * scale)
  args = (problem.points, init, rate, jnp.float32(setting.ema))
  run = run.lower(jax.random.key(0), *args).compile()
  cpus, walls, errors = [], [], []
  for seed in range(seeds):
    potential, cpu, wall = timed(run, jax.random.key(seed), *args)
    bias = ot.bias_from_potential(potential, problem.points)
    cpus.append(cpu)
    walls.append(wall)
    errors.append(float(problem.error(bias)))
  return Row(
    name or str(setting),
    num_steps * batch_size,
    min(cpus),
    min(walls),
    float(np.mean(errors)),
  )


def tune(problem, settings, num_samples, batch_size):
  """`[(error, setting)]`, best first, each printed."""
  print(
    f"\npeer's tuning, {num_samples} samples, batch {batch_size}, from our "
    "start unless zeros:"
  )
  found = []
  for setting in settings:
    row = theirs(problem, None, setting, num_samples, batch_size)
    print(f"  {row.error:9.4f}  {row.cpu:6.2f} CPU s  {setting}", flush=True)
    # Where it diverged nothing is left to compare.
    found.append((row.error if np.isfinite(row.error) else np.inf, setting))
  return sorted(found, key=lambda pair: pair[0])


def table(problem, rows, baseline):
  """Prints rows; ratios are the baseline's CPU seconds and error over theirs.

  `floor` is what an efficient estimator would have from all samples; `goal` is
  1.5 times that from the share that is averaged.
  """
  num_points = len(problem.points)
  base = next(row for row in rows if row.name == baseline)
  width = max(len(row.name) for row in rows)
  print(
    f"\n{'baseline: ' + baseline:{width}}  samples   CPU s  wall s     error"
    "   floor    goal     TV  CPU ratio  error ratio"
  )
  for row in rows:
    floor = goal = ""
    if row.num_samples > num_points and row.cpu:
      floor = f"{(num_points - 1) / row.num_samples:.4f}"
    if row.share:
      goal = 1.5 * (num_points - 1) / (row.share * row.num_samples)
      goal = f"{goal:.4f}"
    tv = 0.4 * max(row.error, 0) ** 0.5
    print(
      f"{row.name:{width}}  {row.num_samples:7d}  {row.cpu:6.2f}  "
      f"{row.wall:6.2f}  {row.error:8.4f}  {floor:>6}  {goal:>6}  {tv:5.3f}  "
      f"{base.cpu / max(row.cpu, 1e-9):9.2f}  {base.error / row.error:11.2f}",
      flush=True,
    )


def catch_up(problem, best, goal, row, batch_size, limit=60.0):
  """The peer with more samples until its error is `goal`: CPU seconds there.

  Averages over longer runs may be longer, so `ema` is tuned at every length.
  """
  print(f"\npeer, more samples until its error is {goal:.4f}:")
  spent = 0.0
  before = after = row
  found = None
  while after.error > goal and spent < limit:
    before = after
    num_samples = 2 * before.num_samples
    tries = {}
    for setting in best:
      for shorter in (1, 1 / 2, 1 / 4):
        if setting.ema <= 0.1 and shorter < 1 or shorter == 1:
          now = setting._replace(ema=setting.ema * shorter)
          tries[now] = theirs(problem, None, now, num_samples, batch_size)
          spent += tries[now].cpu
          print(
            f"  {tries[now].error:9.4f}  {tries[now].cpu:6.2f} CPU s  "
            f"{num_samples} samples, {now}",
            flush=True,
          )
    found = min(tries, key=lambda now: tries[now].error)
    after = tries[found]
  if after.error > goal:
    print(f"  not reached in {spent:.0f} CPU s")
    return after._replace(name="peer, where it was stopped")
  # Between two lengths the error goes as a power of the samples.
  slope = np.log(before.error / after.error)
  part = np.log(before.error / goal) / slope
  num_samples = int(before.num_samples * 2**part)
  equal = theirs(
    problem, "peer, at our error", found, num_samples, batch_size, seeds=3
  )
  print(f"  interpolated: {num_samples} samples, {found}", flush=True)
  return equal


def verdict(name, row, equal, floor_share, num_points):
  """The two goals in words."""
  goal = 1.5 * (num_points - 1) / (floor_share * row.num_samples)
  met = "met" if row.error <= goal else "MISSED"
  print(f"\n{name}: error {row.error:.4f}, goal {goal:.4f}: {met}")
  if equal is not None:
    ratio = equal.cpu / row.cpu
    met = "met" if ratio >= 5 and equal.error <= 1.05 * row.error else "MISSED"
    print(
      f"{name}: CPU time of the best-tuned peer at an error of "
      f"{equal.error:.4f} over ours at {row.error:.4f}: {ratio:.1f}, goal 5: "
      f"{met if ratio < 5 or met == 'met' else 'met (not yet at our error)'}",
      flush=True,
    )


def digits(num_samples=204_800, batch_size=1024):
  """Scikit-learn's digits."""
  from sklearn import datasets

  points = datasets.load_digits().data / 8 - 1
  problem = prepare("digits", points, 2**18)
  rates, averages = (0.03, 0.1, 0.3), (0.99, 0.01, 0.005)
  grid = [
    Setting(kind, rate, ema)
    for kind in ("constant", "linear")
    for rate in rates
    for ema in averages
  ]
  grid += [Setting("constant", 0.1, 0.99, True), Setting("linear", 1, 0.99)]
  grid += [Setting("linear", 1, 0.99, True), Setting("linear", 0.3, 0.01, True)]
  grid += [Setting("adam", r, e) for r in (0.3, 1, 3) for e in (0.99, 0.02)]
  found = tune(problem, grid, num_samples, batch_size)
  best = found[0][1]
  smooth = [best._replace(epsilon=e) for e in (0.1, 0.3, None)]
  more = [best._replace(ema=2 * best.ema), best._replace(rate=2 * best.rate)]
  found = sorted(
    found + tune(problem, smooth + more, num_samples, batch_size),
    key=lambda pair: pair[0],
  )
  best = [setting for _, setting in found[:2]]
  run = functools.partial(theirs, problem, batch_size=batch_size, seeds=3)
  tuned = run("peer, best tuning", best[0], num_samples)
  default = Setting("constant", 0.1, 0.99, True)
  solve = functools.partial(ours, problem, seeds=3)
  main = solve("ours", num_samples, batch_size=batch_size)
  rows = [
    run("peer, defaults", default, num_samples),
    tuned,
    start_row(problem),
    main,
    solve("ours, mirrored=False", num_samples, mirrored=False),
    solve("ours, batch_size=512", num_samples, batch_size=512),
    solve("ours, batch_size=2048", num_samples, batch_size=2048),
    solve("ours, with its estimate", num_samples, num_eval=2**17),
  ]
  equal = catch_up(problem, best, main.error, tuned, batch_size)
  # Timed again beside each other.
  again = solve("ours, again", num_samples, batch_size=batch_size)
  rows += [equal, again]
  print(f"best tuning: {best[0]}; defaults: {default}")
  table(problem, rows, tuned.name)
  best_cpu = main._replace(cpu=min(main.cpu, again.cpu))
  verdict("digits", best_cpu, equal, SHARE, len(points))


def pictures(num_points=20_000, size=28, seed=0):
  """Digits enlarged, turned, scaled, shifted, and a little noise."""
  from scipy import ndimage
  from sklearn import datasets

  images = datasets.load_digits().images / 8 - 1
  rng = np.random.default_rng(seed)
  rows = np.empty((num_points, size * size), np.float32)
  middle = (size - 1) / 2
  for row in rows:
    image = images[rng.integers(len(images))]
    angle = rng.uniform(-0.3, 0.3)
    zoom = images.shape[1] / (size * rng.uniform(0.8, 1.2))
    turn = np.array(
      [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    shift = rng.uniform(-0.5, 0.5, 2) + (images.shape[1] - 1) / 2
    picture = ndimage.affine_transform(
      image,
      zoom * turn,
      shift - zoom * turn @ [middle, middle],
      (size, size),
      order=1,
      mode="constant",
      cval=-1,
    )
    row[:] = picture.ravel()
  return rows + 0.05 * rng.standard_normal(rows.shape).astype(np.float32)


def large(num_samples=204_800, batch_size=512):
  """Twenty thousand pictures of 28 x 28."""
  problem = prepare("large", pictures(), 2**16)
  quick = problem._replace(error=_error(problem.points, 2**14))
  grid = [
    Setting("constant", rate, ema)
    for rate, ema in ((0.003, 0.02), (0.01, 0.02), (0.03, 0.02))
  ]
  grid.append(Setting("linear", 0.03, 0.99))
  found = tune(quick, grid, num_samples // 8, batch_size)
  best = found[0][1]
  if best.ema < 0.99:
    # A longer run has longer averages.
    best = best._replace(ema=0.01)
  rows = [
    theirs(problem, "peer, best tuning", best, num_samples, batch_size),
    start_row(problem),
    ours(problem, "ours", num_samples, batch_size=batch_size),
  ]
  print(f"best tuning: {best}")
  table(problem, rows, rows[0].name)
  verdict("large", rows[-1], None, SHARE, len(problem.points))


def _error(points, num_samples):
  return jax.jit(
    lambda bias: ot.marginal_error(
      jax.random.key(201), points, bias, num_samples=num_samples
    )
  )


def plane(num_samples=800_000, batch_size=1024):
  """The checkerboard, where cells have few neighbours."""
  points = data.load("checkerboard").train
  problem = prepare("plane", points, 2**18)
  grid = [
    Setting(kind, rate, ema)
    for kind, ema in (("constant", 0.005), ("linear", 0.01), ("linear", 0.99))
    for rate in (0.03, 0.1, 0.3)
  ]
  grid += [Setting("adam", rate, 0.01) for rate in (0.01, 0.03, 0.1)]
  best = tune(problem, grid, num_samples, batch_size)[0][1]
  default = Setting("constant", 0.1, 0.99, True)
  rows = [
    theirs(problem, "peer, defaults", default, num_samples, batch_size),
    theirs(problem, "peer, best tuning", best, num_samples, batch_size),
    start_row(problem),
    ours(problem, "ours, averaged", num_samples, method="averaged"),
    ours(
      problem,
      "ours, Newton",
      num_samples,
      method="newton",
      share=newton.AVERAGED_SHARE,
    ),
  ]
  print(f"best tuning: {best}; defaults: {default}")
  table(problem, rows, "peer, best tuning")
  verdict("plane", rows[-1], None, newton.AVERAGED_SHARE, len(points))


TABLES = {"digits": digits, "large": large, "plane": plane}


if __name__ == "__main__":
  for chosen in sys.argv[1:] or TABLES:
    TABLES[chosen]()
