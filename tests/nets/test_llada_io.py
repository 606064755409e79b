"""LLaDA's checkpoints, in and out: bit by bit, by parts, or not at all."""

import contextlib
import dataclasses
import functools
import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec as P

from benchmarks import llama_reference
from jdiff import training
from jdiff.nets import llada, llada_io, lora
from jdiff.training import sharding

safetensors = pytest.importorskip("safetensors")
st = pytest.importorskip("safetensors.numpy")

ROOT = "model.transformer."
QUERY = f"{ROOT}blocks.1.q_proj.weight"
FIRST, SECOND = "a.safetensors", "b.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = llada.Config(
  num_tokens=llama_reference.VOCAB,
  **llama_reference.CONFIG,
  num_kv_heads=2,
  mask_id=llama_reference.MASK,
  eos_id=llama_reference.PAD,
  max_length=8,
)
FULL = dataclasses.replace(CONFIG, num_kv_heads=4)


@functools.cache
def weights(config=CONFIG, dtype="float32"):
  values = llama_reference.weights(config.num_kv_heads)
  return {name: x.astype(jnp.dtype(dtype)) for name, x in values.items()}


@functools.cache
def params():
  return llada_io.from_tensors(weights(), CONFIG)


def write(directory, tensors, config=CONFIG, *, index=True):
  """A checkpoint of two files, not in the order of layers, and its config."""
  files = {FIRST: {}, SECOND: {}}
  for number, name in enumerate(sorted(tensors)):
    files[(FIRST, SECOND)[number % 2]][name] = tensors[name]
  for file, part in files.items():
    st.save_file(part, directory / file)
  if index:
    names = {name: file for file, part in files.items() for name in part}
    (directory / INDEX).write_text(json.dumps({"weight_map": names}))
  (directory / "config.json").write_text(json.dumps(released(config)))
  return directory


def released(config):
  """`config.json`, by the names of the released ones."""
  return {
    "d_model": config.width,
    "embedding_size": config.num_tokens,
    "eos_token_id": config.eos_id,
    "mask_token_id": config.mask_id,
    "max_sequence_length": config.max_length,
    "mlp_hidden_size": config.mlp_width,
    "n_heads": config.num_heads,
    "n_kv_heads": config.num_kv_heads,
    "n_layers": config.num_layers,
    "rms_norm_eps": config.norm_eps,
    "rope_theta": config.rope_base,
  }


def read(directory):
  return {
    name: x
    for file in sorted(directory.glob("*.safetensors"))
    for name, x in st.load_file(file).items()
  }


def contents(directory):
  return {file.name: file.read_bytes() for file in directory.iterdir()}


def assert_same_bits(got, wanted):
  assert got.keys() == wanted.keys()
  for name, x in wanted.items():
    assert got[name].dtype == x.dtype and got[name].shape == x.shape, name
    assert got[name].tobytes() == np.asarray(x).tobytes(), name


@pytest.fixture
def nothing_made(monkeypatch):
  """Fails if an array is made: a load that is refused leaves no half model."""

  def refuse(*args, **options):
    pytest.fail("an array was made")

  monkeypatch.setattr(jax, "make_array_from_callback", refuse)


def test_every_name_has_its_place():
  table = {
    "wte": "embed/embedding",
    "ln_f": "norm/scale",
    "ff_out": "head_kernel",
    "blocks.{}.attn_norm": "blocks/attention_norm/scale",
    "blocks.{}.ff_norm": "blocks/mlp_norm/scale",
    "blocks.{}.q_proj": "blocks/query/kernel",
    "blocks.{}.k_proj": "blocks/key/kernel",
    "blocks.{}.v_proj": "blocks/value/kernel",
    "blocks.{}.attn_out": "blocks/out/kernel",
    "blocks.{}.ff_proj": "blocks/gate/kernel",
    "blocks.{}.up_proj": "blocks/up/kernel",
    "blocks.{}.ff_out": "blocks/down/kernel",
  }
  for name, path in table.items():
    for layer in (0, 9, 31) if "{}" in name else (None,):
      wanted = (tuple(path.split("/")), layer, path.endswith("kernel"))
      assert llada_io.rename(f"{ROOT}{name.format(layer)}.weight") == wanted


