"""Fine-tuning experiments end to end, in all variants, and what breaks them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.masked_lm import base
from experiments.tr2d2 import (
  custom,
  dna,
  enumerable,
  experiment,
  figures,
  inference,
  peptides,
  problems,
  report,
  smiles,
  splice,
)
from jdiff import nets, training
from jdiff.core import reward as reward_lib
from jdiff.training import program as program_lib
from tests.helpers import variants
from tests.training import results

TASKS = {
  "dna": dna,
  "enumerable": enumerable,
  "peptides": peptides,
  "splice": splice,
}

pytestmark = pytest.mark.usefixtures("compile_cache")


def small(**fields):
  """Four rounds of two steps, half of them search, on one device."""
  config = enumerable.get_config("smoke")
  config.update_from_flattened_dict(
    {
      "mesh.data": 1,
      "search.num_roots": 2,
      "search.num_children": 8,
      "search.num_expansions": 4,
      "buffer.capacity": 32,
      "batch_size": 64,
      "num_masks": 1,
      "inner_steps": 5,
      "num_steps": 16,
      "num_tree_rounds": 2,
      "log_every": 4,
      "eval_every": 8,
      "checkpoint_every": 6,
      "num_eval": 256,
      "num_baseline": 64,
      **fields,
    }
  )
  return config


def wait_free(length=6, num_tokens=4, reward=None):
  """A problem with a base at hand, and a host's reward."""
  network = nets.mlp(length, num_tokens, hidden=(16,))
  host = reward_lib.HostReward(
    reward or (lambda rows: (np.asarray(rows) == 1).mean(axis=1))
  )
  return problems.Problem(
    length=length,
    num_tokens=num_tokens,
    network=network,
    frozen=base.given(network.init(jax.random.key(0))),
    reward=host,
    names=("ones",),
    decode=lambda tokens: ["".join(map(str, row)) for row in tokens],
  )


def finish(config, workdir, **parts):
  built = experiment.build(config, **parts)
  training.run(built, config, workdir, progress=False)
  return results.report(workdir)["metrics"], results.metrics(workdir)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("pairs")
  config = small()
  return workdir, config, *finish(config, workdir)


@pytest.mark.slow
def test_a_hybrid_run(hybrid):
  workdir, _, metrics, records = hybrid
  rounds = [record for record in records if "num_calls" in record]
  # Two roots of eight children: 64 rewards a round.
  assert [r["num_calls"] for r in rounds] == [64, 128, 192, 256]
  assert all(r["num_unique"] <= r["num_calls"] for r in rounds)
  assert rounds[0]["num_rows"] <= 32 and rounds[-1]["num_rows"] == 64
  # Independent rows: those of roots in a search, all of a rollout's.
  assert rounds[0]["independent"] < 1 and rounds[-1]["independent"] == 1
  assert metrics["kl_target"]["value"] < metrics["kl_target_base"]["value"]
  reward = metrics["reward"]
  assert (
    abs(reward["value"] - metrics["reward_exact"]["value"]) < 5 * reward["se"]
  )
  assert reward["value"] > 2 * metrics["reward_base"]["value"]
  np.testing.assert_allclose(
    metrics["elbo_of_base"]["value"], -6 * np.log(4), rtol=1e-5
  )
  assert metrics["num_calls_tree"]["value"] == 64
  names = {path.name for path in (workdir / "figures").iterdir()}
  assert names == {"best.png", "rewards.png", "samples.jsonl", "training.png"}
  assert training.sample(workdir, 3).shape == (3, 6)


@pytest.mark.slow
def test_figures_are_of_the_parameters_that_they_are_given(hybrid, tmp_path):
  workdir, *_ = hybrid
  _, params, _ = training.load(workdir)
  built, key = experiment.build(small(num_baseline=0)), jax.random.key(0)
  history = results.metrics(workdir)

  def samples(params):
    built.figures(params, key, tmp_path, history)
    return (tmp_path / "samples.jsonl").read_text()

  built.evaluate(params, key, final=True)
  evaluated = samples(params)
  assert evaluated == samples(params)
  # What the last evaluation has scored must not stand for another policy.
  assert evaluated != samples(jax.tree.map(jnp.zeros_like, params))


@pytest.mark.slow
def test_a_run_that_broke_off_in_a_search_ends_the_same(hybrid, tmp_path):
  whole, config, metrics, _ = hybrid
  built = experiment.build(config)
  calls = []

  class CutOff(Exception):
    pass

  def stop(*args, **options):
    calls.append(1)
    raise CutOff

  # Evaluations come after 8 steps, the last checkpoint after 6: in a search.
  with pytest.raises(CutOff):
    training.run(
      built._replace(evaluate=stop),
      config,
      tmp_path,
      progress=False,
    )
  again, _ = finish(config, tmp_path)
  assert calls
  for name, value in metrics.items():
    assert again[name] == value, name


