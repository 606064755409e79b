"""World models end to end, against worlds that are known, and what breaks them.

What play, planning, captions and the adapters of other packages do is tested
beside this.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.world import (
  captions,
  craftax,
  envs,
  evaluate,
  experiment,
  latent,
  minatar_pixels,
  parts,
  pod,
  report,
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
  """A torus of 12 x 12 cells seen 5 x 5 at a time, on one device."""
  config = tiles.get_config("smoke")
  config.update_from_flattened_dict(
    {
      "mesh.data": 1,
      "env.size": 12,
      "env.view": 5,
      "net.width": 8,
      "net.num_heads": 1,
      "memory.capacity": 16,
      "sampler.num_steps": 1,
      "learning_rate": 1e-2,
      **fields,
    }
  )
  return config


# A run.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A finished run: workdir, config, experiment, what it reports."""
  workdir = tmp_path_factory.mktemp("tiles")
  config = small(num_steps=60, log_every=10, eval_every=30, checkpoint_every=20)
  built = training.build(config)
  results.run(built, config, workdir)
  return workdir, config, built, results.report(workdir)


CONTROLLED = (
  "window_accuracy",
  "revisit_accuracy",
  "new_accuracy",
  "known_accuracy_1",
  "known_accuracy_4",
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
  assert metrics.keys() == {
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


@pytest.mark.slow
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


def first_steps(config, devices, clip=None):
  """`(params, metrics)` after two steps, of a clip or of batches."""
  built = experiment.build(config)
  mesh = training.make_mesh(devices=jax.devices()[:devices])
  program = program_lib.compile_experiment(built, mesh)
  with jax.set_mesh(mesh):
    state = program.init(jax.random.key(0))
    for step in range(2):
      batch = None
      if built.batches is not None:
        batch = clip(state) if clip else built.batches(step)
        batch = sharding.put_batch(batch, mesh)
      state, metrics = jax.block_until_ready(program.step(state, batch))
  return jax.device_get((state.params, metrics))


def assert_close(one, other):
  # Adam divides by the gradient's size: float noise in, noise of its rate
  # out for entries near zero.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
    one,
    other,
  )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["frame_attention", "axial"])
def test_one_and_eight_devices_agree(kind):
  config = small(**{"net.kind": kind, "data.num_frames": 8})
  config.update_from_flattened_dict({"eval.num_prefix": 4})
  assert_close(*(first_steps(config, devices) for devices in (1, 8)))


@pytest.mark.slow
def test_clips_made_in_the_step_are_those_of_its_key():
  config = small(**{"data.num_frames": 8, "eval.num_prefix": 4})
  env = parts.env(config.env)

  def recorded(state):
    key, _ = jax.random.split(training.step_key(state))
    return jax.device_get(envs.record(env, key, 8, 8))

  one = first_steps(config, 1, recorded)
  config.data.source = "online"
  assert experiment.build(config).batches is None
  assert_close(one, first_steps(config, 8))


# Worlds that are known.


def known_system(**fields):
  """A model without fault of a world without walls, or patches.

  Cells that it has seen are what they were; new ones are uniform.
  """
  env = tile_world.env(size=12, view=5, salt=0.99, walls=0.0)
  # A walk that turns often comes back often.
  env = env._replace(
    policy=lambda key, state, last: jax.random.randint(key, (), 0, 5)
  )
  config = small(**{"memory.kind": "map", **fields})
  system = parts.system(config, env)
  network = worlds.copying(
    system.parts.layout, env.view, move_of=lambda action: action
  )
  exact = system.parts._replace(network=network)
  model = world.world(*exact[:4], window=exact.window, num_steps=1)
  return system._replace(parts=exact, world=model)


@pytest.fixture(scope="module")
def known():
  """`(system, clips [8, 14])` of a model without fault."""
  system = known_system()
  clips = envs.whole(envs.record(system.env, jax.random.key(3), 8, 14))
  return system, clips


def classes(view, poses, now, window=2):
  """`[3, N]` of the cells of a frame: seen lately, seen before, new."""
  cells = worlds.cells_of(view, poses[now])
  lately = [worlds.shows(view, p, cells) for p in poses[now - window : now]]
  before = [worlds.shows(view, p, cells) for p in poses[:now]]
  lately, before = np.any(lately, axis=0), np.any(before, axis=0)
  return np.stack([lately, before & ~lately, ~before])


