"""World models end to end, in all variants, and what breaks them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.world import (
  autoencoding,
  captions,
  craftax,
  envs,
  experiment,
  latent,
  minatar_pixels,
  parts,
  pixels,
  pod,
  rooms,
  tile_world,
  tiles,
)
from jdiff import training, world
from jdiff.training import program as program_lib
from jdiff.training import sharding
from tests.helpers import variants
from tests.training import results
from tests.world import worlds

pytestmark = pytest.mark.usefixtures("compile_cache")

NUM_CELLS, NUM_TOKENS = 25, 6
EAST, WEST = 3, 2


def small(**fields):
  """A torus of 12 x 12 cells seen 5 x 5 at a time, on one device.

  Eight clips are both the data and a batch: one program records all of them.
  """
  config = tiles.get_config("smoke")
  config.update_from_flattened_dict(
    {
      "mesh.data": 1,
      "env.size": 12,
      "env.view": 5,
      "net.width": 8,
      "net.num_heads": 1,
      "memory.capacity": 16,
      "data.num_episodes": 8,
      "data.num_test": 8,
      "sampler.num_steps": 1,
      "learning_rate": 1e-2,
      "num_steps": 60,
      "log_every": 10,
      "eval_every": 30,
      "checkpoint_every": 20,
      **fields,
    }
  )
  return config


# A run.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A finished run: workdir, config, experiment, what it reports."""
  workdir = tmp_path_factory.mktemp("tiles")
  config = small()
  built = training.build(config)
  results.run(built, config, workdir)
  return workdir, config, built, results.report(workdir)


CONTROLLED = (
  "window_accuracy",
  "revisit_accuracy",
  "new_accuracy",
  "known_accuracy_1",
  "horizon",
  "num_loops",
  "loop_accuracy",
  "loop_exact",
)
"""Measured with the memory on and off."""


@pytest.mark.slow
def test_a_run_reports_what_a_memory_buys(finished):
  workdir, config, _, report = finished
  metrics = report["metrics"]
  # Four frames on, the pose may never be right.
  assert metrics.keys() - {"known_accuracy_4", "known_accuracy_4_off"} == {
    "nll_per_site",
    "move_accuracy",
    "frame_accuracy",
    "pose_accuracy",
    "token_kl",
    "frechet",
    "frechet_real",
    "swap_accuracy_true",
    "swap_accuracy_opposite",
    "meeting_accuracy",
    "meeting_accuracy_apart",
    *CONTROLLED,
    *(f"{name}_off" for name in CONTROLLED),
  }
  for name, entry in metrics.items():
    assert np.isfinite(entry["value"]), name
    if "accuracy" in name or "exact" in name:
      assert 0 <= entry["value"] <= 1, name
  assert report["nfe"] == config.sampler.num_steps
  records = results.metrics(workdir)
  losses = [r["loss"] for r in records if "loss" in r]
  assert len(losses) == 6 and losses[-1] < losses[0]
  # Halfway, one step is measured and nothing is imagined.
  middle = [r for r in records if "eval/revisit_accuracy" in r][0]
  assert "eval/revisit_accuracy_off" in middle
  assert "eval/loop_accuracy" not in middle


@pytest.mark.slow
def test_figures(finished):
  workdir, config, *_ = finished
  films = {"rollout": config.eval.horizon, "loop": 2 * config.eval.loop_steps}
  stills = ("training", "revisits", "meeting", *films)
  folder = workdir / "figures"
  assert {path.name for path in folder.iterdir()} == {
    *(f"{name}.png" for name in stills),
    *(f"{name}.gif" for name in films),
  }
  for name in stills:
    with Image.open(folder / f"{name}.png") as image:
      assert len(np.unique(np.asarray(image))) > 2
  for name, num_frames in films.items():
    # Loops begin with a real frame. Equal frames are stored as one.
    num_frames += name == "loop"
    # The truth, with and without memory, or the last two.
    panels = 2 if name == "loop" else 3
    with Image.open(folder / f"{name}.gif") as image:
      assert image.n_frames > 1
      assert image.size == (panels * 5 * 12 + (panels - 1) * 6, 5 * 12)
      durations = []
      for frame in range(image.n_frames):
        image.seek(frame)
        durations.append(image.info["duration"])
    assert sum(durations) == 250 * num_frames


