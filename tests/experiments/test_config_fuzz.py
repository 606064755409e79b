"""No config, however wrong, is built in silence, without end, or by accident.

What a field may hold is said once, in `experiments.common.fields`; so most of
this looks at the table, and then that every `build` asks it first.
"""

import importlib
import json
import pathlib
import re
import sys
import types

import hypothesis
import jax
import ml_collections
import pytest
from hypothesis import strategies

from experiments.common import fields
from jdiff import training

ROOT = pathlib.Path(__file__).parents[2]
NAN, INF = float("nan"), float("inf")

# One of each `build`; the rest are for `make test-thorough`.
FIRST = (
  "collapse.digits",
  "collapse.gaussian",
  "dmpo.parity",
  "gdpo.countdown",
  "masked_lm.tasks",
  "mdns.potts",
  "memorization.digits",
  "memorization.mixture",
  "olla.toys",
  "pdns.gmm",
  "tr2d2.dna",
  "world.captions",
  "world.minatar_pixels",
  "world.tiles",
)

# What these want is not here: a file of one's own, a package that `dev` lacks.
WANTING = ("tr2d2.custom", "world.rooms")

ANY_TIME = hypothesis.settings(
  derandomize=True,
  database=None,
  deadline=None,
  suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  """Paths that are made up may be written to."""
  monkeypatch.chdir(tmp_path)


def modules():
  """Every config file of every system, by `system.file`."""
  found = {}
  for path in sorted((ROOT / "experiments").glob("*/*.py")):
    name = f"{path.parent.name}.{path.stem}"
    if "def get_config(variant:" in path.read_text():
      found[name] = importlib.import_module(f"experiments.{name}")
  return found


MODULES = modules()


def variants(module):
  """Of those that tell their variants by a table or by an error."""
  try:
    module.get_config("no such variant")
  except ValueError as error:
    names = re.search(r"one of (.*); got", str(error)).group(1)
  return names.split(", ")


def smoke(module):
  names = variants(module)
  return "smoke" if "smoke" in names else names[0]


def flat(config, prefix=""):
  for name, value in config.items():
    if isinstance(value, dict):
      yield from flat(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value


def spoilt(config, field, value):
  """A copy of a config with one field replaced, whatever its type was."""
  copy = json.loads(json.dumps(config))
  *groups, leaf = field.split(".")
  group = copy
  for name in groups:
    group = group[name]
  group[leaf] = value
  restore_tuples(copy)
  return copy


def restore_tuples(group):
  for name, value in group.items():
    if isinstance(value, list):
      group[name] = tuple(value)
    elif isinstance(value, dict):
      restore_tuples(value)


def refused(law):
  """Values that a field under this law can certainly not hold."""
  bad = [{"a": 1}]
  if not law.optional:
    bad.append(None)
  if law.many:
    if law.kind is not str:
      bad += [("a",), (NAN,), (True,), ((1,),)]
    return [*bad, "ab", 1, True, (None,)]
  bad += [(), (1,)]
  if law.kind is str:
    return [*bad, 1, 0.5, True]
  bad.append("1")
  if law.kind is bool:
    return [*bad, 0, 1, 0.5, NAN]
  bad += [True, NAN, INF, -INF, 10**400, 10**18, -(10**18)]
  if law.kind is int:
    bad += [1.5, float(max(law.low, 1))]
  if law.low > fields.REAL.low:
    bad += [law.low - 1] + [law.low] * law.above
  if law.high < fields.REAL.high:
    bad += [law.high + 1] + [law.high] * law.below
  return bad


@pytest.mark.parametrize("name", MODULES)
def test_every_field_has_a_law_and_obeys_it(name):
  module = MODULES[name]
  for variant in variants(module):
    config = module.get_config(variant).to_dict()
    fields.check(config)
    lawless = [field for field, _ in flat(config) if fields.law(field) is None]
    assert not lawless


def test_every_wrong_value_is_refused():
  seen = {}
  for module in MODULES.values():
    config = module.get_config(smoke(module)).to_dict()
    for field, value in flat(config):
      seen.setdefault(field, (config, value))
  assert len(seen) > 250
  for field, (config, value) in seen.items():
    fields.check(spoilt(config, field, value))
    bad = refused(fields.law(field))
    assert len(bad) >= 6
    for wrong in bad:
      with pytest.raises((TypeError, ValueError), match=rf"config\.{field}\b"):
        fields.check(spoilt(config, field, wrong))


def test_groups_are_groups():
  for wrong in (1, "x", None, (), True):
    with pytest.raises(TypeError, match="config.net must be a group"):
      fields.check({"net": wrong})
    with pytest.raises(TypeError, match="config.base.mesh must be a group"):
      fields.check({"base": {"mesh": wrong}})
  with pytest.raises(TypeError, match="config.num_steps must be a value"):
    fields.check({"num_steps": {"a": 1}})


def test_fields_of_others_need_only_be_finite():
  own = {"own_number": 0.5, "own_text": "x", "own_group": {"own_flag": None}}
  fields.check(own)
  with pytest.raises(ValueError, match="config.own_number must be finite"):
    fields.check(own | {"own_number": NAN})


def combinations(name):
  """`(field, wrong value)` of a config's smoke variant."""
  module = MODULES[name]
  config = module.get_config(smoke(module)).to_dict()
  examples = [
    (field, wrong)
    for field, _ in flat(config)
    for wrong in refused(fields.law(field))
    if field != "experiment"
  ]
  return config, examples


@pytest.mark.parametrize("name", MODULES)
def test_every_build_asks_the_table_first(name):
  config, examples = combinations(name)

  @hypothesis.settings(ANY_TIME, max_examples=5)
  @hypothesis.given(strategies.sampled_from(examples))
  def law(example):
    field, wrong = example
    bad = ml_collections.ConfigDict(spoilt(config, field, wrong))
    for make in (training.build, training.stand_in):
      with pytest.raises((TypeError, ValueError), match=rf"config\.{field}\b"):
        make(bad)

  law()


@pytest.mark.parametrize("field", ["net", "learning_rate", "net.kind"])
def test_what_is_missing_is_said(field):
  config = MODULES["mdns.ising"].get_config("smoke").unlock()
  *groups, leaf = field.split(".")
  del (config[groups[0]] if groups else config)[leaf]
  for make in (training.build, training.stand_in):
    with pytest.raises(ValueError, match=f"config lacks .*{leaf}"):
      make(config)


def odd(config):
  """`(field, value)` of the right kind, which may or may not make sense."""
  numbers = {int: (0, 1, 7, 10**6, 10**9), float: (0.0, 1e-30, 0.5, 1e6, 1e30)}
  found = []
  for field, value in flat(config):
    law = fields.law(field)
    if law.kind is str:
      values = (("no_such",), ()) if law.many else ("no_such", "")
    elif law.kind is bool:
      values = (not value,)
    elif law.many:
      values = ((), (1,), (1, 1), (10**6,))
    else:
      values = [v for v in numbers[law.kind] if law.low <= v <= law.high]
    found += [(field, other) for other in values if other != value]
  return found


def make(config):
  """Shapes alone, as far as they are known without what is frozen."""
  config = ml_collections.ConfigDict(config)
  # Of this one there is nothing to stand in for.
  exact = config.experiment == "experiments.collapse.closed_form"
  experiment = (training.build if exact else training.stand_in)(config)
  if isinstance(experiment, training.Experiment) and not experiment.frozen:
    jax.eval_shape(experiment.init, jax.random.key(0))


def check_outcome(config, field, value):
  """Builds, or says what is wrong in a sentence: nothing else."""
  try:
    make(spoilt(config, field, value))
  except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
    said = str(error)
    assert len(said.split()) > 3
    foreign = (
      "operand|not iterable|has no len|unhashable|broadcast|can only con"
    )
    assert not re.search(foreign, said), said


def test_accidents_are_told_from_answers(monkeypatch):
  def build(config):
    if config.num_steps == 7:
      return [0] + config.num_steps
    if config.num_steps == 8:
      return {}[config.num_steps]
    raise ValueError("config.num_steps must be 7 or 8.")

  module = types.ModuleType("accident")
  module.build = build
  monkeypatch.setitem(sys.modules, "accident", module)
  config = MODULES["mdns.ising"].get_config("smoke").to_dict()
  config["experiment"] = "accident"
  check_outcome(config, "num_steps", 9)
  with pytest.raises(AssertionError):
    check_outcome(config, "num_steps", 7)
  with pytest.raises(KeyError):
    check_outcome(config, "num_steps", 8)


def cases(first):
  return [
    pytest.param(name, marks=() if name in first else pytest.mark.thorough)
    for name in MODULES
  ]


@pytest.mark.slow
@pytest.mark.parametrize("name", cases(FIRST))
def test_odd_values_are_built_or_explained(name):
  module = MODULES[name]
  config = module.get_config(smoke(module)).to_dict()
  names = [
    (field, value)
    for field, value in odd(config)
    if fields.law(field).kind is str
  ]

  @hypothesis.settings(ANY_TIME, max_examples=3)
  @hypothesis.given(strategies.sampled_from(names))
  def law(example):
    check_outcome(config, *example)

  if name not in WANTING:
    make(config)
  law()


@pytest.mark.thorough
@pytest.mark.parametrize("name", MODULES)
def test_every_odd_value_is_built_or_explained(name):
  module = MODULES[name]
  config = module.get_config(smoke(module)).to_dict()

  @hypothesis.settings(ANY_TIME, max_examples=60)
  @hypothesis.given(strategies.sampled_from(odd(config)))
  def law(example):
    check_outcome(config, *example)

  law()
