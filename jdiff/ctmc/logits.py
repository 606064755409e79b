"""Wrappers that keep a `LogitsFn` a `LogitsFn`."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.core.types import LogitsFn, Params

Conditional = Callable[..., tuple[jax.Array, jax.Array]]


def forbid_mask(logits_fn: LogitsFn, mask_id: int) -> LogitsFn:
  """Sets the mask id's logit to `-inf`, if it lies inside the vocabulary."""

  def forbidden(params, tokens, t, sites=None):
    # `sites` goes on only if given: networks that never see any need no such
    # argument.
    args = () if sites is None else (sites,)
    return forbid(logits_fn(params, tokens, t, *args), (mask_id,))

  return forbidden


def forbid(logits: jax.Array, tokens: tuple[int, ...]) -> jax.Array:
  """Sets the logits of `tokens` that lie inside the vocabulary to `-inf`."""
  for token in tokens:
    if 0 <= token < logits.shape[-1]:
      logits = logits.at[..., token].set(-jnp.inf)
  return logits


def precondition(
  logits_fn: LogitsFn,
  conditional: Conditional,
  *,
  exact_sites: Sequence[int] = (),
  local_field: bool = True,
) -> LogitsFn:
  """Builds a target's known conditionals into a network.

  Where all of a site's neighbours are revealed, the target's conditional is
  the answer and the network is left out; elsewhere it is added to the
  network's logits as a local field (arXiv:2508.10684, the released code's
  preconditioning).

  Args:
    logits_fn: The network.
    conditional: `Target.conditional`, at the temperature in force.
    exact_sites: Sites that a law reveals only after all their neighbours (the
      odd sublattice of a chain). Where the sites asked for are known while
      tracing and all of these, the network is not run at all.
    local_field: Whether the field of revealed neighbours is used at the
      other sites. A network that reads all of a complete sequence causally
      (`causal=True` in `path_log_ratio`) must pass False: the field at a
      site would see neighbours that are revealed after it.
  """
  sites = checks.check_sizes("exact_sites", exact_sites, 0)
  exact = np.unique(np.asarray(sites, np.int32))

  def preconditioned(params, tokens, t, sites=None):
    if _concrete(sites) and np.isin(sites, exact).all():
      return conditional(tokens, sites)[0]
    logits = logits_fn(params, tokens, t, sites)
    if local_field:
      field, known = conditional(tokens, sites)
      return jnp.where(known[..., None], field, logits + field)
    if sites is None and exact.size:
      field, _ = conditional(tokens, exact)
      return logits.at[:, exact].set(field.astype(logits.dtype))
    if _concrete(sites) and not np.isin(sites, exact).any():
      return logits
    if exact.size and sites is not None:
      field, _ = conditional(tokens, sites)
      is_exact = jnp.isin(jnp.asarray(sites), jnp.asarray(exact))
      is_exact = jnp.broadcast_to(is_exact, logits.shape[:2])
      return jnp.where(is_exact[..., None], field, logits)
    return logits

  return preconditioned


def validate(
  logits_fn: LogitsFn, params: Params, *, length: int, mask_id: int
) -> tuple[int, jnp.dtype]:
  """Runs a network once on an empty canvas and checks its answer.

  Values can be looked at outside a trace only. Inside one, a finite logit of
  the mask goes unnoticed here; kernels set it to `-inf` themselves.

  Args:
    logits_fn: The network.
    params: Its parameters.
    length: Canvas length `L`.
    mask_id: The mask token.

  Returns:
    How many tokens can be revealed (the mask column not counted), and the
    dtype in which log-probabilities are accumulated, float32 at least.

  Raises:
    ValueError: If the logits are not `[1, L, V]`, or if the mask id lies
      inside the vocabulary with a finite logit.
  """
  checks.check_int("length", length)
  tokens = jnp.full((1, length), mask_id, jnp.int32)
  t = jnp.ones(1, jnp.float32)
  answer = jax.eval_shape(logits_fn, params, tokens, t)
  checks.check_shape(
    "logits_fn's answer",
    answer,
    (1, length, None),
    "It is [batch, length, vocabulary].",
  )
  vocab = answer.shape[-1]
  dtype = jnp.promote_types(answer.dtype, jnp.float32)
  if not 0 <= mask_id < vocab:
    return vocab, dtype
  if checks.is_concrete(params):
    logits = jax.jit(logits_fn)(params, tokens, t)
    checks.check_logits(logits, 1, length, mask_id=mask_id)
  return vocab - 1, dtype


def _concrete(sites) -> bool:
  return isinstance(sites, np.ndarray)
