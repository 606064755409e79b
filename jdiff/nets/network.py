"""What a network is outside this package: pure functions."""

from collections.abc import Callable
from typing import NamedTuple

from jdiff.core import axes as axes_lib
from jdiff.core.types import Params


class Network(NamedTuple):
  """A network as `init` and `apply` over a plain dict of parameters.

  The other functions are those of denoisers that have them, else None.

  Attributes:
    init: `(key) -> params`, float32 leaves under string keys. Call it under
      `jax.jit`: eager initialisation differs from it in the last bit.
    apply: `(params, ...) -> output`, pure. A discrete denoiser's satisfies
      `jdiff.core.types.LogitsFn`.
    hidden: `(params, tokens, t, sites=None) -> [B, m, D]`: `apply` up to its
      last linear map, for callers that cannot hold all the logits at once.
    head: `(params, hidden [..., D]) -> [..., V]` float32 logits, so that
      `head(params, hidden(params, ...))` is `apply(params, ...)`.
    init_cache: `(batch, length) -> cache`, empty, of a whole canvas.
    apply_cached: `(params, tokens [B, Q], t [B], cache, start, sites=None) ->
      (logits [B, m, V], cache)`: runs the canvas positions `[start, start + Q)`
      alone, puts their keys and values into the cache, and attends to all of
      it, whatever the other slots hold: what earlier calls left there, or the
      zeros of an empty cache. `sites` count from `start`. The whole canvas at
      once is `apply`; a part is exact while the rest of the canvas, and with
      it what the rest attends to, is as it was when its slots were written.
    axes: `(path) -> names of a parameter's axes` (`core.axes`), by its keys
      from the root of `params`, or None for one that stays whole.
  """

  init: Callable[..., Params]
  apply: Callable
  hidden: Callable | None = None
  head: Callable | None = None
  init_cache: Callable | None = None
  apply_cached: Callable | None = None
  axes: Callable[[tuple[str, ...]], axes_lib.Names | None] | None = None