def counts(tally):
  return np.asarray(tally.hits), np.asarray(tally.trials)


def test_one_step_of_a_model_without_fault(known):
  system, clips = known
  found = jax.jit(functools.partial(evaluate.one_step, system, first=7))(
    {}, clip=clips
  )
  of = np.stack(
    [
      [classes(system.env.view, poses, t) for t in range(7, 14)]
      for poses in clips.pose
    ]
  )
  # Cells that it knows nothing of are the first kind, the first among equals.
  zeros = of & (clips.tokens[:, 7:, None] == 0)
  number, chance = (x.sum(axis=(0, 1, 3)) for x in (of, zeros))
  assert (number > 20).all() and (chance < number).all()
  hits, trials = counts(found.on)
  np.testing.assert_array_equal(trials, number)
  np.testing.assert_array_equal(hits, [number[0], number[1], chance[2]])
  # The control: with its memory off it knows what the window shows.
  hits, trials = counts(found.off)
  np.testing.assert_array_equal(trials, number)
  np.testing.assert_array_equal(hits, [number[0], chance[1], chance[2]])
  # Right frames are those without a new cell that is not of the first kind.
  right = ~(of[:, :, 2] & (clips.tokens[:, 7:] != 0)).any(-1)
  assert counts(found.frames) == (right.sum(), right.size)


def test_rollouts_of_a_model_without_fault(known):
  system, clips = known
  run = jax.jit(functools.partial(evaluate.rollouts, system, prefix=8))
  on, off = (
    run({}, jax.random.key(0), clips, is_on=is_on) for is_on in (True, False)
  )
  view = system.env.view
  shown = np.zeros((8, 6, NUM_CELLS), bool)
  for e, poses in enumerate(clips.pose):
    for t in range(6):
      cells = worlds.cells_of(view, poses[8 + t])
      shown[e, t] = np.any(
        [worlds.shows(view, p, cells) for p in poses[:8]], axis=0
      )
  for found in (on, off):
    np.testing.assert_array_equal(found.known.trials, shown.sum(axis=(0, 2)))
    np.testing.assert_array_equal(found.pose.hits, 8)
    np.testing.assert_array_equal(found.every.trials, 8 * NUM_CELLS)
    right = found.tokens == clips.tokens[:, 8:]
    np.testing.assert_array_equal(found.every.hits, right.sum(axis=(0, 2)))
    wrong = (~right & shown).any(-1)
    first = np.where(wrong.any(1), wrong.argmax(1), 6)
    np.testing.assert_array_equal(found.horizon, first)
  np.testing.assert_array_equal(on.known.hits, on.known.trials)
  np.testing.assert_array_equal(on.horizon, 6)
  assert off.known.hits.sum() < 0.98 * off.known.trials.sum()
  # New cells are drawn, one in six right.
  assert on.every.hits.sum() < on.every.trials.sum()


def test_rollouts_do_not_count_where_the_pose_is_wrong(known):
  system, clips = known
  # It believes that it stays.
  still = system.parts.network._replace(
    move=worlds.copying(
      system.parts.layout, system.env.view, lambda action: 0 * action
    ).move
  )
  model = world.world(still, *system.parts[1:4], window=2, num_steps=1)
  lost = system._replace(
    world=model, parts=system.parts._replace(network=still)
  )
  found = jax.jit(functools.partial(evaluate.rollouts, lost, prefix=8))(
    {}, jax.random.key(0), clips, is_on=True
  )
  stays = (clips.pose[:, 8:] == clips.pose[:, 7:8]).all(-1)
  np.testing.assert_array_equal(found.pose.hits, stays.sum(0))
  np.testing.assert_array_equal(found.known.trials, NUM_CELLS * stays.sum(0))
  np.testing.assert_array_equal(found.known.hits, found.known.trials)


