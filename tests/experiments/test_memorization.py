"""Memorisation: one run, and the five arms."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import data as data_lib
from experiments.memorization import (
  arms,
  cifar10,
  digits,
  experiment,
  mnist,
)
from jdiff import nets, training
from jdiff.training import program as program_lib
from tests.experiments import memorizing
from tests.helpers import variants

IMAGES = {"digits": digits, "mnist": mnist, "cifar10": cifar10}

# The tests' runs are much the same programs: compiled once.
pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.mark.slow
@pytest.mark.parametrize("module, name", variants(IMAGES))
def test_a_variant_of_the_arms_traces(module, name):
  config = module.get_config(name)
  config.num_train = 12
  dataset = memorizing.with_test(data_lib.stand_in(config.data.name))
  arms.build(config, dataset)
  memorizing.trace(experiment.part(config, "original"), dataset)


def randomised(params):
  """Other weights, made on the host: nothing is compiled."""
  rng = np.random.default_rng(3)
  return jax.tree.map(
    lambda x: np.asarray(x + 0.3 * rng.normal(size=x.shape), np.float32),
    jax.device_get(params),
  )


# One run.


def test_one_and_eight_devices_agree():
  gates = (1, 1, 0, 1), (1, 1, 1, 1)
  config = experiment.part(memorizing.short(), "original", gates=gates)
  dataset = memorizing.blobs()

  def final(devices):
    mesh = training.make_mesh(devices=jax.devices()[:devices])
    built = experiment.build(config, dataset)
    program = program_lib.compile_experiment(built, mesh)
    with jax.set_mesh(mesh):
      state = program.init(jax.random.key(0))
      for step in range(3):
        batch = built.batches(step)
        state, found = jax.block_until_ready(program.step(state, batch))
    return jax.device_get((state.params, found))

  for a, b in zip(
    jax.tree.leaves(final(1)), jax.tree.leaves(final(8)), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


def test_a_run_that_starts_from_another_wants_its_weights(tmp_path):
  config = experiment.part(memorizing.short(), "pruned", start="original")
  built = experiment.build(config, memorizing.blobs())
  with pytest.raises(ValueError, match="names a run of a study"):
    training.run(built, config, tmp_path, progress=False)


# The arms.


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  """A finished study with fine-tuning at a rate of nearly nothing."""
  workdir = tmp_path_factory.mktemp("arms")
  config = memorizing.short(**{"finetune.rate": 1e-9, "prune.fraction": 0.25})
  built = arms.build(config, memorizing.blobs())
  return workdir, config, training.run(built, config, workdir, progress=False)


def load(workdir, arm):
  return training.load(
    workdir / arm,
    build=lambda config: experiment.build(config, memorizing.blobs()),
  )


def test_the_arms(study):
  workdir, _, found = study
  metrics = found["metrics"]
  each = {
    *("memorised", "memorised_half", "nearest_distance"),
    *("frechet", "frechet_features", "precision", "recall"),
    *("train_loss", "test_loss", "heads_kept"),
  }
  wanted = {f"{arm}/{name}" for arm in arms.ARMS for name in each}
  assert set(metrics) == wanted | {
    "memorised_floor",
    "train_loss_least",
    "memorised_change",
    "frechet_ratio",
  }
  kept = {arm: metrics[f"{arm}/heads_kept"]["value"] for arm in arms.ARMS}
  assert kept == {
    "original": 8,
    "pruned": 6,
    "pruned_finetune": 6,
    "random_finetune": 6,
    "continue": 8,
  }
  tuned, control = (
    metrics[f"{arm}/memorised"] for arm in ("pruned_finetune", "continue")
  )
  change = metrics["memorised_change"]
  assert change["value"] == tuned["value"] - control["value"]
  assert found["nfe"] == 3
  figures = {path.name for path in (workdir / "figures").iterdir()}
  assert figures == {"heads.png", "memorised.png", "samples.png"}
  assert {path.name for path in (workdir / "pruned/figures").iterdir()} == {
    "samples.png",
    "training.png",
  }


def test_arms_start_from_the_original(study):
  workdir, config, _ = study
  _, original, _ = load(workdir, "original")
  assert jnp.all(original["gates"] == 1)
  for arm in ("pruned", "random", "continue"):
    apply, params, fields = load(workdir, arm)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
      params["network"],
      original["network"],
    )
    closed = 0 if arm == "continue" else 2
    assert np.sum(np.asarray(params["gates"]) == 0) == closed
    np.testing.assert_array_equal(params["gates"], fields.gates)
    assert fields.start == "original"
    assert fields.num_steps == config.finetune.num_steps
    assert fields.experiment == experiment.__name__


def test_closed_heads_can_be_cut_out(study):
  workdir, config, _ = study
  apply, params, _ = load(workdir, "pruned")
  apply = jax.jit(apply)
  network = randomised(params["network"])
  cut, num_heads = nets.compact(network, params["gates"])
  net = config.net
  smaller = nets.dit(
    (4, 4, 1),
    patch_size=net.patch_size,
    width=net.width,
    num_layers=net.num_layers,
    num_heads=num_heads,
    head_size=net.width // net.num_heads,
  )
  x, t = jax.random.normal(jax.random.key(0), (3, 4, 4, 1)), jnp.full(3, 0.4)
  whole = apply({**params, "network": network}, x, t)
  answer = jax.jit(smaller.apply)(cut, x, t)
  np.testing.assert_allclose(answer, whole, atol=1e-5)
  # The gates matter.
  ones = jnp.ones_like(params["gates"])
  assert not np.allclose(
    apply({"network": network, "gates": ones}, x, t), whole
  )


def test_a_study_that_was_cut_off_continues(study, tmp_path):
  before, config, whole = study
  workdir = tmp_path / "again"
  shutil.copytree(before, workdir)
  (workdir / "report.json").unlink()
  shutil.rmtree(workdir / "continue")
  built = arms.build(config, memorizing.blobs())
  found = training.run(built, config, workdir, progress=False)
  assert found["metrics"] == whole["metrics"]
  # Finished, it is only read.
  assert training.run(built, config, workdir, progress=False) == found


def test_parts_can_be_sampled(study, tmp_path):
  workdir, _, found = study
  shutil.copytree(workdir / "pruned", tmp_path / "pruned")

  def build(config):
    return experiment.build(config, memorizing.blobs())

  samples = training.sample(tmp_path / "pruned", 5, build=build)
  assert samples.shape == (5, 4, 4, 1) and np.isfinite(samples).all()
  again = training.evaluate(tmp_path / "pruned", build=build, progress=False)
  value = found["metrics"]["pruned_finetune/frechet"]
  assert again["metrics"]["frechet"] == value


@pytest.mark.parametrize(
  "criterion",
  [
    "ablate",
    *(
      pytest.param(name, marks=pytest.mark.thorough)
      for name in ("taylor2", "random")
    ),
  ],
)
def test_criteria(criterion):
  config = memorizing.short(
    **{"prune.criterion": criterion, "prune.num_batches": 1}
  )
  study = arms._Arms(config, memorizing.blobs())
  network = jax.jit(study.original.init)(jax.random.key(0)).params
  score = study.importance(randomised(network))
  assert score.shape == (2, 4) and np.isfinite(score).all()
  assert len(np.unique(score)) == 8


# What does not fit.


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("prune.fraction", 0.01, "closes none of the 8 heads"),
    ("prune.fraction", 1.0, "one head kept in each of 2 layers"),
    ("prune.fraction", 1.5, "fraction must lie in"),
    ("prune.criterion", "magnitude", "config.prune.criterion must be one of"),
    ("prune.scope", "block", "scope must be 'global' or 'layer'"),
    ("prune.num_batches", 0, "config.prune.num_batches"),
    ("finetune.num_steps", 0, "config.finetune.num_steps"),
    ("finetune.rate", 0.0, "config.finetune.rate must be positive"),
    ("num_train", 21, "config.num_train must be at most 20"),
    ("num_train", 1, "config.num_train must be >= 2"),
    ("time.law", "sigmoid", "config.time.law must be one of"),
    ("time.t_min", 6.0, "config.time.t_min must be < t_max"),
    ("loss", "eps", "config.loss must be one of"),
    ("net.kind", "mlp", "config.net.kind must be 'dit'"),
    ("schedule", "linear", "config.schedule must be"),
    ("ema_decay", 1.5, "config.ema_decay must lie in"),
    ("num_eval", 4, "config.num_eval must be >= 8"),
    ("warmup_steps", 4, "config.warmup_steps must be less than"),
  ],
)
def test_bad_config(field, value, message):
  config = memorizing.short()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    arms.build(config, memorizing.blobs())


def test_every_head_closed():
  config = memorizing.short(**{"prune.fraction": 1.0, "prune.keep_one": False})
  with pytest.raises(ValueError, match="closes every one of the 8 heads"):
    arms.build(config, memorizing.blobs())


def test_rows_must_be_held_out():
  with pytest.raises(ValueError, match="must hold out rows"):
    arms.build(memorizing.short(), memorizing.blobs()._replace(test=None))


def test_gates_of_another_network():
  config = experiment.part(memorizing.short(), "pruned", gates=((1, 1), (1, 0)))
  with pytest.raises(ValueError, match="config.gates must have shape"):
    experiment.build(config, memorizing.blobs())
