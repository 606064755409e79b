"""Compiles the pod variants for TPU slices that this machine does not have.

  python -m benchmarks.pods [topology]        # needs the extra "plan"

Prints bytes a chip of one training step, as XLA's memory analysis has them. No
time is measured, and a step that does not fit fails to compile.
"""

import os
import sys
import time

os.environ.update(
  JAX_PLATFORMS="cpu",
  TPU_ACCELERATOR_TYPE="v5litepod-16",
  TPU_SKIP_MDS_QUERY="1",
  TPU_WORKER_HOSTNAMES="localhost",
)

# libtpu reads the variables above when jax is imported.
import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from experiments.mdns import ising, potts  # noqa: E402
from jdiff import training  # noqa: E402

MODULES = (ising, potts)
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")


def main(topology):
  devices = topologies.get_topology_desc(
    platform="tpu", topology_name=topology
  ).devices
  for module in MODULES:
    config = module.get_config("pod")
    mesh = training.make_mesh(
      config.mesh.data, config.mesh.fsdp, devices=devices
    )
    program = training.compile_experiment(training.build(config), mesh)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
      state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        program.abstract,
        program.shardings,
      )
      compiled = program.step.lower(state, None).compile()
    seconds = time.perf_counter() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    counts = {name: text.count(f"{name}(") for name in COLLECTIVES}
    print(
      f"{config.name} pod on {len(devices)} chips of {topology}: arguments "
      f"{memory.argument_size_in_bytes / 2**30:.3f} GiB and temporaries "
      f"{memory.temp_size_in_bytes / 2**30:.2f} GiB a chip, "
      + ", ".join(f"{n} {name}" for name, n in counts.items() if n)
      + f"; compiled in {seconds:.0f} s",
      flush=True,
    )


if __name__ == "__main__":
  main(sys.argv[1] if len(sys.argv) > 1 else "v5e:4x4")