def test_loops_of_a_model_without_fault(known):
  system, clips = known
  starts = jax.tree.map(lambda x: x[:, :1], clips)
  run = jax.jit(functools.partial(evaluate.loops, system))

  def loops(actions, is_on):
    actions = jnp.broadcast_to(jnp.asarray(actions, jnp.int32), (8, 4))
    return run({}, jax.random.key(0), starts, actions, is_on=is_on)

  ways = 1 + np.arange(8)[:, None] % 4
  on, off = (loops(ways, is_on) for is_on in (True, False))
  for found in (on, off):
    assert counts(found.closed) == (8, 8)
    # Out, and the same way back.
    np.testing.assert_array_equal(found.pose[:, 4:7], found.pose[:, 2::-1])
    np.testing.assert_array_equal(found.pose[:, -1], starts.pose[:, 0])
    assert (found.pose[:, 3] != starts.pose[:, 0]).any(-1).all()
  assert counts(on.cells) == (8 * NUM_CELLS, 8 * NUM_CELLS)
  assert counts(on.exact) == (8, 8)
  np.testing.assert_array_equal(on.tokens[:, 4:7], on.tokens[:, 2::-1])
  # Two of five lines it turns back to before the window has lost them; of the
  # other 120 cells one in six is right, up to five deviations.
  hits, trials = counts(off.cells)
  assert trials == 8 * NUM_CELLS
  assert 80 <= hits < 80 + 120 * (1 / 6 + 5 * (5 / 36 / 120) ** 0.5)
  assert off.exact.hits == 0
  # To stay, or to turn back in sight of the start, is no loop.
  for actions in ([0, 0, 0, 0], [EAST, EAST, WEST, EAST]):
    found = loops(actions, True)
    assert counts(found.closed) == (0, 8)
    assert counts(found.cells) == (0, 0)


def test_other_actions_lead_elsewhere(known):
  system, clips = known
  found = jax.jit(functools.partial(evaluate.swap, system, prefix=8))(
    {}, jax.random.key(0), clips
  )
  moved = clips.move[:, 8] != 0
  assert 0 < moved.sum() < 8 or moved.all()
  hits, trials = counts(found)
  np.testing.assert_array_equal(trials, NUM_CELLS * moved.sum())
  # A line of five is new at most; elsewhere kinds agree one time in five.
  assert hits[0] >= 0.8 * trials[0]
  assert hits[1] < 0.4 * trials[1]


def test_observers_meet_in_one_memory_alone(known):
  system, clips = known
  found = jax.jit(functools.partial(evaluate.meetings, system, steps=3))(
    {}, jax.random.key(0), clips
  )
  # A line of five a step, kept in view by the next steps.
  num = 8 * 5 * (1 + 2 + 3)
  assert counts(found.shared) == (num, num)
  hits, trials = counts(found.apart)
  # One in six; five deviations, lines counted up to three times.
  assert trials == num and hits < num * (1 / 6 + 5 * (5 / 36 / 100) ** 0.5)
  np.testing.assert_array_equal(found.left[0], found.seen[0])
  # Only the second one's draws differ: what the first left is the same.
  np.testing.assert_array_equal(found.left[0], found.left[1])
  assert (found.seen[0] != found.seen[1]).any()


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


@pytest.mark.slow
def test_latent_actions_label_clips():
  config = small(
    **{
      "data.labels": "latent",
      "data.num_episodes": 64,
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
    ("sampler.temperature", -1.0, "config.sampler.temperature must lie in"),
    ("sampler.min_p", 1.5, r"config.sampler.min_p must lie in \[0, 1\]"),
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
    ("ema_decay", 1.5, r"config.ema_decay must lie in \[0, 1\]"),
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


def build(module, name):
  if module in (craftax, pod) and name not in ("smoke", "pod_tiles"):
    pytest.importorskip("craftax.craftax_env", exc_type=ImportError)
  if module is craftax:
    pytest.importorskip("craftax.craftax_env", exc_type=ImportError)
  if module is minatar_pixels:
    pytest.importorskip("gymnax", exc_type=ImportError)
  if module is rooms:
    pytest.importorskip("navix", exc_type=ImportError)
  config = module.get_config(name)
  return config, training.build(config)


@pytest.mark.slow
@pytest.mark.parametrize(
  "module, name",
  variants(
    {
      "tiles": tiles,
      "craftax": craftax,
      "rooms": rooms,
      "minatar_pixels": minatar_pixels,
      "captions": captions,
      "pod": pod,
    }
  ),
)
def test_a_variant_builds(module, name):
  _, built = build(module, name)
  if isinstance(built, training.Study):
    return
  mesh = training.make_mesh(devices=jax.devices()[:1])
  program = program_lib.compile_experiment(built, mesh)
  batch = None if built.batches is None else built.batches(0)
  with jax.set_mesh(mesh):
    _, metrics = jax.eval_shape(program.step, program.abstract, batch)
  assert {"loss", "grad_norm"} <= metrics.keys()