@pytest.mark.slow
def test_devices_do_not_matter():
  config = small(**{"search.num_roots": 8, "num_baseline": 0})
  states = []
  for devices in (1, 8):
    mesh = training.make_mesh(devices, 1)
    built = experiment.build(config)
    program = program_lib.compile_experiment(built, mesh)
    with jax.set_mesh(mesh):
      state = program.init(jax.random.key(0))
      # A round of search, and one of rollouts.
      for step in (0, 1, 2, 3, 8, 9, 10, 11):
        state = state._replace(step=jnp.int32(step))
        state, proposals = program.collect(state)
        state, metrics = program.step(state, (proposals, None))
        jax.block_until_ready(metrics)
      states.append(jax.device_get((state.params, state.extra.rows, metrics)))
  one, eight = states
  np.testing.assert_array_equal(one[1].samples, eight[1].samples)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
    (one[0], one[1].log_ref, one[2]),
    (eight[0], eight[1].log_ref, eight[2]),
  )


@pytest.mark.slow
def test_a_reward_of_the_host(tmp_path):
  problem = wait_free()
  config = small(learning_rate=1e-2)
  metrics, records = finish(config, tmp_path, problem=problem)
  assert metrics["ones"]["value"] > 1.2 * metrics["ones_base"]["value"]
  # A cache answers what was asked before.
  asked = [r["num_calls"] for r in records if "num_calls" in r][-1]
  assert 0 < problem.reward.num_calls < asked + 3 * 256 + 2 * 64


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:none of 256 samples")
def test_rewards_that_are_never_valid(tmp_path):
  def never(rows):
    return np.full(len(rows), np.nan)

  problem = wait_free(reward=never)
  metrics, records = finish(small(), tmp_path, problem=problem)
  # Nothing was learnt, nothing broke, and the records say so.
  assert metrics["valid"]["value"] == 0 and metrics["ones"]["value"] is None
  assert [r["num_rows"] for r in records if "num_rows" in r] == [0] * 4
  build = lambda config: experiment.build(config, problem=problem)  # noqa: E731
  _, params, _ = training.load(tmp_path, build=build)
  jax.tree.map(np.testing.assert_array_equal, params, problem.base_params())


def test_a_reward_that_raises_names_the_sequence(tmp_path):
  def fails(rows):
    if (np.asarray(rows)[:, 0] == 2).any():
      raise ZeroDivisionError("two")
    return np.zeros(len(rows))

  problem = wait_free(reward=fails)
  with pytest.raises(reward_lib.RewardError, match=r"raised .* on \[2, ") as e:
    finish(small(), tmp_path, problem=problem)
  assert e.value.sequence[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
  "module, name",
  [
    pytest.param(
      module,
      "smoke",
      id=label,
      marks=pytest.mark.thorough if label != "splice" else (),
    )
    for label, module in {**TASKS, "smiles": smiles}.items()
    if label != "enumerable"
  ],
)
def test_real_data(module, name, tmp_path):
  config = module.get_config(name)
  config.mesh.data = config.base.mesh.data = 1
  if module is splice:
    config.num_baseline = 0
  built = training.build(config)
  if module is not splice:
    built = built._replace(figures=None)
  training.run(built, config, tmp_path, progress=False)
  metrics = results.report(tmp_path)["metrics"]
  if module is splice:
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"logos.png", "rewards.png", "best.png"} <= names
    assert metrics["matches"]["exact"] == pytest.approx(7.241, abs=1e-3)
    tv, base = (metrics[f"matches_tv{s}"]["value"] for s in ("", "_base"))
    assert tv < 0.7 * base
  if module is dna:
    assert metrics["binding"]["value"] > metrics["binding_base"]["value"]
    assert {"held_out_log_odds", "word_correlation"} <= metrics.keys()
  if module is peptides:
    assert {"hypervolume", "hypervolume_tree"} <= metrics.keys()


