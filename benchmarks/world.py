"""World models: speed of play, the cache's gain, planning, kinds of memory.

  python -m benchmarks.world [speed] [cache] [planning] [memories] [--runs=DIR]

`speed`: frames a second of the CPU configuration, untrained, by unmasking steps
and by worlds side by side, and the latency of single calls.

`cache`: one frame of the two-stream network against windows of 16, 64 and 256
frames: from the ring of keys and values; with the window encoded once a frame;
and, as public samplers do, at each evaluation. Nothing else differs.

`planning`: trains the CPU configuration (seed 0), then plays tasks of the tile
world, drawn before anybody plays; shares of tasks solved with 95 % intervals.

Runs are kept in `--runs` (default `runs/world`) and resumed from there.

`memories`: one-step and rollout accuracies of kinds of memory, trained alike.
"""

import functools
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from benchmarks import timing
from experiments.world import parts, planning, tiles
from jdiff import ctmc, training, world
from jdiff.core.frames import Context, Seen
from jdiff.methods import world_model


def speed(runs):
  del runs
  config = tiles.get_config("cpu")
  print(f"\nFrames a second, tiles cpu, 7 x 7 cells, W = {config.window}")
  print("S  worlds  frames/s  step p50 ms  p95 ms  compile s")
  for steps, num in ((1, 1), (2, 1), (4, 1), (8, 1), (4, 16), (4, 64)):
    config.sampler.num_steps = steps
    system = parts.system(config)
    params = jax.jit(system.parts.network.init)(jax.random.key(0))
    model = system.world
    state = jax.jit(model.init)(params)
    key = jax.random.key(1)
    length = 200 if num == 1 else 50
    actions = jax.random.randint(key, (num, length), 0, 5)
    states = jax.tree.map(lambda x: jnp.stack([x] * num), state)  # noqa: B023
    imagine = jax.jit(jax.vmap(model.imagine, in_axes=(None, None, 0, 0)))
    run = functools.partial(imagine, params, key, states, actions)
    seconds, compiling = timing.measure({"imagine": run})["imagine"]
    p50 = p95 = float("nan")
    if num == 1:
      step = jax.jit(model.step)
      carry, _ = step(params, key, state, actions[0, 0])
      lapses = []
      for t in range(length):
        start = time.perf_counter()
        carry, frame = step(params, key, carry, actions[0, t])
        jax.block_until_ready(frame)
        lapses.append(1e3 * (time.perf_counter() - start))
      p50, p95 = np.percentile(lapses, (50, 95))
    print(
      f"{steps}  {num:6d}  {num * length / seconds:8.0f}  {p50:11.2f}  "
      f"{p95:6.2f}  {compiling:9.1f}",
      flush=True,
    )


def cache(runs):
  del runs
  print("\nOne frame, two-stream network, width 64, 2 layers, S = 4, 1 world;")
  print("baseline: the window encoded at each evaluation")
  print("  W  every evaluation ms  once a frame ms  cached ms  ratios")
  for window in (16, 64, 256):
    times = {k: v[0] for k, v in timing.measure(_cache_runs(window)).items()}
    every, once, cached = (1e3 * times[k] for k in ("every", "once", "cached"))
    title = f"one frame, window {window}"
    timing.keep(title, "ring", every / cached, "encoded at each evaluation")
    timing.keep(title, "ring", once / cached, "encoded once a frame")
    print(
      f"{window:3d}  {every:19.2f}  {once:15.2f}  {cached:9.2f}  "
      f"{every / cached:.2f}, {once / cached:.2f}",
      flush=True,
    )


