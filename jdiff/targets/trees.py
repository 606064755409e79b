"""Gradient-boosted trees from XGBoost's JSON, evaluated in JAX.

The file is what `Booster.save_model("model.json")` writes; XGBoost itself is
not needed. As `Booster.predict` does by default, all trees are summed, whatever
`best_iteration` the file may hold. Left out: the boosters `dart` and
`gblinear`, categorical splits, and models of several outputs.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jdiff.core import checks, files

OBJECTIVES = ("binary:logistic", "reg:squarederror")
"""A logistic model answers probabilities, the other one its plain sum."""

MAX_PADDED = 2**26
"""Most nodes, padding included: it would come from one tree among stumps."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TreeEnsemble:
  """Trees as arrays `[T, N]`, padded to the largest; a pytree.

  A leaf is its own child on both sides, so that every row walks `depth` steps
  and stands at its leaf. Comparisons are in float32: `feature < threshold` goes
  left, equality goes right, NaN goes where `default_left` says.

  Attributes:
    left: `[T, N]` int32, the node for values below the threshold.
    right: `[T, N]` int32, the node for the others.
    feature: `[T, N]` int32, which feature is compared.
    threshold: `[T, N]` float32.
    default_left: `[T, N]` bool, whether missing values go left.
    value: `[T, N]` float32, what a leaf adds to the margin; 0 elsewhere.
    base_margin: float32, what the margin starts from.
    objective: One of `OBJECTIVES`; static.
    depth: Most steps from a root to a leaf; static.
    num_features: Columns `F` that the model was trained on; static.
  """

  left: jax.Array
  right: jax.Array
  feature: jax.Array
  threshold: jax.Array
  default_left: jax.Array
  value: jax.Array
  base_margin: jax.Array
  objective: str = dataclasses.field(metadata={"static": True})
  depth: int = dataclasses.field(metadata={"static": True})
  num_features: int = dataclasses.field(metadata={"static": True})

  @classmethod
  def from_xgboost_json(
    cls, path: str | pathlib.Path, num_features: int | None = None
  ) -> "TreeEnsemble":
    """Reads a model, and checks all of it that is used.

    Args:
      path: File that `Booster.save_model` wrote, ending in `.json`.
      num_features: Columns that the caller is going to pass, to be compared
        with the file's; not compared by default.

    Raises:
      ValueError: If the file is no such model, or one that is left out here;
        says what to do.
      FileNotFoundError: If there is no file.
    """
    where = f"the model at {path}"
    learner = _mapping(_read(path), "learner", where)
    shape = _mapping(learner, "learner_model_param", where)
    width = _integer(shape, "num_feature", where)
    if num_features is not None and num_features != width:
      raise ValueError(
        f"{where} was trained on {width} features, got num_features="
        f"{num_features}; pass the features that it was trained on, or train "
        "it again."
      )
    for name in ("num_class", "num_target"):
      if int(shape.get(name, 0)) > 1:
        raise ValueError(
          f"{where} must have one output, got {name}={shape[name]}; train one "
          "model an output."
        )
    objective = _mapping(learner, "objective", where).get("name")
    if objective not in OBJECTIVES:
      raise ValueError(
        f"{where} must have an objective among {', '.join(OBJECTIVES)}, got "
        f"{objective!r}; train it with one of them."
      )
    booster = _mapping(learner, "gradient_booster", where)
    if booster.get("name") != "gbtree":
      raise ValueError(
        f"{where} must have the booster 'gbtree', got "
        f"{booster.get('name')!r}; train it with booster='gbtree'."
      )
    trees = _mapping(booster, "model", where).get("trees")
    if not isinstance(trees, list) or not trees:
      raise ValueError(f"{where} must hold a list of trees, got none.")
    arrays, depth = _pad(
      [_tree(t, width, f"tree {i} of {where}") for i, t in enumerate(trees)],
      where,
    )
    left, right, feature, threshold, default_left, value = arrays
    return cls(
      left=left,
      right=right,
      feature=feature,
      threshold=threshold,
      default_left=default_left,
      value=value,
      base_margin=jnp.float32(_base_margin(shape, objective, where)),
      objective=objective,
      depth=depth,
      num_features=width,
    )

  def __call__(self, features: ArrayLike) -> jax.Array:
    """What `Booster.predict` answers, `[n]` float32.

    Args:
      features: `[n, F]`, cast to float32; NaN is missing.

    Raises:
      ValueError: If there are not `F` columns.
    """
    margin = self.margin(features)
    return jax.nn.sigmoid(margin) if self.objective == OBJECTIVES[0] else margin

  def margin(self, features: ArrayLike) -> jax.Array:
    """The sum of leaves over all trees before any sigmoid, `[n]` float32."""
    checks.check_shape(
      "features",
      features,
      (None, self.num_features),
      "A row holds the features that the model was trained on.",
    )
    rows = jnp.arange(self.left.shape[0])

    def walk(x):
      def descend(_, node):
        given = x[self.feature[rows, node]]
        below = given < self.threshold[rows, node]
        left = jnp.where(jnp.isnan(given), self.default_left[rows, node], below)
        return jnp.where(left, self.left[rows, node], self.right[rows, node])

      leaf = jax.lax.fori_loop(0, self.depth, descend, jnp.zeros_like(rows))
      return self.base_margin + self.value[rows, leaf].sum()

    return jax.vmap(walk)(jnp.asarray(features, jnp.float32))


