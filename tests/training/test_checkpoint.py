import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdiff import training
from jdiff.training import checkpoint, sharding
from tests.training import results, toy


class Extra(NamedTuple):
  flags: jax.Array
  keys: jax.Array
  nothing: None = None


def init(key):
  params = {
    "w": jax.random.normal(key, (256, 512)),
    "half": jnp.ones((3, 8), jnp.bfloat16),
    "scalar": jnp.float32(2.5),
  }
  extra = Extra(jnp.arange(5) > 2, jax.random.split(key, 4))
  return training.create(key, params, optax.adam(1e-3), extra)


def make(mesh):
  abstract = jax.eval_shape(init, jax.random.key(3))
  shardings = sharding.state_shardings(abstract, mesh)
  return abstract, shardings


def mesh_of(data, fsdp):
  return training.make_mesh(data, fsdp)


def assert_equal(one, other):
  def plain(x):
    typed = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if typed else x)

  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(plain(a), plain(b)), one, other
  )


@pytest.mark.parametrize("data, fsdp", [(1, 1), (2, 4), (1, 8)])
def test_round_trip_onto_other_meshes(tmp_path, data, fsdp):
  abstract, shardings = make(mesh_of(4, 2))
  state = jax.jit(init, out_shardings=shardings)(jax.random.key(3))
  with checkpoint.Checkpoints(tmp_path) as saved:
    assert saved.newest() is None
    saved.save(7, state)
    saved.wait()
  abstract, shardings = make(mesh_of(data, fsdp))
  with checkpoint.Checkpoints(tmp_path) as saved:
    assert saved.newest() == 7
    again = saved.restore(7, abstract, shardings)
  assert_equal(state, again)
  spec = again.params["w"].sharding.spec
  assert ("fsdp" in spec) == (fsdp > 1)
  assert again.opt_state[0].mu["w"].sharding.spec == spec
  # The restored key is typed and draws the same numbers.
  np.testing.assert_array_equal(
    jax.random.normal(training.step_key(state), (3,)),
    jax.random.normal(training.step_key(again), (3,)),
  )


def test_two_newest_are_kept(tmp_path):
  state = jax.jit(init)(jax.random.key(3))
  with checkpoint.Checkpoints(tmp_path) as saved:
    for step in (1, 2, 3, 3):
      saved.save(step, state)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


@pytest.mark.parametrize(
  "change, message",
  [
    (
      lambda p: p | {"w": p["w"].astype(jnp.bfloat16)},
      r"holds float32\[256, 512\] for params\['w'\] but this program needs "
      r"bfloat16\[256, 512\]",
    ),
    (lambda p: p | {"w": p["w"][:, :5]}, r"needs float32\[256, 5\]"),
    (lambda p: p | {"new": p["w"]}, r"holds nothing for params\['new'\]"),
    (lambda p: {"half": p["half"]}, "this program needs nothing"),
  ],
)
def test_another_programs_checkpoint_is_refused(tmp_path, change, message):
  state = jax.jit(init)(jax.random.key(3))
  with checkpoint.Checkpoints(tmp_path) as saved:
    saved.save(1, state)
    saved.wait()
    # Only params change, so only they may be named.
    other = jax.eval_shape(lambda: state._replace(params=change(state.params)))
    shardings = sharding.state_shardings(other, mesh_of(1, 1))
    with pytest.raises(ValueError, match=message) as info:
      saved.restore(1, other, shardings)
  assert "damaged" not in str(info.value)


def truncate(folder):
  file = max(folder.rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
  file.write_bytes(file.read_bytes()[:-20])


def flip(folder):
  files = (folder / "state" / "ocdbt.process_0" / "d").iterdir()
  file = max(files, key=lambda p: p.stat().st_size)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 8
  file.write_bytes(bytes(data))


def remove(name):
  def damage(folder):
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()

  return damage


def empty(folder):
  for path in folder.rglob("*"):
    if path.is_file():
      path.write_bytes(b"")


@pytest.mark.parametrize(
  "damage",
  [
    truncate,
    flip,
    empty,
    remove("state"),
    remove("arrays"),
    remove("state/_METADATA"),
    remove("state/manifest.ocdbt"),
    remove("state/d"),
    remove("arrays/metadata"),
    remove("files.json"),
  ],
)
def test_damage_is_reported_and_nothing_is_lost(tmp_path, damage):
  abstract, shardings = make(mesh_of(1, 1))
  state = jax.jit(init, out_shardings=shardings)(jax.random.key(3))
  directory = tmp_path / "checkpoints"
  with checkpoint.Checkpoints(directory) as saved:
    saved.save(10, state)
    saved.save(20, state)
  damage(directory / "20")
  before = sorted(tmp_path.rglob("*"))
  text = f"checkpoint {directory / '20'} is damaged .*; step 10 is used"
  with pytest.warns(UserWarning, match=text):
    with checkpoint.Checkpoints(directory, read_only=True) as saved:
      assert saved.newest() == 10
      assert_equal(state, saved.restore(10, abstract, shardings))
  assert sorted(tmp_path.rglob("*")) == before
  for i in range(2):
    with pytest.warns(UserWarning, match=text):
      with checkpoint.Checkpoints(directory) as saved:
        assert saved.newest() == 10
        assert_equal(state, saved.restore(10, abstract, shardings))
        saved.save(20, state)
    assert (tmp_path / checkpoint.ASIDE / f"20_{i}").is_dir()
    if not i:
      damage(directory / "20")
  with checkpoint.Checkpoints(directory) as saved:
    assert saved.newest() == 20


def test_damage_without_an_older_checkpoint(tmp_path):
  directory = tmp_path / "checkpoints"
  with checkpoint.Checkpoints(directory) as saved:
    saved.save(10, jax.jit(init)(jax.random.key(3)))
  truncate(directory / "10")
  before = sorted(tmp_path.rglob("*"))
  for read_only in (False, True):
    with pytest.raises(ValueError, match="no checkpoint in .* is intact"):
      checkpoint.Checkpoints(directory, read_only=read_only).__enter__()
  assert sorted(tmp_path.rglob("*")) == before


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path):
  whole, hurt = tmp_path / "whole", tmp_path / "hurt"
  for workdir in (whole, hurt):
    results.run(toy.build(toy.CONFIG), toy.CONFIG, workdir)
  (hurt / "report.json").unlink()
  truncate(hurt / "checkpoints" / "30")
  with pytest.warns(UserWarning, match="step 24 is used"):
    training.load(hurt)
  with pytest.warns(UserWarning, match="moved to damaged; step 24 is used"):
    results.run(toy.build(toy.CONFIG), toy.CONFIG, hurt)
  assert (hurt / "damaged" / "30_0").is_dir()
  results.assert_same_run(whole, hurt)
