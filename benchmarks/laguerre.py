"""The search for the best point: time, memory, devices, and TPU programs.

  python -m benchmarks.laguerre [TABLE ...]

`throughput`: against a dense argmax. `million`: a million points, with the
process's peak of memory. `linear`: time against the number of points.
`precision`: rows that bfloat16 matches otherwise. `sharded`: eight simulated
devices against one. `compile`: the kernel and the sharded search, compiled for
a TPU slice that this machine does not have; needs the extra "plan". All tables,
without arguments, each in its own process.
"""

import functools
import json
import os
import subprocess
import sys
import time

SLICE = "v5e:4x4"
if "compile" in sys.argv or "--compile-one" in sys.argv:
  # libtpu reads these when jax is imported.
  os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_ACCELERATOR_TYPE="v5litepod-16",
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
  )
if "sharded" in sys.argv:
  os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
  )

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import timing  # noqa: E402
from jdiff import ot  # noqa: E402
from jdiff.ot import pallas  # noqa: E402


def dense(noise, points, bias):
  """What one writes first: every score, then argmax."""
  scores = jnp.einsum(
    "bd,md->bm", noise, points, preferred_element_type=jnp.float32
  )
  return jnp.argmax(scores + bias[None], axis=1).astype(jnp.int32)


def problem(rows, num_points, dim):
  """Noise, points, and the closed-form bias of independent scores."""
  key_noise, key_points, key_scale = jax.random.split(jax.random.key(0), 3)
  noise = jax.random.normal(key_noise, (rows, dim))
  scale = jnp.exp(0.1 * jax.random.normal(key_scale, (num_points, 1)))
  points = scale * jax.random.normal(key_points, (num_points, dim))
  quantile = jax.scipy.stats.norm.ppf(1 - 1 / num_points)
  return noise, points, -quantile * jnp.linalg.norm(points, axis=1)


def throughput():
  """Rows a second; the first column is the baseline."""
  print(f"\nms a call (times the dense argmax's speed); {timing.where()}")
  names = ("dense", "assign", "assign_with_gap", "histogram")
  print(f"{'B, M, D':>20}" + "".join(f"{name:>22}" for name in names))
  for rows, num_points, dim in (
    (1024, 2000, 64),
    (1024, 20_000, 64),
    (1024, 20_000, 784),
    (256, 2600, 4096),
    (8192, 10_000, 64),
  ):
    args = problem(rows, num_points, dim)
    runs = {
      name: functools.partial(jax.jit(function), *args)
      for name, function in zip(
        names,
        (dense, ot.assign, ot.assign_with_gap, ot.histogram),
        strict=True,
      )
    }
    times = {k: v[0] for k, v in timing.measure(runs, rounds=4).items()}
    cells = [
      f"{1e3 * times[name]:.1f} ({times['dense'] / times[name]:.2f})"
      for name in names
    ]
    size = f"B {rows}, M {num_points}, D {dim}"
    for name in names[1:]:
      ratio = times["dense"] / times[name]
      timing.keep(f"best point, {size}", name, ratio, "dense")
    print(
      f"{f'{rows}, {num_points}, {dim}':>20}"
      + "".join(f"{cell:>22}" for cell in cells),
      flush=True,
    )


def million(rows=4096, num_points=1_000_000, dim=256):
  """One assignment of a million points, and what memory it took."""
  args = jax.block_until_ready(problem(rows, num_points, dim))
  search = jax.jit(ot.assign).lower(*args).compile()
  seconds, held, peak = timing.memory(lambda: search(*args))
  temporary = search.memory_analysis().temp_size_in_bytes
  print(
    f"\n{rows} rows against {num_points} points of dimension {dim}: "
    f"{seconds:.1f} s, {2 * rows * num_points * dim / seconds / 1e9:.0f} "
    f"GFLOP/s; {timing.where()}\n"
    f"held before: {held / 2**20:.0f} MiB, of which points "
    f"{args[1].nbytes / 2**20:.0f}; peak during the search: "
    f"{peak / 2**20:.0f} MiB more ({temporary / 2**20:.0f} MiB of "
    f"temporaries by XLA's count); the scores would take "
    f"{4 * rows * num_points / 2**20:.0f} MiB",
    flush=True,
  )


