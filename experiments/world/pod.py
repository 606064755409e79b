"""A large masked world model, made for a slice of TPUs.

  python -m experiments.main --config=experiments/world/pod.py:VARIANT \
      --workdir=W

The axial network in two streams, every frame of a clip a target, clips made in
the step: no loader. `pod` is of Craftax-Classic (extra `worlds`), 7 x 9 cells:
63 tokens a frame, 64 frames a clip, 32 of window, 8 recalled from a bank of
2,048. `pod_tiles` is of the built-in tile world, which needs no package.

| variant | what differs | hardware, time |
|---|---|---|
| smoke | tiny, 6 steps, the tile world | 2 cores, minutes of compilation |
| pod_tiles | the tile world, 49 tokens a frame | v5e:4x4, compiled only |
| pod | Craftax-Classic | v5e:4x4, compiled only |
"""

from experiments.common import config as config_lib
from experiments.world import defaults


def get_config(variant: str = "pod"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _pod(name="craftax"):
  config = defaults.base(name)
  defaults.pod(config)
  config.data.num_frames = 64
  config.window = 32
  config.memory.capacity = 2048
  config.memory.num_frames = 8
  # 512 clips need 32 of these chips: memory is what they lack.
  config.batch_size = 256
  return config


def _pod_tiles():
  return _pod("tiles")


def _smoke():
  config = _pod("tiles")
  defaults.smoke(config)
  # The same path: online, two streams, layers recomputed.
  config.net.compute_dtype = "float32"
  config.net.num_layers = 2
  config.net.num_heads = 2
  config.window = 4
  config.memory.num_frames = 2
  config.batch_size = 4
  config.num_steps = 6
  config.warmup_steps = 2
  config.log_every = 2
  config.eval_every = config.checkpoint_every = 6
  return config


VARIANTS = {"smoke": _smoke, "pod_tiles": _pod_tiles, "pod": _pod}
