"""Rewards: a user's function of sequences, in three carriers.

All answer `[..., K]` float32 for tokens `[..., L]`, one column an objective. A
NaN says that the sequence is invalid and has no reward; infinities are errors
where values can be looked at. `JaxReward` is traced into whatever calls it;
`HostReward` is any Python, between jitted steps; `CallbackReward` is any Python
inside a jitted function.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks

Decode = Callable[[np.ndarray], Sequence[Any]]
"""`[n, L]` tokens to `n` of whatever the reward takes."""


class RewardError(RuntimeError):
  """A user's reward raised; `sequence` is the one it raised on, or None."""

  def __init__(self, message: str, sequence: Any = None):
    super().__init__(message)
    self.sequence = sequence


class JaxReward:
  """A reward in JAX: `fn(tokens [n, L]) -> [n]` or `[n, K]`, traced.

  Args:
    fn: Pure.
    num_objectives: `K`.
  """

  def __init__(self, fn: Callable, *, num_objectives: int = 1):
    self.fn = fn
    self.num_objectives = checks.check_int("num_objectives", num_objectives)
    # Outside a trace too: loops inside would be compiled again at every call.
    self._jitted = jax.jit(self._evaluate)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """`[..., K]` float32 of `[..., L]` tokens.

    Raises:
      ValueError: If the answer has another shape than `[n]` or `[n, K]`.
    """
    return self._jitted(tokens)

  def _evaluate(self, tokens):
    lead = jnp.shape(tokens)[:-1]
    flat = jnp.reshape(tokens, (-1, jnp.shape(tokens)[-1]))
    values = jnp.asarray(self.fn(flat))
    values = _columns(values, flat.shape[0], self.num_objectives)
    return values.astype(jnp.float32).reshape(*lead, self.num_objectives)


