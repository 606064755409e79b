"""Logits of transformers' Llama without its causal mask, for a test to match.

  python -m benchmarks.llama_reference

Writes tests/nets/llama_reference.json. LLaDA's network (arXiv:2502.09992) is
Llama's with every site attending to every other, so that `LlamaForCausalLM`
under an additive attention mask of zeros is an implementation of it that we had
no hand in. Parameters are made by `weights`, in integers, and are the same
wherever the file is read: only answers are kept. Needs PyTorch and
transformers; `weights`, `LLAMA_NAMES` and the sizes need NumPy alone.

Of the file: `logits` by the number of heads of keys and values, each `full`
`[B, L, V]`, the same `padded` on the left, `[number of real sites, V]` row by
row, and two that are wrong on purpose, `wrong_base` and `causal`, which say how
much a tolerance must tell apart. Parameters and activations are float64;
Llama's softmax and rotary tables are float32 whatever they are.
"""

import functools
import json
import math
import pathlib

import numpy as np

PATH = pathlib.Path(__file__).parents[1] / "tests/nets/llama_reference.json"

VOCAB = 20
CONFIG = dict(
  width=32,
  num_layers=2,
  num_heads=4,
  mlp_width=48,
  rope_base=5e5,
  norm_eps=1e-5,
)
"""Sizes, as `jdiff.nets.transformer` calls them."""
NUM_KV_HEADS = (4, 2)
WRONG_BASE = 1e4
MASK, PAD = 18, 19
TOKENS = np.array(
  [[3, 0, 7, 18, 11, 18, 2, 16], [5, 12, 18, 18, 1, 9, 4, 18]], np.int32
)
PADDED = np.array(
  [[19, 19, 19, 6, 18, 13, 18, 2], [8, 15, 18, 10, 0, 18, 19, 19]], np.int32
)
"""Three pads before the first row; those behind the second one are tokens."""
NUM_PADS = np.array([3, 0], np.int32)

LLAMA_NAMES = {
  "wte": "model.embed_tokens",
  "ln_f": "model.norm",
  "ff_out": "lm_head",
  "attn_norm": "input_layernorm",
  "q_proj": "self_attn.q_proj",
  "k_proj": "self_attn.k_proj",
  "v_proj": "self_attn.v_proj",
  "attn_out": "self_attn.o_proj",
  "ff_norm": "post_attention_layernorm",
  "ff_proj": "mlp.gate_proj",
  "up_proj": "mlp.up_proj",
  "blocks.ff_out": "mlp.down_proj",
}
"""Llama's names of LLaDA's maps; `ff_out` is the head's and a block's."""


def llama_name(name):
  """`model.transformer.blocks.1.q_proj.weight` as Llama calls it."""
  parts = name.removeprefix("model.transformer.").split(".")
  if parts[0] != "blocks":
    return f"{LLAMA_NAMES[parts[0]]}.weight"
  kind = "blocks.ff_out" if parts[2] == "ff_out" else parts[2]
  return f"model.layers.{parts[1]}.{LLAMA_NAMES[kind]}.weight"


def weights(num_kv_heads, seed=0):
  """Parameters under LLaDA's names, float32, matrices `[out, in]`.

  Queries and keys are large, so that attention is far from even and logits tell
  one rotary base from another.
  """
  width, hidden = CONFIG["width"], CONFIG["mlp_width"]
  kv_width = width // CONFIG["num_heads"] * num_kv_heads
  root = 1 / math.sqrt(width)
  matrices = {
    "q_proj": (width, width, 2 * root),
    "k_proj": (kv_width, width, 2 * root),
    "v_proj": (kv_width, width, root),
    "attn_out": (width, width, root),
    "ff_proj": (hidden, width, root),
    "up_proj": (hidden, width, root),
    "ff_out": (width, hidden, 1 / math.sqrt(hidden)),
  }
  shapes = {"wte": (VOCAB, width, 1.0)}
  for layer in range(CONFIG["num_layers"]):
    for name in ("attn_norm", "ff_norm"):
      shapes[f"blocks.{layer}.{name}"] = (width, None, 0.3)
    for name, shape in matrices.items():
      shapes[f"blocks.{layer}.{name}"] = shape
  shapes["ln_f"] = (width, None, 0.3)
  shapes["ff_out"] = (VOCAB, width, root)
  values = {}
  for stream, (name, (rows, cols, scale)) in enumerate(shapes.items()):
    shape = (rows,) if cols is None else (rows, cols)
    drawn = scale * _scatter(shape, 1000 * seed + stream)
    if cols is None:
      drawn = 1 + drawn
    values[f"model.transformer.{name}.weight"] = drawn.astype(np.float32)
  return values


