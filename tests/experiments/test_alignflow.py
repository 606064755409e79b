"""The flow experiment end to end, and in all its variants."""

import json

import jax
import numpy as np
import pytest

from experiments.alignflow import (
  checkerboard,
  cifar10,
  couplings,
  digits,
  experiment,
  imagenet_latents,
  mnist,
)
from experiments.common import data as data_lib
from experiments.common import features, metrics
from jdiff import ot, training
from jdiff.training import program as program_lib
from tests.helpers import variants

MODULES = {
  "checkerboard": checkerboard,
  "digits": digits,
  "mnist": mnist,
  "cifar10": cifar10,
  "imagenet_latents": imagenet_latents,
}
SOLVE = couplings.solve


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
  """Duals of stand-ins need not be good."""

  def solve(config, points, labels):
    flat = jax.numpy.asarray(points.reshape(len(points), -1))
    options = dict(num_samples=2048, batch_size=256, num_eval=512)
    if labels is None:
      return ot.solve(jax.random.key(0), flat, method="averaged", **options)
    return ot.solve_classes(
      jax.random.key(0), flat, labels, method="averaged", **options
    )

  monkeypatch.setattr(couplings, "solve", solve)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:pairing with a bias")
@pytest.mark.parametrize("module, name", variants(MODULES))
def test_a_variant_traces(module, name):
  mesh = training.make_mesh(devices=jax.devices()[:1])
  config = module.get_config(name)
  built = experiment.stand_in(config)
  program = program_lib.compile_experiment(built, mesh)
  with jax.set_mesh(mesh):
    batch = built.batches(0) if built.batches else None
    if built.collect:
      _, pairs = jax.eval_shape(program.collect, program.abstract, batch)
      batch = pairs, np.zeros(config.batch_size, np.int32)
    _, result = jax.eval_shape(program.step, program.abstract, batch)
  assert {"loss", "pair_cost"} <= set(result)


def short(config, **fields):
  config.update_from_flattened_dict(
    {
      "net.hidden": (16,),
      "batch_size": 16,
      "num_steps": 4,
      "warmup_steps": 1,
      "log_every": 1,
      "eval_every": 2,
      "checkpoint_every": 2,
      "num_eval": 64,
      "eval_steps": (1, 2),
      "coupling.minibatch_size": 8,
      "mesh.data": 1,
      **fields,
    }
  )
  return config


def blobs(num_rows=32, shape=(2,)):
  rng = np.random.default_rng(1)
  labels = rng.integers(0, 2, num_rows).astype(np.int32)
  rows = rng.normal(size=(num_rows, *shape)) * 0.1
  rows += (2 * labels - 1).reshape(-1, *[1] * len(shape))
  return data_lib.Dataset(
    "blobs",
    rows.astype(np.float32),
    labels,
    num_classes=2,
    image_shape=shape if len(shape) == 3 else None,
  )


def run(config, workdir, dataset):
  built = experiment.build(config, dataset)
  return training.run(built, config, workdir, progress=False)


@pytest.mark.filterwarnings("ignore:pairing with a bias")
@pytest.mark.parametrize(
  "kind, loss",
  [
    ("independent", "live_reflow"),
    ("minibatch", "flow_matching"),
    ("sdot", "meanflow"),
    pytest.param("sdot", "shortcut", marks=pytest.mark.thorough),
    ("sdot", "consistency"),
  ],
)
def test_short_run(kind, loss, tmp_path):
  config = short(checkerboard.get_config("cpu"), loss=loss)
  config.coupling.kind = kind
  report = run(config, tmp_path, blobs())
  assert {"w2_nfe1", "w2_nfe2", "w2_floor"} <= set(report["metrics"])
  straight = loss != "consistency"
  assert ("straightness" in report["metrics"]) == straight
  assert ("marginal_error" in report["metrics"]) == (kind == "sdot")
  assert report["nfe"] == 2
  figures = {path.name for path in (tmp_path / "figures").iterdir()}
  assert {"samples.png", "training.png"} <= figures
  assert ("paths.png" in figures) == straight
  assert ("cells.png" in figures) == (kind == "sdot")
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  costs = [json.loads(line).get("pair_cost") for line in lines]
  assert all(cost > 0 for cost in costs if cost is not None)


@pytest.mark.filterwarnings("ignore:pairing with a bias")
@pytest.mark.slow
def test_labelled_images_from_a_table(tmp_path):
  config = short(
    digits.get_config("smoke"),
    conditional=True,
    **{"net.width": 16, "net.num_layers": 1, "coupling.pairs_per_point": 4},
  )
  config.coupling.table = str(tmp_path / "pairs")
  dataset = blobs(64, (4, 4, 1))
  built = experiment.build(config, dataset)
  batch = built.batches(3)
  rows = dataset.train[
    ot.table.load(
      config.coupling.table,
      dataset.train.reshape(64, -1),
      labels=dataset.train_labels,
    ).index[batch["pair_id"]]
  ]
  np.testing.assert_array_equal(batch["data"], rows)
  report = training.run(built, config, tmp_path / "run", progress=False)
  assert "frechet_nfe1" in report["metrics"]
  # Another data set must not be paired by this table.
  other = dataset._replace(train=dataset.train[::-1])
  with pytest.raises(ValueError, match="made for other data"):
    experiment.build(config, other)