@pytest.mark.parametrize(
  "name",
  """
  model.transformer.wte model.transformer.wte.bias transformer.wte.weight
  model-transformer.wte.weight x.model.transformer.wte.weight lm_head.weight
  model.transformer.q_proj.weight model.transformer.blocks.0.wte.weight
  model.transformer.blocks.0.q_proj.bias model.transformer.blocks.0.ln_f.weight
  model.transformer.blocks.0.o_proj.weight model.embed_tokens.weight
  model.transformer.blocks.-1.q_proj.weight
  model.transformer.blocks.00.q_proj.weight
  model.transformer.blocks.\u0661.q_proj.weight
  model.transformer.blocks.0.q_proj.weight.weight
  """.split()
  + ["", "model.transformer.wte.weight\n"],
)
def test_other_names_are_refused(name):
  with pytest.raises(ValueError, match="belongs to no LLaDA model"):
    llada_io.rename(name)


@pytest.mark.parametrize("config", [FULL, CONFIG, llada.LLADA_8B])
def test_the_table_covers_the_network(config):
  shapes = llada_io.tensor_shapes(config)
  leaves = traverse_util.flatten_dict(llada.abstract(config, jnp.bfloat16))
  assert all(leaf.dtype == jnp.bfloat16 for leaf in leaves.values())
  places = {name: llada_io.rename(name) for name in shapes}
  wanted = {
    (path, layer)
    for path in leaves
    for layer in (range(config.num_layers) if path[0] == "blocks" else [None])
  }
  assert len(places) == len(wanted)
  assert {(p.path, p.layer) for p in places.values()} == wanted
  for name, place in places.items():
    shape = leaves[place.path].shape
    if place.layer is not None:
      assert shape[0] == config.num_layers
      shape = shape[1:]
    if place.transpose:
      # Heads and their features are one axis of a matrix.
      cut = 2 if place.path[1:2] == ("out",) else 1
      shape = (math.prod(shape[cut:]), math.prod(shape[:cut]))
    assert shapes[name] == shape, name
  total = sum(math.prod(shape) for shape in shapes.values())
  assert total == config.num_params
  assert total == sum(math.prod(leaf.shape) for leaf in leaves.values())
  if config == llada.LLADA_8B:
    assert total == 8_015_581_184 and len(shapes) == 32 * 9 + 3
  llada_io.check_tensors(shapes, config)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [FULL, CONFIG], ids=["mha", "gqa"])
def test_nothing_is_lost_on_the_way_in_and_out(tmp_path, config, dtype):
  tensors = weights(config, dtype)
  loaded = llada_io.load(write(tmp_path, tensors, config))
  wanted = llada.abstract(config, dtype)
  for x, y in zip(*map(jax.tree.leaves, (loaded, wanted)), strict=True):
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
  assert_same_bits(llada_io.to_tensors(loaded, config), tensors)
  # Cut into several files, each below the limit, unlike those read above.
  limit = 3 * max(x.nbytes for x in tensors.values())
  first, second = tmp_path / "new/first", tmp_path / "second"
  llada_io.export(loaded, first, config, max_file_bytes=limit)
  assert_same_bits(read(first), tensors)
  again = llada_io.load(first)
  assert_same_bits(*map(traverse_util.flatten_dict, (again, loaded)))
  llada_io.export(again, second, config, max_file_bytes=limit)
  assert contents(first) == contents(second)


def test_files_are_cut_and_indexed(tmp_path):
  largest = max(x.nbytes for x in weights().values())
  for limit, number in ((10**9, 1), (2 * largest, None), (1, len(weights()))):
    folder = tmp_path / str(limit)
    llada_io.export(params(), folder, CONFIG, max_file_bytes=limit)
    index = json.loads((folder / INDEX).read_text())
    assert index["metadata"] == {"total_size": 4 * CONFIG.num_params}
    files = sorted(folder.glob("*.safetensors"))
    count = number or len(files)
    assert [f.name for f in files] == [
      f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)
    ]
    held = {name: f.name for f in files for name in st.load_file(f)}
    assert held == index["weight_map"]
    sizes = [sum(x.nbytes for x in st.load_file(f).values()) for f in files]
    assert max(sizes) <= max(limit, largest)
    assert len(list(folder.iterdir())) == count + 2
  assert llada.read_config(folder) == CONFIG


