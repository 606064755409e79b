"""Class-conditional flows to ImageNet latents, with a DiT-B/2.

  python -m experiments.main \
      --config=experiments/alignflow/imagenet_latents.py:VARIANT --workdir=W

Reads `latents.npy` `[N, 32, 32, 4]` (means), `labels.npy` and, if there is one,
`std.npy` from `--config.data.path`. One problem a class; pairs come from a
table. Figures to reach (FID-50k at 4 steps, as published): Shortcut 30.2
without, 26.7 to 28.0 with SDOT pairs; flow matching 125.6 and 93.2.

| variant | hardware | status |
|---|---|---|
| shortcut, flow_matching, meanflow | 8 GPUs | batch 256; not run |
| pod | v5e:4x4 | Shortcut at batch 1024, bf16; compiled only |
"""

from experiments.alignflow import defaults
from experiments.common import config as config_lib

VARIANTS = {
  "shortcut": {},
  "flow_matching": {"loss": "flow_matching"},
  "meanflow": {"loss": "meanflow"},
  "pod": {
    "batch_size": 1024,
    "net.compute_dtype": "bfloat16",
    "net.remat": True,
  },
}


def get_config(variant: str = "shortcut"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS, base=_base)


def _base():
  config = defaults.base("imagenet_latents", path="data/imagenet_latents")
  config.conditional = True
  config.loss = "shortcut"
  config.discrete_steps = 128
  config.coupling.samples_per_point = 4000
  config.coupling.pairs_per_point = 250
  config.coupling.table = "runs/imagenet_pairs.npz"
  defaults.dit(config, width=768, num_layers=12, num_heads=12)
  config.batch_size = 256
  config.num_steps = 2_000_000
  config.learning_rate = 1e-4
  config.schedule = "constant"
  config.weight_decay = 0.1
  config.ema_decay = 0.999
  config.num_eval = 4096
  config.log_every = 100
  config.eval_every = 50_000
  config.checkpoint_every = 5000
  return config
