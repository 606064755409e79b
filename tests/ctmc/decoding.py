"""The decode that its tests share, compiled cheaply."""

import functools

import jax
import numpy as np

from jdiff import ctmc

# `threshold` is traced; so are `temperature` and `guidance` in `traced`.
OPTIONS = (
  "logits_fn length mask_id num_samples block_size num_steps order min_p "
  "eos_id forbid_eos defer_eos stop_at_eos cache cached_fn init_cache factor"
).split()
# Compiling is what these tests cost.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
decode = jit(ctmc.decode, static_argnames=[*OPTIONS, "temperature", "guidance"])
traced = jit(ctmc.decode, static_argnames=OPTIONS)


def softmax(logits):
  probs = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return probs / probs.sum(axis=-1, keepdims=True)