@pytest.mark.thorough
def test_a_run_that_broke_off_ends_the_same(finished, tmp_path):
  whole, config, built, _ = finished
  built = built._replace(figures=None)

  def fails(*args, **options):
    raise RuntimeError("cut off")

  # The last checkpoint before is of step 20.
  with pytest.raises(RuntimeError, match="cut off"):
    results.run(built._replace(evaluate=fails), config, tmp_path)
  assert not (tmp_path / "report.json").exists()
  results.run(built, config, tmp_path)
  results.assert_same_run(whole, tmp_path)


@pytest.mark.slow
def test_a_saved_run_is_evaluated_and_sampled(finished):
  workdir, config, built, report = finished
  build = lambda config: built._replace(figures=None)  # noqa: E731
  again = training.evaluate(workdir, build=build, progress=False)
  assert again["metrics"] == report["metrics"]
  # More than there are episodes; as the config alone says.
  samples = training.sample(workdir, 6)
  assert samples.shape == (6, config.eval.horizon, NUM_CELLS)
  assert samples.min() >= 0 and samples.max() < NUM_TOKENS
  np.testing.assert_array_equal(samples, np.load(workdir / "samples.npy"))
  # Two draws for the same episode.
  assert (samples[4:] != samples[:2]).any()


# Devices, and clips made in the step.


def started(config):
  """An experiment's first state, on the host."""
  mesh = training.make_mesh(devices=jax.devices()[:1])
  program = program_lib.compile_experiment(experiment.build(config), mesh)
  with jax.set_mesh(mesh):
    return jax.device_get(program.init(jax.random.key(0)))


def two_steps(config, devices, state, runs):
  """Of each run, a clip a step: `(params, metrics)` after its second step."""
  built = experiment.build(config)
  mesh = training.make_mesh(devices=jax.devices()[:devices])
  program = program_lib.compile_experiment(built, mesh)
  found = []
  with jax.set_mesh(mesh):
    for clips in runs:
      # A step takes its state away; host copies of keys are no copies.
      key = jax.random.wrap_key_data(jax.random.key_data(state.key).copy())
      now = jax.device_put(state._replace(key=key), program.shardings)
      for clip in clips:
        if clip is not None:
          clip = sharding.put_batch(clip, mesh)
        now, metrics = jax.block_until_ready(program.step(now, clip))
      found.append(jax.device_get((now.params, metrics)))
  return found


def assert_close(one, other):
  # Adam divides by the gradient's size: float noise in, noise of its rate
  # out for entries near zero.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
    one,
    other,
  )


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["frame_attention", "axial"])
def test_one_and_eight_devices_agree(kind):
  config = small(**{"net.kind": kind})
  system = parts.system(config)
  clips = [
    jax.device_get(worlds.clip(system.parts.layout, system.env.view, i, 8, 20))
    for i in range(2)
  ]
  state = started(config)
  (one,), (eight,) = (
    two_steps(config, devices, state, [clips]) for devices in (1, 8)
  )
  assert_close(one, eight)


@pytest.mark.thorough
def test_clips_made_in_the_step_are_those_of_its_key():
  """And eight devices make of them what one does."""
  config = small()
  env, state = parts.env(config.env), started(config)

  def clip(step):
    key, _ = jax.random.split(
      training.step_key(state._replace(step=jnp.int32(step)))
    )
    return jax.device_get(envs.record(env, key, 8, 20))

  clips = [clip(step) for step in range(2)]
  one, other = two_steps(config, 1, state, [clips, clips[::-1]])
  config.data.source = "online"
  assert experiment.build(config).batches is None
  (eight,) = two_steps(config, 8, state, [[None, None]])
  assert_close(one, eight)
  # The check would notice the same clips in another order.
  with pytest.raises(AssertionError):
    assert_close(other, eight)


# Latent actions.


