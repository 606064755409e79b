"""LLaDA-class masked language models: sizes, and the transformer of them.

LLaDA-8B (arXiv:2502.09992) is a Llama without its causal mask: RMSNorm,
SwiGLU, rotary positions, no biases, an untied head. The ratio of masks is
visible, so the time is no input. LLaDA-1.5 (arXiv:2505.19223) has the same
sizes. `nets.llada_io` reads and writes their tensors.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jdiff.core import checks
from jdiff.nets.network import Network
from jdiff.nets.transformer import transformer


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of a LLaDA-class model; the defaults are LLaDA-8B's.

  Attributes:
    num_tokens: Rows `V` of the embedding, the mask among them.
    width: Features `D` of the residual stream.
    num_layers: Blocks.
    num_heads: Attention heads.
    num_kv_heads: Heads of keys and values, a divisor of `num_heads`.
    mlp_width: Hidden width of the feed-forward layers.
    rope_base: Base of the rotary frequencies, theta.
    norm_eps: Added to the mean squares in norms.
    mask_id: The mask token.
    eos_id: End of text, which also pads.
    max_length: Longest canvas `T` that the model was trained on.
    shift_targets: Whether a site is predicted from the one before it, as in
      Dream (arXiv:2508.15487), whose biases and names are left out here.
  """

  num_tokens: int = 126464
  width: int = 4096
  num_layers: int = 32
  num_heads: int = 32
  num_kv_heads: int = 32
  mlp_width: int = 12288
  rope_base: float = 5e5
  norm_eps: float = 1e-5
  mask_id: int = 126336
  eos_id: int = 126081
  max_length: int = 4096
  shift_targets: bool = False

  @property
  def num_params(self) -> int:
    """Parameters in all."""
    key_width = self.width // self.num_heads * self.num_kv_heads
    attention = 2 * self.width * (self.width + key_width)
    block = attention + 3 * self.width * self.mlp_width + 2 * self.width
    ends = 2 * self.num_tokens * self.width + self.width
    return ends + self.num_layers * block


LLADA_8B = Config()
"""LLaDA-8B, base and instruct, and LLaDA-1.5: 8,015,581,184 parameters."""

LLADA_1_5 = LLADA_8B


def network(
  config: Config,
  *,
  padded: bool = True,
  forbid_mask: bool = True,
  remat: bool = False,
  remat_policy: Callable[..., bool] | None = None,
  compute_dtype: DTypeLike = jnp.bfloat16,
) -> Network:
  """The transformer of these sizes, for canvases of any length.

  Args:
    config: Sizes.
    padded: Whether a run of `eos_id` at the front of a row is padding. The
      models were released without, where prompts of a batch are of one length.
    forbid_mask: As in `nets.transformer`, like the next three.
    remat: Recomputes activations in the backward pass.
    remat_policy: What is kept all the same.
    compute_dtype: Dtype of the blocks.

  Returns:
    A `Network`. `init` makes float32 parameters; the released ones are
    bfloat16, which `apply` takes as they are.

  Raises:
    ValueError: If sizes do not fit one another.
  """
  return transformer(
    None,
    config.num_tokens,
    width=config.width,
    num_layers=config.num_layers,
    num_heads=config.num_heads,
    num_kv_heads=config.num_kv_heads,
    mlp="swiglu",
    mlp_width=config.mlp_width,
    rope_base=config.rope_base,
    norm_eps=config.norm_eps,
    mask_id=config.mask_id,
    forbid_mask=forbid_mask,
    pad_id=config.eos_id if padded else None,
    shift_targets=config.shift_targets,
    zero_init_head=False,
    head_bias=False,
    remat=remat,
    remat_policy=remat_policy,
    compute_dtype=compute_dtype,
  )


def check_length(config: Config, length: int) -> None:
  """Raises unless a canvas fits what the model was trained on."""
  if checks.check_int("length", length) > config.max_length:
    raise ValueError(
      f"length, prompt and completion together, must be at most the model's "
      f"max_length={config.max_length}, got {length}."
    )


def abstract(config: Config, dtype: DTypeLike = jnp.float32) -> Any:
  """Shapes and dtypes of the parameters; nothing is allocated."""

  def cast(x):
    return jax.ShapeDtypeStruct(x.shape, dtype)

  key = jax.eval_shape(jax.random.key, 0)
  return jax.tree.map(cast, jax.eval_shape(network(config).init, key))
