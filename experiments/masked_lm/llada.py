"""LLaDA-class models on questions in text: variants that GDPO and DMPO share.

| variant | what |
|---|---|
| smoke, tiny | a network of bytes with random weights: the parts, no result |
| cpu | such a network, trained first |
| paper | LLaDA-8B, near the released settings, 8 H100; compiled, not run |
| pod, v5e_64, v5p_16, h100_8 | LLaDA-8B, ours; compiled, not run |

Small ones ask made-up questions. The others have adapters, 16 prompts and 16
completions of each a step, 256 tokens behind a prompt of 256. They read

  llada/            a released checkpoint (`base.checkpoint`: its safetensors,
                    or what `experiments.masked_lm.convert` makes of them) with
                    its tokenizer.json (`base.data.tokenizer`)
  data/<task>.jsonl       questions, see `experiments.common.text`
  data/<task>_test.jsonl  those held out (`base.data.eval_path`)

`paper` is as near to the released trainers as our code goes (see `released`),
the others have settings of ours where the cause is known: masks at counts
(`law="mid"`: less variance and bias), the same masks for old, new and reference
parameters, and for DMPO the group's mean as baseline, which leaves the tilted
law stationary.
"""

from collections.abc import Callable

import ml_collections

from experiments.common import config as config_lib
from experiments.masked_lm import defaults
from jdiff.nets import llada

FOLDER = "llada"


def get_config(
  task: str, variant: str, make: Callable[..., ml_collections.ConfigDict]
) -> ml_collections.ConfigDict:
  """A variant of one task.

  Args:
    task: One of `questions.NAMES`.
    variant: Of the table above.
    make: `defaults.gdpo` or `defaults.dmpo`.
  """

  def changed(*changes):
    config = make(task)
    config.name = config.base.name = f"llada_{task}"
    data(config, task)
    defaults.questions(config)
    for change in changes:
      change(config)
    return config

  return config_lib.parse_variant(
    variant,
    {
      "smoke": lambda: changed(tiny, smoke),
      "tiny": lambda: changed(tiny),
      "cpu": lambda: changed(tiny, cpu),
      "paper": lambda: changed(large, released, mesh(8, 1)),
      "pod": lambda: changed(large, mesh(16, 4)),
      "v5e_64": lambda: changed(large, mesh(16, 4)),
      "v5p_16": lambda: changed(large, mesh(16, 1)),
      "h100_8": lambda: changed(large, mesh(8, 1)),
    },
  )


def data(config, name: str, **options) -> None:
  """What the base knows and is asked."""
  config.base.data = ml_collections.ConfigDict(
    {
      "kind": "questions",
      "name": name,
      "path": "",
      "eval_path": "",
      "tokenizer": "bytes",
      "num_prompt": 256,
      "num_completion": 256,
      "num_test": 500,
      "style": "paper",
      "truncate": False,
      **options,
    }
  )


def tiny(config) -> None:
  """Random weights of a small network of bytes; the questions are made up."""
  name = config.base.data.name
  data(
    config,
    name,
    style="short",
    num_prompt=96,
    num_completion=32,
    num_test=32,
    num_generated=512,
  )
  net = config.base.net
  net.kind = "llada"
  net.width, net.num_layers, net.num_heads, net.num_kv_heads = 32, 2, 4, 2
  net.mlp_width, net.head_chunk, net.remat = 48, 8, True
  net.max_length = 256
  config.base.checkpoint = "random"
  config.base.dtype = "bfloat16"
  net.compute_dtype = "bfloat16"
  config.lora.rank, config.lora.alpha = 4, 8.0
  config.num_prompts, config.group_size, config.inner_steps = 4, 4, 2
  _sampler(config, block_size=8, num_steps=16, cache="dual")
  config.elbo.implementation = "scan"
  config.num_eval = config.eval.batch_size = 8
  config.eval.lengths, config.eval.block_size = (16, 32), 8
  config.num_steps, config.log_every = 8, 2
  config.eval_every = config.checkpoint_every = 4
  if "ratio" in config:
    config.ratio = "elbo"


def smoke(config) -> None:
  """The parts of `tiny`, twice each."""
  config.num_steps, config.log_every = 2, 1
  config.eval_every = config.checkpoint_every = 1