def test_opposite_codes_undo_each_other():
  env = tile_world.env(size=12, view=5)
  # Two codes of one way; one of staying; the last is never used.
  ways = {0: EAST, 1: 0, 2: WEST, 3: EAST, 4: 1}
  codes = np.repeat(list(ways), 4)
  moves = np.repeat(list(ways.values()), 4)
  # One in four is blocked by a wall.
  moves[::4] = 0
  found = latent.opposites(codes, moves, env, 6)
  # North has none across it.
  assert found == (2, 1, 0, 2, 4, 5)
  assert latent.purity(codes, moves) == pytest.approx((4 * 3 + 4) / 20)


@pytest.mark.thorough
def test_latent_actions_label_clips():
  config = small(
    **{
      "env.view": 3,
      "data.labels": "latent",
      "data.num_episodes": 16,
      "data.num_test": 16,
      "data.num_codes": 8,
    }
  )
  system = parts.system(config)
  env = system.env
  assert env.num_actions == system.parts.layout.num_actions == 8
  assert len(env.action_names) == 8
  plain = parts.recorded(config, env, "test")
  clips = system.label(plain)
  assert clips.action.dtype == np.int32
  assert clips.action.min() >= 0 and clips.action.max() < 8
  np.testing.assert_array_equal(clips.action[:, 0], 0)
  for name in ("tokens", "move", "pose"):
    np.testing.assert_array_equal(getattr(clips, name), getattr(plain, name))
  # Told from frames alone, and yet moves; the commonest move is the floor.
  codes, moves = clips.action[:, 1:], clips.move[:, 1:]
  floor = np.bincount(moves.ravel()).max() / moves.size
  assert latent.purity(codes, moves) > 0.5 + floor / 2
  train = system.label(parts.recorded(config, env, "train"))
  codes, moves = train.action[:, 1:], train.move[:, 1:]

  def move_of(code):
    chosen = moves[codes == code]
    return np.bincount(chosen).argmax() if chosen.size else 0

  assert any(a != b for a, b in enumerate(env.opposite))
  for code, other in enumerate(env.opposite):
    # Back again is the same way, by another code maybe.
    assert move_of(env.opposite[other]) == move_of(code)
    if other != code:
      back = -np.array(env.view.moves[move_of(code)])
      np.testing.assert_array_equal(back, env.view.moves[move_of(other)])


# Configs.


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("env.name", "moon", "config.env.name must be 'tiles'"),
    ("env.view", 4, "view must be odd and at most the size 12, got 4"),
    ("memory.kind", "tape", "config.memory.kind must be 'bank'"),
    ("memory.rank", "newest", "rank must be one of cover"),
    ("memory.num_frames", 17, "num_frames must be at most the capacity 16"),
    ("memory.min_gain", 1.0, r"min_gain must lie in \[0, 1\), got 1"),
    ("net.kind", "mlp", "config.net.kind must be 'frame_attention'"),
    ("net.num_heads", 3, "num_heads"),
    ("data.labels", "names", "config.data.labels must be 'actions'"),
    ("data.source", "disk", "config.data.source must be 'recorded'"),
    ("data.num_frames", 0, "config.data.num_frames must be >= 1"),
    ("mask_law", "half", "config.mask_law must be one of count, bernoulli"),
    ("num_masks", 0, "num_masks"),
    ("window", 0, "config.window must be >= 1"),
    ("window", 17, "capacity must be at least the window of 17 frames"),
    ("context_noise", 1.5, r"config.context_noise must lie in \[0, 1\]"),
    ("sampler.num_steps", 26, "num_steps must be at most the 25 open sites"),
    ("sampler.order", "left", "config.sampler.order must be 'confidence'"),
    ("sampler.temperature", -1.0, "config.sampler.temperature must be >= 0"),
    ("sampler.min_p", 1.5, r"config.sampler.min_p must lie in \[0, 1\)"),
    ("eval.num_prefix", 0, "config.eval.num_prefix must be >= 1"),
    (
      "eval.horizon",
      9,
      r"config.eval.num_prefix \+ config.eval.horizon must be at most "
      "config.data.num_frames=20, got 21",
    ),
    ("batch_size", 0, "config.batch_size must be >= 1"),
    ("warmup_steps", -1, "config.warmup_steps must be >= 0"),
    ("learning_rate", 0.0, "config.learning_rate must be"),
    ("ema_decay", 1.5, r"config.ema_decay must lie in \[0, 1\)"),
  ],
)
def test_bad_configs(field, value, message):
  with pytest.raises(ValueError, match=message):
    experiment.build(small(**{field: value}))


