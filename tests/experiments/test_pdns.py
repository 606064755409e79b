"""The PDNS experiments end to end, in all variants, and what breaks them."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pdns import (
  experiment,
  gmm,
  ising,
  laws,
  manywell,
  maxcut,
  particles,
  potts,
  report,
  samplers,
)
from jdiff import training
from jdiff.methods import pdns
from jdiff.sde import references
from jdiff.training import program as program_lib
from tests.helpers import variants
from tests.training import results

TASKS = {
  "gmm": gmm,
  "ising": ising,
  "manywell": manywell,
  "maxcut": maxcut,
  "particles": particles,
  "potts": potts,
}

# A run and the ones that repeat it are the same programs.
pytestmark = pytest.mark.usefixtures("compile_cache")


def trace(config):
  mesh = training.make_mesh(devices=jax.devices()[:1])
  program = program_lib.compile_experiment(training.build(config), mesh)
  with jax.set_mesh(mesh):
    return program, *jax.eval_shape(program.step, program.abstract, None)


@pytest.mark.slow
@pytest.mark.parametrize("module, name", variants(TASKS, first=("smoke",)))
@pytest.mark.filterwarnings("ignore:the target's tails are heavier")
def test_a_variant_traces(module, name):
  program, state, metrics = trace(module.get_config(name))
  assert state.params.keys() == program.abstract.params.keys()
  assert {"loss", "remaining", "stage_log_z", "log_z", "invalid"} <= set(
    metrics
  )


# Runs.


def short(module, **fields):
  """A smoke config of a few stages and small networks, on one device."""
  config = module.get_config("smoke")
  config.mesh.data = 1
  config.num_eval, config.eval_chunk, config.num_reference = 4096, 4096, 128
  config.update_from_flattened_dict(fields)
  return config


def stages(config, num_stages, inner_steps):
  config.stages.inner_steps = inner_steps
  config.num_steps = num_stages * inner_steps
  config.log_every = inner_steps
  config.eval_every = config.checkpoint_every = config.num_steps // 2
  return config


def finish(config, workdir, figures=False):
  built = training.build(config)
  if not figures:
    built = built._replace(figures=None)
  training.run(built, config, workdir, progress=False)
  records = [r for r in results.metrics(workdir) if "remaining" in r]
  return results.report(workdir)["metrics"], records


def check_log_z(metrics):
  log_z = metrics["log_z"]
  assert log_z["se"] < 0.2
  assert abs(log_z["value"] - log_z["exact"]) < 4 * log_z["se"]
  elbo = metrics["elbo"]
  assert elbo["value"] < log_z["exact"] + 4 * elbo["se"]
  if "eubo" in metrics:
    eubo = metrics["eubo"]
    assert eubo["value"] > log_z["exact"] - 4 * eubo["se"]


def check_stages(records):
  remaining = [r["remaining"] for r in records]
  assert remaining[-1] < 0.9 and remaining[-1] < remaining[0]
  assert (np.diff(remaining) <= 0).all()
  assert all(r["invalid"] == 0 for r in records)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
  """A finished run: workdir, config, report, records."""
  workdir = tmp_path_factory.mktemp("gmm")
  config = stages(short(gmm, **{"net.hidden": (32, 32)}), 6, 20)
  config.learning_rate = 5e-3
  return workdir, config, *finish(config, workdir, figures=True)


@pytest.mark.slow
def test_mixture(mixture):
  workdir, config, metrics, records = mixture
  check_log_z(metrics)
  check_stages(records)
  assert len(records) == 6
  # Relative steps: the remaining shares are products.
  last = 1.0
  for record in records:
    np.testing.assert_allclose(
      record["remaining"], last * (1 - record["exponent"]), atol=1e-5
    )
    last = record["remaining"]
    if record["exponent"] < 1:
      np.testing.assert_allclose(record["stage_ess_fraction"], 0.5, atol=1e-3)
  assert metrics["remaining"]["value"] == pytest.approx(last, abs=1e-6)
  # Two sets of exact samples are no nearer than draws can be.
  assert metrics["w2"]["value"] > 0.8 * metrics["w2_floor"]["value"]
  assert metrics["energy_evaluations"]["value"] == 6 * config.buffer.num_samples
  names = {path.name for path in (workdir / "figures").iterdir()}
  assert names == {"modes.png", "samples.png", "stages.png"}
  apply, params, _ = training.load(workdir)
  draws = training.sample(workdir, 10)
  assert draws.shape == (10, 4)
  assert apply(params, draws, jnp.ones(10)).shape == (10, 4)


@pytest.mark.slow
def test_a_run_that_broke_off_ends_the_same(mixture, tmp_path):
  whole, config, *_ = mixture
  built = training.build(config)

  def fails(*args, **options):
    raise RuntimeError("cut off")

  # Halfway, in the middle of the stages, after the checkpoint.
  with pytest.raises(RuntimeError, match="cut off"):
    results.run(built._replace(evaluate=fails), config, tmp_path)
  assert not (tmp_path / "report.json").exists()
  results.run(built, config, tmp_path)
  results.assert_same_run(whole, tmp_path)


@pytest.mark.thorough
def test_wells(tmp_path):
  config = stages(short(manywell, **{"net.hidden": (32,)}), 5, 20)
  config.learning_rate = 5e-3
  # As in the paper: steps of the reference's variance.
  config.reference.fit_spread = False
  metrics, records = finish(config, tmp_path)
  check_log_z(metrics)
  check_stages(records)
  assert metrics["mode_share_0"]["exact"] == pytest.approx(0.25)
  assert metrics["modes_lost"]["value"] == 0


@pytest.mark.slow
def test_lattice(tmp_path):
  fields = {"net.hidden": (32, 32), "target.size": 3}
  config = stages(short(ising, **fields), 8, 40)
  config.buffer.num_samples = 1024
  config.learning_rate, config.ema_decay = 1e-2, 0.9
  metrics, records = finish(config, tmp_path)
  check_log_z(metrics)
  check_stages(records)
  # Every stage's normaliser is that of the model at its share of beta.
  exact = laws.stage_normaliser(config.target)
  checked = 0
  for record in records:
    if record["stage_ess_fraction"] > 0.1:
      error = record["stage_log_z"] - exact(record["remaining"])
      # At the reference itself both are zero.
      assert abs(error) <= 5 * record["stage_log_z_se"] + 1e-5
      checked += 1
  assert checked >= 4
  # The control: stages far apart do not have one normaliser.
  first, last = records[0], records[-1]
  assert last["remaining"] < first["remaining"] - 0.2
  gap = first["stage_log_z"] - exact(last["remaining"])
  assert abs(gap) > 10 * first["stage_log_z_se"]


@pytest.mark.thorough
def test_graph(tmp_path):
  config = stages(short(maxcut, **{"net.hidden": (32, 32)}), 5, 15)
  config.stages.rule = "annealed"
  # Kept small enough for a short run.
  config.target.beta = 1.0
  metrics, records = finish(config, tmp_path)
  check_log_z(metrics)
  check_stages(records)
  np.testing.assert_allclose(
    [r["remaining"] for r in records], [2 / 3, 1 / 3, 0, 0, 0], atol=1e-6
  )
  assert metrics["cut"]["exact"] is not None
  assert metrics["best_cut"]["value"] <= metrics["best_cut"]["exact"] == 12


@pytest.mark.thorough
def test_particles(tmp_path, monkeypatch):
  # Long chains take longer than all else; these two are never compared.
  monkeypatch.setattr(
    report.chains,
    "sample",
    lambda target, key, num, **_: np.asarray(
      _centred(jax.random.normal(key, (num, *target.shape)))
    ),
  )
  fields = {"target.num_particles": 2, "net.width": 8, "net.num_layers": 1}
  config = stages(short(particles, **fields), 4, 10)
  config.reference.num_steps = 10
  metrics, records = finish(config, tmp_path)
  # Two particles are known by quadrature; the stand-ins for chains are none.
  assert metrics.pop("eubo")["value"] < metrics["log_z"]["exact"]
  check_log_z(metrics)
  check_stages(records)
  assert {"energy_w2", "distance_w2", "energy_w2_floor"} <= set(metrics)


def _centred(x):
  return x - x.mean(axis=1, keepdims=True)


def steps(config, num, devices=1):
  mesh = training.make_mesh(devices=jax.devices()[:devices])
  program = program_lib.compile_experiment(experiment.build(config), mesh)
  with jax.set_mesh(mesh):
    state = program.init(jax.random.key(0))
    for _ in range(num):
      state, metrics = jax.block_until_ready(program.step(state, None))
  return jax.device_get((state.params, state.extra.progress, metrics))


def tiny(**fields):
  """One step a stage, of sizes that only matter to the program's shape."""
  config = short(gmm, **{"net.hidden": (16,), "reference.num_steps": 4})
  config.buffer.num_samples, config.batch_size = 128, 64
  config.stages.inner_steps = 1
  config.update_from_flattened_dict(fields)
  return config


