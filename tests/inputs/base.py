"""Good calls of public kernels, and how an argument is spoilt.

A case is a function, its arguments (made when asked for), and for each argument
that is spoilt the kind of what it holds, or the bad values themselves.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from tests import helpers

NAN, INF = float("nan"), float("inf")
LENGTH, VOCAB = 4, 3
TEXT = "no_number"  # No argument is called that.
KEY = functools.partial(jax.random.key, 0)
TABLE = functools.cache(lambda: helpers.random_table(0, LENGTH, VOCAB))
LOGITS = helpers.table_logits(LENGTH, VOCAB)
TOKENS = np.array([[0, 1, 2, 0], [2, 1, 0, 0]], np.int32)
ROWS = np.arange(12, dtype=np.float32).reshape(6, 2)
LOG_WEIGHTS = np.linspace(-1.0, 1.0, 6).astype(np.float32)


class Case(NamedTuple):
  """A call; `traced` ones see abstract values, others the values themselves."""

  function: Callable[..., Any]
  arguments: Callable[[], dict[str, Any]]
  kinds: dict[str, str | list[Any]]
  traced: bool

  def call(self, **spoilt):
    arguments = self.arguments() | spoilt
    if not self.traced:
      self.function(**arguments)
      return
    # Shapes alone: nothing is compiled, and nothing is computed.
    jax.eval_shape(lambda: (self.function(**arguments), 0)[1])


CASES: dict[str, Case] = {}


def case(function, arguments, _name=None, _traced=True, **kinds):
  """Adds a case; keywords are the kinds of arguments."""
  name = _name or f"{function.__module__[6:]}.{function.__name__}"
  assert name not in CASES
  CASES[name] = Case(function, arguments, kinds, _traced)


def _count(minimum):
  return lambda good: [True, 1.5, "3", NAN, (1,), minimum - 1, -10]


def _floats(good):
  array = np.asarray(good)
  return [array[None], np.zeros(array.shape, bool), array.astype(str), TEXT]


def _tokens(good):
  array = np.asarray(good)
  return [
    array.astype(np.float32),
    array[None],
    np.zeros(array.shape, bool),
    TEXT,
  ]


def _text(good):
  return [np.asarray(good).astype(str), TEXT]


def _fewer(good):
  return [np.asarray(good)[1:]]


SPOILERS: dict[str, Callable[[Any], list[Any]]] = {
  # Python numbers.
  "count": _count(1),
  "natural": _count(0),
  "two": _count(2),
  "positive": lambda good: ["x", "1", True, 0, -1.0, NAN, INF, (1.0,)],
  "ceiling": lambda good: ["x", "1", True, 0, -1.0, NAN, (1.0,)],
  "finite": lambda good: ["x", "1", True, NAN, INF],
  "at_least_0": lambda good: ["x", "1", True, -1.0, NAN],
  "share": lambda good: ["x", "0.5", True, -0.1, 1.1, NAN],
  # Tuples of them.
  "counts": lambda good: ["x", (0,), (-1, 2), (1.5, 2), (True,), 3],
  "sides": lambda good: ["x", (-1, 2), (1.5, 2), (True,), 3],
  "numbers": lambda good: ["x", (), (NAN, 1.0)],
  # Names and keys.
  "choice": lambda good: ["no_such", 3, ""],
  "key": lambda good: [3, None, np.zeros(2, np.uint32), "x"],
  "key_or_none": lambda good: [3, np.zeros(2, np.uint32), "x"],
  # Arrays: of another rank, of other kinds, or with a row too few.
  "floats": _floats,
  "rows": lambda good: _floats(good) + _fewer(good),
  "tokens": _tokens,
  "many_tokens": lambda good: _tokens(good) + _fewer(good),
  "integers": lambda good: [np.asarray(good, np.float32), "x"],
  "few": _fewer,
  "log_weights": lambda good: [
    *_text(good),
    np.zeros(0, np.float32),
    np.zeros(6, bool),
  ],
}
