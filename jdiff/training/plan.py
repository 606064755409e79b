"""Compiles an experiment for a TPU slice or GPU node that is not there.

The real step, and the rollout before it, go through XLA for the chips that a
topology names; what comes back is what they would hold and send. Nothing runs,
and no time is measured: the roofline is arithmetic on published peaks, the
largest of three lower bounds. Needs the extra `plan`.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jdiff.training import cost, sharding
from jdiff.training import program as program_lib
from jdiff.training.experiment import Experiment

CHILD = "JDIFF_PLAN_CHILD"
"""Set in the environment of the process that compiles."""


class Chip(NamedTuple):
  """A chip's published figures.

  Attributes:
    hbm: Bytes of memory that a program may use.
    flops: Peak, bfloat16, a second.
    bandwidth: Of its memory, bytes a second.
    link: Bytes a second that it can send to its neighbours, one way.
  """

  hbm: float
  flops: float
  bandwidth: float
  link: float


CHIPS = {
  "v5e": Chip(16e9, 197e12, 0.82e12, 100e9),
  "v5p": Chip(95e9, 459e12, 2.77e12, 300e9),
  "v6e": Chip(32e9, 918e12, 1.64e12, 200e9),
  "h100": Chip(80e9, 989e12, 3.35e12, 450e9),
}
"""By the name before the colon of a topology.

Chips that are two devices to XLA (v4, tpu7x) are left out: all figures here are
of a chip.
"""

_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""XLA's description of an H100: what stands in for the device."""


class Compiled(NamedTuple):
  """One program, compiled for a mesh.

  Attributes:
    name: `"step"` or `"rollout"`.
    arguments: Bytes a chip of what goes in, the state included.
    outputs: Bytes a chip of what comes out and takes no argument's place.
    temporaries: Bytes a chip in between.
    flops: A chip's share of the matrix products.
    traffic: A chip's share of what those read and write: at least so much.
    open_loops: Loops of unknown length, counted once in the two before.
    collectives: By kind, or None where the text cannot be had.
    error: Why it did not compile, or empty.
  """

  name: str
  arguments: float = 0.0
  outputs: float = 0.0
  temporaries: float = 0.0
  flops: float = 0.0
  traffic: float = 0.0
  open_loops: int = 0
  collectives: Mapping[str, cost.Collectives] | None = None
  error: str = ""

  @property
  def total(self) -> float:
    """Bytes a chip."""
    return self.arguments + self.outputs + self.temporaries

  def fits(self, chip: Chip) -> bool:
    """Whether it compiled, and its bytes are the chip's."""
    return not self.error and self.total <= chip.hbm


def parse(topology: str) -> tuple[str, Chip]:
  """The chip of `"v5e:8x8"` or `"h100:8"`, by name and figures.

  Raises:
    ValueError: If it is not known or has no shape.
  """
  name, _, shape = topology.partition(":")
  sizes = shape.split("x")
  good = name in CHIPS and all(size.isdecimal() for size in sizes)
  if not good or (name == "h100" and len(sizes) > 1):
    raise ValueError(
      f"--plan must be CHIP:SHAPE, such as v5e:8x8, v5p:2x2x4 or h100:8, with "
      f"a chip of {', '.join(CHIPS)}; got {topology!r}."
    )
  return name, CHIPS[name]


def devices(topology: str) -> list[Any]:
  """Stand-ins for the chips of a topology.

  Call in a process whose environment is `environment`'s from before JAX was
  imported.

  Raises:
    ValueError: If there is no such topology.
    ImportError: Without the packages that know the chips.
  """
  from jax.experimental import topologies

  name, _ = parse(topology)
  try:
    if name == "h100":
      count = int(topology.partition(":")[2])
      described = topologies.get_topology_desc(
        platform="cuda",
        topology_name=name,
        target_config=_H100,
        topology=f"1x{count}x1",
      )
    else:
      described = topologies.get_topology_desc(
        platform="tpu", topology_name=topology
      )
  except Exception as error:
    text = " ".join(str(error).split())
    if any(word in text for word in ("not installed", "not implemented")):
      raise ImportError(
        "--plan needs the compilers of chips that are not here; pip install "
        f'"jdiff-research[plan]" ({text[:200]}).'
      ) from error
    raise ValueError(f"--plan={topology}: {text[:200]}.") from error
  return list(described.devices)


def environment(topology: str) -> dict[str, str]:
  """Variables that a process needs which calls `devices`."""
  parse(topology)
  return {
    "JAX_PLATFORMS": "cpu",
    # No chip is taken, so that several may compile at a time.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    CHILD: "1",
  }


def run_child(command: Sequence[str], topology: str) -> int:
  """Runs a command that plans, in its own process; its exit status."""
  child = subprocess.run(
    command, env={**os.environ, **environment(topology)}, check=False
  )
  return child.returncode


def is_child() -> bool:
  """Whether this process was started to compile."""
  return CHILD in os.environ


