"""LLaDA-class models: pretrained, exported, imported, decoded and tuned."""

import dataclasses
import importlib
import json
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from experiments.dmpo import experiment as dmpo
from experiments.gdpo import experiment as gdpo
from experiments.masked_lm import convert, corpora, defaults, llada
from experiments.masked_lm import experiment as masked_lm
from jdiff import ctmc, training
from jdiff.nets import llada as llada_lib
from jdiff.nets import llada_io
from jdiff.training import sharding
from tests import helpers

BUILDS = {"gdpo": gdpo.build, "dmpo": dmpo.build}
DATA = dict(
  kind="questions",
  name="sudoku",
  tokenizer="bytes",
  style="short",
  num_prompt=44,
  num_completion=16,
  num_test=8,
  num_generated=64,
)


def net(config):
  """The smallest network with grouped heads."""
  config.kind = "llada"
  config.width, config.num_layers, config.mlp_width = 16, 2, 24
  config.num_heads, config.num_kv_heads = 4, 2
  config.max_length, config.head_chunk = 128, 8


def pretraining(tmp_path=None, **fields):
  config = defaults.pretraining("tiny", dict(DATA, num_completion=72))
  net(config.net)
  config.batch_size, config.num_steps = 8, 3
  config.num_eval = config.num_samples = 4
  config.log_every = config.eval_every = config.checkpoint_every = 3
  config.mesh.data = 1
  config.update_from_flattened_dict(fields)
  return config


def tuning(method, checkpoint, **fields):
  config = llada.get_config("sudoku", "tiny", getattr(defaults, method))
  config = ml_collections.ConfigDict(config.to_dict())
  config.base.data = ml_collections.ConfigDict(DATA)
  net(config.base.net)
  config.base.checkpoint = str(checkpoint)
  config.base.dtype = config.base.net.compute_dtype = "float32"
  config.num_prompts, config.group_size = 4, 2
  config.sampler.num_steps = 4
  config.elbo.num_nodes = 2
  config.eval.lengths, config.eval.block_size = (16,), 8
  config.num_eval = config.eval.batch_size = 4
  config.num_steps, config.log_every = 2, 1
  config.eval_every = config.checkpoint_every = 1
  config.learning_rate = 1e-2
  config.mesh.data = 1
  config.update_from_flattened_dict(fields)
  return config


def scored():
  """The questions, with a reward that a network of noise earns too."""
  corpus = corpora.load(**DATA)
  rows = corpus.num_prompt
  return corpus._replace(
    task=corpus.task._replace(
      reward=lambda tokens: (tokens[:, rows:] % 5).mean(1).astype(np.float32)
    )
  )