def _cache_runs(window):
  config = tiles.get_config("cpu_axial")
  config.memory.kind, config.window = "none", window
  system = parts.system(config)
  network, sizes, view = system.parts[:3]
  params = jax.jit(network.init)(jax.random.key(0))
  rng = np.random.default_rng(0)
  poses = np.zeros((window + 1, 3), np.int32)
  poses[:, :2] = np.cumsum(rng.integers(-1, 2, (window + 1, 2)), axis=0) % 24
  clip = world.Clip(
    rng.integers(0, 6, (window + 1, 49)),
    rng.integers(0, 5, window + 1),
    rng.integers(0, 5, window + 1),
    poses,
    np.zeros(window + 1, int),
    np.ones(window + 1, int),
  )
  blocks = sizes.pack(jax.tree.map(jnp.asarray, clip))[None]
  seen, _, _ = world_model.clip_context(
    system.parts, jax.tree.map(jnp.asarray, clip)
  )
  past = jax.tree.map(lambda x: x[None, :window, :window], seen)
  now = jax.tree.map(lambda x: x[None, window:, :window], seen)
  encode = functools.partial(network.encode, params, blocks[:, :window], past)

  def frame(key, kv, encoder=None):
    def logits_fn(params, tokens, t, sites=None):
      kept = kv
      if encoder is not None:
        # Tied to the step, or the compiler would do it once for all of them.
        tied, _ = jax.lax.optimization_barrier((blocks[:, :window], t))
        kept = network.encode(params, tied, past)
      context = Context(
        Seen(now.cells, now.age, now.valid, kept), None, jnp.zeros(1)
      )
      return network.logits(params, tokens[:, None], context, sites)[:, 0]

    decoded = ctmc.decode(
      params,
      key,
      blocks[0, window:, :2],
      logits_fn=logits_fn,
      length=sizes.length,
      mask_id=sizes.mask_id,
      num_samples=1,
      num_steps=4,
      min_p=0.1,
    )
    return decoded.samples

  key = jax.random.key(2)
  kv = jax.jit(encode)()

  def cached(key, kv):
    samples = frame(key, kv)
    # What a cache costs: the finished frame goes into it.
    own = Seen(now.cells, now.age, now.valid, kv)
    return samples, network.encode(params, samples[:, None], own)

  runs = {
    "every": (jax.jit(lambda key: frame(key, None, encode)), (key,)),
    "once": (jax.jit(lambda key: frame(key, encode())), (key,)),
    "cached": (jax.jit(cached), (key, kv)),
  }
  return {k: functools.partial(f, *args) for k, (f, args) in runs.items()}


def _trained(variant, runs):
  """A finished run of a variant, read if it is there."""
  config = tiles.get_config(variant)
  workdir = pathlib.Path(runs) / variant
  report = training.run(training.build(config), config, workdir)
  _, params, _ = training.load(workdir)
  return config, params, report


def plan(runs):
  config, params, _ = _trained("cpu", runs)
  system = parts.system(config)
  env, model = system.env, system.world
  config.sampler.num_steps = 1
  fast = parts.system(config).world
  key = jax.random.key(77)
  shooting = functools.partial(planning.shooting_player, env, fast, horizon=6)
  players = {
    "random": planning.random_player(env),
    "greedy": planning.greedy_player(env),
    "shooting 32": shooting(num_samples=32),
    # As many frames imagined.
    "cross-entropy 2 x 16": shooting(num_samples=16, num_iterations=2),
    "mctx 64": planning.tree_player(env, fast, num_simulations=64),
  }
  for title, detour in (("a detour of 2 steps or more", 2), ("any way", 0)):
    tasks = planning.draw(env, key, 64, detour=detour)
    print(f"\n64 tasks, 3 to 6 steps away, {title}, 12 steps to do it")
    print("player                 solved  95 % interval  seconds")
    for name, act in players.items():
      run = jax.jit(functools.partial(planning.play, env, model, act=act))
      start = time.perf_counter()
      arrived = np.asarray(run(params, jax.random.fold_in(key, 1), tasks))
      seconds = time.perf_counter() - start
      count = int((arrived >= 0).sum())
      interval = stats.binomtest(count, 64).proportion_ci(method="wilson")
      print(
        f"{name:22s} {count / 64:6.3f}  [{interval.low:.3f}, "
        f"{interval.high:.3f}]  {seconds:7.0f}",
        flush=True,
      )


def memories(runs):
  names = (
    "window_accuracy",
    "revisit_accuracy",
    "revisit_accuracy_off",
    "known_accuracy_16",
    "loop_accuracy",
  )
  rows = {}
  for variant in ("cpu", "cpu_near", "cpu_content", "cpu_map", "cpu_gated"):
    _, _, report = _trained(variant, runs)
    rows[variant] = report["metrics"]
  print("\nvariant      " + "  ".join(names))
  for variant, found in rows.items():
    values = (found[n]["value"] if n in found else np.nan for n in names)
    cells = [f"{v:{len(n)}.3f}" for n, v in zip(names, values, strict=True)]
    print(f"{variant:12s} " + "  ".join(cells), flush=True)


PARTS = {
  "speed": speed,
  "cache": cache,
  "planning": plan,
  "memories": memories,
}


def main(args):
  print(timing.where())
  runs, names = "runs/world", []
  for arg in args:
    if arg.startswith("--runs="):
      runs = arg.removeprefix("--runs=")
    elif arg in PARTS:
      names.append(arg)
    else:
      raise SystemExit(f"unknown part {arg!r}; there are {', '.join(PARTS)}.")
  for name in names or PARTS:
    PARTS[name](runs)


if __name__ == "__main__":
  main(sys.argv[1:])