def test_matrices_are_turned_as_pytorch_multiplies():
  rng = np.random.default_rng(0)
  blocks = jax.tree.map(np.asarray, params()["blocks"])
  for name, path, heads in (
    ("q_proj", "query", (4, 8)),
    ("k_proj", "key", (2, 8)),
    ("v_proj", "value", (2, 8)),
    ("ff_proj", "gate", (48,)),
    ("up_proj", "up", (48,)),
    ("ff_out", "down", (32,)),
  ):
    matrix = weights()[f"{ROOT}blocks.1.{name}.weight"]
    x = rng.standard_normal(matrix.shape[1])
    got = np.tensordot(x, blocks[path]["kernel"][1], 1)
    np.testing.assert_allclose(got, (matrix @ x).reshape(heads), rtol=1e-10)
  matrix = weights()[f"{ROOT}blocks.1.attn_out.weight"]
  heads = rng.standard_normal((4, 8))
  got = np.tensordot(heads, blocks["out"]["kernel"][1], 2)
  np.testing.assert_allclose(got, matrix @ heads.ravel(), rtol=1e-10)
  head = weights()[f"{ROOT}ff_out.weight"]
  np.testing.assert_array_equal(params()["head_kernel"], head.T)


@pytest.fixture
def reads(monkeypatch):
  """`(name, elements)` of every part that is read from a file."""
  noted = []
  open_file = safetensors.safe_open

  class Slice:
    def __init__(self, file, name):
      self.name, self.tensor = name, file.get_slice(name)
      self.get_shape = self.tensor.get_shape
      self.get_dtype = self.tensor.get_dtype

    def __getitem__(self, at):
      noted.append((self.name, self.tensor[at].size))
      return self.tensor[at]

  @contextlib.contextmanager
  def opened(*args, **options):
    with open_file(*args, **options) as file:
      slices = functools.partial(Slice, file)
      yield types.SimpleNamespace(keys=file.keys, get_slice=slices)

  monkeypatch.setattr(safetensors, "safe_open", opened)
  return noted


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_each_device_gets_its_part_alone(tmp_path, reads, dtype):
  network = llada.network(CONFIG)
  mesh = training.make_mesh(2, 2, 2)
  places = sharding.state_shardings(
    llada.abstract(CONFIG), mesh, axes=network.axes
  )
  write(tmp_path, weights())
  loaded = llada_io.load(tmp_path, shardings=places, dtype=dtype)
  flat = traverse_util.flatten_dict(loaded)
  specs = {
    "embed/embedding": P("tensor", "fsdp"),
    "head_kernel": P("fsdp", "tensor"),
    "blocks/key/kernel": P(None, "fsdp", "tensor", None),
    "blocks/out/kernel": P(None, "tensor", None, "fsdp"),
    "blocks/down/kernel": P(None, "tensor", "fsdp"),
  }
  for path, spec in specs.items():
    assert flat[tuple(path.split("/"))].sharding.spec == spec
  whole = traverse_util.flatten_dict(params())
  for path, x in flat.items():
    wanted = np.asarray(whole[path]).astype(dtype or np.float32)
    parts = 1 if path[-1] == "scale" else 4
    assert x.dtype == wanted.dtype and len(x.addressable_shards) == 8
    for shard in x.addressable_shards:
      assert parts * shard.data.size == x.size
      np.testing.assert_array_equal(shard.data, wanted[shard.index])
  sizes = {name: x.size for name, x in weights().items()}
  assert {name for name, _ in reads} == set(sizes)
  for name, size in reads:
    parts = 1 if name.endswith(("norm.weight", "ln_f.weight")) else 4
    assert parts * size == sizes[name], name
  # Another layout of the same heads is refused where it cuts them.
  split = jax.sharding.NamedSharding(mesh, P(None, None, None, "tensor"))
  places["blocks"]["query"]["kernel"] = split
  with pytest.raises(ValueError, match="must not split the features of a head"):
    llada_io.load(tmp_path, shardings=places)


