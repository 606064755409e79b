"""Tokens a second of the block sampler: caches and parallel commits.

  python -m benchmarks.decode

One canvas, one untrained transformer, greedy: `ratio` is the time of the
uncached sampler with one token a step over the row's, all rows taking turns.
Times depend on the parameters through the number of steps of a threshold or
factor alone, so those rows show what a step saved is worth, and not how many a
trained network saves; the head is scaled so that confidences are spread out.
There `nfe` is a mean over rows, and the batch waits for its slowest.
Caches answer approximately: `agree` is the share of tokens that are those of
the baseline, which of an untrained network says little of a trained one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from jdiff import ctmc, nets

LENGTH, PROMPT, BLOCK, VOCAB, BATCH = 256, 64, 32, 512, 4
WIDTH, LAYERS, HEADS = 128, 4, 4
ROUNDS = 2


def build(key):
  network = nets.transformer(
    LENGTH,
    VOCAB,
    width=WIDTH,
    num_layers=LAYERS,
    num_heads=HEADS,
    zero_init_head=False,
  )
  params = jax.jit(network.init)(key)
  params["head_kernel"] = 6 * params["head_kernel"]
  return network, params


def cases():
  completion = LENGTH - PROMPT
  half, few = completion // 2, completion // BLOCK
  one = dict()
  two = dict(num_steps=half)
  return {
    "no cache, 1 token a step": one,
    "prefix": dict(cache="prefix"),
    "dual": dict(cache="dual"),
    "no cache, 2 tokens": two,
    "prefix, 2 tokens": dict(cache="prefix", **two),
    "dual, 2 tokens": dict(cache="dual", **two),
    "no cache, a block a step": dict(num_steps=few),
    "no cache, threshold 0.5": dict(threshold=0.5),
    "dual, threshold 0.5": dict(cache="dual", threshold=0.5),
    "dual, factor 1": dict(cache="dual", factor=1.0),
    "dual, guidance 1": dict(cache="dual", guidance=1.0),
  }


def main():
  print(timing.where())
  key_params, key_prompt, key = jax.random.split(jax.random.key(0), 3)
  network, params = build(key_params)
  prompt = jax.random.randint(key_prompt, (BATCH, PROMPT), 0, VOCAB)
  runs = {}
  for name, options in cases().items():
    run = jax.jit(
      functools.partial(
        ctmc.decode,
        logits_fn=network.apply,
        cached_fn=network.apply_cached,
        init_cache=network.init_cache,
        length=LENGTH,
        mask_id=VOCAB,
        block_size=BLOCK,
        temperature=0.0,
        **options,
      )
    )
    runs[name] = functools.partial(run, params, key, prompt)
  times = timing.measure(runs, rounds=ROUNDS)
  baseline = next(iter(runs))
  want, width = runs[baseline]().samples[:, PROMPT:], max(map(len, runs))
  print(
    f"\ncanvas {LENGTH}, prompt {PROMPT}, blocks of {BLOCK}, batch {BATCH}, "
    f"{VOCAB} tokens, width {WIDTH}, {LAYERS} layers, float32; greedy; "
    f"baseline: {baseline}"
  )
  print(
    f"{'':{width}}  {'nfe':>5}  {'positions':>9}  {'s':>7}  {'tokens/s':>8}  "
    f"{'ratio':>6}  {'agree':>5}  compile s"
  )
  for name, (seconds, compiling) in times.items():
    decoded = runs[name]()
    agree = jnp.mean(decoded.samples[:, PROMPT:] == want)
    ratio = times[baseline][0] / seconds
    timing.keep(f"canvas {LENGTH}, batch {BATCH}", name, ratio, baseline)
    print(
      f"{name:{width}}  {np.mean(decoded.nfe):5.0f}  "
      f"{np.mean(decoded.num_token_forwards):9.0f}  {seconds:7.2f}  "
      f"{BATCH * (LENGTH - PROMPT) / seconds:8.0f}  "
      f"{ratio:6.2f}  {agree:5.2f}  {compiling:9.1f}",
      flush=True,
    )


if __name__ == "__main__":
  main()
