"""Arms of the loop: a paradigm, and with a plus sign a way of selecting."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jdiff import selection
from jdiff.core.types import Kernel
from jdiff.methods import collapse

SELECTORS = ("greedy", "threshold")


class Arm(NamedTuple):
  """One way to make the next training set.

  Attributes:
    name: `"replace"`, `"accumulate+greedy"` and so on.
    paradigm: One of `collapse.PARADIGMS`.
    selector: One of `SELECTORS`, or None.
  """

  name: str
  paradigm: str
  selector: str | None


def parse(name: str) -> Arm:
  """The arm of that name.

  Raises:
    ValueError: If its paradigm or its selector is unknown.
  """
  paradigm, plus, selector = name.partition("+")
  if paradigm not in collapse.PARADIGMS:
    raise ValueError(
      "each of config.arms must begin with a paradigm, one of "
      f"{', '.join(collapse.PARADIGMS)}, got {name!r}."
    )
  if plus and selector not in SELECTORS:
    raise ValueError(
      "each of config.arms must end with its paradigm, or with one of "
      f"{', '.join('+' + s for s in SELECTORS)}, got {name!r}."
    )
  return Arm(name, paradigm, selector or None)


def parse_all(names: tuple[str, ...]) -> list[Arm]:
  """Arms in their order.

  Raises:
    ValueError: If there is none, one is unknown, or one comes twice.
  """
  if not names or len(set(names)) < len(names):
    raise ValueError(
      f"config.arms must be different, one at least, got {tuple(names)}."
    )
  return [parse(name) for name in names]


def kernel(
  arm: Arm,
  config: Any,
  *,
  fit: collapse.FitFn,
  sample: collapse.SampleFn,
  features: collapse.FeatureFn | None = None,
) -> Kernel:
  """The loop of one arm; `features` are for its selector.

  Only arms that select oversample: without a choice to make, more samples than
  are wanted would be thrown away at random.
  """
  selects = arm.selector is not None
  return collapse.self_consuming(
    fit=fit,
    sample=sample,
    paradigm=arm.paradigm,
    num=config.num_train,
    oversample=config.oversample if selects else 1,
    fresh_share=config.fresh_share if arm.paradigm == "fresh" else None,
    selector=selector(arm, config),
    features=features if selects else None,
  )


def selector(
  arm: Arm, config: Any
) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
  """`(key, features [S, f]) -> [num]` rows of the pool, or None."""
  if arm.selector is None:
    return None
  if arm.selector == "greedy":
    choose = functools.partial(selection.greedy, num=config.num_train)
  else:
    choose = functools.partial(
      selection.threshold_decay,
      num=config.num_train,
      threshold=config.select.threshold,
      decay=config.select.decay,
    )
  return lambda key, features: choose(features, key=key).index


def num_real(arms: list[Arm], config: Any) -> int:
  """Real rows that the loop uses up, those of `"fresh"` arms included."""
  if not any(arm.paradigm == "fresh" for arm in arms):
    return config.num_train
  # The last generation's successor is made too, if never trained on.
  fresh = round(config.fresh_share * config.num_train)
  return config.num_train + config.num_generations * fresh
