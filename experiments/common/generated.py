"""What a generated task is, and how its rows are drawn; see `tasks`.

NumPy on the host. What is drawn is a pure function of seed, step and row: a
larger batch starts with the rows of a smaller one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jdiff.core import checks

Seed = int | Sequence[int]
"""One integer or several, such as `(seed, step)`; none negative."""


class Task(NamedTuple):
  """Prompts, completions of fixed length, and what they are worth.

  A canvas is a prompt `[P]` and then a completion `[L]`, int32 in
  `[0, len(vocab))`; a token outside, such as a mask, is never right.

  Attributes:
    name: As given to `load`.
    num_prompt: P; 0 where nothing is asked.
    num_completion: L.
    vocab: Names of the tokens, for printing.
    prompts: `(seed, num) -> [num, P]`, those that the policy is trained on.
    pretraining: `(seed, step, batch) -> [batch, P + L]`: what the base policy
      is fitted to, right but unsure. Its prompts may be easier.
    reward: `(tokens [B, P + L]) -> [B]` float32.
    exact: `(tokens [B, P + L]) -> [B]` bool, whether all is right.
    log_prob: `(tokens [B, P + L]) -> [B]` float64 nats, of the completion given
      the prompt under the law of `pretraining`.
    completions: `(prompt [P]) -> [N, L]`, all that matter, each once; each task
      says which those are.
    all_prompts: `[N, P]`, or None where they are too many.
    binary: Whether the reward is 1 where all is right and 0 elsewhere.
  """

  name: str
  num_prompt: int
  num_completion: int
  vocab: tuple[str, ...]
  prompts: Callable[[Seed, int], np.ndarray]
  pretraining: Callable[[int, int, int], np.ndarray]
  reward: Callable[[np.ndarray], np.ndarray]
  exact: Callable[[np.ndarray], np.ndarray]
  log_prob: Callable[[np.ndarray], np.ndarray]
  completions: Callable[[np.ndarray], np.ndarray]
  all_prompts: np.ndarray | None = None
  binary: bool = False

  @property
  def length(self) -> int:
    """Tokens on the canvas, P + L."""
    return self.num_prompt + self.num_completion

  @property
  def mask_id(self) -> int:
    """First id past the vocabulary."""
    return len(self.vocab)

  def canvases(self, prompt: np.ndarray) -> np.ndarray:
    """`[N, P + L]`: the prompt before each of its `completions`."""
    prompt = np.asarray(prompt, np.int32)
    return join(prompt[None], self.completions(prompt))

  def decode(self, tokens: np.ndarray) -> str:
    """One canvas `[P + L]` as text, `_` at masks, a bar after the prompt."""
    names = [*self.vocab, "_"]
    text = [names[int(i)] for i in tokens]
    parts = (text[: self.num_prompt], text[self.num_prompt :])
    return " | ".join("".join(part) for part in parts if part)


class Tilted(NamedTuple):
  """The law proportional to `p exp(reward / reward_temperature)`.

  Attributes:
    log_prob: `[N]` float64, normalised.
    reward: Its expected reward.
    kl: KL from the law that was tilted, in nats.
  """

  log_prob: np.ndarray
  reward: float
  kl: float


def tilted(
  log_prob: np.ndarray, reward: np.ndarray, *, reward_temperature: float
) -> Tilted:
  """Optimum of `E[reward] - reward_temperature * KL`, by enumeration.

  Args:
    log_prob: `[N]` nats, of all outcomes; normalised here.
    reward: `[N]`.
    reward_temperature: Positive.
  """
  checks.check_finite("reward_temperature", reward_temperature, positive=True)
  base = np.asarray(log_prob, np.float64)
  base = base - np.logaddexp.reduce(base)
  tilt = base + np.asarray(reward, np.float64) / reward_temperature
  tilt = tilt - np.logaddexp.reduce(tilt)
  prob = np.exp(tilt)
  # Impossible outcomes stay so, and 0 log 0 is 0.
  kl = np.sum(prob * np.where(prob > 0, tilt - np.where(prob > 0, base, 0), 0))
  return Tilted(tilt, float(prob @ np.asarray(reward, np.float64)), float(kl))


PROMPTS, PRETRAINING = 0, 1
"""Streams of `uniform`."""


def make(name, num_prompt, num_completion, vocab, **parts) -> Task:
  """A `Task` whose functions check and return what its docstring says."""
  length = num_prompt + num_completion

  def on_tokens(function, dtype):
    def checked(tokens):
      tokens = np.asarray(tokens)
      if tokens.dtype.kind not in "iu":
        raise TypeError(f"tokens must be integers, got dtype {tokens.dtype}.")
      checks.check_shape("tokens", tokens, (None, length))
      return np.asarray(function(tokens.astype(np.int64)), dtype)

    return checked

  def as_tokens(function):
    return lambda *args: np.asarray(function(*args), np.int32)

  def completions(prompt):
    checks.check_shape("prompt", prompt, (num_prompt,))
    return np.array(parts["completions"](np.asarray(prompt)), np.int32)

  everything = parts.get("all_prompts")
  return Task(
    name,
    num_prompt,
    num_completion,
    vocab,
    prompts=as_tokens(parts["prompts"]),
    pretraining=as_tokens(parts["pretraining"]),
    reward=on_tokens(parts["reward"], np.float32),
    exact=on_tokens(parts["exact"], bool),
    log_prob=on_tokens(parts["log_prob"], np.float64),
    completions=completions,
    all_prompts=None if everything is None else everything.astype(np.int32),
    binary=parts["reward"] is parts["exact"],
  )


def check_share(name: str, value: float) -> None:
  """Raises unless `value` lies in [0, 1)."""
  if not 0 <= value < 1:
    raise ValueError(f"{name} must lie in [0, 1), got {value}.")


def uniform(seed: Seed, stream: int, rows: int, columns: int) -> np.ndarray:
  """`[rows, columns]` in [0, 1); row i depends on seed, stream and i alone."""
  entropy = [seed] if np.ndim(seed) == 0 else list(seed)
  for value in entropy:
    checks.check_int("seed and step", value, 0)
  checks.check_int("the number of rows", rows, 0)
  # Trailing zeros would not change the stream, so their number goes in too.
  rng = np.random.default_rng([stream, len(entropy), *entropy])
  return rng.random((rows, columns))


def pick(uniform: np.ndarray, size: int) -> np.ndarray:
  """Integers in `[0, size)`, shaped like `uniform`."""
  return (uniform * size).astype(np.int64)


def pick_where(uniform: np.ndarray, allowed: np.ndarray) -> np.ndarray:
  """One allowed column per row, evenly: `[B]` from `[B]` and `[B, N]`."""
  rank = np.floor(uniform * allowed.sum(1))
  return np.argmax(np.cumsum(allowed, 1) > rank[:, None], 1)


def join(prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
  """Canvases `[B, P + L]`; a single prompt `[1, P]` goes before them all."""
  prompts = np.broadcast_to(prompts, (len(completions), prompts.shape[-1]))
  return np.concatenate([prompts, completions], 1)


def noisy(right, uniform, noise, symbols):
  """Replaces each token with probability `noise` by any symbol."""
  size = right.shape[1]
  other = symbols[pick(uniform[:, size:], len(symbols))]
  return np.where(uniform[:, :size] < noise, other, right)


def noisy_log_prob(completion, right, noise, symbols):
  """`[B]` nats, of what `noisy` returns."""
  prob = noise / len(symbols) * np.isin(completion, symbols)
  return log(prob + (1 - noise) * (completion == right)).sum(1)


def log(prob: np.ndarray) -> np.ndarray:
  """Logarithm with `-inf` at 0, and no warning."""
  with np.errstate(divide="ignore"):
    return np.log(prob)
