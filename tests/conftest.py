"""Settings that every test relies on, made before JAX is imported."""

import os

# Eight simulated devices for the sharding tests. Subprocesses inherit them.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax  # noqa: E402

# A silent [N] + [N, 1] is the commonest way to a wrong answer.
jax.config.update("jax_numpy_rank_promotion", "raise")
