"""Planning inside a world model: shooting, the cross-entropy method, trees.

Branches share one memory, read and not written.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdiff.core import checks
from jdiff.core import keys as keys_lib
from jdiff.core.types import Params
from jdiff.world.rollout import World, WorldState

ReturnFn = Callable[..., jax.Array]
"""What a path in imagination is worth, `(frames [T]) -> scalar`."""


class Plan(NamedTuple):
  """The best sequence of actions that was tried.

  Attributes:
    actions: `[T]` int32.
    value: Scalar, its return.
    values: `[I, S]` returns of all that were tried, by iteration.
    nfe: Frames imagined.
  """

  actions: jax.Array
  value: jax.Array
  values: jax.Array
  nfe: jax.Array


def shoot(
  model: World,
  params: Params,
  key: jax.Array,
  state: WorldState,
  *,
  return_fn: ReturnFn,
  num_actions: int,
  horizon: int,
  num_samples: int,
  num_iterations: int = 1,
  num_elites: int | None = None,
  smoothing: float = 0.1,
) -> Plan:
  """Tries sequences of actions; with iterations, draws them near the best.

  One iteration is random shooting. More are the cross-entropy method: each
  draws its sequences from the shares of actions, by time, among the elites of
  the one before.

  Args:
    model: The world.
    params: Its network's.
    key: PRNG key; consumed. Sequences share the noise of the world.
    state: Where to plan from.
    return_fn: What a path is worth; the higher the better.
    num_actions: Actions `A`.
    horizon: Actions `T` of a sequence.
    num_samples: Sequences `S` an iteration.
    num_iterations: Iterations `I`.
    num_elites: Sequences that the next iteration is drawn from; a quarter by
      default.
    smoothing: Share of uniform actions mixed in, in `[0, 1]`.

  Returns:
    A `Plan`; take its first action and plan again.

  Raises:
    ValueError: If a size or share is out of range.
  """
  for name, value in dict(
    num_actions=num_actions,
    horizon=horizon,
    num_samples=num_samples,
    num_iterations=num_iterations,
  ).items():
    checks.check_int(name, value)
  if num_elites is None:
    num_elites = max(1, num_samples // 4)
  if not 1 <= checks.check_int("num_elites", num_elites) <= num_samples:
    raise ValueError(
      f"num_elites must be at most num_samples={num_samples}, got {num_elites}."
    )
  checks.check_range("smoothing", smoothing, 0, 1)
  key_actions, key_world = jax.random.split(key)

  def worth(actions):
    _, frames = model.imagine(params, key_world, state, actions, True)
    return return_fn(frames)

  def iterate(shares, index):
    logits = jnp.broadcast_to(
      jnp.log(shares)[None], (num_samples, horizon, num_actions)
    )
    actions = jax.random.categorical(
      jax.random.fold_in(key_actions, index), logits
    ).astype(jnp.int32)
    values = jax.vmap(worth)(actions)
    _, best = jax.lax.top_k(values, num_elites)
    among = jax.nn.one_hot(actions[best], num_actions).mean(0)
    shares = (1 - smoothing) * among + smoothing / num_actions
    return shares, (actions, values)

  uniform = jnp.full((horizon, num_actions), 1 / num_actions)
  _, (actions, values) = jax.lax.scan(
    iterate, uniform, jnp.arange(num_iterations)
  )
  flat = values.reshape(-1)
  best = jnp.argmax(flat)
  return Plan(
    actions=actions.reshape(-1, horizon)[best],
    value=flat[best],
    values=values,
    nfe=jnp.int32(num_iterations * num_samples * horizon),
  )


def recurrent_fn(
  model: World,
  memory: Any,
  *,
  reward_fn: Callable[..., jax.Array],
  value_fn: Callable[..., jax.Array],
  num_actions: int,
  discount: float = 0.97,
  output: Callable[..., Any],
) -> Callable[..., tuple[Any, Any]]:
  """The model as `mctx` calls it, one next frame an edge.

  Args:
    model: The world.
    memory: The memory's states `[B, ...]`, shared by all nodes: what a tree
      embeds are `without_memory(states)`.
    reward_fn: `(Frame) -> scalar` of one transition.
    value_fn: `(WorldState) -> scalar`, a heuristic of what follows.
    num_actions: Actions `A`; the prior over them is uniform.
    discount: Of a step; 0 where the imagined world ends.
    output: `mctx.RecurrentFnOutput`, or what takes its fields.

  Returns:
    `(params, key, action [B], states) -> (output, states)`.
  """
  checks.check_range("discount", discount, 0, 1, ends="(]")
  checks.check_int("num_actions", num_actions)

  def step(params, key, action, state, memory):
    state = state._replace(memory=memory)
    state, frame = model.step(params, key, state, action, True)
    return (
      state._replace(memory=()),
      reward_fn(frame),
      value_fn(state),
      discount * frame.alive.astype(jnp.float32),
    )

  def recurrent(params, key, action, states):
    num = action.shape[0]
    keys = keys_lib.per_example(key, num)
    states, reward, value, going = jax.vmap(step, in_axes=(None, 0, 0, 0, 0))(
      params, keys, action, states, memory
    )
    found = output(
      reward=reward,
      discount=going,
      prior_logits=jnp.zeros((num, num_actions)),
      value=value,
    )
    return found, states

  return recurrent


def without_memory(states: WorldState) -> WorldState:
  """States for a tree to embed: a bank in every node would fill it."""
  return states._replace(memory=())
