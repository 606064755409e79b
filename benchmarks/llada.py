"""Tokens a second of a small LLaDA, against its reference sampler in PyTorch.

  python -m benchmarks.llada

One process, one network of 50 million parameters, untrained, under both
libraries: PyTorch's copies ours, and must give its logits. Greedy, so that both
decode the same tokens, up to rounding; the head is scaled so that confidences
are spread out. Rows run in turns; `s` is the median of the turns and `spread`
their range over it, `ratio` is the baseline's time over the row's, and compile
seconds, which eager PyTorch has none of, are the first call less the median.
Run it alone: OpenMP's threads spin while they wait for one another, and with
one of two cores busy PyTorch took 29 to 96 s for what takes 2.6 s.

- PyTorch, reference sampler: LLaDA's (arXiv:2502.09992). Every step asks for
  logits, softmax and confidence of the whole canvas; attention is
  `scaled_dot_product_attention`, eager, without gradients. The softmax is
  float32, where the released code may take float64.
- PyTorch, head at the block: the same tokens, the head paid for at the block's
  sites alone, which is what our sampler asks for.
- PyTorch, prefix and dual: the caches of Fast-dLLM (arXiv:2505.22618), written
  in place, as ours are.
- jdiff: `ctmc.decode`, one XLA program.

Caches answer approximately: `agree` is the share of the completion's tokens
that are the baseline's, which of an untrained network says little of a trained
one, and `peer` the share that are those of PyTorch under the same cache.
Without PyTorch our rows alone are printed.
"""

import functools
import importlib.util
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from jdiff import ctmc
from jdiff.nets import llada, llada_io

CONFIG = llada.Config(
  num_tokens=16384,
  width=512,
  num_layers=10,
  num_heads=8,
  num_kv_heads=8,
  mlp_width=1536,
  mask_id=16383,
  eos_id=16382,
)
VOCAB, MASK = CONFIG.num_tokens, CONFIG.mask_id
BATCH, PROMPT, COMPLETION, BLOCK, STEPS = 2, 64, 64, 32, 32
LENGTH = PROMPT + COMPLETION
ROUNDS = 5
TOLERANCE = 1e-3
"""Of logits, which are of order 6."""
PEERS = {
  "jdiff, no cache": "PyTorch, head at the block",
  "jdiff, prefix cache": "PyTorch, prefix cache",
  "jdiff, dual cache": "PyTorch, dual cache",
}


def build(key):
  network = llada.network(CONFIG, padded=False, compute_dtype=jnp.float32)
  params = jax.jit(network.init)(key)
  params["head_kernel"] = 6 * params["head_kernel"]
  return network, params


