"""Boosted trees against XGBoost's own answers, and one written by hand."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.targets import trees
from jdiff.targets.trees import TreeEnsemble

NUM_FEATURES = 5
THRESHOLD = np.float32(0.1)

# x[1] < 0.1 goes left, to 2; the rest to -3; missing values to the left.
STUMP = {
  "left_children": [1, -1, -1],
  "right_children": [2, -1, -1],
  "split_indices": [1, 0, 0],
  "split_conditions": [0.1, 2.0, -3.0],
  "split_type": [0, 0, 0],
  "default_left": [1, 0, 0],
  "tree_param": {"size_leaf_vector": "1"},
}
MODEL = {
  "learner": {
    "gradient_booster": {"name": "gbtree", "model": {"trees": [STUMP]}},
    "learner_model_param": {
      "base_score": "[5E-1]",
      "num_class": "0",
      "num_feature": "2",
      "num_target": "1",
    },
    "objective": {"name": "reg:squarederror"},
  }
}


def rows(seed, num_rows):
  """Few distinct values, so that rows stand at thresholds, and gaps."""
  rng = np.random.default_rng(seed)
  x = rng.integers(0, 12, (num_rows, NUM_FEATURES)) / np.float32(7)
  x = x.astype(np.float32)
  x[rng.random(x.shape) < 0.2] = np.nan
  return x


@pytest.fixture(scope="module", params=trees.OBJECTIVES)
def trained(request, tmp_path_factory):
  """`(path, booster)` of a small model; missing values carry a signal."""
  xgboost = pytest.importorskip("xgboost")
  x = rows(0, 400)
  signal = np.where(np.isnan(x[:, 0]), 1.5, x[:, 0]) - np.nan_to_num(x[:, 1])
  noise = np.random.default_rng(1).normal(size=len(x))
  y = signal + 0.3 * noise
  logistic = request.param == "binary:logistic"
  options = {
    "objective": request.param,
    "max_depth": 4,
    "nthread": 1,
    "seed": 0,
  }
  data = xgboost.DMatrix(x, y > 0.5 if logistic else y)
  booster = xgboost.train(options, data, 20)
  path = tmp_path_factory.mktemp("model") / "model.json"
  booster.save_model(path)
  return path, booster


def predicted(booster, x, **options):
  import xgboost

  return booster.predict(xgboost.DMatrix(x), **options)


def changed(tmp_path, *keys, value, model=MODEL):
  """The hand-written model with one entry of it replaced."""
  model = copy.deepcopy(model)
  place = model
  for key in keys[:-1]:
    place = place[key]
  place[keys[-1]] = value
  path = tmp_path / "model.json"
  path.write_text(json.dumps(model))
  return path


def test_answers_are_those_of_xgboost(trained):
  path, booster = trained
  ensemble = TreeEnsemble.from_xgboost_json(path, NUM_FEATURES)
  assert ensemble.depth == 4 and ensemble.left.shape[0] == 20
  x = rows(2, 500)
  wanted = predicted(booster, x)
  found = jax.jit(lambda e, x: e(x))(ensemble, x)
  assert found.shape == (500,) and found.dtype == jnp.float32
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
  np.testing.assert_allclose(
    ensemble.margin(x), predicted(booster, x, output_margin=True), atol=2e-6
  )
  # Under vmap, and in any floating type: they are cast before comparing.
  split = jax.vmap(ensemble)(x.reshape(5, 100, NUM_FEATURES))
  np.testing.assert_array_equal(split.reshape(-1), found)
  np.testing.assert_array_equal(ensemble(x.astype(np.float64)), found)


def test_equality_and_missing_values_matter_here(trained):
  # Negative controls of the test above: either change is far outside 1e-6.
  path, booster = trained
  ensemble = TreeEnsemble.from_xgboost_json(path)
  x = rows(2, 500)
  wanted = predicted(booster, x)
  above = np.nextafter(np.asarray(ensemble.threshold), np.float32(np.inf))
  for broken in (
    {"threshold": jnp.asarray(above)},  # `<=` goes left
    {"default_left": ~ensemble.default_left},
  ):
    fields = {f: getattr(ensemble, f) for f in ensemble.__dataclass_fields__}
    other = TreeEnsemble(**(fields | broken))
    assert np.abs(other(x) - wanted).max() > 1e-2


def test_all_trees_count_after_early_stopping(tmp_path):
  xgboost = pytest.importorskip("xgboost")
  x = np.nan_to_num(rows(3, 100))
  y = np.random.default_rng(4).normal(size=100)
  data = [xgboost.DMatrix(x[i::2], y[i::2]) for i in range(2)]
  booster = xgboost.train(
    {"nthread": 1, "max_depth": 3},
    data[0],
    8,
    evals=[(data[1], "test")],
    early_stopping_rounds=5,
    verbose_eval=False,
  )
  assert booster.best_iteration + 1 < booster.num_boosted_rounds()
  booster.save_model(tmp_path / "model.json")
  ensemble = TreeEnsemble.from_xgboost_json(tmp_path / "model.json")
  np.testing.assert_allclose(ensemble(x), predicted(booster, x), atol=1e-6)


def test_a_stump_at_its_threshold(tmp_path):
  path = changed(tmp_path, "learner", "name", value="")
  ensemble = TreeEnsemble.from_xgboost_json(path, num_features=2)
  below = np.nextafter(THRESHOLD, np.float32(-1))
  x = np.array([[9, below], [9, THRESHOLD], [9, np.nan], [np.nan, 1]])
  np.testing.assert_array_equal(ensemble(x), [2.5, -2.5, 2.5, -2.5])
  # In double precision 0.1 is below float32's 0.1.
  np.testing.assert_array_equal(ensemble(np.array([[0, 0.1]])), [-2.5])
  # Missing values the other way.
  place = ("learner", "gradient_booster", "model", "trees", 0, "default_left")
  path = changed(tmp_path, *place, value=[False, False, False])
  other = TreeEnsemble.from_xgboost_json(path)
  np.testing.assert_array_equal(other(x), [2.5, -2.5, -2.5, -2.5])


@pytest.mark.parametrize("base", ["5E-1", "[5E-1]", 0.5, [0.5]])
def test_forms_of_the_base_score(tmp_path, base):
  place = ("learner", "learner_model_param", "base_score")
  path = changed(tmp_path, *place, value=base)
  assert TreeEnsemble.from_xgboost_json(path).base_margin == 0.5
  model = json.loads(path.read_text())
  place = ("learner", "objective", "name")
  path = changed(tmp_path, *place, value="binary:logistic", model=model)
  ensemble = TreeEnsemble.from_xgboost_json(path)
  assert ensemble.base_margin == 0
  np.testing.assert_allclose(
    ensemble(np.zeros((1, 2))), 1 / (1 + np.exp(-2)), rtol=1e-6
  )


def test_trees_of_other_sizes_and_pruned_nodes(tmp_path):
  # A lone leaf beside a chain; nodes 3 and 4 hang on nothing.
  leaf = dict(
    STUMP,
    left_children=[-1],
    right_children=[-1],
    split_indices=[0],
    split_conditions=[10.0],
    split_type=[0],
    default_left=[0],
  )
  chain = dict(
    STUMP,
    left_children=[1, -1, 5, 4, -1, -1, -1],
    right_children=[2, -1, 6, 3, -1, -1, -1],
    split_indices=[0, 0, 1, 99, 0, 0, 0],
    split_conditions=[1.0, 0.25, 2.0, 7.0, 1e9, 0.5, 0.75],
    split_type=[0] * 7,
    default_left=[0] * 7,
  )
  place = ("learner", "gradient_booster", "model", "trees")
  path = changed(tmp_path, *place, value=[leaf, chain])
  ensemble = TreeEnsemble.from_xgboost_json(path)
  assert ensemble.left.shape == (2, 7) and ensemble.depth == 2
  x = np.array([[0, 0], [1, 1], [1, 2]])
  np.testing.assert_array_equal(ensemble(x), [10.75, 11.0, 11.25])


LEARNER = ("learner",)
TREE = ("learner", "gradient_booster", "model", "trees", 0)


@pytest.mark.parametrize(
  ("keys", "value", "message"),
  [
    (LEARNER, [], "must hold an object 'learner', got list"),
    (
      (*LEARNER, "objective", "name"),
      "multi:softprob",
      "objective among binary:logistic, reg:squarederror, got 'multi:softprob'",
    ),
    (
      (*LEARNER, "gradient_booster", "name"),
      "dart",
      "must have the booster 'gbtree', got 'dart'; train it",
    ),
    (
      (*LEARNER, "learner_model_param", "num_feature"),
      "many",
      "must hold a positive num_feature, got 'many'",
    ),
    (
      (*LEARNER, "learner_model_param", "num_class"),
      "3",
      "must have one output, got num_class=3; train one model an output",
    ),
    (
      (*LEARNER, "learner_model_param", "base_score"),
      "[1E-1,2E-1]",
      "must hold one finite base_score",
    ),
    ((*TREE[:-1],), [], "must hold a list of trees"),
    ((*TREE, "split_type"), [1, 0, 0], "categorical split; encode"),
    ((*TREE, "split_indices"), [2, 0, 0], r"split features 0 to 1, got \[2\]"),
    ((*TREE, "default_left"), [1], "3 entries of 'default_left'.*got 1"),
    ((*TREE, "left_children"), [0, -1, -1], "must be a tree"),
    ((*TREE, "right_children"), [3, -1, -1], "must be a tree"),
    ((*TREE, "right_children"), [1, -1, -1], "must be a tree"),
    ((*TREE, "split_conditions"), [1e99, 0, 0], "must have finite thresholds"),
    ((*TREE, "split_conditions"), "x", "list of numbers 'split_conditions'"),
    ((*TREE, "tree_param"), {"size_leaf_vector": "2"}, "one value a leaf"),
  ],
)
def test_models_that_will_not_do(tmp_path, keys, value, message):
  path = changed(tmp_path, *keys, value=value)
  with pytest.raises(ValueError, match=message):
    TreeEnsemble.from_xgboost_json(path)


def test_files_that_will_not_do(tmp_path):
  path = tmp_path / "model.json"
  path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
  with pytest.raises(ValueError, match="Git-LFS pointer.*git lfs pull"):
    TreeEnsemble.from_xgboost_json(path)
  path.write_bytes(b"{L\x00\x00\xff")
  with pytest.raises(ValueError, match="must be JSON.*ends in .json"):
    TreeEnsemble.from_xgboost_json(path)
  with pytest.raises(FileNotFoundError):
    TreeEnsemble.from_xgboost_json(tmp_path / "none.json")
  place = ("learner", "objective", "name")
  path = changed(tmp_path, *place, value="binary:logistic")
  place = ("learner", "learner_model_param", "base_score")
  path = changed(
    tmp_path, *place, value=1.0, model=json.loads(path.read_text())
  )
  with pytest.raises(ValueError, match=r"base_score in \(0, 1\)"):
    TreeEnsemble.from_xgboost_json(path)


def test_features_of_another_width(tmp_path):
  path = changed(tmp_path, "learner", "name", value="")
  with pytest.raises(ValueError, match="2 features, got num_features=768"):
    TreeEnsemble.from_xgboost_json(path, num_features=768)
  ensemble = TreeEnsemble.from_xgboost_json(path)
  for shape in ((3, 1), (2,)):
    with pytest.raises(ValueError, match=r"features must have shape \[\*, 2\]"):
      ensemble(np.zeros(shape))


def test_padding_is_bounded(tmp_path, monkeypatch):
  monkeypatch.setattr(trees, "MAX_PADDED", 2)
  path = changed(tmp_path, "learner", "name", value="")
  with pytest.raises(ValueError, match="pads to 1 trees of 3 nodes.*limit"):
    TreeEnsemble.from_xgboost_json(path)
