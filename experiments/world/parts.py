"""What a world config names: environment, layout, network, memory, world."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.world import envs, latent, tile_world
from jdiff import nets, world
from jdiff.core import checks
from jdiff.core.frames import WorldNetwork
from jdiff.ctmc import masks as masks_lib
from jdiff.methods import world_model
from jdiff.world import memory as memory_lib

MASK_LAWS = {
  "count": masks_lib.count_masks,
  "bernoulli": masks_lib.bernoulli_masks,
}


class System(NamedTuple):
  """All that a run is made of.

  Attributes:
    env: The true world.
    parts: Of the losses and of play: one network, one memory.
    world: The model of it, as the sampler's settings play it.
    label: Clips as the model sees them: their actions its own.
  """

  env: envs.Env
  parts: world_model.Parts
  world: world.World
  label: Callable[[world.Clip], world.Clip]


def env(config) -> envs.Env:
  """The environment of `config.env`."""
  name = config.name
  if name == "tiles":
    return tile_world.env(size=config.size, view=config.view)
  # Packages that few have: each imports its own.
  if name == "craftax":
    from experiments.world import craftax_world

    return craftax_world.env()
  if name == "minatar":
    from experiments.world import minatar_world

    return minatar_world.env(config.game)
  if name == "navix":
    from experiments.world import navix_world

    return navix_world.env()
  raise ValueError(
    "config.env.name must be 'tiles', 'craftax', 'minatar' or 'navix', got "
    f"{name!r}."
  )


def memory(config, env: envs.Env) -> world.Memory:
  """The memory of `config.memory`, with a switch."""
  options = config.memory
  if options.kind == "none":
    return memory_lib.none()
  if options.kind == "bank":
    made = memory_lib.bank(
      env.view,
      capacity=options.capacity,
      num_frames=options.num_frames,
      rank=options.rank,
      min_gain=options.min_gain,
    )
  elif options.kind == "map":
    shape = env.view.period or MAP_SHAPES.get(config.env.name)
    if shape is None:
      raise ValueError(
        f"config.memory.kind='map' needs a world of known size, got "
        f"env {config.env.name!r}; use 'bank'."
      )
    made = memory_lib.world_map(env.view, shape=shape)
  elif options.kind == "gated":
    made = memory_lib.gated(
      env.view,
      num_tokens=env.num_tokens,
      num_features=options.num_features,
    )
  else:
    raise ValueError(
      "config.memory.kind must be 'bank', 'map', 'gated' or 'none', got "
      f"{options.kind!r}."
    )
  return memory_lib.switched(made)


MAP_SHAPES = {"craftax": (80, 80), "navix": (32, 32)}
"""Of worlds that are no torus: their map with the view around it."""


def network(config, env: envs.Env, layout: world.Layout) -> WorldNetwork:
  """The network of `config.net`."""
  options = config.net
  shared = dict(
    num_tokens=layout.num_tokens,
    num_actions=layout.num_actions,
    num_moves=layout.num_moves,
    width=options.width,
    num_layers=options.num_layers,
    num_heads=options.num_heads,
    compute_dtype=jnp.dtype(options.compute_dtype),
  )
  if options.kind == "frame_attention":
    return nets.frame_attention(layout.allowed(), env.view.offsets, **shared)
  if options.kind == "axial":
    return nets.axial(
      layout.allowed(),
      env.view.offsets,
      remat=options.remat,
      period=env.view.period,
      turns=any(turn for _, _, turn in env.view.moves),
      **shared,
    )
  raise ValueError(
    "config.net.kind must be 'frame_attention' or 'axial', got "
    f"{options.kind!r}."
  )


def system(config, environment: envs.Env | None = None) -> System:
  """Joins the parts that a config names."""
  environment = env(config.env) if environment is None else environment
  environment, label = _labels(config, environment)
  sizes = envs.layout(environment)
  parts = world_model.Parts(
    network(config, environment, sizes),
    sizes,
    environment.view,
    memory(config, environment),
    checks.check_int("config.window", config.window),
  )
  sampler = config.sampler
  model = world.world(
    *parts[:4],
    window=parts.window,
    num_steps=sampler.num_steps,
    order=sampler.order,
    temperature=sampler.temperature,
    min_p=sampler.min_p,
  )
  return System(environment, parts, model, label)


def _labels(config, env: envs.Env):
  """The environment with the actions that clips are labelled with."""
  labels = config.data.labels
  if labels == "actions":
    return env, lambda clip: clip
  if labels != "latent":
    raise ValueError(
      f"config.data.labels must be 'actions' or 'latent', got {labels!r}."
    )
  if config.data.source != "recorded":
    raise ValueError(
      "config.data.labels='latent' needs config.data.source='recorded', got "
      f"{config.data.source!r}."
    )
  return latent.relabelled(
    env,
    recorded(config, env, "train"),
    jax.random.fold_in(jax.random.key(config.seed), 2**20 + 2),
    num_codes=config.data.num_codes,
  )


def recorded(
  config,
  env: envs.Env,
  split: str,
  observe: Callable[[Any], Any] | None = None,
):
  """The clips of a split, as NumPy arrays.

  Whole episodes only, but for training where a model answers rewards.

  With `observe`, `(clips, what it saw of each frame)`.
  """
  stream = {"train": 0, "test": 1}[split]
  num = config.data.num_episodes if split == "train" else config.data.num_test
  key = jax.random.fold_in(jax.random.key(config.seed), 2**20 + stream)
  found = envs.record(env, key, num, config.data.num_frames, observe=observe)
  if split == "train" and env.rewards:
    # How an episode ends is learnt too; losses stop there.
    found = jax.tree.map(np.asarray, found)
  else:
    found = envs.whole(found)
  envs.layout(env).check_clip(found if observe is None else found[0])
  return found


def loss(config, parts: world_model.Parts, *, clean: bool = False):
  """The loss of the network's kind; clean, as held-out clips are scored."""
  kinds = {
    "frame_attention": world_model.single_target,
    "axial": world_model.all_targets,
  }
  if config.mask_law not in MASK_LAWS:
    raise ValueError(
      f"config.mask_law must be one of {', '.join(MASK_LAWS)}, got "
      f"{config.mask_law!r}."
    )
  num_masks = config.eval.num_masks if clean else config.num_masks
  return kinds[config.net.kind](
    parts,
    context_noise=0.0 if clean else config.context_noise,
    draw_masks=MASK_LAWS[config.mask_law](num_masks),
  )


