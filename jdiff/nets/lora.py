"""Low-rank adapters beside frozen weights.

A linear map `x W` becomes `x W + (alpha / r) (x A) B` with `A [in, r]` and
`B [r, out]` (arXiv:2106.09685). Adapters are a pytree of their own: gradients
and optimizer states are taken of them alone, the base may be of another dtype
and stays one copy, and a network's functions take either the base, which is
the reference policy, or `attach(base, adapters)`, the adapted one:

  adapters = lora.init(key, base, rank=8)
  loss = lambda adapters: objective(lora.attach(base, adapters, alpha=16.0))
  gradient = jax.grad(loss)(adapters)

Pass the base to `jax.jit` as an argument: closed over, it would be a constant
of the program. Left out: dropout, adapters of embeddings and heads.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from jdiff.core import checks
from jdiff.core.types import Params
from jdiff.nets import embed

TARGETS = ("query", "key", "value", "out", "gate", "up", "down")
"""Names of the linear maps that can be adapted."""

DEFAULT_TARGETS = ("query", "key", "value", "up")
"""The maps that the public fine-tuning code of LLaDA adapts.

It asks for all seven by the names of Llama, four of which LLaDA has.
"""

Path = tuple[str, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
  """Parameters of an adapted network, in place of plain ones.

  Attributes:
    base: The network's own parameters, any float dtype.
    adapters: What `init` answers, trained.
    alpha: Adapters act by `alpha / rank`; static.
  """

  base: Params
  adapters: Params
  alpha: float = dataclasses.field(metadata={"static": True})


def init(
  key: jax.Array,
  base: Params,
  *,
  rank: int,
  targets: Sequence[str] = DEFAULT_TARGETS,
) -> Params:
  """Adapters that change nothing yet: `B` is zero.

  Args:
    key: PRNG key; consumed.
    base: Parameters of a network of stacked blocks (`nets.transformer`); only
      shapes are looked at, so `jax.eval_shape` of its `init` does.
    rank: Rank `r` of the products.
    targets: Which linear maps get adapters, among `TARGETS`.

  Returns:
    A dict `"blocks"` of targets, each with `"a"` `[N, in, r]` and `"b"`
    `[N, r, out]`, float32, for `N` layers; heads have two axes. `A` is uniform
    within `1 / sqrt(in)`, as in the PEFT library; the paper has a Gaussian.

  Raises:
    ValueError: If a target is unknown or not in the network.
    TypeError: If `rank` is no integer.
  """
  checks.check_key(key)
  checks.check_int("rank", rank)
  if isinstance(targets, str) or not isinstance(targets, Sequence):
    raise TypeError(f"targets must be names of linear maps, got {targets!r}.")
  found = {path[-1]: (path, kernel) for path, kernel in _kernels(base)}
  if not targets:
    raise ValueError("targets must name at least one linear map, got ().")
  for name in targets:
    if name not in found:
      there = ", ".join(n for n in TARGETS if n in found) or "none"
      raise ValueError(
        f"targets must be linear maps of the network ({there}), got {name!r}."
      )
  adapters = {}
  for name in targets:
    path, kernel = found[name]
    layers, ins, outs = _split(name, kernel.shape)
    bound = math.prod(ins) ** -0.5
    # By the name's place among all, so that a target draws the same alone.
    own = jax.random.fold_in(key, TARGETS.index(name))
    a = jax.random.uniform(own, (layers, *ins, rank), jnp.float32, -1.0, 1.0)
    adapters[*path, "a"] = bound * a
    adapters[*path, "b"] = jnp.zeros((layers, rank, *outs), jnp.float32)
  return traverse_util.unflatten_dict(adapters)


def attach(base: Params, adapters: Params, *, alpha: float) -> Adapted:
  """Parameters that make a network run with adapters.

  Args:
    base: Plain parameters of the network.
    adapters: What `init` answered for them.
    alpha: Adapters act by `alpha / rank`. A Python number.

  Raises:
    ValueError: If adapters do not fit the base, or `alpha` is not positive.
  """
  if isinstance(base, Adapted):
    raise TypeError("base must be plain parameters, got Adapted; merge first.")
  if isinstance(alpha, jax.core.Tracer):
    raise TypeError("alpha must be a Python number, got a traced array.")
  alpha = checks.check_finite("alpha", alpha, positive=True)
  kernels = dict(_kernels(base))
  for path, adapter in _adapters(adapters):
    name = "/".join(path)
    if path not in kernels:
      raise ValueError(f"adapters must fit the base, got one of {name} too.")
    layers, ins, outs = _split(path[-1], kernels[path].shape)
    rank = adapter["a"].shape[-1]
    hint = "It is that of the base's kernel, with one rank."
    name = f"adapters' {name}"
    checks.check_shape(f"{name}/a", adapter["a"], (layers, *ins, rank), hint)
    checks.check_shape(f"{name}/b", adapter["b"], (layers, rank, *outs), hint)
  return Adapted(base, adapters, alpha)


def merge(params: Adapted) -> Params:
  """Plain parameters of the same function, `W + (alpha / r) A B`.

  Kernels keep the base's dtype: float32 ones answer as the adapted network up
  to rounding, bfloat16 ones lose what is finer than they resolve.

  Args:
    params: What `attach` answers.
  """
  if not isinstance(params, Adapted):
    raise TypeError(f"params must be Adapted, got {type(params).__name__}.")

  def one(layer):
    kernel, a, b = layer
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    product = jnp.tensordot(a.astype(wide), b.astype(wide), 1)
    scaled = (params.alpha / a.shape[-1]) * product
    return (kernel.astype(wide) + scaled).astype(kernel.dtype)

  merged = traverse_util.flatten_dict(params.base)
  for path, adapter in _adapters(params.adapters):
    kernel = merged[*path, "kernel"]
    # Layer by layer, so that wide products of all of them never coexist.
    merged[*path, "kernel"] = jax.lax.map(
      one, (kernel, adapter["a"], adapter["b"])
    )
  return traverse_util.unflatten_dict(merged)


def split(params: Params) -> tuple[Params, Params, float]:
  """`(base, adapters, alpha)` of plain or adapted parameters.

  Plain ones have no adapters (an empty dict) and an `alpha` without meaning.
  """
  if isinstance(params, Adapted):
    return params.base, params.adapters, params.alpha
  return params, {}, 1.0


def low_rank(x: jax.Array, adapter: Any, alpha: jax.Array) -> jax.Array:
  """`(alpha / r) (x A) B`, `[..., out]` in the dtype of `x [..., in]`.

  Args:
    x: Input of the adapted map.
    adapter: `{"a": [*in, r], "b": [r, *out]}`, one layer's.
    alpha: Scalar.
  """
  a, b = (adapter[name].astype(x.dtype) for name in ("a", "b"))
  contracted = tuple(range(x.ndim - a.ndim + 1, x.ndim))
  numbers = ((contracted, tuple(range(a.ndim - 1))), ((), ()))
  y = embed.matmul(embed.dot_general(x, a, numbers), b)
  # Scaled in float32 but added in x's dtype, so that a zero `b` leaves the
  # base's answer as it is, bit by bit.
  return ((alpha / a.shape[-1]) * y).astype(x.dtype)


def _kernels(base: Params) -> Iterator[tuple[Path, Any]]:
  """Paths and kernels of the maps in `base` that can be adapted."""
  for path, leaf in traverse_util.flatten_dict(base).items():
    if len(path) > 1 and path[-1] == "kernel" and path[-2] in TARGETS:
      yield path[:-1], leaf


def _adapters(adapters: Params) -> Iterator[tuple[Path, dict[str, Any]]]:
  flat = traverse_util.flatten_dict(adapters)
  for path, leaf in flat.items():
    if path[-1] == "a":
      yield path[:-1], {"a": leaf, "b": flat[*path[:-1], "b"]}


def _split(
  name: str, shape: tuple[int, ...]
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
  """Layers, input axes and output axes of a stacked kernel."""
  cut = 3 if name == "out" else 2  # "out" takes heads and their features
  return shape[0], tuple(shape[1:cut]), tuple(shape[cut:])