def linear(rows=256, dim=64):
  """Milliseconds against points, and the slope of their logarithms."""
  sizes = (10_000, 30_000, 100_000, 300_000, 1_000_000)
  runs = {
    size: functools.partial(jax.jit(ot.assign), *problem(rows, size, dim))
    for size in sizes
  }
  times = timing.measure(runs, rounds=4)
  millis = [1e3 * times[size][0] for size in sizes]
  slope = np.polyfit(np.log(sizes), np.log(millis), 1)[0]
  print(f"\nms for {rows} rows of dimension {dim}; {timing.where()}")
  cells = zip(sizes, millis, strict=True)
  print("  ".join(f"M = {size:,}: {ms:.1f}" for size, ms in cells))
  print(f"time goes as M ** {slope:.3f}", flush=True)


def precision(rows=8192, num_points=2000):
  """Rows whose cell is another in bfloat16, by dimension and shift."""
  print(f"\nrows of {rows} matched otherwise in bfloat16, M = {num_points}")
  search = jax.jit(ot.assign)
  for dim in (16, 64, 256, 1024):
    noise, points, bias = problem(rows, num_points, dim)
    points -= points.mean(axis=0)[None]
    want, line = search(noise, points, bias), []
    for shift in (0.0, 1.0, 10.0):
      half = [x.astype(jnp.bfloat16) for x in (noise, points + shift)]
      other = float((search(*half, bias) != want).mean())
      line.append(f"shifted by {shift:g}: {other:.2%}")
    print(f"D = {dim:5d}  " + "  ".join(line), flush=True)


