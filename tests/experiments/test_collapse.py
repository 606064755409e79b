"""The self-consuming loop end to end, and in all its variants."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.collapse import (
  arms,
  cifar10,
  closed_form,
  digits,
  experiment,
  gaussian,
  generation,
  history,
  mnist,
  report,
)
from experiments.common import data as data_lib
from jdiff import selection, training
from jdiff.methods import collapse
from jdiff.training import program as program_lib
from tests.helpers import variants

MODULES = {"digits": digits, "mnist": mnist, "cifar10": cifar10}
ARMS = ("replace", "accumulate+greedy")
NUM = 12


@pytest.fixture(scope="module", autouse=True)
def cheap(compile_cache):
  """Trainings compile the same programs, and drawing takes as long as they."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(experiment, "PICTURES", 4)
    yield


@pytest.mark.slow
@pytest.mark.parametrize("module, name", variants(MODULES))
def test_a_variant_traces(module, name):
  config = module.get_config(name)
  dataset = data_lib.stand_in(config.data.name, 32)
  rows = dataset.train
  if config.net.kind == "mlp":
    rows = rows.reshape(len(rows), -1)
  sub = generation.make_config(config, "one", 0, rows.shape[1:])
  built = generation.build(sub, rows)
  mesh = training.make_mesh(devices=jax.devices()[:1])
  program = program_lib.compile_experiment(built, mesh)
  with jax.set_mesh(mesh):
    _, result = jax.eval_shape(program.step, program.abstract, built.batches(0))
  assert "loss" in result
  # All of the study but its sizes.
  config.num_train, config.measure.num_components = 8, 4
  assert isinstance(experiment.build(config, dataset), training.Study)


@pytest.mark.parametrize("name", gaussian.VARIANTS)
def test_a_closed_form_variant_builds(name):
  config = gaussian.get_config(name)
  assert isinstance(training.build(config), training.Study)


def short(**fields):
  config = digits.get_config("cpu")
  config.update_from_flattened_dict(
    {
      "arms": ARMS,
      "num_train": NUM,
      "num_generations": 3,
      "net.hidden": (8,),
      "batch_size": 8,
      "num_steps": 4,
      "warmup_steps": 1,
      "log_every": 4,
      "checkpoint_every": 2,
      "num_eval": 8,
      "eval_steps": (2,),
      "measure.num_components": 3,
      "select.threshold": 1.0,
      "mesh.data": 1,
      **fields,
    }
  )
  return config


def blobs(num_rows=40):
  rng = np.random.default_rng(1)
  rows = rng.normal(size=(num_rows, 2, 2, 1)).astype(np.float32)
  return data_lib.Dataset("blobs", rows, image_shape=(2, 2, 1))


def run(config, workdir, embedding=None):
  study = experiment.build(config, blobs(), embedding)
  return training.run(study, config, workdir, progress=False)


def archives(workdir):
  files = sorted(workdir.rglob("*.npz"))
  return {str(file.relative_to(workdir)): np.load(file) for file in files}