@pytest.mark.filterwarnings("ignore:pairing with a bias")
@pytest.mark.parametrize("kind", ["sdot", "minibatch"])
def test_one_and_eight_devices_agree(kind):
  def final(devices):
    config = short(checkerboard.get_config("cpu"))
    config.coupling.kind = kind
    mesh = training.make_mesh(devices=jax.devices()[:devices])
    built = experiment.build(config, blobs())
    program = program_lib.compile_experiment(built, mesh)
    with jax.set_mesh(mesh):
      state = program.init(jax.random.key(0))
      for step in range(3):
        batch = built.batches(step) if built.batches else None
        if built.collect:
          state, pairs = program.collect(state, batch)
          order = built.host(training.fetch(pairs))
          batch = pairs, order
        state, result = jax.block_until_ready(program.step(state, batch))
    return jax.device_get((state.params, result))

  for a, b in zip(
    jax.tree.leaves(final(1)), jax.tree.leaves(final(8)), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:pairing with a bias")
def test_pairs_of_the_step_are_optimal():
  config = short(checkerboard.get_config("cpu"))
  dataset = blobs()
  coupling = couplings.make(config, dataset)
  keys = jax.random.split(jax.random.key(0), 256)
  pairs = coupling.draw(keys, None)
  # The two blobs lie along (1, 1): noise goes to its own side.
  side = np.sign(np.asarray(pairs.noise).sum(axis=1))
  assert (side == np.sign(np.asarray(pairs.data).sum(axis=1))).mean() > 0.8
  config.coupling.kind = "independent"
  free = couplings.make(config, dataset)
  batch = free.batches(0)
  rows = free.draw(keys[:16], batch)
  np.testing.assert_array_equal(rows.data, batch["data"])


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("loss", "ddpm", "config.loss must be one of"),
    ("coupling.kind", "sinkhorn", "config.coupling.kind must be"),
    ("net.kind", "unet", "config.net.kind must be"),
    ("net.kind", "dit", "shape"),
    ("schedule", "linear", "config.schedule must be"),
    ("batch_size", 0, "config.batch_size"),
    ("warmup_steps", 4, "config.warmup_steps must be less than"),
    ("ema_decay", 1.5, "config.ema_decay must lie in"),
    ("eval_steps", (0,), "config.eval_steps must be >= 1"),
  ],
)
def test_bad_config(field, value, message):
  config = short(checkerboard.get_config("cpu"))
  config.coupling.kind = "independent"
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    experiment.build(config, blobs())


def test_the_dual_of_a_config():
  config = short(checkerboard.get_config("cpu"))
  config.coupling.samples_per_point = 100
  dataset = blobs(48, (3, 3, 1))
  solution = SOLVE(config, dataset.train, None)
  assert solution.points.shape == (48, 9)
  assert int(solution.num_samples) >= 4096  # whole batches of 1024
  labelled = SOLVE(config, dataset.train, dataset.train_labels)
  assert labelled.classes.shape[0] == 2
  config.coupling.seed = 1
  other = SOLVE(config, dataset.train, None)
  assert not np.array_equal(other.bias, solution.bias)


def test_data_that_does_not_fit():
  config = short(checkerboard.get_config("cpu"), conditional=True)
  with pytest.raises(ValueError, match="config.conditional needs labels"):
    experiment.build(config, blobs()._replace(train_labels=None))
  config = short(checkerboard.get_config("cpu"))
  config.coupling.kind = "minibatch"
  config.coupling.minibatch_size = 5
  with pytest.raises(ValueError, match="must be a multiple of coupling"):
    experiment.build(config, blobs())
  config = short(checkerboard.get_config("cpu"), conditional=True)
  config.coupling.kind = "minibatch"
  with pytest.raises(ValueError, match="matches across labels"):
    experiment.build(config, blobs())
  config = short(checkerboard.get_config("cpu"), loss="shortcut")
  config.eval_steps = (1, 3)
  with pytest.raises(ValueError, match="eval_steps must be powers of two"):
    experiment.build(config, blobs())
  config = short(digits.get_config("smoke"))
  wide = np.broadcast_to(np.float32(0), (2**21, 8, 8, 1))
  with pytest.raises(ValueError, match="set config.coupling.table"):
    experiment.build(config, data_lib.Dataset("wide", wide))


def test_w2_of_a_shift():
  rng = np.random.default_rng(0)
  x, shift = rng.normal(size=(400, 3)), np.array([1.0, 0, 2])
  assert metrics.w2(x, x[::-1] + shift) == pytest.approx(5**0.5, rel=1e-6)


def test_features_know_the_classes():
  dataset = blobs(200, (3, 3, 1))
  function, accuracy = features.classifier(dataset.train, dataset.train_labels)
  again, _ = features.classifier(dataset.train, dataset.train_labels)
  assert accuracy > 0.95
  np.testing.assert_array_equal(function(dataset.train), again(dataset.train))