@pytest.mark.slow
def test_the_users_own_sequences_and_function(tmp_path):
  path = tmp_path / "mine.fasta"
  rng = np.random.default_rng(0)
  lines = ["".join(rng.choice(list("ACGT"), 8)) for _ in range(200)]
  path.write_text("".join(f">s{i}\n{s}\n" for i, s in enumerate(lines)))
  config = custom.get_config("cpu")
  config.update_from_flattened_dict(
    {
      "base.data.path": str(path),
      "base.num_steps": 20,
      "base.eval_every": 20,
      "base.net.width": 16,
      "base.net.num_layers": 1,
      "base.net.num_heads": 1,
      "base.mesh.data": 1,
      "mesh.data": 1,
      "problem.function": "tests.experiments.test_tr2d2:count_g",
      "search.num_roots": 2,
      "search.num_expansions": 2,
      "inner_steps": 5,
      "num_eval": 128,
    }
  )
  config.num_steps = config.eval_every = config.checkpoint_every = 12
  config.num_tree_rounds = 2
  built = training.build(config)._replace(figures=None)
  training.run(built, config, tmp_path / "run", progress=False)
  metrics = results.report(tmp_path / "run")["metrics"]
  assert metrics["reward"]["value"] > metrics["reward_base"]["value"] + 0.3
  with pytest.raises(ValueError, match="'module:function' of a module"):
    problems.imported("tests.experiments:nothing")
  with pytest.raises(ValueError, match="'module:function' of a module"):
    problems.imported("nothing.here")


def count_g(sequences):
  return [sequence.count("G") for sequence in sequences]


@pytest.mark.slow
@pytest.mark.parametrize(
  "module, name", variants({"enumerable": enumerable}, first=("pairs",))
)
def test_a_variant_traces(module, name):
  mesh = training.make_mesh(devices=jax.devices()[:1])
  built = training.build(module.get_config(name))
  program = program_lib.compile_experiment(built, mesh)
  with jax.set_mesh(mesh):
    _, proposals = jax.eval_shape(program.collect, program.abstract)
    _, metrics = jax.eval_shape(
      program.step, program.abstract, (proposals, None)
    )
  assert {"loss", "ess", "num_calls", "best_reward"} <= metrics.keys()


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("search.score", "ucb", "config.search.score must be one of"),
    ("search.backup", "median", "config.search.backup must be one of"),
    ("search.pick", "worst", "config.search.pick must be one of"),
    ("search.num_children", 0, "config.search.num_children must be >= 1"),
    ("buffer.weighting", "paths", "config.buffer.weighting must be one of"),
    ("buffer.admission", "none", "config.buffer.admission must be one of"),
    ("buffer.admission", "all", "needs a buffer of limited size"),
    ("sampler.num_steps", 3, "needs unique rows"),
    ("sampler.temperature", 0.0, "config.sampler.temperature must be"),
    ("reward_temperature", -1.0, "config.reward_temperature must be"),
    ("num_steps", 3, "whole rounds of config.search.num_expansions"),
    ("ema_decay", 1.5, r"config.ema_decay must lie in \[0, 1\)"),
    ("objective_weights", (1.0, 2.0), "one number for each of reward"),
    ("objective_ideal", (1.0, 2.0), "one number for each of reward"),
    ("problem.kind", "nothing", "config.problem.kind must be one of"),
  ],
)
def test_bad_configs(field, value, message):
  config = enumerable.get_config("smoke")
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    experiment.build(config)


def test_a_table_keeps_its_reward():
  with pytest.raises(ValueError, match="has a reward of its own"):
    experiment.build(small(), reward=count_g)
  with pytest.raises(ValueError, match="has a reward of its own"):
    experiment.build(small(**{"problem.function": "any:thing"}))
  with pytest.raises(ValueError, match="a reward and a base of its own"):
    experiment.build(small(), reward=count_g, problem=wait_free())


def test_a_table_is_tilted_by_what_objectives_weigh():
  exact = [
    problems.make(small(objective_weights=w)).exact["reward"]
    for w in ((), (1.0,), (3.0,))
  ]
  assert exact[0] == exact[1] < exact[2]


@pytest.mark.thorough
def test_five_objectives_below_zero(tmp_path):
  """More than volumes are made of, and worth less than nothing."""
  network = nets.mlp(4, 3, hidden=(8,))

  def reward(rows):
    return -5 + (np.asarray(rows)[:, :1] == np.arange(5) % 3).astype(float)

  problem = problems.Problem(
    length=4,
    num_tokens=3,
    network=network,
    frozen=base.given(network.init(jax.random.key(0))),
    reward=reward_lib.HostReward(reward, num_objectives=5),
    names=tuple("abcde"),
    decode=lambda tokens: ["".join(map(str, row)) for row in tokens],
  )
  config = small(
    **{"buffer.admission": "pareto", "num_eval": 64, "num_baseline": 0}
  )
  metrics, records = finish(config, tmp_path, problem=problem)
  assert "hypervolume" not in metrics
  rows = [r for r in records if "front_0_a" in r]
  assert len(rows) == 4 and all(-5 <= r["front_7_e"] <= -4 for r in rows)
  assert (tmp_path / "figures" / "fronts_by_round.png").exists()
  # Of two: above the least that the base is worth.
  two = problem._replace(
    reward=reward_lib.HostReward(lambda x: reward(x)[:, :2], num_objectives=2),
    names=("a", "b"),
  )
  evaluator = report.Evaluator(
    config,
    two,
    dict(logits_fn=network.apply, length=4, mask_id=3),
  )
  found = evaluator.evaluate(two.base_params(), jax.random.key(1), final=False)
  # The front is (-4, -5) and (-5, -4), the reference (-5, -5).
  assert found["hypervolume"]["value"] == 0
  np.testing.assert_array_equal(evaluator._reference(), [-5, -5])


