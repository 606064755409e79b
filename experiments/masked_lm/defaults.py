"""Settings shared by the configs of masked language models."""

import ml_collections

from experiments.common import config as config_lib
from jdiff.nets import lora


def network(config, *, width: int, num_layers: int, num_heads: int) -> None:
  """Adds the network's fields: a transformer with SwiGLU."""
  config.net = ml_collections.ConfigDict()
  # "transformer"; "llada", one with the tensors of LLaDA's checkpoints; "mlp",
  # `num_layers` dense layers over the whole canvas; or "dilated", as many
  # stacks of convolutions.
  config.net.kind = "transformer"
  config.net.width = width
  config.net.num_layers = num_layers
  config.net.num_heads = num_heads
  # Heads of keys and values; 0 is as many as heads.
  config.net.num_kv_heads = 0
  # Hidden width of the feed-forward layers; 0 is four times the width.
  config.net.mlp_width = 0
  config.net.mlp = "swiglu"
  # (rows, cols) of a canvas that is a picture, for its rotary positions; empty
  # is a line.
  config.net.grid = ()
  config.net.compute_dtype = "float32"
  config.net.remat = False
  # What of a block is kept all the same: "", or "dots", products without
  # batches.
  config.net.remat_policy = ""
  # Of the kind "llada".
  config.net.rope_base = 5e5
  config.net.norm_eps = 1e-5
  config.net.max_length = 4096
  # Sites are predicted from the ones before them, as Dream does.
  config.net.shift_targets = False
  # Sites whose logits are held at a time in losses; 0 is all of them.
  config.net.head_chunk = 0


def pretraining(name: str, data: dict) -> ml_collections.ConfigDict:
  """Every field of a pretraining config, at its default value.

  Args:
    name: Of the run.
    data: `{"kind": "task", "name": ..., ...}` or `{"kind": "text", ...}`; see
      `corpora.load`.
  """
  config = ml_collections.ConfigDict()
  config.experiment = "experiments.masked_lm.experiment"
  config.name = name
  config.variant = ""
  config.seed = 0
  config.data = ml_collections.ConfigDict(data)
  network(config, width=32, num_layers=2, num_heads=2)
  config.batch_size = 128
  config.num_steps = 1500
  config.learning_rate = 3e-3
  config.warmup_steps = 50
  config.weight_decay = 0.01
  config.max_grad_norm = 1.0
  config.ema_decay = 0.99
  # Masks a sequence and step; "count" (uniform counts) or "bernoulli".
  config.num_masks = 1
  config.mask_law = "count"
  config.num_eval = 1024
  config.num_samples = 16
  config_lib.add_loop(config, log_every=100, eval_every=500)
  return config


def base(name: str, data: dict) -> ml_collections.ConfigDict:
  """What tuning starts from: a pretraining config, and where its result is."""
  config = pretraining(name, data)
  # The finished run there, trained first if need be; without one the base is
  # trained anew and not kept.
  config.workdir = ""
  # Or a checkpoint in place of it: a folder of LLaDA's safetensors or one that
  # `experiments.masked_lm.convert` has made; "random" makes parameters up.
  config.checkpoint = ""
  config.dtype = "float32"
  return config


def tuning(system: str, task: str, **options) -> ml_collections.ConfigDict:
  """Every field of a config that tunes a policy by reward.

  Args:
    system: `"gdpo"` or `"dmpo"`.
    task: Name of a task in `experiments.common.tasks`.
    **options: The task's.
  """
  config = ml_collections.ConfigDict()
  config.experiment = f"experiments.{system}.experiment"
  config.name = task
  config.variant = ""
  config.seed = 0
  config.base = base(task, {"kind": "task", "name": task, **options})
  # Ranks of adapters; 0 trains all parameters.
  config.lora = ml_collections.ConfigDict()
  config.lora.rank = 0
  config.lora.alpha = 16.0
  config.lora.targets = lora.DEFAULT_TARGETS

  config.num_prompts = 8
  config.group_size = 16
  config.sampler = ml_collections.ConfigDict()
  # "random" is the any-order law, whose paths have exact probabilities;
  # "confidence" decodes block by block.
  config.sampler.order = "random"
  config.sampler.temperature = 1.0
  # Steps of a completion and sites of a block; 0 is one site a step, one block.
  config.sampler.num_steps = 0
  config.sampler.block_size = 0
  # "none", "prefix" or "dual", for confidence decoding.
  config.sampler.cache = "none"

  # Optimiser steps on each batch of rollouts.
  config.inner_steps = 4
  config.elbo = ml_collections.ConfigDict()
  config.elbo.num_nodes = 2
  config.elbo.num_masks = 1
  # "mid", "round", "floor" or "bernoulli" at quadrature nodes; "count" draws
  # independent uniform counts, as double Monte Carlo does.
  config.elbo.law = "mid"
  config.elbo.implementation = "batch"
  # Whether old and reference parameters see the masks of the new ones, and
  # whether every inner step draws its own. False is there to be compared with.
  config.elbo.shared_masks = True
  config.elbo.fresh_masks = True

  config.num_steps = 120
  config.learning_rate = 5e-4
  # Share of the rate that a cosine ends with; 1 keeps it.
  config.final_rate = 1.0
  config.adam_b2 = 0.999
  config.weight_decay = 0.0
  config.max_grad_norm = 1.0
  config.ema_decay = 0.0
  config.num_eval = 2048
  config_lib.add_loop(config, log_every=10, eval_every=40)
  return config


def questions(config: ml_collections.ConfigDict) -> None:
  """Adds what evaluations of answers in text read."""
  config.eval = ml_collections.ConfigDict()
  # Completion lengths, each measured in the end.
  config.eval.lengths = (128, 256, 512)
  config.eval.block_size = 32
  config.eval.tokens_per_step = 2
  config.eval.cache = "none"
  config.eval.batch_size = 64


def gdpo(task: str, **options) -> ml_collections.ConfigDict:
  """A GDPO config."""
  config = tuning("gdpo", task, **options)
  # "gdpo", or the one-step baseline "diffu_grpo".
  config.loss = "gdpo"
  config.clip = 0.2
  config.ratio_norm = "length"
  config.kl_weight = 0.0
  config.kl = "k3"
  config.normalise_std = False
  return config


def dmpo(task: str, **options) -> ml_collections.ConfigDict:
  """A DMPO config."""
  config = tuning("dmpo", task, **options)
  config.reward_temperature = 0.25
  config.baseline = "group"
  config.baseline_strength = 1.0
  # The largest exponent of the weights, and the ESS fraction that groups keep
  # by lowering it; 0 lowers nothing.
  config.coefficient = 1.0
  config.min_ess_fraction = 0.0
  config.skip_tied = False
  # log p_ref / p_rollout: of the "path", exact, or a difference of "elbo"s.
  config.ratio = "path"
  # Clipping would cut the rare, large weights that pull a policy back which has
  # overshot its target: at 1 it ends 0.05 above.
  config.max_grad_norm = 1e3
  config.num_steps = 480
  # The loss balances the policies that roll out, noise of their parameters
  # included: only as steps shrink do they become the tilted law.
  config.final_rate = 0.01
  config.eval_every = 120
  return config