@pytest.mark.slow
def test_one_and_eight_devices_agree():
  # The second step fits the spread too.
  one, eight = (steps(tiny(), 2, devices) for devices in (1, 8))
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
    # Adam divides by the gradient's size: float noise in, noise of its rate
    # (2e-3) out for entries near zero.
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_chunks_of_a_buffer_change_nothing():
  one = steps(tiny(), 1)
  four = steps(tiny(**{"buffer.num_chunks": 4}), 1)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_log_densities_that_overflow_do_not_break_a_step(monkeypatch):
  whole = laws.continuous(tiny().target)

  def broken(x):
    value = jnp.where(x[-1] > 2, jnp.inf, whole.log_prob(x))
    return jnp.where(x[-1] < -2, jnp.nan, value)

  monkeypatch.setitem(
    laws._CONTINUOUS, "gmm", lambda config: whole._replace(log_prob=broken)
  )
  params, progress, metrics = steps(tiny(), 2)
  assert 0.3 < metrics["invalid"] < 0.9
  for leaf in jax.tree.leaves((params, progress, metrics)):
    assert np.isfinite(leaf).all()
  assert 0 < progress.remaining < 1


# A sampler that has lost a mode.


@pytest.mark.slow
def test_a_lost_mode_shows_in_eubo_alone():
  # The exact process of the mode at 4, for a sampler of two modes or of one.
  config = short(gmm, **{"target.dim": 1, "target.distance": 4.0})
  config.num_eval = config.eval_chunk = 2048
  scale, num = config.reference.scale, config.reference.num_steps
  precision = 1 - 1 / scale**2

  def residual(params, x, t):
    noise = scale * jnp.sqrt(t)[:, None]
    return (4.0 - precision * x) * noise / (1 + precision * noise**2)

  times = np.linspace(1, 0, num + 1)[:-1]
  spread = jnp.asarray(1 / (1 + precision * scale**2 * times), jnp.float32)
  policy = {"net": jnp.zeros(()), "scale": jnp.ones(()), "spread": spread}

  def evaluate(weights):
    config.target.weights = weights
    process = samplers.make(config)
    sampler = pdns.gaussian(
      process.target,
      residual_fn=residual,
      reference=references.brownian(scale=scale),
      num_steps=num,
      spread=lambda policy: policy["spread"],
    )
    evaluator = report.Evaluator(config, process._replace(sampler=sampler))
    found = evaluator.evaluate(policy, jax.random.key(0), final=True)
    return {
      name: entry["value"]
      for name, entry in found.items()
      if isinstance(entry, dict)
    }

  lost, whole = evaluate((0.5, 0.5)), evaluate((1.0,))
  log_z = config.target.log_z
  # Weights and bounds are those of the sampler that has lost nothing...
  for found in (lost, whole):
    assert found["ess_fraction"] > 0.95
    assert found["log_z"] - found["elbo"] < 0.02
  assert abs(whole["log_z"] - log_z) < 0.02
  assert abs(lost["log_z"] - (log_z - np.log(2))) < 0.02
  # ... and only what looks at the other mode knows of it.
  assert lost["modes_lost"] == 1 and whole["modes_lost"] == 0
  assert lost["mode_share_worst_z"] > 10
  assert lost["eubo"] - lost["log_z"] > 5
  assert abs(whole["eubo"] - whole["log_z"]) < 0.02


