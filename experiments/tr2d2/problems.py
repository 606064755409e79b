"""What is fine-tuned, and what it is worth: a base policy and a reward."""

import pkgutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import generated
from experiments.masked_lm import base, corpora
from experiments.masked_lm import experiment as base_lib
from experiments.tr2d2 import parts
from jdiff import elbo, nets, training
from jdiff.core import reward as reward_lib
from jdiff.targets import enumerate as enumerate_lib

Measures = Callable[..., dict[str, Any]]
"""`(params, samples [N, L], rewards [N, K]) -> metrics`."""


class Problem(NamedTuple):
  """A base policy, a reward, and what is known of both.

  Attributes:
    length: Sites `L`.
    num_tokens: Tokens `V`; the mask is `V`.
    network: The policy, `apply` a `LogitsFn`.
    frozen: Parameters of the reference, where tuning starts.
    reward: A carrier of `core.reward`.
    names: Of its objectives.
    decode: `[N, L] -> list[str]`.
    measures: More to say of a policy's samples.
    exact: Exact means of the objectives under the law aimed at, by name, where
      known.
    letters: Those of a logo, a token each, or empty where none is drawn.
    reference: What each objective is worth at least, for hypervolumes; empty
      is the least that draws of the base are worth.
  """

  length: int
  num_tokens: int
  network: nets.Network
  frozen: training.Frozen
  reward: reward_lib.Reward
  names: tuple[str, ...]
  decode: Callable[[np.ndarray], Sequence[str]]
  measures: Measures = lambda params, samples, rewards: {}
  exact: dict[str, float] = {}
  letters: str = ""
  reference: tuple[float, ...] = ()

  def base_params(self) -> Any:
    """The reference's parameters, on the mesh in use."""
    return base.everywhere(self.frozen)


def make(config, reward: Any = None, base_params: Any = None) -> Problem:
  """The problem that `config.problem` names, or one with the given reward.

  Args:
    config: A config of this folder.
    reward: A function of decoded sequences, or a carrier; None takes the
      config's.
    base_params: Parameters of the base, or a function that makes them; None
      loads or trains those that `config.base` describes.
  """
  kind = config.problem.kind
  if kind in TABLES:
    if reward is not None or config.problem.function:
      raise ValueError(
        f"problem {kind!r} has a reward of its own; pass problem= instead."
      )
    problem = _table(config, *TABLES[kind]())
    if base_params is None:
      return problem
    return problem._replace(frozen=base.given(base_params))
  # Readers and oracles need the packages of an extra.
  from experiments.tr2d2 import designs

  if reward is None and config.problem.function:
    reward = imported(config.problem.function)
  return designs.make(config, reward, base_params)


def imported(name: str) -> Callable:
  """The function that `"module:function"` names."""
  try:
    function = pkgutil.resolve_name(name)
    if not callable(function):
      raise ValueError(f"{type(function).__name__} is no function")
    return function
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(
      "config.problem.function must be 'module:function' of a module on "
      f"Python's path, got {name!r}: {error}."
    ) from error


def from_corpus(
  config,
  corpus: corpora.Corpus,
  reward: reward_lib.Reward,
  base_params: Any = None,
  **more: Any,
) -> Problem:
  """A problem whose base is given, or trained or loaded by `config.base`."""
  network = base_lib.make_network(config.base, corpus)
  return Problem(
    length=corpus.length,
    num_tokens=corpus.num_tokens,
    network=network,
    frozen=base.frozen(config, corpus, network, base_params),
    reward=reward,
    decode=lambda tokens: [corpus.decode(row) for row in tokens],
    **more,
  )


def tilted(log_prob, rewards, config) -> generated.Tilted:
  """The law aimed at, of all outcomes `[N]` and their rewards `[N]`."""
  return generated.tilted(
    log_prob, rewards, reward_temperature=config.reward_temperature
  )


