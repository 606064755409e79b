"""LLaDA-class masked language models: sizes, and the transformer of them.

LLaDA-8B (arXiv:2502.09992) is a Llama without its causal mask: RMSNorm,
SwiGLU, rotary positions, no biases, an untied head. The ratio of masks is
visible, so the time is no input. LLaDA-1.5 (arXiv:2505.19223) has the same
sizes. `nets.llada_io` reads and writes their tensors.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jdiff.core import checks, files
from jdiff.nets.network import Network
from jdiff.nets.transformer import transformer

MAX_JSON_BYTES = 2**24
"""Larger indices and configs are refused: they come from elsewhere."""


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


_FIELDS = {
  "num_tokens": "embedding_size",
  "width": "d_model",
  "num_layers": "n_layers",
  "num_heads": "n_heads",
  "num_kv_heads": "n_kv_heads",
  "mlp_width": "mlp_hidden_size",
  "rope_base": "rope_theta",
  "norm_eps": "rms_norm_eps",
  "mask_id": "mask_token_id",
  "eos_id": "eos_token_id",
  "max_length": "max_sequence_length",
}
"""Fields of `llada.Config` as a checkpoint's `config.json` names them."""


LLADA_8B = Config()
"""LLaDA-8B, base and instruct, and LLaDA-1.5: 8,015,581,184 parameters."""


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


def read_config(directory: str | os.PathLike) -> Config:
  """The sizes that a checkpoint's `config.json` gives.

  Raises:
    FileNotFoundError: If there is none.
    ValueError: If a field is missing or no number of a size.
  """
  path = pathlib.Path(directory) / "config.json"
  if not path.is_file():
    raise FileNotFoundError(
      f"{directory} holds no config.json; pass a LLaDA checkpoint, or its "
      "sizes as config."
    )
  stored = read_json(path)
  fields: dict[str, Any] = {}
  for ours, theirs in _FIELDS.items():
    value = stored.get(theirs)
    whole = ours not in ("rope_base", "norm_eps")
    if theirs == "n_kv_heads" and value is None:
      value = stored.get("n_heads")
    kind = int if whole else (int, float)
    least = -1 if ours.endswith("_id") else 0
    if (
      not isinstance(value, kind)
      or isinstance(value, bool)
      or not least < value < 2**62
    ):
      raise ValueError(
        f"{path} must hold a number {theirs} > {least}, got {value!r}."
      )
    fields[ours] = value if whole else float(value)
  fields["shift_targets"] = stored.get("shift_targets", False) is True
  return Config(**fields)


def write_config(directory: str | os.PathLike, config: Config) -> None:
  """Writes the `config.json` that `read_config` reads."""
  fields = {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}
  fields |= {"model_type": "llada", "vocab_size": config.num_tokens}
  if config.shift_targets:
    fields["shift_targets"] = True
  write_json(pathlib.Path(directory) / "config.json", fields)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object from a file of another's making.

  Raises:
    ValueError: If it is too large, or is none.
  """
  value = files.read_json(path, MAX_JSON_BYTES)
  if not isinstance(value, dict):
    raise ValueError(f"{path} must be a JSON object.")
  return value


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  """Writes a JSON object."""
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
