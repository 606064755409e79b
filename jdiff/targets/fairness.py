"""A Bayesian network that must be fair and monotone, over given arrays."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jdiff.core import checks
from jdiff.core.types import ConstrainedTarget


class FairBNN(NamedTuple):
  """The posterior, and the network that its positions parametrise.

  Attributes:
    target: The constrained posterior over flat parameters `[d]`.
    logits_fn: `(params [d], x [N, F]) -> [N]` log-odds of `y = 1`.
  """

  target: ConstrainedTarget
  logits_fn: Callable[[jax.Array, jax.Array], jax.Array]


def fair_bnn(
  x,
  y,
  group,
  *,
  monotone: Sequence[int] = (),
  num_anchors: int = 8,
  hidden: tuple[int, int] = (16, 8),
  prior_precision: float = 1.0,
  margin: float = 0.0,
) -> FairBNN:
  """The posterior of a tanh network under fairness and monotonicity.

  Equalities: the groups have equal true- and false-positive rates (averages of
  the predicted probability over the given rows). Inequalities: at each anchor
  row the log-odds do not fall in each feature of `monotone`,
  `-d logit / d x_f <= margin`. The activation is smooth: constraints made of
  ReLU gradients have no Hessian worth the name.

  Everything is fitted to, and constrained on, the rows given here; hold rows
  out before the call.

  Args:
    x: `[N, F]` features, standardised.
    y: `[N]` labels in `{0, 1}`.
    group: `[N]` in `{0, 1}`.
    monotone: Features in which the log-odds must rise.
    num_anchors: Rows, evenly spaced through the data, where that is asked.
    hidden: Widths of the two hidden layers.
    prior_precision: Of the Gaussian prior, times each layer's inputs.
    margin: How far a slope may fall below zero.

  Raises:
    ValueError: If shapes or values do not fit, or a group lacks a label.
  """
  x, y, group = _checked(x, y, group)
  checks.check_finite("prior_precision", prior_precision, positive=True)
  cells = {(g, v): (group == g) & (y == v) for g in (0, 1) for v in (0, 1)}
  if not all(cell.any() for cell in cells.values()):
    raise ValueError("each group must hold rows of both labels.")
  num_features = x.shape[1]
  monotone = checks.check_sizes("monotone", monotone, 0)
  widths = checks.check_sizes("hidden", hidden)
  checks.check_finite("margin", margin)
  if not all(f < num_features for f in monotone):
    raise ValueError(
      f"monotone must name features below {num_features}, got {monotone}."
    )
  checks.check_int("num_anchors", num_anchors)
  sizes = (num_features, *widths, 1)
  zeros = [
    {"w": jnp.zeros((a, b)), "b": jnp.zeros(b)}
    for a, b in zip(sizes[:-1], sizes[1:], strict=True)
  ]
  flat, unravel = ravel_pytree(zeros)
  anchors = x[np.linspace(0, len(x) - 1, num_anchors).astype(int)]
  features = np.asarray(monotone, np.int32)

  def logits_fn(params, x):
    value = jnp.asarray(x, params.dtype)
    layers = unravel(params)
    for layer in layers[:-1]:
      value = jnp.tanh(value @ layer["w"] + layer["b"][None])
    return (value @ layers[-1]["w"] + layers[-1]["b"][None])[:, 0]

  def nll(params):
    logits = logits_fn(params, x)
    return jnp.sum(jax.nn.softplus(logits) - jnp.asarray(y) * logits)

  def potential_fn(params):
    # Wider layers have smaller weights a priori, so that functions do not grow.
    penalty = sum(
      len(layer["w"]) * jnp.sum(layer["w"] ** 2) + jnp.sum(layer["b"] ** 2)
      for layer in unravel(params)
    )
    return nll(params) + 0.5 * prior_precision * penalty

  def rates(params):
    prob = jax.nn.sigmoid(logits_fn(params, x))
    return {
      key: jnp.sum(jnp.where(cell, prob, 0)) / cell.sum()
      for key, cell in cells.items()
    }

  def eq_fn(params):
    rate = rates(params)
    return jnp.stack([rate[1, v] - rate[0, v] for v in (1, 0)])

  def ineq_fn(params):
    slopes = jax.vmap(jax.grad(lambda row: logits_fn(params, row[None])[0]))(
      jnp.asarray(anchors, params.dtype)
    )
    return -slopes[:, features].ravel() - margin

  def observables(params):
    rate = rates(params)
    return {
      "nll": nll(params) / len(x),
      "positive_rate": rate[0, 1],
      "norm": jnp.linalg.norm(params) / math.sqrt(flat.size),
    }

  def init(key, num_chains):
    def one(key):
      keys = jax.random.split(key, len(zeros))
      layers = [
        {
          "w": jax.random.normal(k, layer["w"].shape) / len(layer["w"]),
          "b": layer["b"],
        }
        for k, layer in zip(keys, zeros, strict=True)
      ]
      # Positive weights from the monotone features start feasible.
      layers[0]["w"] = layers[0]["w"].at[features].apply(jnp.abs)
      for layer in layers[1:]:
        layer["w"] = jnp.abs(layer["w"])
      return ravel_pytree(layers)[0]

    return jax.vmap(one)(jax.random.split(key, num_chains))

  return FairBNN(
    ConstrainedTarget(
      potential_fn=potential_fn,
      dim=flat.size,
      init=init,
      eq_fn=eq_fn,
      ineq_fn=ineq_fn if len(features) else None,
      observables=observables,
    ),
    logits_fn,
  )


def with_test_rows(problem: FairBNN, x, y, group) -> ConstrainedTarget:
  """The target with observables of held-out rows besides.

  Adds `test_nll` (nats a row), `test_accuracy`, and the gaps `test_tpr_gap` and
  `test_fpr_gap` between the groups' true- and false-positive rates.
  """
  x, y, group = _checked(x, y, group)

  def observables(params):
    logits = problem.logits_fn(params, x)
    prob = jax.nn.sigmoid(logits)

    def rate(g, v):
      cell = (group == g) & (y == v)
      total = jnp.sum(jnp.where(cell, prob, 0))
      # No rate is known of a group that lacks the label.
      return total / cell.sum() if cell.any() else jnp.nan * total

    return problem.target.observables(params) | {
      "test_nll": jnp.mean(jax.nn.softplus(logits) - y * logits),
      "test_accuracy": jnp.mean((logits > 0) == (y > 0.5)),
      "test_tpr_gap": rate(1, 1) - rate(0, 1),
      "test_fpr_gap": rate(1, 0) - rate(0, 0),
    }

  return problem.target._replace(observables=observables)


def _checked(x, y, group):
  """Rows as float32 arrays that fit each other."""
  # Flags may be booleans; text that holds numbers is refused.
  checks.check_shape("x", x, (None, None))
  checks.check_shape("y", y, np.shape(x)[:1])
  checks.check_shape("group", group, np.shape(x)[:1])
  x, y, group = (np.asarray(a, np.float32) for a in (x, y, group))
  if not np.isfinite(x).all():
    raise ValueError("x must be finite; drop or fill rows that are not.")
  for name, a in (("y", y), ("group", group)):
    if not np.isin(a, (0, 1)).all():
      raise ValueError(f"{name} must hold 0 and 1 alone.")
  return x, y, group
