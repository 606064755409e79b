"""SIGTERM and SIGINT as a flag: finish the step, save, leave."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


class Interrupted(BaseException):
  """A signal came while nothing but a repeatable computation ran."""


class Stop:
  """Watches for signals; a context manager, inert outside the main thread.

  A second signal acts as if nobody had watched.
  """

  def __init__(self):
    self.signal: int | None = None
    self._raise = False
    self._old: dict[int, Any] = {}

  def __enter__(self) -> "Stop":
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._old[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *unused) -> None:
    for number, handler in self._old.items():
      signal.signal(number, handler)
    self._old.clear()

  def _handle(self, number, frame) -> None:
    del frame
    self.signal = number
    self.__exit__()
    if self._raise:
      raise Interrupted

  def requested(self, at_log_step: bool) -> bool:
    """Whether to stop; processes agree on it, at log steps alone."""
    if jax.process_count() == 1:
      return self.signal is not None
    if not at_log_step:
      return False
    # Heavy and needed by pods alone.
    from jax.experimental import multihost_utils

    flags = multihost_utils.process_allgather(np.int32(self.signal or 0))
    self.signal = int(np.max(flags)) or None
    return self.signal is not None

  @contextlib.contextmanager
  def interruptible(self) -> Iterator[None]:
    """Lets a signal end the block at once, by raising `Interrupted`.

    Evaluation can take longer than the grace that a pre-empted machine has.
    """
    if jax.process_count() > 1:
      yield
      return
    self._raise = True
    try:
      if self.signal is not None:
        raise Interrupted
      yield
    finally:
      self._raise = False

  def exit(self, step: int) -> SystemExit:
    """The exception to raise once the state is saved."""
    number = signal.Signals(self.signal or signal.SIGTERM)
    if not jax.process_index():
      print(
        f"{number.name}: saved after step {step}; run the same command again "
        "to resume.",
        file=sys.stderr,
        flush=True,
      )
    return SystemExit(128 + number)