def sharded(rows=512, num_points=50_003, dim=32):
  """Eight simulated devices against one, with duplicates in other shards."""
  noise, points, bias = problem(rows, num_points, dim)
  copies = jnp.arange(0, num_points // 2, 7)
  points = points.at[copies + num_points // 2].set(points[copies])
  bias = bias.at[copies + num_points // 2].set(bias[copies])
  print(f"\n{rows} rows, {num_points} points, {len(copies)} of them twice")
  for shape, rows_axis in (((1, 8), None), ((2, 4), "rows")):
    mesh = jax.make_mesh(
      shape,
      ("rows", "points"),
      axis_types=(jax.sharding.AxisType.Auto,) * 2,
    )
    options = {"points_axis": "points", "rows_axis": rows_axis}
    split = jax.jit(ot.on_mesh(ot.assign, mesh, **options))
    index = split(noise, points, bias)
    same = (index == jax.jit(ot.assign)(noise, points, bias)).sum()
    shares = jax.jit(ot.on_mesh(ot.histogram, mesh, **options))
    off = shares(noise, points, bias) - jax.jit(ot.histogram)(
      noise, points, bias
    )
    text = split.lower(noise, points, bias).compile().as_text()
    print(
      f"mesh {shape}: {int(same)} of {rows} indices equal, shares differ by at "
      f"most {float(jnp.abs(off).max()):.1e}; {text.count('all-reduce(')} "
      f"all-reduces, {text.count('all-gather(')} all-gathers",
      flush=True,
    )


def compile_for_tpu():
  """Bytes of programs for one chip and for a slice, from XLA's analyses."""
  kernel = functools.partial(ot.assign, implementation="pallas")
  gap = functools.partial(ot.assign_with_gap, implementation="pallas")
  searches = {
    "dense argmax": dense,
    "assign, XLA": ot.assign,
    "assign, kernel": kernel,
    "gap, XLA": ot.assign_with_gap,
    "gap, kernel": gap,
  }
  devices = _devices()
  one = jax.sharding.Mesh(np.array(devices[:1]), ("x",))
  print(f"\ncompiled for one chip of {SLICE}, bfloat16; nothing was run")
  for shape in ((1024, 100_000, 256), (4096, 1_000_000, 4096)):
    for name, search in searches.items():
      compiled, seconds = _compile(search, one, jax.P(), jax.P(), shape)
      memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
      print(
        f"{shape} {name:15}: arguments "
        f"{memory.argument_size_in_bytes / 2**20:.0f} MiB, temporaries "
        f"{memory.temp_size_in_bytes / 2**20:.2f} MiB, {_traffic(name, cost)}; "
        f"compiled in {seconds:.1f} s",
        flush=True,
      )
  mesh = jax.sharding.Mesh(np.array(devices).reshape(2, -1), ("rows", "points"))
  shape = (4096, 1_280_000, 4096)
  for name in ("assign, XLA", "assign, kernel"):
    split = functools.partial(
      ot.on_mesh(ot.assign, mesh, points_axis="points", rows_axis="rows"),
      implementation="pallas" if "kernel" in name else "xla",
    )
    compiled, seconds = _compile(
      split, mesh, jax.P("rows"), jax.P("points"), shape
    )
    memory, text = compiled.memory_analysis(), compiled.as_text()
    print(
      f"{shape} {name} on {len(devices)} chips: arguments "
      f"{memory.argument_size_in_bytes / 2**30:.2f} GiB and temporaries "
      f"{memory.temp_size_in_bytes / 2**20:.2f} MiB a chip, "
      f"{text.count(' all-reduce(') + text.count(' all-reduce-start(')} "
      f"all-reduces, {text.count(' all-gather(')} all-gathers; compiled in "
      f"{seconds:.1f} s",
      flush=True,
    )


def compile_one():
  """The kernel alone, in its variants, for a test: prints temporaries."""
  mesh = jax.sharding.Mesh(np.array(_devices()[:1]), ("x",))
  found = {}
  for dtype in (jnp.bfloat16, jnp.float32):
    for extra in (None, "second", "count"):
      compiled, _ = _compile(
        functools.partial(pallas.top, extra=extra),
        mesh,
        jax.P(),
        jax.P(),
        (1024, 20_000, 1000),
        dtype,
      )
      memory = compiled.memory_analysis()
      found[f"{dtype.__name__} {extra}"] = memory.temp_size_in_bytes
  print(json.dumps(found))


def _traffic(name, cost):
  """What XLA's cost analysis calls bytes accessed, and what it means."""
  size = f"{cost['bytes accessed'] / 1e9:.2f} GB"
  if "kernel" in name:
    return f"{size} moved, counted from the grid"
  if "XLA" in name:
    return f"{size} for one block and chunk of its loops"
  return f"{size}, each operand once"


def _devices():
  from jax.experimental import topologies

  return topologies.get_topology_desc(
    platform="tpu", topology_name=SLICE
  ).devices


def _compile(search, mesh, rows, points, shape, dtype=jnp.bfloat16):
  num_rows, num_points, dim = shape
  sharding = functools.partial(jax.NamedSharding, mesh)
  args = [
    jax.ShapeDtypeStruct((num_rows, dim), dtype, sharding=sharding(rows)),
    jax.ShapeDtypeStruct((num_points, dim), dtype, sharding=sharding(points)),
    jax.ShapeDtypeStruct((num_points,), jnp.float32, sharding=sharding(points)),
  ]
  start = time.perf_counter()
  compiled = jax.jit(search).lower(*args).compile()
  return compiled, time.perf_counter() - start


TABLES = {
  "throughput": throughput,
  "million": million,
  "linear": linear,
  "precision": precision,
  "sharded": sharded,
  "compile": compile_for_tpu,
}


if __name__ == "__main__":
  arguments = sys.argv[1:]
  if arguments == ["--compile-one"]:
    compile_one()
  elif len(arguments) == 1 and arguments[0] in TABLES:
    TABLES[arguments[0]]()
  else:
    for table in arguments or TABLES:
      # Its own process: environment and memory's peak are a process's.
      subprocess.run(
        [sys.executable, "-m", "benchmarks.laguerre", table], check=False
      )
