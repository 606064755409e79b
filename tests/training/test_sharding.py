import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jdiff import training
from jdiff.training import sharding
from tests.training import results, toy


def struct(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
  "array, spec",
  [
    (struct(512, 256), PartitionSpec("fsdp")),
    (struct(256, 512), PartitionSpec(None, "fsdp")),
    (struct(3, 510, 256), PartitionSpec(None, None, "fsdp")),
    (struct(511, 513), PartitionSpec()),
    (struct(64, 64), PartitionSpec()),
    (struct(), PartitionSpec()),
    (jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2**16)), ()),
  ],
)
def test_fsdp_spec_splits_the_largest_axis_it_can(array, spec):
  mesh = training.make_mesh(2, 4)
  assert sharding.fsdp_spec(array, mesh) == PartitionSpec(*spec)
  alone = training.make_mesh(8, 1)
  assert sharding.fsdp_spec(array, alone) == PartitionSpec()


def test_make_mesh_counts_devices():
  assert tuple(training.make_mesh().shape.values()) == (8, 1, 1)
  assert dict(training.make_mesh(-1, 4).shape) == {
    "data": 2,
    "fsdp": 4,
    "tensor": 1,
  }
  assert tuple(training.make_mesh(-1, 2, 2).shape.values()) == (2, 2, 2)
  mesh = training.make_mesh(2, 1, devices=jax.devices()[3:])
  assert [d.id for d in mesh.devices.flat] == [3, 4]
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
  with pytest.raises(ValueError, match="data=3 x fsdp=4 x tensor=1 needs 12"):
    training.make_mesh(3, 4)
  with pytest.raises(ValueError, match="mesh.fsdp must be >= 1"):
    training.make_mesh(1, 0)


def test_shard_batch_without_a_mesh_is_the_identity():
  x = jnp.ones((8, 2))
  assert training.shard_batch(x) is x


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize(
  "size, parts", [(16, 8), (8, 8), (12, 4), (6, 2), (7, 1)]
)
def test_shard_batch_splits_what_divides(size, parts, jitted):
  # data 4 x fsdp 2: 12 is split over data alone, 6 over fsdp alone.
  function = jax.jit(training.shard_batch) if jitted else training.shard_batch
  batch = {
    "x": jnp.arange(size * 2.0).reshape(size, 2),
    "keys": jax.random.split(jax.random.key(0), size),
    "scalar": jnp.float32(1),
  }
  with jax.set_mesh(training.make_mesh(4, 2)):
    out = function(batch)
  np.testing.assert_array_equal(out["x"], batch["x"])
  assert jnp.all(out["keys"] == batch["keys"])
  for name in ("x", "keys"):
    shape = out[name].sharding.shard_shape(out[name].shape)
    assert shape[0] == size // parts


def test_put_batch_places_host_arrays():
  mesh = training.make_mesh(4, 2)
  out = sharding.put_batch({"x": np.ones((8, 3)), "n": np.int32(2)}, mesh)
  assert out["x"].sharding.spec == PartitionSpec(("data", "fsdp"))
  assert out["n"].sharding == NamedSharding(mesh, PartitionSpec())


def wide(**changes):
  """2^16 weights, so that fsdp really splits them."""
  changes |= {"width": 2**16, "num_eval": 40}
  return toy.config(num_steps=6, log_every=1, eval_every=4, **changes)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  workdir, config = tmp_path_factory.mktemp("one"), wide()
  results.run(toy.build(config), config, workdir)
  return workdir


@pytest.mark.parametrize("data, fsdp", [(8, 1), (2, 4)])
def test_one_and_eight_devices_agree(one, tmp_path, data, fsdp):
  many = wide(mesh={"data": data, "fsdp": fsdp})
  results.run(toy.build(many), many, tmp_path)
  pair = zip(results.metrics(one), results.metrics(tmp_path), strict=True)
  for a, b in pair:
    assert a.keys() == b.keys()
    for name in a:
      # Sums of 2^16 float32 terms in another order.
      np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=name)
  trees = [training.load(folder)[1] for folder in (one, tmp_path)]
  np.testing.assert_allclose(trees[0]["w"], trees[1]["w"], atol=1e-4)


def test_a_run_resumes_on_another_mesh(tmp_path):
  one, many = toy.CONFIG, toy.config(mesh={"data": 4, "fsdp": 2})
  results.run(toy.build(one), one, tmp_path / "whole")
  base = toy.build(one)

  def batches(step):
    if step == 15:
      raise RuntimeError("gone")
    return base.batches(step)

  with pytest.raises(RuntimeError, match="gone"):
    results.run(base._replace(batches=batches), one, tmp_path / "moved")
  results.run(toy.build(many), many, tmp_path / "moved")
  last, other = (
    results.metrics(tmp_path / name)[-1] for name in ("whole", "moved")
  )
  np.testing.assert_allclose(last["eval/mse"], other["eval/mse"], rtol=1e-5)
