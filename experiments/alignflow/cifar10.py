"""Flows to CIFAR-10, mirrored copies included, with a DiT.

  python -m experiments.main \
      --config=experiments/alignflow/cifar10.py:VARIANT --workdir=W

Read by tensorflow-datasets from a set that has been prepared (the error says
how). Pairs come from a table beside the run, made on first use. The paper's own
run is a UNet for 400k steps; this one is a DiT, and no FID is claimed.

| variant | hardware | status |
|---|---|---|
| paper | 1 GPU | DiT-S/2, batch 128, 400k steps; not run |
| pod | v5e:4x4 | the same at batch 2048, bf16; compiled only |
"""

from experiments.alignflow import defaults
from experiments.common import config as config_lib

VARIANTS = {
  "paper": {},
  "pod": {
    "batch_size": 2048,
    "num_steps": 50_000,
    "net.compute_dtype": "bfloat16",
    "net.remat": True,
  },
}


def get_config(variant: str = "paper"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS, base=_base)


def _base():
  config = defaults.base("cifar10", flips=True)
  # 1000 samples a point: a marginal error of 1e-3, as the paper's dual has.
  config.coupling.samples_per_point = 1000
  config.coupling.pairs_per_point = 100
  config.coupling.table = "runs/cifar10_pairs.npz"
  defaults.dit(config, width=384, num_layers=12, num_heads=6)
  config.batch_size = 128
  config.num_steps = 400_000
  config.learning_rate = 2e-4
  config.schedule = "constant"
  config.warmup_steps = 5000
  config.ema_decay = 0.9999
  config.num_eval = 10_000
  config.log_every = 100
  config.eval_every = 20_000
  config.checkpoint_every = 5000
  return config
