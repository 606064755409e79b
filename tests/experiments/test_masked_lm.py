"""Pretraining and tuning of masked language models, in all their variants."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.dmpo import arithmetic as dmpo_arithmetic
from experiments.dmpo import countdown as dmpo_countdown
from experiments.dmpo import experiment as dmpo
from experiments.dmpo import parity as dmpo_parity
from experiments.dmpo import sudoku as dmpo_sudoku
from experiments.gdpo import arithmetic as gdpo_arithmetic
from experiments.gdpo import countdown as gdpo_countdown
from experiments.gdpo import experiment as gdpo
from experiments.gdpo import parity as gdpo_parity
from experiments.gdpo import sudoku as gdpo_sudoku
from experiments.masked_lm import corpora, defaults, tasks, text
from experiments.masked_lm import experiment as masked_lm
from jdiff import training
from jdiff.core.types import Rollout
from jdiff.training import program as program_lib
from jdiff.training import sharding
from tests import helpers

BUILDS = {"gdpo": gdpo.build, "dmpo": dmpo.build}
TUNED = {
  "gdpo": (gdpo_arithmetic, gdpo_countdown, gdpo_parity, gdpo_sudoku),
  "dmpo": (dmpo_arithmetic, dmpo_countdown, dmpo_parity, dmpo_sudoku),
}


def tuned_variants():
  """Arithmetic's smoke and pod; the others repeat them."""
  return [
    pytest.param(
      method,
      module,
      name,
      id=f"{method}-{module.__name__.split('.')[-1]}-{name}",
      marks=()
      if module is modules[0] and name != "cpu"
      else pytest.mark.thorough,
    )
    for method, modules in TUNED.items()
    for module in modules
    for name in ("smoke", "cpu", "pod")
  ]


@functools.cache
def arithmetic():
  return corpora.load("task", name="modular")


def one_device():
  return training.make_mesh(devices=jax.devices()[:1])


def zeros(config, corpus):
  """Stands in for a trained base, where shapes are all that counts."""
  network = masked_lm.make_network(config.base, corpus)

  def make():
    abstract = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)

  return make


@functools.cache
def base_params():
  """A base that is not uniform: masks would not matter to one that is."""
  network = masked_lm.make_network(tiny("gdpo").base, arithmetic())
  params = jax.jit(network.init)(jax.random.key(1))
  return jax.device_get(helpers.perturbed(params, 2, 0.2))


def tiny(method, **fields):
  """A config that tunes 32 rollouts of four tokens."""
  config = getattr(defaults, method)("modular")
  config.base.net.update(
    width=8, num_layers=1, num_heads=2, mlp_width=8, head_chunk=0
  )
  config.num_prompts, config.group_size, config.inner_steps = 8, 4, 2
  # As many as are written out, so that one sampler is compiled.
  config.num_eval = 16
  config.num_steps, config.log_every = 4, 2
  config.eval_every = config.checkpoint_every = 2
  config.mesh.data = 1
  config.update_from_flattened_dict(fields)
  return config


def build(method, config):
  return BUILDS[method](config, corpus=arithmetic(), base_params=base_params())


def collect(experiment, program, state):
  """A state and the host's view of its rollouts, as in the loop."""
  prompts = sharding.put_batch(experiment.batches(0), program.mesh)
  state, rollout = program.collect(state, prompts)
  return state, rollout


def first_step(method, config, rollout=None, devices=1):
  """One iteration, from `rollout` if given: `(state, metrics, rollout)`."""
  experiment = build(method, config)
  mesh = training.make_mesh(devices=jax.devices()[:devices])
  program = program_lib.compile_experiment(experiment, mesh)
  with jax.set_mesh(mesh):
    state = program.init(jax.random.key(0))
    state, own = collect(experiment, program, state)
    rollout = own if rollout is None else sharding.put_batch(rollout, mesh)
    # The task's own reward is zero almost everywhere here.
    reward = np.asarray(rollout.samples)[:, 2:].mean(axis=1, dtype=np.float32)
    scores = {"reward": reward, "exact": np.float32(reward > 3)}
    batch = rollout, sharding.put_batch(scores, mesh)
    state, metrics = jax.block_until_ready(program.step(state, batch))
  return state, jax.device_get(metrics), own