def test_fields_that_do_not_fit_one_another():
  fields = {"data.labels": "latent", "data.source": "online"}
  with pytest.raises(ValueError, match="needs config.data.source='recorded'"):
    experiment.build(small(**fields))
  # A plane whose size nothing says.
  env = tile_world.env(size=12, view=5)
  view = world.View(5, 5, (2, 2), tile_world.MOVES)
  config = small(**{"memory.kind": "map"})
  config.env.name = "minatar"
  with pytest.raises(ValueError, match="'map' needs a world of known size"):
    experiment.build(config, env._replace(view=view))


EXTRAS = {
  "craftax": "craftax.craftax_env",
  "minatar": "gymnax",
  "navix": "navix",
}
"""What each world is imported from."""


def variant(module, name):
  """The config of a variant whose world is installed."""
  config = module.get_config(name)
  package = EXTRAS.get(config.env.get("name"))
  if package is not None:
    pytest.importorskip(package, exc_type=ImportError)
  return config


@pytest.mark.parametrize(
  "module", [captions, craftax, minatar_pixels, pod, rooms, tiles]
)
def test_all_variants_parse(module):
  for name in module.VARIANTS:
    config = module.get_config(name)
    assert config.variant == name
    if name != "smoke":
      smoke = module.get_config("smoke")
      assert config.num_steps > smoke.num_steps
      # The same fields: what one variant sets the others have.
      assert config.to_dict().keys() == smoke.to_dict().keys()
  with pytest.raises(ValueError, match="must name one of smoke"):
    module.get_config("huge")


@pytest.mark.slow
@pytest.mark.parametrize(
  "module, name",
  variants({"minatar_pixels": minatar_pixels, "captions": captions})
  + variants({"pod": pod, "rooms": rooms}, first=("smoke",))
  # The run above is one of these; other packages take long to import.
  + variants({"tiles": tiles, "craftax": craftax}, first=()),
)
def test_a_variant_builds(module, name):
  config = variant(module, name)
  built = training.build(config)
  # Captions are traced where they are tested.
  if module is captions:
    return
  if module is minatar_pixels:
    # A study has no step; its larger run is traced.
    assert isinstance(built, training.Study)
    built = training.stand_in(config)
  batch = None
  if built.batches is not None:
    env = parts.env(config.env)
    if module is minatar_pixels:
      net, tokenizer = autoencoding.parts(config.tokenizer, env)
      env = pixels.patch_world(
        config, env, tokenizer, net.init(jax.random.key(0))
      )
    batch = jax.eval_shape(
      lambda key: envs.record(
        env, key, config.batch_size, config.data.num_frames
      ),
      jax.random.key(0),
    )
  mesh = training.make_mesh(devices=jax.devices()[:1])
  program = program_lib.compile_experiment(built, mesh)
  with jax.set_mesh(mesh):
    _, metrics = jax.eval_shape(program.step, program.abstract, batch)
  assert {"loss", "grad_norm", "nll"} <= metrics.keys()


@pytest.mark.thorough
@pytest.mark.parametrize("module", [craftax, rooms, minatar_pixels])
def test_worlds_of_other_packages(module, tmp_path):
  config = variant(module, "smoke")
  config.mesh.data = 1
  training.run(training.build(config), config, tmp_path, progress=False)
  metrics = results.report(tmp_path)["metrics"]
  if module is minatar_pixels:
    assert {"psnr_4", "psnr_still_4", "psnr_ceiling_4"} <= metrics.keys()
    assert {"delta_psnr_4", "tokenizer/psnr"} <= metrics.keys()
    # Nothing that is imagined in tokens is nearer than the tokens.
    psnr = metrics["psnr_4"]["value"]
    assert psnr < metrics["psnr_ceiling_4"]["value"]
    folder = tmp_path / "world" / "figures"
    assert (tmp_path / "tokenizer" / "report.json").exists()
  else:
    assert {"window_accuracy", "revisit_accuracy_off"} <= metrics.keys()
    folder = tmp_path / "figures"
  assert {path.name for path in folder.iterdir()} >= {
    "training.png",
    "rollout.png",
  }
