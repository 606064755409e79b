"""Settings that every test relies on, made before JAX is imported."""

import gc
import os
import pathlib
from importlib import metadata

# Tests compile much and run little: unoptimised code is made in half the time,
# and in half of that again by the older way to emit fused loops, which later
# versions lack. XLA ends the process at a flag that it does not know.
FAST_COMPILE = ["--xla_backend_optimization_level=0"]
if [int(part) for part in metadata.version("jaxlib").split(".")[:2]] < [0, 11]:
  FAST_COMPILE.append("--xla_cpu_use_fusion_emitters=false")

# Eight simulated devices for the sharding tests. Subprocesses inherit them.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    *FAST_COMPILE,
  ]
)

# Workers inherit this, and share the cores: with threads of NumPy's own in each
# of them, small matrices take several times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

# A silent [N] + [N, 1] is the commonest way to a wrong answer.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Traces are many small objects that live: at every 700 new ones, the default,
# the search for garbage takes a twentieth of all the time.
gc.set_threshold(50_000)


# A process may map 65530 parts of memory, by the kernel's default. A program
# takes a few, and XLA ends the process when it does not get them.
MAX_MAPS = 15_000
MAPS = pathlib.Path("/proc/self/maps")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
  """Lets go of compiled programs between modules, once there are many."""
  yield
  if MAPS.exists() and len(MAPS.read_bytes().splitlines()) > MAX_MAPS:
    jax.clear_caches()


@pytest.fixture(scope="module")
def compile_cache(tmp_path_factory):
  """For modules whose runs are the same programs: each is compiled once."""
  fields = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("xla_cache")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  before = {name: getattr(jax.config, name) for name in fields}
  for values in (fields, before):
    for name, value in values.items():
      jax.config.update(name, value)
    # JAX opens its cache once.
    compilation_cache.reset_cache()
    if values is fields:
      yield