def test_adapters_are_merged_on_the_way_out(tmp_path):
  before = weights(CONFIG, "bfloat16")
  base = llada_io.from_tensors(before, CONFIG)
  shapes = jax.eval_shape(
    lambda key: lora.init(key, base, rank=2, targets=lora.TARGETS),
    jax.random.key(0),
  )
  rng = np.random.default_rng(0)
  adapters = jax.tree.map(
    lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), shapes
  )
  adapted = lora.attach(base, adapters, alpha=3.0)
  llada_io.export(adapted, tmp_path / "adapted", CONFIG)
  llada_io.export(lora.merge(adapted), tmp_path / "merged", CONFIG)
  assert contents(tmp_path / "adapted") == contents(tmp_path / "merged")
  got = read(tmp_path / "adapted")
  assert_same_bits(llada_io.to_tensors(adapted, CONFIG), got)
  for name, x in before.items():
    kept = "blocks" not in name or name.endswith("norm.weight")
    assert got[name].dtype == x.dtype
    assert (got[name].tobytes() == x.tobytes()) == kept, name
  # By hand, for one layer of one map.
  a, b = (adapters["blocks"]["up"][leaf][1] for leaf in ("a", "b"))
  name = f"{ROOT}blocks.1.up_proj.weight"
  wanted = before[name].astype(np.float32) + 3.0 / 2 * (a @ b).T
  np.testing.assert_allclose(
    got[name].astype(np.float32), wanted, rtol=2**-8, atol=1e-6
  )


def test_layers_of_several_dtypes_take_the_widest(tmp_path):
  tensors = dict(weights(CONFIG, "bfloat16"))
  tensors[QUERY] = weights()[QUERY]
  loaded = llada_io.load(write(tmp_path, tensors))
  flat = traverse_util.flatten_dict(loaded)
  assert flat.pop(("blocks", "query", "kernel")).dtype == jnp.float32
  assert all(x.dtype == jnp.bfloat16 for x in flat.values())
  got = llada_io.to_tensors(loaded, CONFIG)[QUERY]
  assert_same_bits({QUERY: got}, {QUERY: tensors[QUERY]})


def without(part):
  return {name: x for name, x in weights().items() if part not in name}


def changed(name, x):
  return weights() | {f"{ROOT}{name}.weight": np.ascontiguousarray(x)}


@pytest.mark.parametrize(
  ("tensors", "message"),
  [
    (without(QUERY), "lacks model.transformer.blocks.1.q_proj.weight[.]$"),
    (without("blocks.0"), "lacks .*blocks.0.attn_norm.* and 6 more"),
    (changed("blocks.2.up_proj", 1.0), "has .*2.up_proj.weight too many"),
    (changed("lm_head", 1.0), "has model.transformer.lm_head.weight too many"),
    (
      changed("blocks.0.ff_out", np.ones((48, 32))),
      r"blocks.0.ff_out.weight must have shape \[32, 48\], got \[48, 32\]",
    ),
    (
      changed("blocks.1.q_proj", np.ones((32, 32), np.int8)),
      "blocks.1.q_proj.weight must be floating, got (I8|int8)",
    ),
  ],
)
def test_other_tensors_are_refused(tmp_path, nothing_made, tensors, message):
  with pytest.raises(ValueError, match=message):
    llada_io.load(write(tmp_path, tensors))
  with pytest.raises(ValueError, match=message):
    llada_io.from_tensors(tensors, CONFIG)


@pytest.mark.parametrize(
  ("file", "content", "message"),
  [
    (SECOND, np.s_[:-4], "b.safetensors is no whole .*; fetch it again"),
    (SECOND, np.s_[:0], "b.safetensors is no whole safetensors file"),
    (SECOND, b"no tensors", "b.safetensors is no whole safetensors file"),
    (SECOND, None, "lacks b.safetensors, which model.safetensors.index.json"),
    ("c.safetensors", np.s_[:], "is in two files, one of .*c.safetensors"),
    (INDEX, b'{"weight_map": []}', "index.json must hold a weight_map"),
    (INDEX, b"{", "index.json is not valid JSON"),
  ],
)
def test_damaged_files_are_refused(
  tmp_path, nothing_made, file, content, message
):
  write(tmp_path, weights())
  if isinstance(content, slice):
    content = (tmp_path / SECOND).read_bytes()[content]
  if content is None:
    (tmp_path / file).unlink()
  else:
    (tmp_path / file).write_bytes(content)
  with pytest.raises(ValueError, match=message):
    llada_io.load(tmp_path)