def compile_for(
  experiment: Experiment, config: Any, chips: Sequence[Any]
) -> list[Compiled]:
  """Compiles the rollout, where there is one, and the step.

  Args:
    experiment: Its functions; `batches(0)` is called, and `host` on zeros.
    config: Of the run; its `mesh` is used.
    chips: Of `devices`.

  Raises:
    ValueError: If the mesh needs more chips, or does not divide an axis.
  """
  mesh = sharding.config_mesh(config.mesh, chips)
  program = program_lib.compile_experiment(experiment, mesh)
  batch = None if experiment.batches is None else experiment.batches(0)
  compiled = []
  with jax.set_mesh(mesh):
    state = sharding.abstract(program.abstract, program.shardings)
    batch = _on_mesh(batch, mesh)
    if program.collect is not None:
      args = () if batch is None else (batch,)
      compiled.append(_compile("rollout", program.collect, mesh, state, *args))
      _, rollout = jax.eval_shape(program.collect, state, *args)
      arrays = None
      if experiment.host is not None:
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), rollout)
        arrays = experiment.host(zeros)
      batch = _on_mesh((rollout, arrays), mesh)
    compiled.append(_compile("step", program.step, mesh, state, batch))
  return compiled


def table(
  title: str, topology: str, config: Any, compiled: Sequence[Compiled]
) -> str:
  """Lines for people: memory, work, messages and the roofline."""
  _, chip = parse(topology)
  mesh = dict(config.mesh)
  shape = " x ".join(f"{axis}={mesh[axis]}" for axis in mesh)
  lines = [f"{title} on {topology}, mesh {shape}"]
  for one in compiled:
    lines += _lines(one, chip)
  good = all(one.fits(chip) for one in compiled)
  lines.append(f"  {'fits' if good else 'DOES NOT FIT'}")
  return "\n".join(lines)


def roofline(one: Compiled, chip: Chip) -> dict[str, float]:
  """Seconds that products, memory and links need at least, at their peaks.

  Links are left out where the messages are not known.
  """
  times = {
    "products": one.flops / chip.flops,
    "memory": one.traffic / chip.bandwidth,
  }
  if one.collectives is not None:
    sent = sum(c.sent for c in one.collectives.values())
    times["links"] = sent / chip.link
  return times


def _lines(one: Compiled, chip: Chip) -> list[str]:
  if one.error:
    return [f"  {one.name}: {one.error}"]
  parts = (
    ("arguments", one.arguments),
    ("outputs", one.outputs),
    ("temporaries", one.temporaries),
  )
  memory = ", ".join(f"{name} {_binary(size)}" for name, size in parts)
  share = one.total / chip.hbm
  lines = [
    f"  {one.name}: {_binary(one.total)} a chip, {share:.1%} of its memory "
    f"({memory})",
    f"    products {_decimal(one.flops, 'FLOP')} a chip"
    + (
      f", {one.open_loops} loops of unknown length counted once"
      if one.open_loops
      else ""
    ),
  ]
  if one.collectives is None:
    lines.append(
      "    messages: this program cannot be printed; plan the same mesh on v5e"
    )
  else:
    sent = [
      f"{c.number} {kind} ({_binary(c.sent)} sent)"
      for kind, c in one.collectives.items()
    ]
    lines.append(f"    messages a chip: {', '.join(sent) or 'none'}")
  times = roofline(one, chip)
  worst = max(times, key=lambda name: times[name])
  shown = ", ".join(
    f"{name} {_decimal(value, 's')}" for name, value in times.items()
  )
  lines.append(f"    estimate, at least: {shown}; bound by {worst}")
  return lines


def _binary(size: float) -> str:
  """Bytes in a unit that suits them."""
  for unit in ("B", "KiB", "MiB"):
    if size < 1024:
      return f"{size:.3g} {unit}"
    size /= 1024
  return f"{size:.2f} GiB"


def _decimal(value: float, unit: str) -> str:
  """A number with a prefix that suits it."""
  prefixes = ("n", "u", "m", "", "k", "M", "G", "T", "P")
  place = 3
  while value and value < 1 and place > 0:
    value, place = value * 1e3, place - 1
  while value >= 1e3 and place < len(prefixes) - 1:
    value, place = value / 1e3, place + 1
  return f"{value:.3g} {prefixes[place]}{unit}"


def _on_mesh(tree: Any, mesh: Mesh) -> Any:
  def place(x):
    spec = sharding.batch_spec(x, mesh)
    x = x if hasattr(x, "dtype") else np.asarray(x)
    return jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
    )

  return jax.tree.map(place, tree)


def _compile(name: str, function: Any, mesh: Mesh, *args: Any) -> Compiled:
  traced = function.trace(*args)
  products = cost.products(traced.jaxpr)
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = next((x for x in lines if "xceeded" in x or "memory" in x), lines[0])
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return Compiled(name, error=text[:300])
  memory = compiled.memory_analysis()
  try:
    messages = cost.collectives(compiled.as_text(), mesh.size)
  except jax.errors.JaxRuntimeError:
    messages = None
  return Compiled(
    name,
    memory.argument_size_in_bytes,
    memory.output_size_in_bytes - memory.alias_size_in_bytes,
    memory.temp_size_in_bytes,
    products.flops / mesh.size,
    products.bytes / mesh.size,
    products.open_loops,
    messages,
  )


def command(argv: Sequence[str], module: str) -> list[str]:
  """The command line of the child, this one's in the same interpreter."""
  return [sys.executable, "-m", module, *argv[1:]]
