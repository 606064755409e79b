"""Compiles the pod variants for TPU slices that this machine does not have.

  python -m benchmarks.pods [topology [system ...]]   # needs the extra "plan"

Systems: mdns, pdns, alignflow (or one of its sets), solve (the semi-discrete
dual of ImageNet's latents), masked_lm (or text, gdpo, dmpo), tr2d2, world (or
world_tiles).

Prints bytes a chip of one training step, as XLA's memory analysis has them, and
of the collection before it where there is one. No time is measured, and a step
that does not fit fails to compile.
"""

import functools
import os
import sys
import tempfile
import time

os.environ.update(
  JAX_PLATFORMS="cpu",
  TPU_ACCELERATOR_TYPE="v5litepod-16",
  TPU_SKIP_MDS_QUERY="1",
  TPU_WORKER_HOSTNAMES="localhost",
)

# libtpu reads the variables above when jax is imported.
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from experiments.alignflow import (  # noqa: E402
  checkerboard,
  cifar10,
  digits,
  imagenet_latents,
  mnist,
)
from experiments.alignflow import experiment as alignflow  # noqa: E402
from experiments.common import data as data_lib  # noqa: E402
from experiments.dmpo import arithmetic as dmpo_arithmetic  # noqa: E402
from experiments.dmpo import experiment as dmpo  # noqa: E402
from experiments.gdpo import arithmetic as gdpo_arithmetic  # noqa: E402
from experiments.gdpo import experiment as gdpo  # noqa: E402
from experiments.masked_lm import corpora  # noqa: E402
from experiments.masked_lm import experiment as masked_lm  # noqa: E402
from experiments.masked_lm import text as masked_lm_text  # noqa: E402
from experiments.mdns import ising, potts  # noqa: E402
from experiments.pdns import gmm, manywell, maxcut, particles  # noqa: E402
from experiments.pdns import ising as pdns_ising  # noqa: E402
from experiments.pdns import potts as pdns_potts  # noqa: E402
from experiments.tr2d2 import dna as tr2d2_dna  # noqa: E402
from experiments.tr2d2 import experiment as tr2d2  # noqa: E402
from experiments.tr2d2 import peptides as tr2d2_peptides  # noqa: E402
from experiments.world import envs as world_envs  # noqa: E402
from experiments.world import experiment as world  # noqa: E402
from experiments.world import parts as world_parts  # noqa: E402
from experiments.world import pod as world_pod  # noqa: E402
from jdiff import ot, training  # noqa: E402

FLOWS = {
  "checkerboard": checkerboard,
  "digits": digits,
  "mnist": mnist,
  "cifar10": cifar10,
  "imagenet_latents": imagenet_latents,
}
TUNED = {"gdpo": (gdpo, gdpo_arithmetic), "dmpo": (dmpo, dmpo_arithmetic)}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")


def mdns(devices):
  for module in (ising, potts):
    config = module.get_config("pod")
    train_step(config, training.build(config), devices)


def pdns(devices):
  for module in (pdns_ising, pdns_potts, maxcut, gmm, manywell, particles):
    config = module.get_config("pod")
    config.name = f"pdns {config.name}"
    train_step(config, training.build(config), devices)


def alignflow_steps(devices, names=tuple(FLOWS)):
  for name in names:
    module = FLOWS[name]
    config = module.get_config("pod")
    # Rows are stand-ins and their dual is rough: shapes are all that counts.
    config.coupling.samples_per_point = 100
    with tempfile.TemporaryDirectory() as folder:
      if config.coupling.table:
        config.coupling.table = f"{folder}/pairs.npz"
        config.coupling.pairs_per_point = 1
      dataset = data_lib.stand_in(config.data.name)
      built = alignflow.build(config, dataset)
      batch = built.batches(0) if built.batches else None
    train_step(config, built, devices, batch)


def masked_lm_steps(devices, names=("text", *TUNED)):
  for name in names:
    if name == "text":
      config = masked_lm_text.get_config("pod")
      built = masked_lm.build(config)
    else:
      experiment, module = TUNED[name]
      config = module.get_config("pod")
      config.name = f"{name} {config.name}"
      corpus = corpora.load(**config.base.data)
      network = masked_lm.make_network(config.base, corpus)
      # In place of a trained base.
      zeros = functools.partial(make_zeros, network.init)
      built = experiment.build(config, corpus=corpus, base_params=zeros)
    train_step(config, built, devices, built.batches(0))