@pytest.mark.parametrize("method, module, name", tuned_variants())
def test_a_tuned_variant_traces(method, module, name):
  config = module.get_config(name)
  corpus = corpora.load(**config.base.data)
  experiment = BUILDS[method](
    config, corpus=corpus, base_params=zeros(config, corpus)
  )
  program = program_lib.compile_experiment(experiment, one_device())
  prompts = experiment.batches(0)
  with jax.set_mesh(program.mesh):
    state, rollout = jax.eval_shape(program.collect, program.abstract, prompts)
    scores = jax.ShapeDtypeStruct(rollout.log_policy.shape, jnp.float32)
    batch = rollout, {"reward": scores, "exact": scores}
    _, metrics = jax.eval_shape(program.step, state, batch)
  size = config.num_prompts * config.group_size
  assert rollout.samples.shape == (size, corpus.length)
  assert {"loss", "reward", "accuracy", "tokens"} <= set(metrics)


@pytest.mark.parametrize(
  "module, name",
  helpers.variants({"text": text})
  + helpers.variants({"tasks": tasks}, first=()),
)
def test_a_variant_traces(module, name):
  config = module.get_config(name)
  experiment = masked_lm.build(config)
  program = program_lib.compile_experiment(experiment, one_device())
  with jax.set_mesh(program.mesh):
    _, metrics = jax.eval_shape(
      program.step, program.abstract, experiment.batches(0)
    )
  assert {"loss", "tokens"} <= set(metrics)


