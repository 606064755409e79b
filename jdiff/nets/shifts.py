"""Next frames as shifted ones: the simplest model of an action's effect."""

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.nets import frames
from jdiff.nets.network import Network


def shifts(
  shape: tuple[int, int],
  num_tokens: int,
  num_codes: int,
  *,
  reach: int = 1,
  floor: float = 1e-3,
) -> Network:
  """Each code mixes a frame's own cells, some steps away, and a fixed law.

  Args:
    shape: `(rows, cols)` of a frame.
    num_tokens: Kinds of cells `V`.
    num_codes: Codes `A`.
    reach: Greatest shift, in rows and in columns.
    floor: Least share of the uniform law, in `(0, 1)`.

  Returns:
    A `Network`; `apply(params, tokens [B, N])` answers log-probabilities
    `[B, A, N, V]`.

  Raises:
    ValueError: If a size or the share is out of range.
  """
  rows, cols = checks.check_sizes("shape", shape, parts="(rows, cols)")
  checks.check_int("num_tokens", num_tokens)
  checks.check_int("num_codes", num_codes)
  checks.check_int("reach", reach, 0)
  checks.check_range("floor", floor, 0, 1, ends="()")
  offsets = [
    (i, j) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1)
  ]
  places = np.indices(shape).reshape(2, -1)
  # [O, N]: the cell that each cell shows the content of, and whether there is.
  at = np.stack([places + np.array(o)[:, None] for o in offsets])
  bound = np.array(shape)[None, :, None]
  inside = np.all((at >= 0) & (at < bound), axis=1)
  at = at.clip(0, bound - 1)
  source = at[:, 0] * cols + at[:, 1]

  def init(key):
    # Codes must differ at the start, or they never will.
    noise = jax.random.normal(key, (num_codes, len(offsets)))
    return {
      "shift": 2.0 * noise,
      "law": jnp.zeros(num_tokens),
      "fresh": jnp.full((), -2.0),
    }

  def apply(params, tokens):
    checks.check_shape("tokens", tokens, (None, rows * cols))
    share = jax.nn.softmax(params["shift"], axis=-1)
    moved = frames.look_up(jnp.eye(num_tokens), tokens[:, source])
    law = jax.nn.softmax(params["law"])[None, None, None]
    # Cells from beyond the frame's edge are drawn from the law.
    moved = jnp.where(inside[None, :, :, None], moved, law)
    mixed = jnp.einsum("ao,bonv->banv", share, moved)
    fresh = jax.nn.sigmoid(params["fresh"])
    mixed = (1 - fresh) * mixed + fresh * law
    return jnp.log((1 - floor) * mixed + floor / num_tokens)

  return Network(init, apply)
