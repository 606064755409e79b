"""Whatever is wrong with an argument, the call says which one, and at once."""

import pathlib
import re
import types

import hypothesis
import pytest
from hypothesis import strategies

from tests.inputs import (
  base,
  continuous,
  laws,
  losses,
  masked,
  models,
  processes,
  public,
  worlds,
)

MODULES = (continuous, laws, losses, masked, models, processes, worlds)

quick = hypothesis.settings(
  max_examples=6,
  derandomize=True,
  database=None,
  deadline=None,
  suppress_health_check=list(hypothesis.HealthCheck),
)


def spoilt(case):
  """The bad values of each argument of a case."""
  good = case.arguments()
  return {
    name: kind if isinstance(kind, list) else base.SPOILERS[kind](good[name])
    for name, kind in case.kinds.items()
  }


def check(case, bad):
  """The law: a ValueError or a TypeError with an argument's name in it."""
  with pytest.raises((ValueError, TypeError)) as caught:
    case.call(**bad)
  # A size that does not fit may be said of the array that it ought to fit.
  arrays = any(hasattr(value, "shape") for value in bad.values())
  names = [*bad, *(case.arguments() if arrays else ())]
  assert any(re.search(rf"\b{name}\b", str(caught.value)) for name in names), (
    f"{bad}: {type(caught.value).__name__}: {caught.value}"
  )


@pytest.mark.parametrize("name", base.CASES)
def test_every_bad_argument_is_named(name):
  case = base.CASES[name]
  case.call()
  for argument, values in spoilt(case).items():
    for bad in values:
      check(case, {argument: bad})


@pytest.mark.parametrize("name", base.CASES)
def test_one_of_several_bad_arguments_is_named(name):
  case = base.CASES[name]
  choices = {
    argument: strategies.integers(0, len(values) - 1)
    for argument, values in spoilt(case).items()
  }
  drawn = strategies.fixed_dictionaries({}, optional=choices).filter(bool)

  @quick
  @hypothesis.given(drawn)
  def law(example):
    values = spoilt(case)
    check(case, {name: values[name][place] for name, place in example.items()})

  law()


def test_the_law_can_be_broken():
  def careless(count):
    return [0.0] * count

  case = base.Case(careless, lambda: dict(count=2), {"count": "count"}, False)
  # Negative counts are accepted, and text is refused by somebody else.
  with pytest.raises(pytest.fail.Exception):
    check(case, {"count": -1})
  with pytest.raises(AssertionError, match="can't multiply sequence"):
    check(case, {"count": "3"})


def test_every_public_function_has_a_case_or_a_reason():
  lost, idle = public.missing(base.CASES.values(), public.EXEMPT)
  assert not lost, f"without a case in tests/inputs, or a reason: {lost}"
  assert not idle, f"exempt, though covered or no public function: {idle}"
  root = pathlib.Path(__file__).parents[1]
  for name, reason in public.EXEMPT.items():
    for path in re.findall(r"tests/\S+\.py", reason):
      assert (root / path).is_file(), (name, reason)


def test_a_function_without_a_case_is_found():
  cases = dict(base.CASES)
  # Of a module in `__all__`, of one beside it, and of a package itself.
  taken = ["methods.wdce.draw", "world.rollout.see", "ot.pairing.pair"]
  for name in taken:
    del cases[name]
  lost, _ = public.missing(cases.values(), public.EXEMPT)
  assert lost == sorted(taken)
  exempt = dict.fromkeys([*taken, "ot.pairing.gone", "ctmc.masks.count_masks"])
  _, idle = public.missing(cases.values(), public.EXEMPT | exempt)
  assert idle == ["ctmc.masks.count_masks", "ot.pairing.gone"]


def test_a_new_public_function_is_found():
  module = types.ModuleType("jdiff.fresh")

  def kernel(count):
    return count

  def _helper(count):
    return count

  for function in (kernel, _helper):
    function.__module__ = module.__name__
    setattr(module, function.__name__, function)
  package = types.ModuleType("jdiff.outer")
  package.fresh, package.__all__ = module, ["fresh"]
  assert list(public.walk(package)) == ["fresh.kernel"]
