"""Settings shared by the world configs."""

import ml_collections

from experiments.common import config as config_lib


def base(name: str) -> ml_collections.ConfigDict:
  """Every field of a world config, at the values of the tile world."""
  config = ml_collections.ConfigDict()
  config.experiment = "experiments.world.experiment"
  config.name = name
  config.variant = ""
  config.seed = 0

  # "tiles", "craftax", "minatar" or "navix"; the others need the
  # extras "worlds" and "navix". Sizes are those of the tile world.
  config.env = ml_collections.ConfigDict()
  config.env.name = name
  config.env.size = 24
  config.env.view = 7
  config.env.game = "Breakout-MinAtar"

  config.data = ml_collections.ConfigDict()
  # "recorded" once, or "online": new clips inside every step, no loader.
  config.data.source = "recorded"
  config.data.num_episodes = 256
  config.data.num_frames = 48
  config.data.num_test = 48
  # The environment's "actions", or "latent" ones, told from frames alone.
  config.data.labels = "actions"
  config.data.num_codes = 8

  # "frame_attention", one target a clip, or "axial", two streams and all.
  config.net = ml_collections.ConfigDict()
  config.net.kind = "frame_attention"
  config.net.width = 48
  config.net.num_layers = 2
  config.net.num_heads = 2
  config.net.compute_dtype = "float32"
  config.net.remat = False

  # "bank", "map", "gated" or "none".
  config.memory = ml_collections.ConfigDict()
  config.memory.kind = "bank"
  config.memory.capacity = 64
  config.memory.num_frames = 2
  config.memory.rank = "cover"
  config.memory.min_gain = 0.0
  config.memory.num_features = 256

  config.window = 2
  config.context_noise = 0.15
  config.num_masks = 1
  config.mask_law = "count"

  config.sampler = ml_collections.ConfigDict()
  config.sampler.num_steps = 4
  config.sampler.order = "confidence"
  config.sampler.temperature = 1.0
  config.sampler.min_p = 0.1

  config.batch_size = 32
  config.num_steps = 800
  config.learning_rate = 3e-3
  config.warmup_steps = 40
  config.max_grad_norm = 1.0
  config.weight_decay = 1e-4
  config.ema_decay = 0.98

  # Real frames before imagined ones, and how many of these; steps out, and
  # back, of a loop.
  config.eval = ml_collections.ConfigDict()
  config.eval.num_prefix = 31
  config.eval.horizon = 16
  config.eval.loop_steps = 8
  config.eval.num_loops = 96
  config.eval.num_masks = 4
  config_lib.add_loop(config, log_every=50, eval_every=400)
  return config


def pod(config) -> None:
  """The network and the training of a slice: axial, clips made in the step."""
  config.data.source = "online"
  config.net.kind = "axial"
  config.net.width, config.net.num_layers = 768, 12
  config.net.num_heads = 12
  config.net.compute_dtype = "bfloat16"
  config.net.remat = True
  config.context_noise = 0.2
  config.learning_rate = 3e-4
  config.warmup_steps = 5000
  config.num_steps = 200_000
  config.ema_decay = 0.9999
  config.log_every = 100
  config.eval_every = config.checkpoint_every = 5000


def smoke(config) -> None:
  """A few steps on few clips, for tests."""
  config.data.num_episodes = 16
  config.data.num_frames = 20
  config.data.num_test = 4
  config.memory.capacity = 32
  config.net.width = 16
  config.net.num_layers = 1
  config.batch_size = 8
  config.num_steps = 20
  config.warmup_steps = 4
  config.eval.num_prefix = 12
  config.eval.horizon = 4
  config.eval.loop_steps = 6
  config.eval.num_loops = 8
  config.eval.num_masks = 1
  config.log_every = 5
  config.eval_every = config.checkpoint_every = 20