def _read(path) -> Any:
  data = files.check_size(path, files.MAX_TEXT_BYTES).read_bytes()
  if data.startswith(b"version https://git-lfs"):
    raise ValueError(
      f"{path} is a Git-LFS pointer and not the model; fetch the file itself "
      "with `git lfs pull`."
    )
  try:
    return json.loads(data)
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f"{path} must be JSON, got {error}; save the model with "
      "`Booster.save_model` under a name that ends in .json."
    ) from error


def _mapping(parent: Any, name: str, where: str) -> dict[str, Any]:
  found = parent.get(name) if isinstance(parent, dict) else None
  if not isinstance(found, dict):
    raise ValueError(
      f"{where} must hold an object {name!r}, got {type(found).__name__}; save "
      "it with `Booster.save_model` of XGBoost 1.7 or newer."
    )
  return found


def _integer(parent: dict[str, Any], name: str, where: str) -> int:
  try:
    value = int(parent[name])
  except (KeyError, TypeError, ValueError):
    value = 0
  if value < 1:
    raise ValueError(
      f"{where} must hold a positive {name}, got {parent.get(name)!r}."
    )
  return value


def _base_margin(shape: dict[str, Any], objective: str, where: str) -> float:
  """`base_score` is a number, its text, or that of a list of one number."""
  given: Any = shape.get("base_score")
  try:
    (base,) = np.ravel(json.loads(given) if isinstance(given, str) else given)
    base = float(base)
  except (TypeError, ValueError):
    base = np.nan
  if not np.isfinite(base):
    raise ValueError(
      f"{where} must hold one finite base_score, got {given!r}; train one "
      "model an output."
    )
  if objective != OBJECTIVES[0]:
    return base
  if not 0 < base < 1:
    raise ValueError(
      f"{where} must have a base_score in (0, 1), a probability, got {given!r}."
    )
  return float(np.log(base) - np.log1p(-base))


def _tree(tree: Any, width: int, where: str) -> tuple[list[np.ndarray], int]:
  """Its arrays `[n]`, ordered as in `TreeEnsemble`, and its depth."""
  leaf_size = _mapping(tree, "tree_param", where).get("size_leaf_vector", 1)
  if int(leaf_size) > 1:
    raise ValueError(
      f"{where} must have one value a leaf, got size_leaf_vector={leaf_size}; "
      "train with multi_strategy='one_output_per_tree'."
    )
  left = _column(tree, "left_children", np.int32, None, where)
  size = len(left)
  right = _column(tree, "right_children", np.int32, size, where)
  feature = _column(tree, "split_indices", np.int32, size, where)
  number = _column(tree, "split_conditions", np.float32, size, where)
  default_left = _column(tree, "default_left", bool, size, where)
  if "split_type" in tree:
    if _column(tree, "split_type", np.int32, size, where).any():
      raise ValueError(
        f"{where} has a categorical split; encode categories as numbers (one "
        "column a category, say) and train again."
      )
  reached, depth = _reach(left, right, where)
  inner = reached & (left >= 0)
  if not np.isfinite(number[reached]).all():
    raise ValueError(f"{where} must have finite thresholds and leaves.")
  if np.any((feature[inner] < 0) | (feature[inner] >= width)):
    raise ValueError(
      f"{where} must split features 0 to {width - 1}, got "
      f"{sorted(set(feature[inner].tolist()))}."
    )
  itself = np.arange(size, dtype=np.int32)
  zero = np.float32(0)
  return [
    np.where(inner, left, itself),
    np.where(inner, right, itself),
    np.where(inner, feature, 0),
    np.where(inner, number, zero),
    inner & default_left,
    # XGBoost keeps a leaf's value where a split has its threshold.
    np.where(reached & ~inner, number, zero),
  ], depth


def _column(tree, name: str, dtype, size: int | None, where: str) -> np.ndarray:
  try:
    column = np.asarray(tree[name])
    if column.ndim != 1 or column.dtype.kind not in "biuf" or not column.size:
      raise ValueError("it is no list of numbers")
    # Beyond float32's range is infinite, which is refused later.
    with np.errstate(over="ignore"):
      column = column.astype(dtype)
  except (KeyError, ValueError, OverflowError) as error:
    raise ValueError(
      f"{where} must hold a list of numbers {name!r}: {error}."
    ) from error
  if size is not None and len(column) != size:
    raise ValueError(
      f"{where} must hold {size} entries of {name!r}, one a node, got "
      f"{len(column)}."
    )
  return column


def _reach(left, right, where: str) -> tuple[np.ndarray, int]:
  """`[n]` whether a node hangs on the root (pruned ones do not), and depth."""
  seen = np.zeros(len(left), bool)
  level, depth = np.zeros(1, np.int32), 0
  while True:
    seen[level] = True
    inner = level[left[level] >= 0]
    if not inner.size:
      return seen, depth
    level = np.concatenate([left[inner], right[inner]])
    if (
      np.any((level < 0) | (level >= len(left)))
      or np.any(seen[level])
      or len(np.unique(level)) < len(level)
    ):
      raise ValueError(
        f"{where} must be a tree: children within its {len(left)} nodes, each "
        "with one parent."
      )
    depth += 1


def _pad(trees, where: str) -> tuple[list[jax.Array], int]:
  """Arrays `[T, N]`, and the greatest depth."""
  size = max(len(arrays[0]) for arrays, _ in trees)
  if len(trees) * size > MAX_PADDED:
    raise ValueError(
      f"{where} pads to {len(trees)} trees of {size} nodes, more than "
      f"{MAX_PADDED}; limit max_depth or max_leaves."
    )
  padded = [
    jnp.asarray(np.stack([np.pad(a, (0, size - len(a))) for a in column]))
    for column in zip(*(arrays for arrays, _ in trees), strict=True)
  ]
  return padded, max(depth for _, depth in trees)