def build_torch(tensors):
  """LLaDA in PyTorch: `model(tokens, start, cache, sites) -> logits`.

  As `Network.apply_cached`; without a cache `tokens` are the whole canvas. The
  cache `[N, 2, B, H, L, d]` is written in place.
  """
  import torch
  from torch import nn
  from torch.nn import functional

  width, num_heads = CONFIG.width, CONFIG.num_heads
  head_size, hidden = width // num_heads, CONFIG.mlp_width
  linear = functools.partial(nn.Linear, bias=False)
  norm = functools.partial(nn.RMSNorm, width, eps=CONFIG.norm_eps)

  def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat(
      [first * cos - second * sin, first * sin + second * cos], dim=-1
    )

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.attn_norm, self.ff_norm = norm(), norm()
      self.q_proj, self.k_proj, self.v_proj, self.attn_out = (
        linear(width, width) for _ in range(4)
      )
      self.ff_proj, self.up_proj = linear(width, hidden), linear(width, hidden)
      self.ff_out = linear(hidden, width)

    def forward(self, x, cos, sin, start, cache):
      batch, num, _ = x.shape
      y = self.attn_norm(x)
      query, key, value = (
        f(y).view(batch, num, num_heads, head_size).transpose(1, 2)
        for f in (self.q_proj, self.k_proj, self.v_proj)
      )
      query, key = rotate(query, cos, sin), rotate(key, cos, sin)
      if cache is not None:
        cache[0, :, :, start : start + num] = key
        cache[1, :, :, start : start + num] = value
        key, value = cache
      y = functional.scaled_dot_product_attention(query, key, value)
      x = x + self.attn_out(y.transpose(1, 2).reshape(batch, num, width))
      y = self.ff_norm(x)
      return x + self.ff_out(functional.silu(self.ff_proj(y)) * self.up_proj(y))

  class Model(nn.Module):
    def __init__(self):
      super().__init__()
      self.wte = nn.Embedding(VOCAB, width)
      self.blocks = nn.ModuleList(Block() for _ in range(CONFIG.num_layers))
      self.ln_f, self.ff_out = norm(), linear(width, VOCAB)
      exponent = np.arange(head_size // 2) / (head_size // 2)
      angles = np.outer(np.arange(LENGTH), CONFIG.rope_base**-exponent)
      self.tables = [
        torch.from_numpy(f(angles.astype(np.float32))) for f in (np.cos, np.sin)
      ]

    def forward(self, tokens, start=0, cache=None, sites=None):
      cos, sin = (
        table[start : start + tokens.shape[1]] for table in self.tables
      )
      x = self.wte(tokens)
      for index, block in enumerate(self.blocks):
        at = None if cache is None else cache[index]
        x = block(x, cos, sin, start, at)
      logits = self.ff_out(self.ln_f(x if sites is None else x[:, sites]))
      logits[..., MASK] = -torch.inf
      return logits

  model = Model().eval()
  model.load_state_dict(
    {
      name.removeprefix("model.transformer."): torch.from_numpy(value.copy())
      for name, value in tensors.items()
    }
  )
  return model


def decode_torch(model, prompt, *, cache=None, whole_head=False):
  """Greedy block decoding, the canvas `[B, L]`."""
  import torch

  with torch.inference_mode():
    canvas = torch.full((BATCH, LENGTH), MASK)
    canvas[:, :PROMPT] = prompt
    kept, per_block = None, STEPS * BLOCK // COMPLETION
    if cache:
      head = (CONFIG.num_heads, LENGTH, CONFIG.width // CONFIG.num_heads)
      kept = torch.zeros(CONFIG.num_layers, 2, BATCH, *head)
    for begin in range(PROMPT, LENGTH, BLOCK):
      end = begin + BLOCK
      for step in range(per_block):
        first, last = 0, LENGTH
        if cache and step:
          first, last = begin, end if cache == "dual" else LENGTH
        # Sites whose logits are taken: all, or the block's.
        low, high = (0, LENGTH) if whole_head else (begin, end)
        logits = model(
          canvas[:, first:last], first, kept, slice(low - first, high - first)
        )
        drawn = logits.argmax(dim=-1)
        confidence = logits.softmax(dim=-1)
        confidence = confidence.gather(-1, drawn[..., None])[..., 0]
        open_sites = canvas[:, low:high] == MASK
        open_sites[:, end - low :] = False
        confidence = confidence.masked_fill(~open_sites, -torch.inf)
        count = BLOCK // per_block + (step < BLOCK % per_block)
        best = confidence.topk(count, dim=-1).indices
        canvas[:, low:high].scatter_(1, best, drawn.gather(1, best))
  return canvas


def build_runs(network, params, prompt):
  """Rows by name, the baseline first: functions without arguments."""
  runs = {}
  if importlib.util.find_spec("torch"):
    import torch

    model = build_torch(llada_io.to_tensors(params, CONFIG))
    check(network, params, model)
    for name, options in {
      "PyTorch, reference sampler": dict(whole_head=True),
      "PyTorch, head at the block": dict(),
      "PyTorch, prefix cache": dict(cache="prefix"),
      "PyTorch, dual cache": dict(cache="dual"),
    }.items():
      runs[name] = functools.partial(
        decode_torch, model, torch.from_numpy(prompt).long(), **options
      )
  else:
    print("PyTorch is missing: pip install 'jdiff-research[torch]'")
  for name, cache in {
    "jdiff, no cache": None,
    "jdiff, prefix cache": "prefix",
    "jdiff, dual cache": "dual",
  }.items():
    decode = jax.jit(
      functools.partial(
        ctmc.decode,
        logits_fn=network.apply,
        cached_fn=network.apply_cached,
        init_cache=network.init_cache,
        length=LENGTH,
        mask_id=MASK,
        block_size=BLOCK,
        num_steps=STEPS,
        temperature=0.0,
        cache=cache,
      )
    )
    runs[name] = functools.partial(
      decode, params, jax.random.key(1), jnp.asarray(prompt)
    )
  return runs


def check(network, params, model):
  """Both libraries' logits on a canvas half masked; raises if they differ."""
  import torch

  rng = np.random.default_rng(1)
  tokens = rng.integers(0, VOCAB, (BATCH, LENGTH), np.int32)
  tokens[:, PROMPT:] = MASK
  ours = np.asarray(jax.jit(network.apply)(params, tokens, jnp.ones(BATCH)))
  with torch.inference_mode():
    theirs = model(torch.from_numpy(tokens).long()).numpy()
  known = np.arange(VOCAB) != MASK
  gap = np.abs(ours[..., known] - theirs[..., known]).max()
  print(
    f"logits of deviation {ours[..., known].std():.2f}; between the two "
    f"libraries at most {gap:.1e}"
  )
  if not gap < TOLERANCE:
    raise RuntimeError(
      f"PyTorch's network is not ours: logits differ by {gap}, more than "
      f"{TOLERANCE}."
    )


def measure(runs):
  """`{name: (seconds of the turns, seconds of the first call)}`, in turns."""
  first, turns = {}, {name: [] for name in runs}
  for turn in range(1 + ROUNDS):
    for name, run in runs.items():
      start = time.perf_counter()
      jax.block_until_ready(run())
      seconds = time.perf_counter() - start
      if turn == 0:
        first[name] = seconds
      else:
        turns[name].append(seconds)
  return {name: (turns[name], first[name]) for name in runs}


def completion(answer):
  canvas = answer.samples if isinstance(answer, ctmc.Decoded) else answer
  return np.asarray(canvas)[:, PROMPT:]


def main():
  print(timing.where(), f"cores {os.cpu_count()}", sep=", ")
  key_params, key_prompt = jax.random.split(jax.random.key(0))
  network, params = build(key_params)
  prompt = jax.random.randint(key_prompt, (BATCH, PROMPT), 0, MASK, jnp.int32)
  runs = build_runs(network, params, np.array(prompt))
  if any(name.startswith("PyTorch") for name in runs):
    import torch

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
  load = os.getloadavg()[0]
  times = measure(runs)
  baseline = next(iter(runs))
  decoded = {name: completion(run()) for name, run in runs.items()}
  width = max(map(len, runs))
  print(
    f"\n{CONFIG.num_params / 1e6:.1f} M parameters, float32, batch {BATCH}, "
    f"prompt {PROMPT}, completion {COMPLETION}, blocks of {BLOCK}, {STEPS} "
    f"evaluations a row, greedy; medians of {ROUNDS} turns, load before them "
    f"{load:.1f}; baseline: {baseline}"
  )
  print(
    f"{'':{width}}  {'s':>7}  {'spread':>6}  {'tokens/s':>8}  {'ratio':>6}  "
    f"{'agree':>5}  {'peer':>5}  compile s"
  )
  against = statistics.median(times[baseline][0])
  for name, (turns, first) in times.items():
    seconds = statistics.median(turns)
    agree = np.mean(decoded[name] == decoded[baseline])
    timing.keep("tokens a second", name, against / seconds, baseline)
    peer = decoded.get(PEERS.get(name))
    same = "" if peer is None else f"{np.mean(decoded[name] == peer):.2f}"
    compiling = f"{first - seconds:.1f}" if name in PEERS else ""
    print(
      f"{name:{width}}  {seconds:7.2f}  "
      f"{(max(turns) - min(turns)) / seconds:6.2f}  "
      f"{BATCH * COMPLETION / seconds:8.1f}  {against / seconds:6.2f}  "
      f"{agree:5.2f}  {same:>5}  {compiling:>9}",
      flush=True,
    )


if __name__ == "__main__":
  main()
