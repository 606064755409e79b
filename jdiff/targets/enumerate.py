"""Every configuration of a small discrete system."""

import numpy as np

MAX_STATES = 2**16
"""Up to here enumeration is the oracle of choice: about a second."""


def enumerate_states(length: int, num_tokens: int) -> np.ndarray:
  """`[V ** L, L]` int32: every configuration, the last site fastest."""
  if num_tokens**length > 2**22:
    raise ValueError(
      f"{num_tokens} ** {length} configurations are too many to enumerate."
    )
  index = np.arange(num_tokens**length)
  powers = num_tokens ** np.arange(length)[::-1]
  return (index[:, None] // powers[None] % num_tokens).astype(np.int32)