def _pairs():
  """Uniform on 4^6; the share of three pairs that hold their letters."""
  length, num_tokens = 6, 4
  wanted = jnp.asarray([2, 0, 3, 1, 1, 2])

  def reward(tokens):
    right = tokens == wanted[None]
    return jnp.mean(right[:, 0::2] & right[:, 1::2], axis=1)

  return np.zeros((num_tokens,) * length), reward


def _markov():
  """A Markov chain on 4^6; a reward of letters and of neighbours."""
  length, num_tokens = 6, 4
  rng = np.random.default_rng(0)
  first, step = rng.normal(size=num_tokens), rng.normal(size=(num_tokens,) * 2)
  first -= np.logaddexp.reduce(first)
  step -= np.logaddexp.reduce(step, axis=1, keepdims=True)
  table = first.reshape(-1, *(1,) * (length - 1))
  for i in range(length - 1):
    shape = [1] * length
    shape[i] = shape[i + 1] = num_tokens
    table = table + step.reshape(shape)
  letters = jnp.asarray(rng.normal(size=(length, num_tokens)), jnp.float32)

  def reward(tokens):
    own = letters[np.arange(length)[None], tokens].sum(axis=1)
    equal = jnp.sum(tokens[:, 1:] == tokens[:, :-1], axis=1)
    return 0.47 * own + 0.32 * equal

  return table, reward


TABLES = {"pairs": _pairs, "markov": _markov}
"""Problems whose base is a table; all of their laws are sums over it."""


def _table(config, log_pmf: np.ndarray, reward: Callable) -> Problem:
  length, num_tokens = log_pmf.ndim, log_pmf.shape[0]
  denoiser = enumerate_lib.denoiser(log_pmf)
  states = jnp.asarray(enumerate_lib.enumerate_states(length, num_tokens))
  # On top of the base's conditionals, and zero at the start.
  network = nets.mlp(length, num_tokens, hidden=(128, 128))

  def apply(params, tokens, t, sites=None):
    return denoiser(None, tokens, t, sites) + network.apply(
      params, tokens, t, sites
    )

  rewards = np.asarray(reward(states), np.float64)
  scalarised = parts.scalarise(config, ("reward",))(
    jnp.asarray(rewards, jnp.float32)[:, None]
  )
  target = tilted(log_pmf.ravel(), scalarised, config)
  exact = float(np.exp(target.log_prob) @ rewards)

  @jax.jit
  def log_prob(params):
    return elbo.exact_log_prob(
      params, states, logits_fn=apply, mask_id=num_tokens
    )

  def measures(params, samples, rewards_of_samples):
    model = np.asarray(log_prob(params), np.float64)
    p, q = np.exp(target.log_prob), np.exp(model)
    return {
      "kl_target": {"value": float(p @ (target.log_prob - model)), "exact": 0},
      "kl_policy": {"value": float(q @ (model - target.log_prob)), "exact": 0},
      "reward_exact": {"value": float(q @ rewards), "exact": exact},
    }

  return Problem(
    length=length,
    num_tokens=num_tokens,
    network=nets.Network(network.init, apply),
    frozen=base.given(jax.jit(network.init)(jax.random.key(config.seed))),
    reward=reward_lib.JaxReward(reward),
    names=("reward",),
    decode=lambda tokens: ["".join(map(str, row)) for row in tokens],
    measures=measures,
    exact={"reward": exact},
  )


def total_variation(
  samples: np.ndarray, values: np.ndarray, probs: np.ndarray
) -> dict[str, float]:
  """TV of the histogram of `samples [N]` to a law on `values`.

  Returns:
    `tv`, and `tv_noise`, what as many draws of the law would have on average.
  """
  levels = np.union1d(values, samples)
  p = np.array([probs[values == v].sum() for v in levels])
  q = np.array([(samples == v).mean() for v in levels])
  deviation = np.sqrt(p * (1 - p) / max(len(samples), 1))
  noise = np.sqrt(2 / np.pi) * deviation.sum() / 2
  return {"tv": float(np.abs(p - q).sum() / 2), "tv_noise": float(noise)}