# What a config may not say.


@pytest.mark.parametrize(
  "module, field, value, message",
  [
    (gmm, "stages.rule", "newton", "config.stages.rule must be one of"),
    (gmm, "target.kind", "banana", "config.target.kind must be one of"),
    (ising, "target.kind", "xy", "config.target.kind must be"),
    (gmm, "reference.kind", "ve", "config.reference.kind must be"),
    (gmm, "reference.scale", 0.0, "scale must be positive"),
    (gmm, "net.kind", "cnn", "config.net.kind must be 'mlp' or 'egnn'"),
    (gmm, "net.kind", "egnn", "is for particles; pass net.kind='mlp'"),
    (particles, "net.kind", "mlp", "pass net.kind='egnn' for particles"),
    (
      gmm,
      "batch_size",
      4096,
      "num_samples must be at least config.batch_size=4096, got 1024",
    ),
    (gmm, "stages.min_fraction", 1.0, r"min_fraction must lie in \(0, 1\)"),
    (gmm, "stages.max_kl", -1.0, "config.stages.max_kl must be >= 0"),
    (gmm, "stages.min_remaining", 1.0, "min_remaining must lie in"),
    (gmm, "stages.annealed_share", 2.0, "config.stages.annealed_share must"),
    (gmm, "stages.max_ratio", -1.0, "config.stages.max_ratio must be >= 0"),
    (gmm, "stages.inner_steps", 0, "stages.inner_steps"),
    (gmm, "target.dim", 1, "config.target.dim must be at least half"),
    (gmm, "learning_rate", 0.0, "config.learning_rate must be positive"),
    (gmm, "ema_decay", 1.5, "config.ema_decay must lie in"),
    (ising, "target.disorder", "odd", "config.target.disorder must be"),
    (ising, "loss", "kl", "config.loss must be one of"),
    (maxcut, "target.graph", "complete", "config.target.graph must be"),
    (maxcut, "target.edges_file", "/no/such", "'/no/such' cannot be read"),
  ],
)
def test_bad_config(module, field, value, message):
  config = module.get_config("smoke")
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    experiment.build(config)