def test_a_folder_without_tensors_is_refused(tmp_path, nothing_made):
  with pytest.raises(FileNotFoundError, match="holds no .safetensors files"):
    llada_io.load(tmp_path, CONFIG)
  # The index is not needed, but without it a lost file still is missed.
  write(tmp_path, weights(), index=False)
  (tmp_path / SECOND).unlink()
  with pytest.raises(ValueError, match="checkpoint lacks .* and 7 more"):
    llada_io.load(tmp_path)


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("n_layers", None, "a number n_layers > 0, got None"),
    ("d_model", "32", "a number d_model > 0, got '32'"),
    ("d_model", 32.0, "a number d_model > 0, got 32.0"),
    ("n_heads", True, "a number n_heads > 0, got True"),
    ("n_heads", 0, "a number n_heads > 0, got 0"),
    ("eos_token_id", -1, "a number eos_token_id > -1, got -1"),
    ("rope_theta", math.nan, "a number rope_theta > 0, got nan"),
    ("rope_theta", 10**400, "a number rope_theta > 0, got 100"),
    ("n_layers", 10**12, "21 are too few for 1000000000000 layers"),
  ],
)
def test_configs_are_checked(tmp_path, nothing_made, name, value, message):
  write(tmp_path, weights())
  fields = released(CONFIG) | {name: value}
  if value is None:
    del fields[name]
  (tmp_path / "config.json").write_text(json.dumps(fields))
  with pytest.raises(ValueError, match=message):
    llada_io.load(tmp_path)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", "is not valid JSON"),
    ("\xff", "must be UTF-8 text"),
    ("[" * 10**5, "is not valid JSON"),
    ('{"n_layers": ' + "1" * 5000 + "}", "is not valid JSON"),
    ("[]", "must be a JSON object"),
    (" " * 101, "must hold at most 100 bytes, got 101"),
  ],
)
def test_configs_that_are_none(tmp_path, monkeypatch, text, message):
  if "at most" in message:
    monkeypatch.setattr(llada, "MAX_JSON_BYTES", 100)
  (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
  with pytest.raises(ValueError, match=f"config.json {message}"):
    llada.read_config(tmp_path)


def test_configs_of_others(tmp_path):
  with pytest.raises(FileNotFoundError, match="holds no config.json; pass"):
    llada.read_config(tmp_path)
  fields = released(FULL) | {"n_kv_heads": None, "rope_theta": 500000}
  (tmp_path / "config.json").write_text(json.dumps(fields))
  config = llada.read_config(tmp_path)
  assert config == FULL and isinstance(config.rope_base, float)


def test_export_refuses(tmp_path):
  write(tmp_path, weights())
  before = contents(tmp_path)
  with pytest.raises(ValueError, match="holds safetensors already; pass"):
    llada_io.export(params(), tmp_path, CONFIG)
  assert contents(tmp_path) == before
  folder = tmp_path / "new"
  for config, message in (
    (FULL, r"params/blocks/key/kernel must have shape \[2, 32, 4, 8\], got "),
    (dataclasses.replace(CONFIG, num_layers=3), "must have shape .3, "),
  ):
    with pytest.raises(ValueError, match=message):
      llada_io.export(params(), folder, config)
  lacking = {k: v for k, v in params().items() if k != "norm"}
  with pytest.raises(ValueError, match="sizes .* they lack params/norm/scale"):
    llada_io.export(lacking, folder, CONFIG)
  biased = params() | {"head_bias": jnp.zeros(20)}
  with pytest.raises(ValueError, match="sizes .* they have params/head_bias"):
    llada_io.to_tensors(biased, CONFIG)
  with pytest.raises(ValueError, match="max_file_bytes must be >= 1, got 0"):
    llada_io.export(params(), folder, CONFIG, max_file_bytes=0)
  assert not folder.exists()


def test_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "safetensors", None)
  with pytest.raises(ImportError, match=r"jdiff-research\[llada\]"):
    llada_io.load(tmp_path, CONFIG)
