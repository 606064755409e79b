"""Settings shared by the configs of proximal samplers."""

import ml_collections

from experiments.common import config as config_lib
from experiments.mdns import defaults as mdns_defaults


def stages(config, *, num_stages: int, inner_steps: int) -> None:
  """Sets the number of stages, and with it the length of the run."""
  config.stages.inner_steps = inner_steps
  config.num_steps = num_stages * inner_steps
  config.log_every = inner_steps
  config.eval_every = max(num_stages // 4, 1) * inner_steps
  config.checkpoint_every = config.eval_every


def masked(name: str) -> ml_collections.ConfigDict:
  """A sampler of lattices or graphs by unmasking."""
  config = mdns_defaults.base(name)
  config.experiment = "experiments.pdns.experiment"
  config.order = "random"
  config.net.kind = "mlp"
  config.net.hidden = (192, 192)
  config.net.local_field = False
  config.net.symmetric = False
  config.loss = "wdce"
  config.buffer.num_samples = 512
  config.batch_size = 512
  config.num_masks = 1
  config.learning_rate = 2e-3
  config.schedule = "constant"
  config.ema_decay = 0.98
  config.num_eval = 16384
  # Stages take the place of the ramp, and a stage's buffer that of a replay.
  for field in ("ramp_start", "ramp_share"):
    del config[field]
  for field in ("capacity", "refresh_every"):
    del config.buffer[field]
  config.buffer.num_chunks = 1
  _add_stages(config, rule="anchored", min_fraction=0.3)
  stages(config, num_stages=40, inner_steps=60)
  return config


def gaussian(name: str) -> ml_collections.ConfigDict:
  """A sampler of continuous targets by a controlled Gaussian process."""
  config = ml_collections.ConfigDict()
  config.experiment = "experiments.pdns.experiment"
  config.name = name
  config.variant = ""
  config.seed = 0
  config.target = ml_collections.ConfigDict({"kind": name})

  config.reference = ml_collections.ConfigDict()
  config.reference.kind = "brownian"
  # At least half the distance of the modes; "vp" alone has a rate.
  config.reference.scale = 4.0
  config.reference.beta_min = 0.1
  config.reference.beta_max = 10.0
  config.reference.num_steps = 50
  # Steps are uniform in t^(1 / power). At 2 they are in the standard deviation
  # that is left of Brownian motion, which needs short ones near the data.
  config.reference.power = 2.0
  # Match the variance of the steps too, at every stage; the paper does not.
  config.reference.fit_spread = True
  # Draw the first buffer by annealed Langevin dynamics instead.
  config.langevin_start = False
  config.max_force = 100.0

  config.net = ml_collections.ConfigDict()
  config.net.kind = "mlp"
  config.net.hidden = (128, 128)
  config.net.width = 64
  config.net.num_layers = 3
  # Of particles: a typical distance.
  config.net.length = 1.0
  config.net.compute_dtype = "float32"
  config.net.remat = True

  config.batch_size = 512
  config.buffer = ml_collections.ConfigDict({"num_samples": 4096})
  # Drawn a chunk after the other where all at once would not fit.
  config.buffer.num_chunks = 1
  config.learning_rate = 2e-3
  config.schedule = "constant"
  config.warmup_steps = 0
  config.final_rate = 1e-2
  config.ema_decay = 0.98
  config.num_eval = 16384
  config.eval_chunk = 4096
  # Samples that distances compare, and that EUBO looks at.
  config.num_reference = 2000
  # Of them, those that a Sinkhorn divergence takes: it is slow. 0 is none.
  config.num_sinkhorn = 0
  config_lib.add_loop(config, log_every=1, eval_every=1)
  _add_stages(config, rule="relative", min_fraction=0.5)
  stages(config, num_stages=20, inner_steps=150)
  return config


def paper(config) -> None:
  """The paper's training of a masked process: a ViT, WDCE, a KL of a half."""
  mdns_defaults.vit(config)
  config.buffer.num_samples, config.buffer.num_chunks = 4096, 16
  config.num_masks = 8
  config.stages.max_kl = 0.5
  stages(config, num_stages=25, inner_steps=4000)


def pod(config) -> None:
  """`paper` for a slice."""
  config.batch_size = 1024
  config.buffer.num_samples, config.buffer.num_chunks = 65536, 64
  config.learning_rate = 4e-4
  config.net.remat = True


def large(config, *, num_stages: int = 100, inner_steps: int = 500) -> None:
  """The paper's sizes of a Gaussian process on vectors."""
  config.reference.num_steps = 200
  config.net.hidden = (512, 512, 512)
  config.buffer.num_samples = 10_000
  config.batch_size = 2000
  config.learning_rate = 1e-4
  config.ema_decay = 0.999
  config.stages.max_kl = 1.0
  config.stages.max_ratio = 100.0
  config.num_sinkhorn = 1000
  stages(config, num_stages=num_stages, inner_steps=inner_steps)


def large_pod(config) -> None:
  """`large` for a slice."""
  config.buffer.num_samples = 131072
  config.batch_size = 16384


def _add_stages(config, *, rule: str, min_fraction: float) -> None:
  config.stages = ml_collections.ConfigDict()
  # "anchored" (v1), "relative" (v2), "annealed" or "plain".
  config.stages.rule = rule
  config.stages.inner_steps = 1
  # The ESS that a stage's weights keep; or, where it is not 0, their KL.
  config.stages.min_fraction = min_fraction
  config.stages.max_kl = 0.0
  config.stages.confirm = True
  config.stages.min_remaining = 0.05
  # Share of the stages over which "annealed" comes to the target.
  config.stages.annealed_share = 0.7
  # Clips a stage's weights at this multiple of their mean; 0 leaves them.
  config.stages.max_ratio = 0.0