def _scatter(shape, stream):
  """Numbers of mean 0 and variance 1 on `(-sqrt 3, sqrt 3)`: splitmix64."""
  index = np.arange(math.prod(shape), dtype=np.uint64)
  bits = (index + np.uint64(stream << 32)) * np.uint64(0x9E3779B97F4A7C15)
  for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
    bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
  bits = (bits ^ (bits >> np.uint64(31))) >> np.uint64(40)
  unit = (bits.astype(np.float64) + 0.5) / 2**24
  return math.sqrt(3) * (2 * unit - 1).reshape(shape)


def answer(num_kv_heads, tokens, mask, positions, rope_base):
  """Logits `[B, L, V]` under an additive `mask [B, L, L]`, query by key."""
  import torch
  import transformers

  config = transformers.LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=CONFIG["width"],
    intermediate_size=CONFIG["mlp_width"],
    num_hidden_layers=CONFIG["num_layers"],
    num_attention_heads=CONFIG["num_heads"],
    num_key_value_heads=num_kv_heads,
    rms_norm_eps=CONFIG["norm_eps"],
    rope_parameters={"rope_type": "default", "rope_theta": rope_base},
    tie_word_embeddings=False,
    attn_implementation="eager",
  )
  model = transformers.LlamaForCausalLM(config).double().eval()
  model.load_state_dict(
    {
      llama_name(name): torch.from_numpy(value).double()
      for name, value in weights(num_kv_heads).items()
    }
  )
  with torch.inference_mode():
    logits = model(
      input_ids=torch.from_numpy(tokens).long(),
      attention_mask=torch.from_numpy(mask)[:, None],
      position_ids=torch.from_numpy(positions).long(),
      use_cache=False,
    ).logits
  return logits.numpy()


def variants(num_kv_heads):
  """Logits by name, unrounded."""
  run = functools.partial(answer, num_kv_heads)
  batch, length = TOKENS.shape
  sites = np.arange(length)
  full = np.zeros((batch, length, length))
  plain = np.broadcast_to(sites, (batch, length)).copy()
  causal = full + np.where(sites > sites[:, None], -np.inf, 0)
  real = sites >= NUM_PADS[:, None]
  unpadded = full + np.where(real, 0, -np.inf)[:, None]
  counted = np.maximum(sites - NUM_PADS[:, None], 0)
  base = CONFIG["rope_base"]
  return {
    "full": run(TOKENS, full, plain, base),
    "wrong_base": run(TOKENS, full, plain, WRONG_BASE),
    "causal": run(TOKENS, causal, plain, base),
    "padded": run(PADDED, unpadded, counted, base)[real],
    "pads attended to": run(PADDED, full, plain, base)[real],
    "the row without its pads": run(
      PADDED[:1, NUM_PADS[0] :],
      full[:1, NUM_PADS[0] :, NUM_PADS[0] :],
      plain[:1, : -NUM_PADS[0]],
      base,
    )[0],
  }


def main():
  import torch
  import transformers

  kept = {"full": 12, "padded": 12, "wrong_base": 6, "causal": 6}
  logits = {}
  for num_kv_heads in NUM_KV_HEADS:
    found = variants(num_kv_heads)
    assert all(np.all(np.isfinite(values)) for values in found.values())
    full, padded = found["full"], found["padded"]
    alone = found["the row without its pads"]
    print(
      f"{num_kv_heads} heads of keys and values: logits of deviation "
      f"{full.std():.3f}; greatest differences:"
    )
    for name, one, other in (
      ("wrong base", full, found["wrong_base"]),
      ("causal", full, found["causal"]),
      ("causal, last site", full[:, -1], found["causal"][:, -1]),
      ("pads attended to", padded, found["pads attended to"]),
      ("the row without its pads", padded[: len(alone)], alone),
    ):
      print(f"  {name:25} {np.abs(one - other).max():.2e}")
    logits[str(num_kv_heads)] = {
      name: np.round(found[name], digits).tolist()
      for name, digits in kept.items()
    }
  versions = {"torch": torch.__version__.split("+")[0]}
  versions["transformers"] = transformers.__version__
  text = json.dumps({**versions, "logits": logits}, separators=(",", ":"))
  # A line a row of logits.
  PATH.write_text(text.replace("],", "],\n") + "\n")
  print(f"{PATH.name}: {PATH.stat().st_size} bytes, {versions}")


if __name__ == "__main__":
  main()
