"""Settings that every test relies on, made before JAX is imported."""

import os

# Tests compile much and run little: unoptimised code is made in half the time.
FAST_COMPILE = "--xla_backend_optimization_level=0"

# Eight simulated devices for the sharding tests. Subprocesses inherit them.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    FAST_COMPILE,
  ]
)

import jax  # noqa: E402

# A silent [N] + [N, 1] is the commonest way to a wrong answer.
jax.config.update("jax_numpy_rank_promotion", "raise")