def optimizer(config) -> optax.GradientTransformation:
  """AdamW on clipped gradients, at a rate that rises and falls."""
  rate = optax.warmup_cosine_decay_schedule(
    0.0,
    config.learning_rate,
    config.warmup_steps,
    max(config.num_steps, config.warmup_steps + 1),
    0.01 * config.learning_rate,
  )
  return optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm),
    optax.adamw(rate, weight_decay=config.weight_decay),
  )


def check_sampler(config) -> None:
  """Raises unless `config.sampler` is one that `ctmc.decode` takes."""
  checks.check_int("config.sampler.num_steps", config.sampler.num_steps)
  if config.sampler.order not in ("confidence", "random"):
    raise ValueError(
      "config.sampler.order must be 'confidence' or 'random', got "
      f"{config.sampler.order!r}."
    )


def check(config) -> None:
  """Raises unless the fields that no other layer checks are in range."""
  check_sampler(config)
  if config.data.source not in ("recorded", "online"):
    raise ValueError(
      "config.data.source must be 'recorded' or 'online', got "
      f"{config.data.source!r}."
    )
  needed = config.eval.num_prefix + config.eval.horizon
  if needed > config.data.num_frames:
    raise ValueError(
      "config.eval.num_prefix + config.eval.horizon must be at most "
      f"config.data.num_frames={config.data.num_frames}, got {needed}."
    )