def records(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_short_pretraining(tmp_path):
  # Two letters in turn: a network that learns anything beats their entropy.
  content = "ab" * 400
  file = tmp_path / "own.jsonl"
  file.write_text(json.dumps({"text": content}) + "\n")
  config = text.get_config("smoke")
  config.data.path, config.data.length = str(file), 8
  config.net.width, config.net.num_layers, config.net.num_heads = 16, 1, 2
  config.num_steps, config.warmup_steps, config.log_every = 40, 5, 10
  config.eval_every = config.checkpoint_every = 20
  config.learning_rate, config.ema_decay = 1e-2, 0.0
  config.mesh.data = 1
  report = training.run(
    masked_lm.build(config), config, tmp_path / "run", progress=False
  )
  # The best without context is log 2, and of eight masks one has no context.
  assert report["metrics"]["nll"]["value"] < 0.6
  assert report["nfe"] == 8
  log = [r for r in records(tmp_path / "run") if "loss" in r]
  assert log[-1]["loss"] < log[0]["loss"]
  assert all(r["tokens_per_second"] > 0 for r in log)
  figures = tmp_path / "run" / "figures"
  lines = (figures / "samples.jsonl").read_text().splitlines()
  assert len(lines) == config.num_samples
  assert all(set(json.loads(line)["text"]) == set("ab") for line in lines)
  assert (figures / "training.png").exists()


CASES = {
  "gdpo": ("gdpo", {"kl_weight": 0.01}),
  "diffu_grpo": ("gdpo", {"loss": "diffu_grpo"}),
  "dmpo": ("dmpo", {}),
}


@pytest.mark.parametrize(
  "case",
  helpers.thorough(["gdpo", "dmpo", "diffu_grpo"], ["dmpo"]),
)
def test_short_tuning(case, tmp_path):
  method, fields = CASES[case]
  config = tiny(method, **fields)
  experiment = build(method, config)
  training.run(experiment, config, tmp_path / "whole", progress=False)
  report = json.loads((tmp_path / "whole" / "report.json").read_text())
  metrics = report["metrics"]
  # The any-order law summed over all masks is the law that is sampled.
  for name in ("exact_match", "exact_match_base"):
    entry = metrics[name]
    assert 0 < entry["exact"] < 0.1
    # A share of 16 draws; where none is right its own error says nothing.
    se = (entry["exact"] * (1 - entry["exact"]) / 16) ** 0.5
    assert abs(entry["value"] - entry["exact"]) < 5 * se
  assert {"exact_match_greedy", "reward"} <= set(metrics)
  assert ("exact_match_target" in metrics) == (method == "dmpo")
  log = [r for r in records(tmp_path / "whole") if "loss" in r]
  assert [r["step"] for r in log] == [2, 4]
  for name in ("reward", "accuracy", "entropy", "grad_norm"):
    assert all(np.isfinite(r[name]) for r in log)
  assert all(r["tokens_per_second"] > 0 for r in log)
  figures = tmp_path / "whole" / "figures"
  lines = (figures / "completions.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert len(rows) == 16
  assert all(set(row) == {"text", "reward"} for row in rows)
  assert all(row["reward"] in (0.0, 1.0) for row in rows)
  assert (figures / "training.png").exists()
  if case != "gdpo":
    return

  # A run that was killed after half of its steps ends the same.
  shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
  shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "4")
  (tmp_path / "resumed" / "report.json").unlink()
  again = training.run(experiment, config, tmp_path / "resumed", progress=False)
  assert again["metrics"] == metrics


@pytest.mark.parametrize(
  "loss, shared",
  [
    ("gdpo", True),
    pytest.param("gdpo", False, marks=pytest.mark.thorough),
    pytest.param("diffu_grpo", True, marks=pytest.mark.thorough),
  ],
)
def test_ratios_start_at_one_on_shared_masks(loss, shared):
  fields = {"loss": loss, "inner_steps": 1, "elbo.shared_masks": shared}
  _, metrics, _ = first_step("gdpo", tiny("gdpo", **fields))
  if shared:
    # Two programs compute the same numbers: rounding is all that may differ.
    np.testing.assert_allclose(metrics["ratio_mean"], 1, rtol=1e-6)
    assert metrics["clip_fraction"] == 0
  else:
    assert abs(metrics["ratio_mean"] - 1) > 1e-3


@pytest.mark.parametrize(
  "method, shape",
  [
    # Groups of four devices each, and one of each device.
    ("dmpo", (2, 16)),
    pytest.param("gdpo", (8, 4), marks=pytest.mark.thorough),
  ],
)
def test_one_and_eight_devices_agree(method, shape):
  config = tiny(method)
  config.num_prompts, config.group_size = shape
  one, metrics, rollout = first_step(method, config)
  rollout = jax.device_get(rollout)
  eight, again, own = first_step(method, config, rollout, devices=8)
  np.testing.assert_array_equal(own.samples, rollout.samples)
  shards = [np.asarray(s.data) for s in own.samples.addressable_shards]
  assert [s.shape for s in shards] == [(4, 6)] * 8
  # Groups are consecutive: no device holds parts of two.
  assert all((s[:, :2] == s[0, :2]).all() for s in shards)
  # Adam divides by the gradient's size: float noise in, noise of its rate
  # (5e-4) out for entries near zero.
  for a, b in zip(
    jax.tree.leaves((jax.device_get(one.params), metrics)),
    jax.tree.leaves((jax.device_get(eight.params), again)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_adapters_alone_are_trained():
  config = tiny("gdpo", **{"lora.rank": 2, "kl_weight": 0.01})
  experiment = build("gdpo", config)
  state, _, _ = first_step("gdpo", config)
  names = {
    path[-1].key
    for path, _ in jax.tree_util.tree_flatten_with_path(state.params)[0]
  }
  assert names == {"a", "b"}
  moved = [np.abs(x["b"]).max() for x in state.params["blocks"].values()]
  assert min(moved) > 0
  jax.tree.map(np.testing.assert_array_equal, state.frozen, base_params())
  adapted = experiment.params(state)
  assert adapted.base is state.frozen
  metrics = experiment.evaluate(adapted, jax.random.key(3), final=False)
  assert 0 < metrics["exact_match"]["exact"] < 1


@pytest.mark.parametrize(
  "method", [pytest.param("gdpo", marks=pytest.mark.thorough), "dmpo"]
)
def test_rollouts_by_confidence_with_a_cache(method):
  fields = {
    "sampler.order": "confidence",
    "sampler.cache": "dual",
    "sampler.block_size": 2,
  }
  if method == "dmpo":
    fields |= {"ratio": "elbo", "baseline": "model"}
  config = tiny(method, **fields)
  _, metrics, rollout = first_step(method, config)
  assert rollout.log_ratio is None
  samples = np.asarray(rollout.samples)
  assert samples.max() < arithmetic().num_tokens
  prompts = build(method, config).batches(0)
  np.testing.assert_array_equal(samples[:, :2], prompts)
  assert all(np.isfinite(value) for value in metrics.values())
  assert metrics["grad_norm"] > 0


@pytest.mark.parametrize(
  "method, fields, message",
  [
    ("gdpo", {"group_size": 1}, "config.group_size must be .*2"),
    ("gdpo", {"num_prompts": 0}, "config.num_prompts"),
    ("gdpo", {"loss": "ppo"}, "config.loss must be one of"),
    ("gdpo", {"kl": "k4"}, "kl must be 'k1'"),
    ("gdpo", {"clip": 0.0}, "clip must be positive"),
    ("gdpo", {"ratio_norm": "sum"}, "config.ratio_norm must be"),
    ("gdpo", {"elbo.law": "ceil"}, "config.elbo.law must be one of"),
    (
      "gdpo",
      {"elbo.implementation": "loop"},
      "config.elbo.implementation must",
    ),
    ("gdpo", {"sampler.order": "left"}, "config.sampler.order must be"),
    ("gdpo", {"sampler.temperature": 0.0}, "temperature must be positive"),
    ("gdpo", {"sampler.cache": "dual"}, "cache need order='confidence'"),
    ("gdpo", {"sampler.num_steps": 5}, "config.sampler.num_steps must be"),
    (
      "gdpo",
      {"sampler.order": "confidence", "sampler.cache": "all"},
      "config.sampler.cache must be one of",
    ),
    (
      "gdpo",
      {"sampler.order": "confidence", "sampler.block_size": 3},
      "config.sampler.block_size must divide the completion of 4 sites",
    ),
    (
      "gdpo",
      {
        "sampler.order": "confidence",
        "sampler.block_size": 2,
        "sampler.num_steps": 3,
      },
      "config.sampler.num_steps must be a multiple of the 2 blocks",
    ),
    (
      "dmpo",
      {"sampler.order": "confidence"},
      "config.ratio='path' needs sampler.order='random'",
    ),
    ("dmpo", {"ratio": "exact"}, "config.ratio must be one of"),
    ("dmpo", {"baseline": "mean"}, "config.baseline must be one of"),
    ("dmpo", {"coefficient": 2.0}, r"config.coefficient must lie in \[0, 1\]"),
    (
      "dmpo",
      {"min_ess_fraction": 1.5},
      r"config.min_ess_fraction must lie in \[0, 1\]",
    ),
    (
      "dmpo",
      {"reward_temperature": 0.0},
      "config.reward_temperature must be positive",
    ),
  ],
)
def test_bad_tuning_config(method, fields, message):
  # Told when it is built, and so before a base is trained for minutes.
  config = tiny(method, **fields)
  with pytest.raises(ValueError, match=message):
    BUILDS[method](config, corpus=arithmetic(), base_params=lambda: None)


@pytest.mark.parametrize(
  "reward, message",
  [
    (lambda tokens: np.full(len(tokens), np.nan), "must be finite"),
    (lambda tokens: np.zeros(1), r"must have shape \[8\], got \[1\]"),
  ],
)
def test_a_bad_reward(reward, message):
  corpus = arithmetic()
  corpus = corpus._replace(task=corpus.task._replace(reward=reward))
  config = tiny("gdpo", num_prompts=2, group_size=4)
  experiment = gdpo.build(config, corpus=corpus, base_params={})
  samples = np.zeros((8, corpus.length), np.int32)
  rollout = Rollout(samples, None, None, None, None, None)
  with pytest.raises(ValueError, match=message):
    experiment.host(rollout)


def test_a_base_must_be_a_task(tmp_path):
  file = tmp_path / "own.txt"
  file.write_text("ab" * 100)
  config = tiny("gdpo")
  with config.unlocked():
    config.base.data = {"kind": "text", "path": str(file), "length": 8}
  with pytest.raises(ValueError, match="must be a task with a reward"):
    gdpo.build(config)


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("data.kind", "books", "config.data.kind must be one of"),
    ("data.length", 10**6, "too short for windows"),
    ("mask_law", "mid", "config.mask_law must be one of"),
    ("net.mlp", "relu", "mlp must be 'gelu' or 'swiglu'"),
    ("net.head_chunk", -1, "config.net.head_chunk"),
    ("ema_decay", 1.5, "config.ema_decay must lie in"),
    ("batch_size", 0, "config.batch_size"),
  ],
)
def test_bad_pretraining_config(field, value, message):
  config = text.get_config("smoke")
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    masked_lm.build(config)


def test_a_text_is_read_from_either_kind_of_file(tmp_path):
  content = "to be, or not to be\n" * 20
  plain, rows = tmp_path / "own.txt", tmp_path / "own.jsonl"
  plain.write_text(content.strip())
  line = json.dumps({"text": "to be, or not to be", "other": 1})
  rows.write_text(f"{line}\n" * 20)
  one, two = (corpora.text(path=str(p), length=8) for p in (plain, rows))
  batch = one.batch(0, 3, 5)
  np.testing.assert_array_equal(batch, two.batch(0, 3, 5))
  assert one.num_tokens == len(set(content)) + 1  # and the end
  assert all(one.decode(row) in content for row in batch)
  assert all(one.decode(row) in content for row in one.held_out(5))


def test_a_missing_file_says_what_to_prepare(tmp_path):
  with pytest.raises(FileNotFoundError, match="pass data.path of a UTF-8"):
    corpora.text(path=str(tmp_path / "none.txt"))
