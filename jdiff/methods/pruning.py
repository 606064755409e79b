"""Pruning attention heads of a trained denoiser, against memorisation.

One-shot: score every head by its part in the loss at small times, close the
gates of the lowest, fine-tune with the gates fixed. `nets.dit` takes gates
`[L, H]`, one a head, and cuts closed heads out (`nets.dit.compact`).

  gates = jnp.ones((num_layers, num_heads))
  importance = head_importance(gates, key, batches, loss_fn=loss_fn)
  gates = make_gates(importance, 0.2)

where `loss_fn(gates, key, batch)` is any loss that draws its times from
`flow_matching.beta()`. To prune single weights, or to hold zeros through weight
decay and old momentum, wrap the optimizer in `masked`.

Ye et al., "Provable Separations between Memorization and Generalization in
Diffusion Models" (ICLR 2026, arXiv:2511.03202), Algorithm 1. The paper leaves
open what a head's score is and whether heads compete within a layer or across
them: both are options. Left out: the norm of a head's output, which needs the
network's activations where the other criteria need a loss alone, and magnitude
pruning.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jdiff.core import checks

LossFn = Callable[[jax.Array, jax.Array, Any], jax.Array]
"""`(gates [L, H], key, batch) ->` the loss, a scalar or one an example."""

CRITERIA = ("taylor", "taylor2", "ablate", "random")


def head_importance(
  gates: jax.Array,
  key: jax.Array,
  batches: Any,
  *,
  loss_fn: LossFn | None = None,
  criterion: str = "taylor",
) -> jax.Array:
  """How much the loss depends on each head, averaged over batches.

  With `m` a head's gate and `g = dloss/dm`, of the mean loss of a batch:
  `"taylor"` is `|m g|`, the change in the loss to first order when the gate
  closes; `"taylor2"` its square; `"ablate"` the change itself, of either sign,
  in `L H + 1` evaluations on the same key; `"random"` uniform draws, the
  control. Batches of one example give the mean of `|m g|` over examples.

  Args:
    gates: `[L, H]` floats, where importance is measured: ones, of a network
      that is whole.
    key: PRNG key; consumed. Batch `i` gets `fold_in(key, i)`.
    batches: Pytree of `[K, ...]` arrays: `K >= 1` batches, one at a time in
      memory. Not looked at by `"random"`.
    loss_fn: See `LossFn`; differentiable in `gates` but for `"ablate"`. It
      draws its own times: pass `flow_matching.beta()` to the loss in it.
    criterion: One of `CRITERIA`.

  Returns:
    `[L, H]`, float32 at least, no gradient.

  Raises:
    ValueError: If shapes or the criterion do not fit.
    TypeError: If the key is not a typed PRNG key.

  Source:
    Michel et al., "Are Sixteen Heads Really Better than One?" (NeurIPS 2019,
    arXiv:1905.10650), eq. 2, for `"taylor"`. That this is the score of
    arXiv:2511.03202 is our choice.
  """
  checks.check_key(key)
  checks.check_numbers("gates", gates)
  gates = jnp.asarray(gates)
  checks.check_shape("gates", gates, (None, None))
  gates = gates.astype(jnp.promote_types(gates.dtype, jnp.float32))
  if criterion not in CRITERIA:
    raise ValueError(f"criterion must be one of {CRITERIA}, got {criterion!r}.")
  if criterion == "random":
    return jax.random.uniform(key, gates.shape, gates.dtype)
  if loss_fn is None:
    raise ValueError(f"criterion={criterion!r} needs loss_fn, got None.")
  sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
  if len(sizes) != 1 or min(sizes) in ((), (0,)):
    raise ValueError(
      "batches must hold [K, ...] arrays with one K >= 1, got leading sizes "
      f"{sorted(sizes)}."
    )
  ((num_batches,),) = sizes

  def loss(gates, key, batch):
    return jnp.mean(loss_fn(gates, key, batch)).astype(gates.dtype)

  def taylor(key, batch):
    return jnp.abs(gates * jax.grad(loss)(gates, key, batch))

  def ablate(key, batch):
    others = 1 - jnp.eye(gates.size, dtype=gates.dtype)
    closed = gates[None] * others.reshape(-1, *gates.shape)

    def at(gates):
      # The same draws with every head, so that they cancel in differences.
      return loss(gates, jax.random.clone(key), batch)

    return lax.map(at, closed).reshape(gates.shape) - at(gates)

  score = {
    "taylor": taylor,
    "taylor2": lambda *args: taylor(*args) ** 2,
    "ablate": ablate,
  }[criterion]

  def one(xs):
    index, batch = xs
    return score(jax.random.fold_in(key, index), batch)

  scores = lax.map(one, (jnp.arange(num_batches), batches))
  return lax.stop_gradient(jnp.mean(scores, axis=0))


def make_gates(
  importance: jax.Array,
  fraction: float,
  *,
  scope: str = "global",
  keep_one: bool = True,
) -> jax.Array:
  """Closes the gates of the least important heads.

  Args:
    importance: `[L, H]`, without NaN; infinities sort as they should.
    fraction: Share of heads to close, a Python number in `[0, 1]`.
    scope: `"global"` closes `round(fraction L H)` heads of all; `"layer"`
      closes `round(fraction H)` in each layer. Halves round to even.
    keep_one: Spares the most important head of every layer, and closes others
      instead. Without it a layer may lose all of its heads.

  Returns:
    `[L, H]` float32, zeros and ones. Of equal heads those of lowest index, row
    by row, are closed first.

  Raises:
    ValueError: If an option does not fit, an importance is seen to be NaN, or
      `keep_one` leaves too few heads to close.
  """
  checks.check_numbers("importance", importance)
  importance = jnp.asarray(importance)
  checks.check_shape("importance", importance, (None, None))
  checks.check_range("fraction", fraction, 0, 1)
  if scope not in ("global", "layer"):
    raise ValueError(f"scope must be 'global' or 'layer', got {scope!r}.")
  if checks.is_concrete(importance) and np.isnan(np.asarray(importance)).any():
    raise ValueError(
      "importance must not be NaN; the loss it was made from was not finite."
    )
  num_layers, num_heads = importance.shape
  rows = 1 if scope == "global" else num_layers
  num_closed = round(fraction * importance.size / rows)
  most = num_layers * (num_heads - 1) // rows
  if keep_one and num_closed > most:
    raise ValueError(
      f"fraction={fraction} closes {num_closed} heads"
      + (" of every layer" if scope == "layer" else "")
      + f", and one head kept in each of {num_layers} layers of {num_heads} "
      f"leaves {most} to close; lower fraction, or pass keep_one=False."
    )
  rank = _rank(importance.reshape(rows, -1)).reshape(importance.shape)
  if keep_one:
    best = jnp.argmax(rank, axis=1, keepdims=True)
    spared = jnp.arange(num_heads)[None] == best
    rank = jnp.where(spared, rank + importance.size, rank)
    rank = _rank(rank.reshape(rows, -1)).reshape(importance.shape)
  return (rank >= num_closed).astype(jnp.float32)


def apply_masks(masks: Any, tree: Any) -> Any:
  """`tree` with zeros where a mask is zero.

  Args:
    masks: Pytree of booleans or zeros and ones, shaped like the leaves of
      `tree`. None stands for a leaf, or a whole subtree, that is not masked.
    tree: Parameters or gradients; NaN under a mask is zero too.

  Raises:
    ValueError: If the trees or their shapes do not fit.
  """

  def one(path, mask, leaf):
    if mask is None:
      return leaf
    checks.check_shape(f"masks{jax.tree_util.keystr(path)}", mask, leaf.shape)
    return jnp.where(jnp.asarray(mask) != 0, leaf, jnp.zeros_like(leaf))

  return jax.tree_util.tree_map_with_path(
    one, masks, tree, is_leaf=lambda x: x is None
  )


def masked(
  optimizer: optax.GradientTransformation, masks: Any
) -> optax.GradientTransformationExtraArgs:
  """An optimizer that never moves masked weights.

  Gradients are masked before the optimizer, so that they do not count in norms
  and moments, and updates after it: momentum from before the pruning and weight
  decay move nothing either. `optax.masked` is another thing, it leaves out
  whole leaves.

  Args:
    optimizer: An optax transformation.
    masks: As in `apply_masks`, shaped like the parameters. Mask these once,
      `params = apply_masks(masks, params)`: masked weights stay what they are,
      exactly.

  Raises:
    ValueError: From `init` and `update`, if masks do not fit.
  """
  inner = optax.with_extra_args_support(optimizer)

  def init(params):
    apply_masks(masks, params)
    return inner.init(params)

  def update(updates, state, params=None, **extra):
    updates = apply_masks(masks, updates)
    updates, state = inner.update(updates, state, params, **extra)
    return apply_masks(masks, updates), state

  return optax.GradientTransformationExtraArgs(init, update)


def _rank(x: jax.Array) -> jax.Array:
  """Places in ascending order along the last axis; of equals, the first."""
  return jnp.argsort(jnp.argsort(x, axis=-1, stable=True), axis=-1)
