"""Whatever is wrong with an argument, the call says which one, and at once."""

import re

import hypothesis
import pytest
from hypothesis import strategies

from tests.inputs import base, continuous, masked, models

MODULES = (continuous, masked, models)

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
    name: base.SPOILERS[kind](good[name]) for name, kind in case.kinds.items()
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
