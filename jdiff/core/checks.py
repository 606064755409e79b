"""Argument checks: one clear sentence, at factory or trace time."""

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_concrete(*arrays: Any) -> bool:
  """Whether every leaf holds values now, so that they can be looked at."""
  return not any(
    isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arrays)
  )


def check_int(name: str, value: Any, minimum: int = 1) -> int:
  """Returns `value` as an int, or says which integer was wanted."""
  if isinstance(value, bool) or not isinstance(value, numbers.Integral):
    raise TypeError(
      f"{name} must be an integer >= {minimum}, got {value!r} of type "
      f"{type(value).__name__}."
    )
  if value < minimum:
    raise ValueError(f"{name} must be >= {minimum}, got {value}.")
  return int(value)


def check_sizes(
  name: str, values: Any, minimum: int = 1, *, parts: str = ""
) -> tuple[int, ...]:
  """Returns a sequence of sizes as a tuple of ints, or says what is wrong.

  `parts`, such as "(rows, cols)", says how many there are, and what they are.
  """
  if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
    raise TypeError(
      f"{name} must be a tuple of integers, got {values!r} of type "
      f"{type(values).__name__}."
    )
  sizes = tuple(
    check_int(f"every size in {name}", value, minimum) for value in values
  )
  if parts and len(sizes) != len(parts.split(",")):
    raise ValueError(f"{name} must be {parts}, got {sizes}.")
  return sizes


def check_finite(name: str, value: Any, *, positive: bool = False) -> Any:
  """`value` as a float if it is a finite (positive) number; traced, as is."""
  if isinstance(value, jax.core.Tracer):
    return value
  number = _number(name, value)
  if not math.isfinite(number) or (positive and number <= 0):
    kind = "positive and finite" if positive else "finite"
    raise ValueError(f"{name} must be {kind}, got {value}.")
  # A Python float promotes nothing, where a NumPy scalar would.
  return number


def check_range(
  name: str, value: Any, low: float, high: float, *, ends: str = "[]"
) -> Any:
  """`value` as a float if it lies in an interval; traced, as is.

  `ends` says with `[` and `]` which end belongs to it, and with `(` and `)`
  which does not.
  """
  if isinstance(value, jax.core.Tracer):
    return value
  number = _number(name, value)
  above = number >= low if ends[0] == "[" else number > low
  below = number <= high if ends[1] == "]" else number < high
  if not (above and below):
    raise ValueError(
      f"{name} must lie in {ends[0]}{low:g}, {high:g}{ends[1]}, got {value}."
    )
  return number


def _number(name: str, value: Any) -> float:
  # Both would pass for a number: float("1") is one.
  if not isinstance(value, str | bytes | bool):
    try:
      return float(value)
    except (TypeError, ValueError, OverflowError):
      pass
  raise TypeError(f"{name} must be a finite number, got {value!r}.")


def check_numbers(name: str, array: Any) -> None:
  """Raises unless `array` holds real numbers, not truths, text or keys."""
  dtype = _dtype(name, array)
  if not (
    jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
  ):
    raise TypeError(f"{name} must hold real numbers, got dtype {dtype}.")


def check_integers(name: str, array: Any, what: str = "integers") -> None:
  """Raises unless `array` holds integers."""
  dtype = _dtype(name, array)
  if not jnp.issubdtype(dtype, jnp.integer):
    raise TypeError(f"{name} must be {what}, got dtype {dtype}.")


def check_flags(name: str, array: Any) -> None:
  """Raises unless `array` holds booleans."""
  dtype = _dtype(name, array)
  if not jnp.issubdtype(dtype, jnp.bool_):
    raise TypeError(f"{name} must hold booleans, got dtype {dtype}.")


def _dtype(name: str, array: Any) -> Any:
  """Of what is an array or would become one; text and objects do not."""
  if hasattr(array, "dtype"):
    dtype = array.dtype
  else:
    try:
      dtype = np.asarray(array).dtype
    except (TypeError, ValueError):  # lists of unequal lengths
      dtype = np.dtype(object)
  if isinstance(dtype, np.dtype) and dtype.kind in "OSU":
    shown = "" if hasattr(array, "dtype") else f", {type(array).__name__}"
    raise TypeError(f"{name} must hold numbers, got dtype {dtype}{shown}.")
  return dtype


def check_shape(
  name: str, array: Any, shape: Sequence[int | None], hint: str = ""
) -> None:
  """Raises unless `array.shape` matches; None in `shape` matches any size."""
  _dtype(name, array)
  given = tuple(array.shape) if hasattr(array, "shape") else np.shape(array)
  if len(given) != len(shape) or any(
    want is not None and want != got
    for want, got in zip(shape, given, strict=False)
  ):
    wanted = "[" + ", ".join("*" if s is None else str(s) for s in shape) + "]"
    raise ValueError(
      f"{name} must have shape {wanted}, got {list(given)}."
      + (f" {hint}" if hint else "")
    )


def check_rows(name: str, array: Any) -> None:
  """Raises unless `array` holds real numbers, `[B, ...]`."""
  check_numbers(name, array)
  if not np.ndim(array):
    raise ValueError(f"{name} must have shape [B, ...], got [].")


def check_tokens(name: str, tokens: Any, *, mask_id: int | None = None) -> None:
  """Raises unless `tokens` are `[B, L]` integers, without the mask id.

  The mask id can only be looked for where values are known; under a trace
  that part is skipped.
  """
  check_integers(name, tokens, "integer tokens")
  check_shape(name, tokens, (None, None))
  if mask_id is not None and is_concrete(tokens):
    if bool(np.any(np.asarray(tokens) == mask_id)):
      raise ValueError(
        f"{name} must hold no mask id, got mask_id={mask_id} among the data; "
        "pass complete sequences, or a mask_id outside the vocabulary."
      )


def check_logits(logits: Any, batch: int, sites: int, *, mask_id: int) -> None:
  """Raises unless `logits` are `[batch, sites, V]`, mask column at `-inf`."""
  check_shape(
    "logits_fn's answer",
    logits,
    (batch, sites, None),
    "It is [batch, sites asked for, vocabulary].",
  )
  vocab = np.shape(logits)[-1]
  if 0 <= mask_id < vocab and is_concrete(logits):
    column = np.asarray(logits[..., mask_id])
    if np.any(column > -np.inf) or np.any(np.isnan(column)):
      raise ValueError(
        f"mask_id={mask_id} lies inside the vocabulary of {vocab} and its "
        "logit is finite; wrap the network in ctmc.forbid_mask or pass a "
        "mask_id outside the vocabulary."
      )


def check_key(key: Any, name: str = "key") -> None:
  """Raises unless `key` is a typed PRNG key or an array of them."""
  if not (
    isinstance(key, jax.Array)
    and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
  ):
    raise TypeError(
      f"{name} must be a typed PRNG key (jax.random.key(seed)), got "
      f"{type(key).__name__}."
    )