def tr2d2_steps(devices):
  for module in (tr2d2_dna, tr2d2_peptides):
    config = module.get_config("pod")
    corpus = corpora.load(**config.base.data)
    network = masked_lm.make_network(config.base, corpus)
    zeros = functools.partial(make_zeros, network.init)
    built = tr2d2.build(config, base_params=zeros)
    train_step(config, built, devices)


def world_steps(devices, variants=("pod",)):
  for variant in variants:
    config = world_pod.get_config(variant)
    config.name = f"world {config.name}"
    built = world.build(config)
    env = world_parts.env(config.env)
    sites = world_envs.layout(env).length
    params = jax.eval_shape(
      built.init, jax.eval_shape(jax.random.key, 0)
    ).params
    size = sum(x.size for x in jax.tree.leaves(params))
    frames = config.batch_size * config.data.num_frames
    print(
      f"{config.name} pod: {size / 1e6:.1f}M parameters, "
      f"{frames * sites / 1e6:.2f}M tokens a step in each of two streams"
    )
    train_step(config, built, devices)


def make_zeros(init):
  abstract = jax.eval_shape(init, jax.eval_shape(jax.random.key, 0))
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)


def train_step(config, experiment, devices, batch=None):
  mesh = training.make_mesh(config.mesh.data, config.mesh.fsdp, devices=devices)
  program = training.compile_experiment(experiment, mesh)

  def on_mesh(batch):
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape,
        x.dtype,
        sharding=jax.sharding.NamedSharding(
          mesh, training.sharding.batch_spec(x, mesh)
        ),
      ),
      batch,
    )

  with jax.set_mesh(mesh):
    state = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      program.abstract,
      program.shardings,
    )
    batch = on_mesh(batch)
    if program.collect is not None:
      args = () if batch is None else (batch,)
      lowered = program.collect.lower(state, *args)
      describe(f"{config.name} pod, collection", lowered)
      _, rollout = jax.eval_shape(program.collect, state, *args)
      arrays = None
      if experiment.host is not None:
        arrays = experiment.host(
          jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), rollout)
        )
        arrays = jax.eval_shape(lambda: arrays)
      batch = on_mesh((rollout, arrays))
    describe(f"{config.name} pod", program.step.lower(state, batch))


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
  describe("dual of 1.28M x 4096 float32", jax.jit(split).lower(key, points))


def describe(name, lowered):
  start = time.perf_counter()
  compiled = lowered.compile()
  seconds = time.perf_counter() - start
  memory, text = compiled.memory_analysis(), compiled.as_text()
  counts = {op: text.count(f"{op}(") for op in COLLECTIVES}
  print(
    f"{name}: arguments {memory.argument_size_in_bytes / 2**30:.3f} GiB and "
    f"temporaries {memory.temp_size_in_bytes / 2**30:.2f} GiB a chip, "
    + ", ".join(f"{n} {op}" for op, n in counts.items() if n)
    + f"; compiled in {seconds:.0f} s",
    flush=True,
  )


SYSTEMS = {
  "mdns": mdns,
  "pdns": pdns,
  "alignflow": alignflow_steps,
  "solve": solve,
  "masked_lm": masked_lm_steps,
  "tr2d2": tr2d2_steps,
  "world": world_steps,
}
EVERYTHING = tuple(SYSTEMS)
SYSTEMS["world_tiles"] = functools.partial(world_steps, variants=("pod_tiles",))
SYSTEMS |= {
  name: functools.partial(alignflow_steps, names=(name,)) for name in FLOWS
}
SYSTEMS |= {
  name: functools.partial(masked_lm_steps, names=(name,))
  for name in ("text", *TUNED)
}


def main(topology, names):
  devices = topologies.get_topology_desc(
    platform="tpu", topology_name=topology
  ).devices
  print(f"{len(devices)} chips of {topology}")
  for name in names or EVERYTHING:
    SYSTEMS[name](devices)


if __name__ == "__main__":
  main(sys.argv[1] if len(sys.argv) > 1 else "v5e:4x4", sys.argv[2:])
