"""Local networks: one logit row a site, from the sites around it.

A site's logits come from a fixed, ordered list of other sites (its context),
by weights that a group of sites shares. Two uses (Ising and Potts lattices):
per-block networks of a fixed order law, whose context is what the law has
revealed before, so that all conditionals of a path come from one evaluation of
the complete sequence; and one site-centred network for all sites and random
orders, whose context is the whole lattice seen from the site.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.nets.network import Network


def local(
  context: np.ndarray,
  group: np.ndarray,
  num_tokens: int,
  *,
  hidden: tuple[int, int] = (64, 64),
  symmetric: bool = False,
  see_masks: bool = False,
  activation: Callable[[jax.Array], jax.Array] = jnp.tanh,
) -> Network:
  """Two hidden layers and a linear skip on each site's context.

  Args:
    context: `[L, R]` int: the sites that each site reads, -1 for none.
    group: `[L]` int in `[0, G)`: which weights a site uses; -1 for sites that
      have none and answer zero logits.
    num_tokens: Tokens `V`; every other token counts as hidden.
    hidden: Widths of the two hidden layers.
    symmetric: Make the law of the tokens exactly equivariant under their
      permutations (the global spin flip, for two). The first site is then
      exactly uniform.
    see_masks: Tell a hidden neighbour from an absent one: needed where the
      order is random, redundant where the context is always revealed.
    activation: Elementwise; odd for the cheap two-token symmetric form.

  Returns:
    A `Network` whose `apply` is a `LogitsFn` answering `[B, m, V]`. The output
    layers are zero at first, so an untrained network is uniform.

  Raises:
    ValueError: If the tables do not fit each other.
  """
  checks.check_integers("context", context)
  checks.check_integers("group", group)
  checks.check_int("num_tokens", num_tokens)
  context = np.asarray(context, np.int32)
  group = np.asarray(group, np.int32)
  if context.ndim != 2 or group.shape != context.shape[:1]:
    raise ValueError(
      "context must be [L, R] and group [L], got shapes "
      f"{context.shape} and {group.shape}."
    )
  length, num_context = context.shape
  if context.min(initial=0) < -1 or context.max(initial=0) >= length:
    raise ValueError(f"context must hold sites in [-1, {length}).")
  num_groups = int(group.max(initial=-1)) + 1
  if num_groups < 1:
    raise ValueError("group must name at least one group >= 0.")
  # Antisymmetric features need one channel alone: no bias, odd activation.
  odd = symmetric and num_tokens == 2 and not see_masks
  bias = not odd
  channels = 1 if odd or not symmetric else num_tokens
  per_site = 1 if odd or symmetric or num_tokens == 2 else num_tokens
  width = num_context * (per_site + int(see_masks))
  outputs = 1 if symmetric or num_tokens == 2 else num_tokens
  widths = checks.check_sizes("hidden", hidden)
  if len(widths) != 2:
    raise ValueError(f"hidden must be two widths, got {widths}.")
  h1, h2 = widths

  def init(key):
    key1, key2 = jax.random.split(key)
    shape = (num_groups,)
    params = {
      "w1": jax.random.normal(key1, (*shape, width, h1)) / width**0.5,
      "w2": jax.random.normal(key2, (*shape, h1, h2)) / h1**0.5,
      "skip": jnp.zeros((*shape, width, outputs)),
      "out1": jnp.zeros((*shape, h1, outputs)),
      "out2": jnp.zeros((*shape, h2, outputs)),
    }
    if bias:
      params["b1"] = jnp.zeros((*shape, h1))
      params["b2"] = jnp.zeros((*shape, h2))
      if not symmetric:
        params["b"] = jnp.zeros((*shape, outputs))
    if channels > 1:
      params["mix"] = jnp.zeros((*shape, h1, h2))
    return params

  def features(tokens, present):
    """`[..., R, N]` tokens to `[..., width, channels * N]` inputs."""
    seen = present & (tokens >= 0) & (tokens < num_tokens)
    if num_tokens == 2 and channels == 1:
      x = jnp.where(seen, 2.0 * tokens - 1.0, 0.0)
    else:
      ids = jnp.arange(num_tokens).reshape((-1,) + (1,) * tokens.ndim)
      one_hot = (tokens[None] == ids) - 1.0 / num_tokens
      x = jnp.where(seen[None], one_hot, 0.0)  # [V, ..., R, N]
      if symmetric:
        x = jnp.moveaxis(x, 0, -2)  # [..., R, V, N]
        x = x.reshape(*x.shape[:-2], -1)
      else:
        x = jnp.concatenate(list(x), axis=-2)
    if see_masks:
      visible = jnp.where(seen, 1.0, 0.0)
      if channels > 1:
        visible = jnp.concatenate([visible] * channels, axis=-1)
      x = jnp.concatenate([x, visible], axis=-2)
    return x

  def evaluate(weights, x):
    """`[n, ...]` weights on `[n, width, N]` inputs: `[n, V, N / channels]`."""
    bias1 = weights["b1"][..., None] if bias else 0.0
    bias2 = weights["b2"][..., None] if bias else 0.0
    a1 = activation(jnp.matmul(_t(weights["w1"]), x) + bias1)
    z2 = jnp.matmul(_t(weights["w2"]), a1) + bias2
    if channels > 1:
      shape = (*a1.shape[:-1], channels, -1)
      mean = a1.reshape(shape).mean(axis=-2)
      mixed = jnp.matmul(_t(weights["mix"]), mean)
      z2 = z2 + jnp.concatenate([mixed] * channels, axis=-1)
    a2 = activation(z2)
    out = (
      jnp.matmul(_t(weights["skip"]), x)
      + jnp.matmul(_t(weights["out1"]), a1)
      + jnp.matmul(_t(weights["out2"]), a2)
    )
    if "b" in weights:
      out = out + weights["b"][..., None]
    if channels > 1:
      return out.reshape(out.shape[0], channels, -1)
    if outputs == 1:
      # One logit, read as the log-odds of token 1.
      out = jnp.concatenate([-0.5 * out, 0.5 * out], axis=-2)
    return out

  groups = [np.flatnonzero(group == g) for g in range(num_groups)]

  def at_shared(params, tokens, sites, per_group):
    """Sites `[n, m]` with one row of weights a row of sites: `[B, n, m, V]`."""
    near = jnp.asarray(context)[sites]  # [n, m, R]
    seen = jnp.take(tokens.T, jnp.maximum(near, 0), axis=0)  # [n, m, R, B]
    x = features(seen, (near >= 0)[..., None])
    n, m, _, batch = seen.shape
    # [n, m, width, C * B] -> [n, width, C * m * B], one product a group.
    x = x.reshape(n, m, width, channels, batch).transpose(0, 2, 3, 1, 4)
    out = evaluate(per_group, x.reshape(n, width, -1))
    return out.reshape(n, -1, m, batch).transpose(3, 0, 2, 1)

  def at_all(params, tokens):
    """Every site, groups of one size together."""
    logits = jnp.zeros((tokens.shape[0], length, num_tokens))
    sizes = np.array([len(members) for members in groups])
    for size in np.unique(sizes[sizes > 0]):
      index = np.flatnonzero(sizes == size)
      sites = np.stack([groups[g] for g in index])
      some = jax.tree.map(lambda p, i=index: _rows(p, i), params)
      out = at_shared(params, tokens, sites, some)
      logits = logits.at[:, sites.ravel()].set(
        out.reshape(tokens.shape[0], -1, num_tokens)
      )
    return logits

  def apply(params, tokens, t, sites=None):
    del t
    if sites is None:
      return at_all(params, tokens)
    if np.ndim(sites) == 1:
      index = jnp.asarray(group)[sites]
      some = jax.tree.map(lambda p: p[jnp.maximum(index, 0)], params)
      out = at_shared(params, tokens, jnp.asarray(sites)[:, None], some)
      return jnp.where((index >= 0)[None, :, None], out[:, :, 0], 0.0)
    if num_groups > 1 or (group < 0).any():
      logits = at_all(params, tokens)
      return jnp.take_along_axis(logits, jnp.asarray(sites)[..., None], axis=1)
    batch, num_sites = sites.shape
    near = jnp.asarray(context)[sites].reshape(batch, -1)
    seen = jnp.take_along_axis(tokens, jnp.maximum(near, 0), axis=1)
    seen = seen.reshape(-1, num_context).T[None]
    present = (near >= 0).reshape(-1, num_context).T[None]
    out = evaluate(params, features(seen, present))
    return out[0].T.reshape(batch, num_sites, num_tokens)

  return Network(init, apply)


def _t(x: jax.Array) -> jax.Array:
  return jnp.swapaxes(x, -1, -2)


def _rows(x: jax.Array, index: np.ndarray) -> jax.Array:
  """`x[index]`, as a slice where the rows are consecutive."""
  if (np.diff(index) == 1).all():
    return x[int(index[0]) : int(index[-1]) + 1]
  return x[index]