def assert_same_archives(one, other):
  one, other = archives(one), archives(other)
  assert one.keys() == other.keys()
  for name, archive in one.items():
    assert archive.files == other[name].files
    for array in archive.files:
      np.testing.assert_array_equal(archive[array], other[name][array], name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A study that ran without a stop: its folder and its report."""
  workdir = tmp_path_factory.mktemp("whole")
  return workdir, run(short(), workdir)


def test_what_a_study_leaves(whole):
  workdir, found = whole
  metrics = found["metrics"]
  for arm in ARMS:
    for n in (1, 2, 3):
      for name in ("entropy", "gs", "frechet"):
        for space in ("", "_pca"):
          value = metrics[f"{arm}/{name}{space}_{n}"]["value"]
          assert value is not None and (name == "entropy" or value > 0)
      assert metrics[f"{arm}/gs_{n}"]["se"] > 0
      assert 0 <= metrics[f"{arm}/memorised_{n}"]["value"] <= 1
  for name in ("correlation", "correlation_pca_with_first"):
    assert -1 <= metrics[name]["value"] <= 1
  assert metrics["real/frechet"]["value"] > 0
  assert found["nfe"] == 2 and found["steps"] == 4
  # Arms share the first training, and what it made, whatever they draw of it.
  runs = {
    str(p.parent.relative_to(workdir)) for p in workdir.rglob("config.json")
  }
  assert runs == {".", "generation_1"} | {
    f"{arm}/generation_{n}" for arm in ARMS for n in (2, 3)
  }
  for name in ("entropy", "gs", "frechet", "memorised"):
    values = {metrics[f"{arm}/{name}_1"]["value"] for arm in ARMS}
    assert len(values) == 1
  figures = {path.name for path in (workdir / "figures").iterdir()}
  assert figures == {
    *(
      f"{name}{end}.png"
      for name in ("generations", "law")
      for end in ("", "_pca")
    ),
    *(f"samples_{arm}.png" for arm in ARMS),
  }


def test_training_sets_can_be_put_together_from_files(whole):
  workdir, found = whole
  real = blobs().train.reshape(-1, 4)
  sizes = {"replace": NUM}
  for arm in ARMS:
    np.testing.assert_array_equal(
      history.training_set(workdir, arm, 1), real[:NUM]
    )
    pool, size = real[:NUM], sizes.get(arm, 2 * NUM)
    for n in (1, 2, 3):
      kept = np.load(history.folder(workdir, arm, n) / history.GENERATION)
      data = history.training_set(workdir, arm, n)
      np.testing.assert_array_equal(data, pool[kept["indices"]])
      assert kept["samples"].shape == (size, 4)
      # What is reported is of these rows.
      metrics = found["metrics"]
      samples = kept["samples"][:NUM]
      gs = selection.generalisation_score(samples, data).mean()
      entropy = selection.kl_entropy(jnp.asarray(data)).value
      share = np.mean(kept["indices"] < NUM)
      for name, value in (("gs", gs), ("entropy", entropy)):
        got = metrics[f"{arm}/{name}_{n}"]["value"]
        assert got == pytest.approx(float(value), rel=1e-4)
      assert metrics[f"{arm}/share_of_real_{n}"]["value"] == pytest.approx(
        share
      )
      pool = np.concatenate([pool, kept["samples"]])
      if n < 3:
        after = history.training_set(workdir, arm, n + 1)
        np.testing.assert_array_equal(after, pool[kept["next_indices"]])
      if arm == "accumulate+greedy":
        # Algorithm 1, from the row that it happened to begin with.
        chosen = kept["next_indices"]
        again = selection.greedy(pool, NUM, first=int(chosen[0]))
        np.testing.assert_array_equal(chosen, again.index)
  with pytest.raises(ValueError, match="must hold generation 4 of arm"):
    history.training_set(workdir, "replace", 4)


def test_a_generation_is_a_run_like_any_other(whole):
  workdir, _ = whole
  part = workdir / "replace" / "generation_2"
  apply, params, config = training.load(part)
  assert apply(params, jnp.ones((3, 4)), jnp.ones(3)).shape == (3, 4)
  assert training.sample(part, 5).shape == (5, 4)
  with pytest.raises(ValueError, match="one of them: .*generation_1"):
    training.load(workdir)
  # Its rows are the study's.
  with pytest.raises(ValueError, match="made by the study it belongs to"):
    generation.build(config).batches(0)
  seeds = [
    json.loads(path.read_text())["seed"]
    for path in workdir.rglob("generation_*/config.json")
  ]
  # The first, and two of each arm: arms differ in their data alone.
  assert len(seeds) == 5 and len(set(seeds)) == 3


def test_a_study_that_was_killed_goes_on_with_the_same_bits(
  whole, tmp_path, monkeypatch
):
  build = generation.build

  def dies(config, rows=None):
    built = build(config, rows)

    def batches(step):
      if config.name.endswith("greedy/generation_3") and step == 3:
        raise OSError("out of space")
      return built.batches(step)

    return built._replace(batches=batches)

  monkeypatch.setattr(generation, "build", dies)
  with pytest.raises(OSError, match="out of space"):
    run(short(), tmp_path)
  part = tmp_path / "accumulate+greedy" / "generation_3"
  assert (part / "checkpoints").exists()
  assert not (part / history.GENERATION).exists()
  monkeypatch.setattr(generation, "build", build)
  again = run(short(), tmp_path)
  assert_same_archives(tmp_path, whole[0])
  assert again["metrics"] == whole[1]["metrics"]
  # Stopped between samples and measurements.
  measured = history.folder(tmp_path, "replace", 2) / history.MEASURES
  for path in (measured, tmp_path / "report.json"):
    path.unlink()
  monkeypatch.setattr(generation, "build", dies)
  assert run(short(), tmp_path)["metrics"] == whole[1]["metrics"]


def test_one_and_eight_devices_agree(whole, tmp_path):
  config = short(arms=("replace",), num_generations=1)
  config.mesh.data = 8
  run(config, tmp_path)
  kept = [
    np.load(history.folder(path, "replace", 1) / history.GENERATION)
    for path in (tmp_path, whole[0])
  ]
  for name in ("samples", "indices", "next_indices"):
    np.testing.assert_allclose(*(k[name] for k in kept), atol=1e-4)


@pytest.mark.thorough
def test_an_embedding_of_yours(tmp_path, monkeypatch):
  shapes = set()

  def embed(scale):
    def function(x):
      shapes.add(x.shape)
      return scale * x[:, :, 0]

    return function

  config = short(
    **{"arms": ("replace+greedy",), "num_generations": 2},
    **{"select.space": "embedding"},
  )
  build = generation.build

  def dies(config, rows=None):
    if config.name.endswith("generation_2"):
      raise OSError("out of space")
    return build(config, rows)

  with pytest.raises(ValueError, match="pass one to build"):
    run(config, tmp_path)
  monkeypatch.setattr(generation, "build", dies)
  with pytest.raises(OSError, match="out of space"):
    run(config, tmp_path, embed(1.0))
  assert shapes == {(256, 2, 2, 1)}
  monkeypatch.setattr(generation, "build", build)
  # It must be the same one until the end.
  with pytest.raises(ValueError, match="features must be the same map"):
    run(config, tmp_path, embed(2.0))
  metrics = run(config, tmp_path, embed(1.0))["metrics"]
  assert {"replace+greedy/gs_embedding_2", "real/frechet_embedding"} <= set(
    metrics
  )


def test_another_data_set_in_the_same_folder(whole, tmp_path):
  shutil.copy(whole[0] / history.REAL, tmp_path)
  rows = blobs().train.reshape(-1, 4)[:NUM]
  history.keep_real(tmp_path, rows)
  with pytest.raises(ValueError, match="holds other rows"):
    history.keep_real(tmp_path, rows[::-1])


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("arms", (), "config.arms must be different, one at least"),
    ("arms", ("replace",) * 2, "config.arms must be different"),
    ("arms", ("mixed",), "must begin with a paradigm"),
    ("arms", ("mixed+greedy",), "must begin with a paradigm"),
    ("arms", ("replace+best",), "must end with its paradigm"),
    (
      "num_train",
      39,
      "config.num_train=39 wants 41 real rows, two of them held out",
    ),
    ("num_train", 1, "config.num_train must be >= 2"),
    ("num_generations", 0, "config.num_generations must be >= 1"),
    ("oversample", 0, "config.oversample must be >= 1"),
    ("measure.k", NUM, "config.measure.k must be below num_train"),
    ("measure.num_components", 5, "num_components must be at most 4"),
    ("select.space", "dino", "config.select.space must be one of"),
    ("select.decay", 1.0, "decay must lie in"),
    ("select.threshold", -1.0, "threshold must be >= 0"),
    ("conditional", True, "config.conditional must be False"),
    ("coupling.kind", "sinkhorn", "config.coupling.kind must be"),
    ("net.kind", "unet", "config.net.kind must be"),
  ],
)
def test_bad_config(field, value, message):
  config = short(arms=("replace", "replace+threshold"))
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    # The network is looked at with the first rows at hand.
    build_all(config)


def build_all(config):
  experiment.build(config, blobs())
  rows = np.zeros((NUM, 4), np.float32)
  generation.build(generation.make_config(config, "one", 0, (4,)), rows)


def test_fresh_rows_are_never_held_out():
  config = short(arms=("fresh",), num_generations=3, fresh_share=0.5)
  assert arms.num_real([arms.parse("fresh")], config) == NUM + 3 * 6
  experiment.build(config, blobs())
  with pytest.raises(ValueError, match="wants 32 real rows"):
    experiment.build(config, blobs(31))
  with pytest.raises(ValueError, match="fresh_share must lie in"):
    experiment.build(short(arms=("fresh",), fresh_share=1.0), blobs(80))


def test_selectors_select():
  config, key = short(), jax.random.key(3)
  pool = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
  assert arms.selector(arms.parse("replace"), config) is None
  greedy, threshold = (
    arms.selector(arms.parse(f"replace+{name}"), config)(key, pool)
    for name in arms.SELECTORS
  )
  np.testing.assert_array_equal(
    greedy, selection.greedy(pool, NUM, key=key).index
  )
  want = selection.threshold_decay(
    pool, NUM, threshold=1.0, decay=config.select.decay, key=key
  )
  np.testing.assert_array_equal(threshold, want.index)


def test_samples_that_are_all_alike():
  kernel = arms.kernel(
    arms.parse("replace+greedy"),
    short(),
    fit=lambda key, data: None,
    sample=lambda params, key, num: jnp.ones((num, 4)),
  )
  state = kernel.init(blobs().train.reshape(-1, 4)[:NUM])
  with pytest.raises(ValueError, match="must have num=12 distinct rows"):
    kernel.step(jax.random.key(0), state)


def test_the_law_is_read_off_all_arms():
  rng = np.random.default_rng(0)

  def table(offset=0.0):
    gs = np.exp(rng.normal())
    entry = {"gs": gs, "entropy": 3 * np.log(gs) + 1 + offset, "trace": gs**2}
    return {name: {"value": value} for name, value in entry.items()}

  first = table(offset=40.0)
  histories = {arm: [first, table(), table()] for arm in ("a", "b")}
  found = report.correlations(histories, [report.PIXELS])
  assert found["correlation"] == pytest.approx(1)
  assert found["correlation_trace"] == pytest.approx(1)
  assert found["correlation_with_first"] < 0.9
  x, _ = report.points(histories, "entropy", "gs", first=True)
  assert len(x) == 5  # the first generation is one point
  short_loop = {"a": [first, table()]}
  found = report.correlations(short_loop, [report.PIXELS])
  assert found["correlation"] is None


# Gaussians in closed form.


def chains(**fields):
  config = gaussian.get_config("smoke")
  config.update_from_flattened_dict(fields)
  return config


def errors(workdir, config):
  """Errors in standard errors of all that is known exactly."""
  study = training.build(config)
  found = training.run(study, config, workdir, progress=False)
  assert (workdir / "figures" / "variance.png").exists()
  return {
    name: (entry["value"] - entry["exact"]) / entry["se"]
    for name, entry in found["metrics"].items()
    if entry["exact"] is not None
  }


def test_gaussian_loops_lose_the_variance_that_they_must(tmp_path, monkeypatch):
  config = chains(arms=tuple(collapse.PARADIGMS), num_generations=3)
  found = errors(tmp_path / "right", config)
  assert len(found) == 4 * 3 + 2 * 3
  # 18 values that depend on one another: 4.5 is passed once in 8000 times.
  assert max(map(abs, found.values())) < 4.5
  # Divided by N - 1, variances are kept.
  config = chains(arms=("replace",), num_generations=3)
  monkeypatch.setattr(
    closed_form, "_fit", lambda key, data: (data.mean(), data.var(ddof=1))
  )
  found = errors(tmp_path / "wrong", config)
  assert max(map(abs, found.values())) > 20


def test_expected_variances():
  n = np.arange(1, 6)
  options = dict(num=10, num_generations=5)
  replace = closed_form.expected_variance("replace", **options)
  np.testing.assert_allclose(replace, 0.9**n, rtol=1e-12)
  np.testing.assert_allclose(
    closed_form.expected_variance("accumulate", **options),
    np.cumprod(1 - 1 / (10 * n**2)),
    rtol=1e-12,
  )
  # Between the two; and with nearly all rows fresh, a single loss.
  between = closed_form.expected_variance("accumulate_subsample", **options)
  assert np.all(between[1:] > replace[1:]) and np.all(np.diff(between[:3]) < 0)
  fresh = closed_form.expected_variance("fresh", fresh_share=0.9, **options)
  np.testing.assert_allclose(fresh, 0.9, atol=0.02)
  log = closed_form.expected_log_variance(10, 5)
  assert log[-1] == pytest.approx(-1.10283, abs=1e-5)


def test_selection_in_gaussian_loops(tmp_path):
  config = chains(arms=("replace+greedy",), num_generations=3, num_chains=200)
  study = training.build(config)
  found = training.run(study, config, tmp_path, progress=False)["metrics"]
  # Farthest points are spread out: variance grows where it fell.
  assert found["replace+greedy/variance_3"]["value"] > 1
  assert found["replace+greedy/variance_3"]["exact"] is None
