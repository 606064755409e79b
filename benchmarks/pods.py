"""Plans every `pod` variant for a slice that this machine does not have.

  python -m benchmarks.pods [topology [word ...]]   # needs the extra "plan"

Words pick config files by their path, such as `mdns` or `world/pod`. Prints a
row a program, as `--plan` does at length: bytes a chip, work, messages. No time
is measured. The row `solve` is the semi-discrete dual of ImageNet's latents,
which is no experiment.
"""

import importlib
import inspect
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jdiff import ot, training
from jdiff.training import cost, plan

ROOT = pathlib.Path(__file__).parents[1]
GIB = 2**30


def pods(words):
  """`(path, config)` of every pod variant whose path holds a word."""
  for path in sorted((ROOT / "experiments").glob("*/*.py")):
    name = str(path.relative_to(ROOT).with_suffix(""))
    if "def get_config" not in path.read_text():
      continue
    if words and not any(word in name for word in words):
      continue
    module = importlib.import_module(name.replace("/", "."))
    if len(inspect.signature(module.get_config).parameters) > 1:
      continue  # what config files share
    try:
      config = module.get_config("pod")
    except ValueError:
      continue
    yield name.removeprefix("experiments/"), config


def solve(devices):
  """100 steps for 1.28M latents, points over 8 chips and noise over 2."""
  mesh = jax.sharding.Mesh(np.array(devices).reshape(-1, 8), ("rows", "points"))
  shape = (1_281_168, 4096)
  batch_size = 4096

  def local(key, points):
    solution = ot.solve(
      key,
      points,
      num_samples=shape[0] + batch_size,
      batch_size=batch_size,
      num_eval=batch_size,
      axis_name="points",
      rows_axis_name="rows",
    )
    return solution.bias, solution.marginal_error

  split = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(P(), P("points")),
    out_specs=(P("points"), P()),
    check_vma=False,
  )
  where = jax.sharding.NamedSharding(mesh, P("points"))
  points = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)
  key = jax.eval_shape(jax.random.key, 0)
  compiled = jax.jit(split).lower(key, points).compile()
  memory = compiled.memory_analysis()
  return plan.Compiled(
    "solve",
    memory.argument_size_in_bytes,
    memory.output_size_in_bytes,
    memory.temp_size_in_bytes,
    collectives=cost.collectives(compiled.as_text(), mesh.size),
  )


def row(name, one, chip, seconds):
  """One line of a table."""
  if one.error:
    return f"| {name} | {one.name} | {one.error} | | | {seconds:.0f} |"
  messages = one.collectives or {}
  sent = sum(c.sent for c in messages.values()) / GIB
  kinds = ", ".join(f"{c.number} {kind}" for kind, c in messages.items())
  return (
    f"| {name} | {one.name} | {one.arguments / GIB:.2f} + "
    f"{(one.outputs + one.temporaries) / GIB:.2f} GiB"
    f"{'' if one.fits(chip) else ', DOES NOT FIT'} | {one.flops / 1e12:.3g} | "
    f"{sent:.3g} GiB: {kinds or 'none'} | {seconds:.0f} |"
  )


def main(topology="v5e:4x4", *words):
  if not plan.is_child():
    command = plan.command(sys.argv, "benchmarks.pods")
    raise SystemExit(plan.run_child(command, topology))
  devices = plan.devices(topology)
  _, chip = plan.parse(topology)
  print(f"{len(devices)} chips of {topology}")
  print(
    "| variant | program | memory a chip | TFLOP | sent a chip | compiled |"
  )
  print("|---|---|---|---|---|---|")
  for name, config in pods(words):
    print(f"{name} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
      found = plan.compile_for(training.stand_in(config), config, devices)
    except (ValueError, ImportError, FileNotFoundError) as error:
      found = [plan.Compiled("-", error=" ".join(str(error).split()))]
    seconds = time.perf_counter() - start
    for one in found:
      print(row(name, one, chip, seconds), flush=True)
  if not words or "solve" in words:
    start = time.perf_counter()
    one = solve(devices)
    print(row("alignflow", one, chip, time.perf_counter() - start))


if __name__ == "__main__":
  main(*sys.argv[1:])
