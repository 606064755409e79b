"""What a network is outside this package: two pure functions."""

from collections.abc import Callable
from typing import NamedTuple

from jdiff.core.types import Params


class Network(NamedTuple):
  """A network as `init` and `apply` over a plain dict of parameters.

  Attributes:
    init: `(key) -> params`, float32 leaves under string keys. Call it under
      `jax.jit`: eager initialisation differs from it in the last bit.
    apply: `(params, ...) -> output`, pure. A discrete denoiser's satisfies
      `jdiff.core.types.LogitsFn`.
  """

  init: Callable[..., Params]
  apply: Callable
