"""Pruning against memorisation, on 5000 images of CIFAR-10.

  python -m experiments.main \
      --config=experiments/memorization/cifar10.py:VARIANT --workdir=W

Read by tensorflow-datasets from a set that has been prepared (the error says
how). The paper's table, on as many images with a DiT whose size it does not
give: 73.8 % of the original's samples are copies, 68.6 % with a fifth of the
heads pruned by score, 66.9 % with random ones; it has no control that is only
trained on. Its FID is not comparable with the distances measured here.

| variant | hardware | status |
|---|---|---|
| paper | 1 GPU | DiT-S/2, batch 256, 200k steps; not run |
| pod | v5e:4x4 | the same at batch 2048; compiled only |
"""

from experiments.common import config as config_lib
from experiments.memorization import defaults

VARIANTS = {
  "paper": {},
  "pod": {
    "batch_size": 2048,
    "num_steps": 50_000,
    "finetune.num_steps": 2500,
    "net.remat": True,
  },
}


def get_config(variant: str = "paper"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS, base=_base)


def _base():
  config = defaults.images("cifar10")
  config.num_train = 5000
  config.net.patch_size = 2
  config.net.width = 384
  config.net.num_layers = 12
  config.net.num_heads = 6
  config.net.compute_dtype = "bfloat16"
  config.batch_size = 256
  config.num_steps = 200_000
  config.learning_rate = 1e-4
  config.warmup_steps = 1000
  config.ema_decay = 0.9999
  config.sampler.num_steps = 50
  config.num_eval = 10_000
  config.log_every = 100
  config.eval_every = 20_000
  config.checkpoint_every = 5000
  config.finetune.num_steps = 10_000
  return config
