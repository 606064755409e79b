"""Packages of the extras: imported when a world of theirs is made."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def load(module: str, extra: str = "worlds") -> Any:
  """Imports `module`, or says what to install.

  Raises:
    ImportError: If its package, or one that this needs, is missing.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    package = module.split(".")[0]
    raise ImportError(
      f"this world needs the package {package}: "
      f'pip install "jdiff-research[{extra}]".'
    ) from error


def strong(state: Any) -> Any:
  """A state whose arrays keep their types when a loop carries them.

  The packages begin with Python numbers, whose types are weak.
  """
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state)


def lenient(function: Callable[..., Any]) -> Callable[..., Any]:
  """`function`, in which arrays of different ranks may meet.

  These packages rely on it, where a caller may have forbidden it.
  """

  @functools.wraps(function)
  def called(*args):
    with jax.numpy_rank_promotion("allow"):
      return function(*args)

  return called