@pytest.mark.thorough
@pytest.mark.parametrize("variant", ["pairs", "markov_rollouts", "markov_top"])
def test_what_search_and_rollouts_buy(variant, tmp_path):
  """The pass lines of a soft and a sharp problem, seed 0."""
  config = enumerable.get_config(variant)
  config.mesh.data = 1
  built = training.build(config)._replace(figures=None)
  training.run(built, config, tmp_path, progress=False)
  records = results.metrics(tmp_path)
  kl = [r["eval/kl_target"] for r in records if "eval/kl_target" in r]
  reward = [r["eval/reward_exact"] for r in records if "eval/kl_target" in r]
  base = results.report(tmp_path)["metrics"]["kl_target_base"]["value"]
  if variant == "pairs":
    assert len(kl) == 14 and reward[0] >= 0.8 and kl[-1] <= 0.2
  elif variant == "markov_rollouts":
    assert len(kl) == 12 and kl[-1] <= 0.08 * base
  else:
    # Unique rows under weights that need duplicates: it must not get there.
    assert kl[-1] >= 0.13 * base


@pytest.mark.thorough
def test_splice_sites_reach_the_law_that_is_known(tmp_path):
  config = splice.get_config("cpu")
  config.mesh.data = config.base.mesh.data = 1
  config.num_baseline = 0
  built = training.build(config)._replace(figures=None)
  training.run(built, config, tmp_path, progress=False)
  metrics = results.report(tmp_path)["metrics"]
  matches = metrics["matches"]
  assert abs(matches["value"] - matches["exact"]) < 0.08
  assert metrics["matches_tv"]["value"] <= 0.03
  last = [r for r in results.metrics(tmp_path) if "ess" in r][-1]
  assert last["ess"] >= 0.8 * last["num_rows"]


def test_searches_of_the_base_alone():
  config = small()
  problem = problems.make(config)
  params = problem.base_params()
  key = jax.random.key(0)
  best = inference.best_of_n(problem, params, key, 100, config)
  tree = inference.tree(problem, params, key, 100, config)
  for found in (best, tree):
    assert found.samples.shape == (100, 6) and found.rewards.shape == (100, 1)
    np.testing.assert_allclose(
      found.rewards, problem.reward(jnp.asarray(found.samples)), rtol=1e-6
    )
    assert (found.samples < 4).all()


def test_figures(tmp_path):
  rng = np.random.default_rng(0)
  rewards = {"one": rng.normal(size=(50, 2)), "two": rng.normal(size=(9, 2))}
  rewards["two"][3] = np.nan
  figures.histograms(tmp_path / "a.png", rewards, ("x", "y"), {"x": 0.0})
  figures.fronts(tmp_path / "b.png", rewards, ("x", "y"))
  nothing = {"none": np.full((3, 1), np.nan)}
  figures.histograms(tmp_path / "c.png", nothing, ("x",))
  figures.fronts(tmp_path / "d.png", {"none": np.full((3, 2), np.nan)}, "xy")
  assert len(list(tmp_path.iterdir())) == 4


def test_total_variation():
  values = np.array([0.0, 1.0, 1.0])
  probs = np.array([0.5, 0.25, 0.25])
  samples = np.array([0.0, 0.0, 1.0, 0.0])
  tv = problems.total_variation(samples, values, probs)
  assert tv["tv"] == pytest.approx(0.25)
  assert tv["tv_noise"] == pytest.approx(0.5 * (2 / np.pi / 4) ** 0.5)
  # Mass where the law has none counts.
  tv = problems.total_variation(
    np.array([0.0, 0.0, 0.0, 2.0, 2.0, 2.0]),
    np.array([2.0, 3.0]),
    np.array([0.5, 0.5]),
  )
  assert tv["tv"] == pytest.approx(0.5)