def cpu(config) -> None:
  """A base trained here, and tuned."""
  base = config.base
  base.checkpoint, base.dtype = "", "float32"
  net = base.net
  net.width, net.num_layers, net.mlp_width = 64, 3, 192
  net.compute_dtype, net.head_chunk, net.remat = "float32", 0, False
  # The longest of a task's questions.
  longest = {"gsm8k": 88, "math": 80}
  base.data.num_prompt = longest.get(base.data.name, 48)
  base.data.num_completion = 80
  base.data.num_test, base.data.num_generated = 256, 4096
  base.batch_size, base.num_steps, base.learning_rate = 32, 2000, 2e-3
  base.eval_every, base.num_eval, base.num_samples = 1000, 128, 8
  base.checkpoint_every = 1000
  config.lora.rank, config.lora.alpha = 8, 16.0
  config.num_prompts, config.group_size, config.inner_steps = 4, 8, 4
  _sampler(config, block_size=16, num_steps=40, cache="dual")
  config.eval.lengths, config.eval.block_size = (80,), 16
  config.num_eval, config.eval.batch_size = 128, 32
  config.learning_rate = 3e-4
  config.num_steps, config.log_every = 60, 5
  config.eval_every = config.checkpoint_every = 20


def large(config) -> None:
  """LLaDA-8B with adapters, and settings of ours."""
  name = config.base.data.name
  sizes = llada.LLADA_8B
  data(
    config,
    name,
    path=f"data/{name}.jsonl",
    eval_path=f"data/{name}_test.jsonl",
    tokenizer=f"{FOLDER}/tokenizer.json",
    num_tokens=sizes.num_tokens,
    mask_id=sizes.mask_id,
    eos_id=sizes.eos_id,
    # Sudoku's instructions alone are longer.
    truncate=True,
  )
  net = config.base.net
  net.kind = "llada"
  net.width, net.num_layers = sizes.width, sizes.num_layers
  net.num_heads, net.num_kv_heads = sizes.num_heads, sizes.num_kv_heads
  net.mlp_width = sizes.mlp_width
  net.compute_dtype, net.remat, net.head_chunk = "bfloat16", True, 32
  config.base.checkpoint = FOLDER
  config.base.dtype = "bfloat16"
  config.lora.rank, config.lora.alpha = 128, 64.0
  config.num_prompts, config.group_size = 16, 16
  config.elbo.num_nodes, config.elbo.implementation = 3, "scan"
  config.adam_b2, config.weight_decay, config.max_grad_norm = 0.99, 0.1, 0.2
  config.num_eval = 1319  # GSM8K's test set; the others are smaller
  config.num_steps, config.log_every = 3500, 1
  config.eval_every = config.checkpoint_every = 100
  config.final_rate = 1.0
  _sampler(config, block_size=32, num_steps=128, cache="dual")
  if "ratio" in config:
    # Rollouts by confidence have no exact ratio.
    config.ratio = "elbo"
    config.reward_temperature, config.inner_steps = 0.04, 8
    config.learning_rate = 1e-6
    config.sampler.temperature = 0.2
    # The released loss is one of tokens, ours of whole completions.
    config.max_grad_norm = 0.2 * config.base.data.num_completion
  else:
    config.clip, config.inner_steps = 0.5, 12
    config.learning_rate = 5e-7
    config.sampler.temperature = 0.9


def released(config) -> None:
  """What the released trainers do where `large` does otherwise.

  On 8 devices, as the trainers count: 6 completions on each and two batches a
  step for GDPO, 8 and two for DMPO. Otherwise than there, the base is in
  bfloat16 and not in 4 bits, adapters have no dropout, prompts are padded to
  256 tokens and cut there (200 make shapes that are no whole tiles), and DMPO's
  masks are uniform counts, four an optimiser step, where the trainer draws
  shares of 0.1 to 1 and their complements; its log-ratios average the masks of
  all inner steps.
  """
  config.elbo.shared_masks = False
  if "ratio" in config:
    config.baseline, config.num_prompts = "negative", 8
    config.elbo.law, config.elbo.num_nodes, config.elbo.num_masks = (
      "count",
      4,
      1,
    )
    config.sampler.cache = "prefix"
  else:
    config.elbo.law = "floor"
    config.group_size = 6
    config.learning_rate = 3e-7
    config.sampler.cache = "none"


def mesh(fsdp: int, tensor: int) -> Callable[..., None]:
  """Lays parameters over that many devices."""

  def change(config):
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, fsdp, tensor

  return change


def _sampler(config, **fields) -> None:
  config.sampler.order = "confidence"
  for name, value in fields.items():
    config.sampler[name] = value
