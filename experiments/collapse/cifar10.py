r"""32768 images of CIFAR-10, with a DiT.

  python -m experiments.main \
      --config=experiments/collapse/cifar10.py:VARIANT --workdir=W

Read by tensorflow-datasets from a set that has been prepared (the error says
how). The paper's network is a UNet of 16 to 19 million parameters and selects
by DINOv2's features: pass yours to `experiment.build` from Python, and set
`select.space` to "embedding". No FID is claimed.

| variant | hardware | status |
|---|---|---|
| paper | 1 GPU | DiT-S/2, 500 epochs of each of 9 sets; not run |
| pod | v5e:4x4 | the same at batch 1024, bf16; compiled only |
"""

from experiments.alignflow import defaults as flow_defaults
from experiments.collapse import defaults
from experiments.common import config as config_lib

VARIANTS = {
  "paper": {},
  "pod": {
    "batch_size": 1024,
    "num_steps": 16_000,
    "net.compute_dtype": "bfloat16",
    "net.remat": True,
    "learning_rate": 4e-4,
  },
}


def get_config(variant: str = "paper"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS, base=_base)


def _base():
  config = defaults.base("cifar10")
  flow_defaults.dit(config, width=384, num_layers=12, num_heads=6)
  config.num_train = 32_768
  config.num_generations = 9
  config.select.threshold = 40.0
  config.measure.num_components = 100
  config.num_steps = 128_000
  config.learning_rate = 1e-4
  config.warmup_steps = 500
  config.ema_decay = 0.9999
  config.eval_steps = (50,)
  config.num_eval = 1024
  config.checkpoint_every = 5000
  return config