class HostReward:
  """A reward in Python, evaluated in batches and once a sequence.

  It must be deterministic: what was answered once is answered again. A batch
  that raises is gone through one by one, so that the error names the sequence;
  what those before it are worth is kept.

  Attributes:
    num_objectives: `K`.
    num_calls: Sequences that `fn` was asked for, repeats not counted.

  Args:
    fn: `fn(sequences) -> [n]` or `[n, K]`, NaN for invalid ones; `sequences`
      is what `decode` answers, or `[n, L]` int32 without one.
    num_objectives: `K`.
    decode: Tokens `[n, L]` to a list of `n`, such as strings.
    batch_size: The most sequences that `fn` is given at a time.
    cache: Whether answers are kept, by sequence, for as long as this lives; a
      sequence takes four bytes a token, and some hundred more.
    progress: `progress(done, total)`, called after each batch.
  """

  def __init__(
    self,
    fn: Callable[[Any], Any],
    *,
    num_objectives: int = 1,
    decode: Decode | None = None,
    batch_size: int = 1024,
    cache: bool = True,
    progress: Callable[[int, int], None] | None = None,
  ):
    self.fn, self.decode, self.progress = fn, decode, progress
    self.num_objectives = checks.check_int("num_objectives", num_objectives)
    self.batch_size = checks.check_int("batch_size", batch_size)
    self.num_calls = 0
    self._cache: dict[bytes, np.ndarray] | None = {} if cache else None

  def __call__(self, tokens: Any) -> np.ndarray:
    """`[..., K]` float32 of `[..., L]` tokens.

    Raises:
      TypeError: Inside a trace, where there are no values.
      ValueError: If an answer has another shape or is infinite.
      RewardError: If `fn` raises.
    """
    if isinstance(tokens, jax.core.Tracer):
      raise TypeError(
        "HostReward must get values, got a traced array; wrap the function in "
        "CallbackReward to call it under jit, or in JaxReward if it is JAX."
      )
    tokens = np.asarray(tokens, np.int32)
    lead, length = tokens.shape[:-1], tokens.shape[-1]
    flat = np.ascontiguousarray(tokens.reshape(-1, length))
    rows = [row.tobytes() for row in flat]
    known = {} if self._cache is None else self._cache
    missing: dict[bytes, int] = {}
    for i, row in enumerate(rows):
      if row not in known:
        missing.setdefault(row, i)
    index = list(missing.values())
    for start in range(0, len(index), self.batch_size):
      part = index[start : start + self.batch_size]
      # At once, so that an error later on loses none of it.
      answers = self._batch(flat[part], known)
      known.update(zip((rows[i] for i in part), answers, strict=True))
      if self.progress is not None:
        self.progress(start + len(part), len(index))
    values = [known[row] for row in rows]
    shape = (*lead, self.num_objectives)
    return np.array(values, np.float32).reshape(shape)

  def _batch(self, tokens: np.ndarray, known: dict) -> np.ndarray:
    """Answers `[n, K]`; keeps what a failing batch did answer."""
    sequences = tokens if self.decode is None else self.decode(tokens)
    if len(sequences) != len(tokens):
      raise ValueError(
        f"decode must answer a sequence for each of {len(tokens)} rows, got "
        f"{len(sequences)}."
      )
    try:
      values = self.fn(sequences)
    except Exception as error:
      for row, sequence in zip(tokens, sequences, strict=True):
        known[row.tobytes()] = self._one(row, sequence)
      raise RewardError(
        f"the reward raised {type(error).__name__} on a batch of "
        f"{len(tokens)} sequences, but on none of them alone: {error}"
      ) from error
    self.num_calls += len(tokens)
    return self._checked(values, sequences)

  def _one(self, row: np.ndarray, sequence: Any) -> np.ndarray:
    single = row[None] if self.decode is None else [sequence]
    try:
      values = self.fn(single)
    except Exception as error:
      shown = sequence.tolist() if self.decode is None else sequence
      raise RewardError(
        f"the reward raised {type(error).__name__} on {shown!r}: {error}; "
        "answer NaN for invalid sequences.",
        shown,
      ) from error
    self.num_calls += 1
    return self._checked(values, single)[0]

  def _checked(self, values: Any, sequences: Any) -> np.ndarray:
    try:
      values = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
      raise ValueError(
        "the reward must answer one number, or one row of numbers of equal "
        f"lengths, for each sequence: {error}."
      ) from error
    values = _columns(values, len(sequences), self.num_objectives)
    if np.isinf(values).any():
      (bad, *_), _ = np.nonzero(np.isinf(values))
      raise ValueError(
        "the reward must be finite, or NaN for invalid sequences, got "
        f"{values[bad].tolist()} for {sequences[bad]!r}."
      )
    return values


class CallbackReward:
  """A `HostReward` inside jitted functions, through `jax.pure_callback`.

  It may be run more than once, or not at all if nothing uses its answer; it
  must not call JAX, and has no gradient. Under `vmap` the host gets one batch.
  An error in it surfaces as JAX's own, with the reward's in the text.

  Args:
    host: What to call.
  """

  def __init__(self, host: HostReward):
    if not isinstance(host, HostReward):
      raise TypeError(f"host must be a HostReward, got {type(host).__name__}.")
    self.host = host
    self.num_objectives = host.num_objectives

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """`[..., K]` float32 of `[..., L]` tokens."""
    shape = (*jnp.shape(tokens)[:-1], self.num_objectives)
    return jax.pure_callback(
      self.host,
      jax.ShapeDtypeStruct(shape, jnp.float32),
      tokens,
      vmap_method="expand_dims",
    )


Reward = JaxReward | HostReward | CallbackReward


def _columns(values: Any, num: int, num_objectives: int) -> Any:
  """`[n, K]` of `[n]` or `[n, K]`, or a ValueError."""
  if num_objectives == 1 and values.shape == (num,):
    return values[:, None]
  if values.shape != (num, num_objectives):
    single = f"[{num}] or " if num_objectives == 1 else ""
    raise ValueError(
      f"the reward must answer {single}[{num}, {num_objectives}] for {num} "
      f"sequences and num_objectives={num_objectives}, got "
      f"{list(values.shape)}."
    )
  return values