def build(method, config):
  return BUILDS[method](config, corpus=scored())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A pretrained network in all its forms: `(params, folders)`."""
  root = tmp_path_factory.mktemp("llada")
  config = pretraining()
  training.run(masked_lm.build(config), config, root / "run", progress=False)
  _, params, _ = training.load(root / "run")
  convert.main([f"--source={root / 'run'}", f"--target={root / 'tensors'}"])
  convert.main([f"--source={root / 'tensors'}", f"--target={root / 'orbax'}"])
  return jax.device_get(params), root


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_becomes_a_checkpoint_and_comes_back(made):
  params, root = made
  files = [path.name for path in sorted((root / "tensors").iterdir())]
  assert files == [
    "config.json",
    "model-00001-of-00001.safetensors",
    "model.safetensors.index.json",
  ]
  assert_same(params, llada_io.load(root / "tensors"))
  # The network has learnt something, so that the round trip is of no zeros.
  again = jax.jit(masked_lm.build(pretraining()).init)(jax.random.key(0))
  assert jax.tree.structure(again.params) == jax.tree.structure(params)
  sizes = llada_lib.read_config(root / "tensors")
  assert sizes == dataclasses.replace(
    masked_lm.llada_config(pretraining(), corpora.load(**DATA)),
    max_length=128,
  )


@pytest.mark.parametrize("form", ["tensors", "orbax"])
def test_tuning_starts_from_either_form(made, form):
  params, root = made
  config = tuning("gdpo", root / form)
  experiment = build("gdpo", config)
  mesh = training.make_mesh(1, 1, devices=jax.devices()[:1])
  program = training.compile_experiment(experiment, mesh)
  assert_same(params, program.frozen())


@pytest.mark.parametrize(
  "cache", helpers.thorough(["prefix", "dual"], ["dual"])
)
def test_samples_with_caches(made, cache):
  params, root = made
  corpus = corpora.load(**DATA)
  sizes = llada_lib.read_config(root / "tensors")
  network = llada_lib.network(sizes, compute_dtype=jnp.float32)
  prompts = corpus.task.held_out_prompts(4)
  decoded = ctmc.decode(
    params,
    jax.random.key(0),
    prompts,
    logits_fn=network.apply,
    length=corpus.length,
    mask_id=sizes.mask_id,
    block_size=8,
    # A step a block: both caches then are exact.
    num_steps=2,
    temperature=0.0,
    cache=cache,
    cached_fn=network.apply_cached,
    init_cache=network.init_cache,
  )
  plain = ctmc.decode(
    params,
    jax.random.key(0),
    prompts,
    logits_fn=network.apply,
    length=corpus.length,
    mask_id=sizes.mask_id,
    block_size=8,
    num_steps=2,
    temperature=0.0,
  )
  np.testing.assert_array_equal(decoded.samples, plain.samples)
  assert np.asarray(decoded.samples).max() < corpus.num_tokens
  assert not (np.asarray(decoded.samples) == corpus.mask_id).any()


class Stop(Exception):
  """Ends a run in the middle."""


@pytest.mark.parametrize("method", helpers.thorough(["gdpo", "dmpo"], ["gdpo"]))
def test_an_update_and_a_resumed_run(made, method, tmp_path):
  params, root = made
  config = tuning(method, root / "tensors")
  whole = training.run(
    build(method, config), config, tmp_path / "whole", progress=False
  )
  experiment = build(method, config)
  calls = []

  def host(rollout):
    calls.append(1)
    if len(calls) == 2:
      raise Stop
    return experiment.host(rollout)

  broken = experiment._replace(host=host)
  with pytest.raises(Stop):
    training.run(broken, config, tmp_path / "cut", progress=False)
  cut = training.run(
    build(method, config), config, tmp_path / "cut", progress=False
  )
  whole.pop("wall_seconds"), cut.pop("wall_seconds")
  assert whole == cut
  records = [
    json.loads(line)
    for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
  ]
  steps = [r for r in records if "loss" in r]
  assert [r["step"] for r in steps] == [1, 2]
  assert all(r["grad_norm"] > 0 for r in steps)
  # Adapters have moved, the base has not, and checkpoints hold no base.
  _, tuned, _ = training.load(
    tmp_path / "cut", build=lambda config: build(method, config)
  )
  assert_same(params, tuned.base)
  assert np.abs(tuned.adapters["blocks"]["query"]["b"]).max() > 0
  stored = json.loads(
    (tmp_path / "cut/checkpoints/2/arrays/metadata").read_text()
  )
  assert not [path for path in stored if "frozen" in path]


@pytest.mark.parametrize("method", helpers.thorough(["gdpo", "dmpo"], ["dmpo"]))
def test_eight_devices_give_the_numbers_of_one(made, method):
  _, root = made
  found = []
  for mesh in (training.make_mesh(1, 1, 1), training.make_mesh(2, 2, 2)):
    mesh = training.make_mesh(
      *mesh.shape.values(), devices=jax.devices()[: mesh.size]
    )
    config = tuning(method, root / "orbax")
    experiment = build(method, config)
    program = training.compile_experiment(experiment, mesh)
    with jax.set_mesh(mesh):
      state = program.init(jax.random.key(5))
      if mesh.size > 1:
        kernel = state.frozen["blocks"]["up"]["kernel"]
        assert kernel.sharding.spec == jax.P(None, "fsdp", "tensor")
        assert state.params["blocks"]["up"]["a"].sharding.spec[1] == "fsdp"
      batch = sharding.put_batch(experiment.batches(0), mesh)
      state, rollout = program.collect(state, batch)
      rollout = training.fetch(rollout)
      arrays = sharding.put_batch(experiment.host(rollout), mesh)
      state, metrics = program.step(
        state, (sharding.put_batch(rollout, mesh), arrays)
      )
    found.append(jax.device_get((rollout.samples, state.params, metrics)))
  one, eight = found
  np.testing.assert_array_equal(one[0], eight[0])
  for a, b in zip(
    jax.tree.leaves(one[1:]), jax.tree.leaves(eight[1:]), strict=True
  ):
    # Adam's first steps divide by the gradient's own size, noise included.
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("method", ["gdpo", "dmpo"])
@pytest.mark.parametrize(
  "task", helpers.thorough(["gsm8k", "math", "countdown", "sudoku"], ["gsm8k"])
)
def test_every_variant_has_a_config_and_shapes(method, task):
  module = importlib.import_module(f"experiments.{method}.llada_{task}")
  for variant in (
    "smoke",
    "tiny",
    "cpu",
    "paper",
    "v5e_64",
    "v5p_16",
    "h100_8",
  ):
    config = module.get_config(variant)
    assert config.base.data.name == task and config.variant == variant
    training.stand_in(config)
  config = module.get_config("v5e_64")
  experiment = training.stand_in(config)
  sizes = jax.tree.leaves(experiment.frozen.abstract)
  assert sum(x.size for x in sizes) == 8_015_581_184
  assert {x.dtype for x in sizes} == {jnp.dtype(jnp.bfloat16)}
  key = jax.eval_shape(jax.random.key, 0)
  state = jax.eval_shape(experiment.init, key, experiment.frozen.abstract)
  adapters = sum(x.size for x in jax.tree.leaves(state.params))
  assert adapters == 32 * 5_242_880  # the card's, of the four that match
  assert experiment.batches(0).shape == (256, 256)
  with pytest.raises(FileNotFoundError, match=r"tokenizer.json|llada"):
    training.build(config)


@pytest.mark.parametrize(
  "fields, error, message",
  [
    (
      {"base.checkpoint": "nowhere"},
      FileNotFoundError,
      "'nowhere'.*no folder",
    ),
    ({"base.workdir": "W"}, ValueError, "a workdir or a checkpoint"),
    ({"base.data.tokenizer": "none.json"}, FileNotFoundError, "none.json"),
    ({"base.data.path": "none.jsonl"}, FileNotFoundError, "none.jsonl"),
    ({"base.data.num_prompt": 20}, ValueError, "at most num_prompt = 20"),
    ({"base.net.max_length": 59}, ValueError, "max_length=59, got 60"),
    ({"base.net.remat_policy": "all"}, ValueError, "remat_policy must be one"),
    ({"lora.targets": ("query", "wte")}, ValueError, "targets must be linear"),
    ({"eval.lengths": (128,)}, ValueError, "be at most 84, got 128"),
    ({"eval.cache": "duel"}, ValueError, "config.eval.cache must be one of"),
    ({"eval.tokens_per_step": 3}, ValueError, "tokens_per_step must divide"),
    ({"loss": "diffu_grpo"}, ValueError, "what is left of their padding"),
    ({"base.net.grid": (6, 10)}, ValueError, "'llada' has no grid"),
    (
      {"base.net.remat_policy": "dots", "base.net.remat": False},
      ValueError,
      "needs net.remat=True",
    ),
    ({"base.net.rope_base": 1e4}, ValueError, "has rope_base=500000.0, and"),
    (
      {"base.net.num_heads": 2},
      ValueError,
      "has num_heads=4, and the",
    ),
    ({"eval.block_size": 5}, ValueError, "config.eval.block_size must divide"),
  ],
)
def test_bad_input(made, fields, error, message):
  _, root = made
  data = {"base.data.tokenizer": "bytes", "base.data.path": ""}
  config = tuning("gdpo", root / "tensors")
  config.base.data.update(path="", tokenizer="bytes")
  config.update_from_flattened_dict(data | fields)
  with pytest.raises(error, match=message):
    experiment = gdpo.build(config)
    jax.eval_shape(
      experiment.init, jax.random.key(0), experiment.frozen.abstract
    )


def test_a_mesh_that_does_not_divide(made):
  _, root = made
  experiment = build("gdpo", tuning("gdpo", root / "tensors"))
  devices = jax.devices()
  for mesh, message in (
    ((1, 1, 3), "mesh.tensor must divide"),
    ((1, 3, 1), "mesh.fsdp must divide width"),
  ):
    with pytest.raises(ValueError, match=message):
      training.compile_experiment(
        experiment, training.make_mesh(*mesh, devices=devices)
      )


def test_conversions_that_cannot_be(made, tmp_path, capsys):
  _, root = made
  for source, target, message in (
    (root / "tensors", root / "orbax", "exists; pass another --target"),
    (root / "run", root / "tensors", "holds safetensors already"),
    (tmp_path, tmp_path / "new", "holds no config.json"),
  ):
    with pytest.raises(SystemExit) as info:
      convert.main([f"--source={source}", f"--target={target}"])
    assert info.value.code == 2
    assert message in capsys.readouterr().err


def test_a_base_of_the_callers_stays_the_callers(made):
  # On several devices too, where a copy may share the first one's memory.
  params, _ = made
  params = jax.tree.map(jnp.asarray, params)
  config = tuning("gdpo", "")
  experiment = gdpo.build(config, corpus=scored(), base_params=params)
  mesh = training.make_mesh(2, 1, devices=jax.devices()[:2])
  program = training.compile_experiment(experiment, mesh)
  with jax.set_mesh(mesh):
    frozen = program.frozen()
    jax.jit(lambda x: x, donate_argnums=0)(frozen)
  assert not any(x.is_deleted() for x in jax.tree.leaves(params))


def test_a_run_of_all_parameters_is_read_without_its_base(made, tmp_path):
  _, root = made
  config = tuning("gdpo", root / "tensors", **{"lora.rank": 0, "num_steps": 1})
  experiment = build("gdpo", config)
  training.run(experiment, config, tmp_path / "run", progress=False)

  def gone(config):
    def never(shardings):
      raise AssertionError("nothing needs the base")

    frozen = experiment.frozen._replace(load=never)
    return experiment._replace(frozen=frozen)

  _, params, _ = training.load(tmp_path / "run", build=gone)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_a_base_that_fails_claims_no_workdir(made, tmp_path):
  _, root = made
  config = tuning("gdpo", root / "orbax")
  experiment = build("gdpo", config)

  def broken(shardings):
    raise ValueError("the disk is gone")

  bad = experiment._replace(frozen=experiment.frozen._replace(load=broken))
  with pytest.raises(ValueError, match="the disk is gone"):
    training.run(bad, config, tmp_path / "run", progress=False)
  assert not (tmp_path / "run" / "config.json").exists()


def test_a_damaged_base_is_told(made, tmp_path):
  _, root = made
  folder = tmp_path / "orbax"
  shutil.copytree(root / "orbax", folder)
  files = (folder / "ocdbt.process_0" / "d").iterdir()
  file = max(files, key=lambda p: p.stat().st_size)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 8
  file.write_bytes(bytes(data))
  experiment = build("gdpo", tuning("gdpo", folder))
  program = training.compile_experiment(
    experiment, training.make_mesh(devices=jax.devices()[:1])
  )
  with pytest.raises(ValueError, match="or damaged ones"):
    program.frozen()
