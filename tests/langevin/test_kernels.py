"""What every kernel owes its callers, whatever it samples."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import langevin
from jdiff.targets import manifolds

CAP = manifolds.cap(0.0, 1.0)
F, H, G = CAP.potential_fn, CAP.eq_fn, CAP.ineq_fn
KERNELS = {
  "olla": langevin.olla(F, H, G, step_size=0.01),
  "olla exact trace": langevin.olla(F, H, G, step_size=0.01, num_probes=None),
  "ula": langevin.ula(F, step_size=0.01),
  "mala": langevin.mala(F, step_size=0.01),
  "projected": langevin.projected_langevin(F, H, G, step_size=0.01),
  "hmc": langevin.constrained_hmc(F, H, G, step_size=0.1),
}
ALL = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


@ALL
def test_conformance(kernel):
  chex.clear_trace_counter()
  x = CAP.init(jax.random.key(0), 4)
  keys = jax.random.split(jax.random.key(1), 4)
  state = kernel.init(x[0])
  step = jax.jit(chex.assert_max_traces(kernel.step, n=1))
  one, info = step(keys[0], state)
  two, _ = step(keys[1], one)
  chex.assert_trees_all_equal_shapes_and_dtypes(state, one)
  assert int(two.step) == 2 and info.status.dtype == jnp.int32
  assert not np.allclose(one.position, two.position)
  with jax.debug_key_reuse(True):
    jax.jit(kernel.step)(jax.random.key(3), state)
  states = jax.vmap(kernel.init)(x)
  batched, _ = jax.jit(jax.vmap(kernel.step))(keys, states)
  # vmap only reorders float sums.
  np.testing.assert_allclose(batched.position[0], one.position, atol=1e-5)
  mapped, _ = jax.pmap(kernel.step)(
    keys[:2], jax.tree.map(lambda a: a[:2], states)
  )
  np.testing.assert_allclose(mapped.position, batched.position[:2], atol=1e-5)
  with pytest.raises(TypeError, match="float arrays"):
    kernel.init(jnp.array([1, 0, 0]))


@ALL
def test_sharded_chains(kernel):
  mesh = jax.make_mesh(
    (8,), ("chains",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  spec = jax.sharding.PartitionSpec("chains")
  x = CAP.init(jax.random.key(0), 16)
  keys = jax.random.split(jax.random.key(1), 16)

  def run(keys, x):
    return langevin.run_chains(keys, kernel, x, num_samples=3)[0]

  whole = jax.jit(run)(keys, x)
  split = jax.jit(
    jax.shard_map(
      run,
      mesh=mesh,
      in_specs=(spec, spec),
      out_specs=jax.sharding.PartitionSpec(None, "chains"),
    )
  )(keys, x)
  np.testing.assert_allclose(split, whole, atol=2e-4)


def test_run_chains_is_a_loop():
  kernel, x = KERNELS["olla"], CAP.init(jax.random.key(0), 3)
  key = jax.random.key(5)

  @jax.jit
  def run(x):
    return langevin.run_chains(
      key, kernel, x, num_samples=2, thinning=3, num_burn_in=4
    )

  samples, summary = run(x)
  fewer, _ = run(x[:2])
  np.testing.assert_allclose(samples[:, :2], fewer, atol=1e-6)
  state, kept, distances = kernel.init(x[1]), [], []
  chain_key, step = jax.random.fold_in(key, 1), jax.jit(kernel.step)
  for i in range(10):
    state, info = step(jax.random.fold_in(chain_key, i), state)
    if i >= 4:
      distances.append(float(info.distance))
    if i in (6, 9):
      kept.append(state.position)
  np.testing.assert_allclose(samples[:, 1], kept, atol=1e-5)
  np.testing.assert_allclose(
    summary.mean["distance"][1], np.mean(distances), rtol=1e-3
  )
  np.testing.assert_allclose(
    summary.max["distance"][1], np.max(distances), rtol=1e-3
  )
  np.testing.assert_allclose(summary.status.sum(axis=1), 1, rtol=1e-6)
  with pytest.raises(ValueError, match="thinning must be >= 1"):
    langevin.run_chains(key, kernel, x, num_samples=2, thinning=0)


def test_float32_floor():
  # In float32 violations stop shrinking at rounding: this constraint is met to
  # 2e-5, in float64 to 3e-14.
  floors = {}
  for dtype in (np.float32, np.float64):
    with jax.enable_x64(dtype == np.float64):
      a = np.linspace(1, 2, 50).astype(dtype)
      k = langevin.olla(
        lambda x: jnp.zeros((), x.dtype),
        lambda x, a=a: jnp.stack([jnp.dot(a, x) - 1]),
        step_size=1e-3,
      )
      _, summary = jax.jit(
        lambda x, k=k: langevin.run_chains(
          jax.random.key(0), k, x, num_samples=1, thinning=20, num_burn_in=100
        )
      )(jnp.zeros((2, 50), dtype))
      floors[dtype] = float(summary.max["eq_residual"].max())
  assert floors[np.float64] < 1e-13 < floors[np.float32] < 1e-4