@pytest.mark.parametrize(
  "text, message",
  [
    ("0 1\n1 2\n2 2\n", r"two different nodes, got edge 2 = \(2, 2\)"),
    ("0 1\n1 2\n1 0\n", r"each pair once.* as edges 0 and 2"),
    ("0 one\n", "must hold two node numbers a line"),
    ("0\n1\n", r"edges must have shape \[\*, 2\]|two node numbers a line"),
    ("", r"edges must have shape \[\*, 2\]|two node numbers a line"),
  ],
)
@pytest.mark.filterwarnings("ignore:.*input contained no data")
def test_bad_edges(text, message, tmp_path):
  path = tmp_path / "edges.txt"
  path.write_text(text)
  config = maxcut.get_config("smoke")
  config.target.edges_file = str(path)
  with pytest.raises(ValueError, match=message):
    experiment.build(config)


def test_edges_of_a_file(tmp_path):
  path = tmp_path / "edges.txt"
  path.write_text("0 1\n1 2\n# a comment\n2 0\n")
  config = maxcut.get_config("smoke")
  config.target.edges_file = str(path)
  target = samplers.make(config).target
  # A triangle cuts two edges in six states of eight.
  want = np.log(2 + 6 * np.exp(2 * config.target.beta))
  np.testing.assert_allclose(target.log_z, want, rtol=1e-6)


def test_warnings():
  config = gmm.get_config("smoke")
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    experiment.build(config)
  config.reference.kind, config.reference.beta_max = "vp", 4.0
  # exp(-(0.1 + 4) / 4)
  with pytest.warns(UserWarning, match="correlation of 0.359"):
    experiment.build(config)
  with pytest.warns(UserWarning, match="tails are heavier .* 100%"):
    experiment.build(gmm.get_config("paper_student"))
