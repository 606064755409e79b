"""Lets networks written in Flax NNX in.

Kept out of the package's `__init__`: importing `flax.nnx` costs time, and its
releases have broken against new JAX ones, which must not take Linen along.
"""

from collections.abc import Callable

import jax
from flax import nnx

from jdiff.core.types import Params
from jdiff.nets.network import Network


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
  """Wraps an NNX model as pure functions over a plain dict.

  Args:
    make: Builds the model from its random streams.

  Returns:
    A `Network`; `apply(params, *args, **kwargs)` calls the model. Layers kept
    in an `nnx.List` have integer keys in `params`, which checkpoints bring
    back only when given a target of the same structure.

  Raises:
    ValueError: If the model holds state other than parameters (dropout keys,
      batch statistics), which a pure function cannot carry.
  """
  abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
  graph, *states = nnx.split(abstract, nnx.Param, ...)
  like, rest = states
  if jax.tree.leaves(rest):
    names = ["/".join(map(str, path)) for path, _ in rest.flat_state()]
    raise ValueError(
      "make must build a model whose only state is nnx.Param, got also: "
      f"{', '.join(sorted(names))}."
    )

  def init(key: jax.Array) -> Params:
    return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key)), nnx.Param))

  def apply(params: Params, *args, **kwargs):
    state = jax.tree.map(lambda leaf: leaf, like)  # a fresh copy to fill
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state, rest)(*args, **kwargs)

  return Network(init, apply)
