"""Tasks of the tile world: reach a cell in few steps, walls in the way.

Tasks are drawn from maps alone, before anybody plays. The player sees real
frames and knows where the target lies relative to it, nothing else.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.world import envs, optional, tile_world
from jdiff import world
from jdiff.core import keys as keys_lib
from jdiff.world import plan


class Task(NamedTuple):
  """Where to start, and where to go.

  Attributes:
    state: Of the tile world, the observer at its start.
    target: `[2]` int32.
    distance: Scalar int32, steps of the shortest way.
    detour: Scalar int32, how much longer it is than with no walls.
  """

  state: tile_world.TileState
  target: jax.Array
  distance: jax.Array
  detour: jax.Array


def distances(cells: jax.Array, start: jax.Array, most: int) -> jax.Array:
  """Steps from `start [2]` to each cell `[R, C]`, on a torus; -1 if more."""
  walls = cells == tile_world.WALL
  at = jnp.full(cells.shape, -1, jnp.int32).at[start[0], start[1]].set(0)

  def spread(at, step):
    reached = jnp.zeros(cells.shape, bool)
    for axis, by in ((0, 1), (0, -1), (1, 1), (1, -1)):
      reached |= jnp.roll(at == step, by, axis)
    fresh = reached & (at < 0) & ~walls
    return jnp.where(fresh, step + 1, at), None

  at, _ = jax.lax.scan(spread, at, jnp.arange(most))
  return at


def draw(
  env: envs.Env,
  key: jax.Array,
  num_tasks: int,
  *,
  nearest: int = 3,
  farthest: int = 6,
  detour: int = 0,
) -> Task:
  """Tasks whose shortest way has `nearest` to `farthest` steps, uniformly.

  Args:
    env: The tile world.
    key: PRNG key.
    num_tasks: Tasks `E`.
    nearest: Fewest steps.
    farthest: Most steps.
    detour: Least number of steps that walls add; maps without such a target
      are drawn again.
  """

  def one(key):
    def attempt(carry):
      key, _, _ = carry
      key, key_map, key_target = jax.random.split(key, 3)
      state = env.reset(key_map)
      steps = distances(state.cells, state.pose[:2], farthest)
      rows, cols = state.cells.shape
      place = jnp.stack(
        jnp.meshgrid(jnp.arange(rows), jnp.arange(cols), indexing="ij"), -1
      )
      start = jnp.broadcast_to(state.pose[None, None, :2], place.shape)
      straight = jnp.abs(env.view.nearest(place - start)).sum(-1)
      fits = (steps >= nearest) & (steps - straight >= detour)
      score = jnp.where(fits, jax.random.uniform(key_target, fits.shape), -1.0)
      best = jnp.argmax(score.reshape(-1))
      target = jnp.stack([best // cols, best % cols])
      task = Task(
        state,
        target.astype(jnp.int32),
        steps.reshape(-1)[best],
        (steps - straight).reshape(-1)[best],
      )
      return key, task, fits.any()

    first = attempt((key, None, None))
    _, task, _ = jax.lax.while_loop(lambda c: ~c[2], attempt, first)
    return task

  keys = keys_lib.per_example(key, num_tasks)
  return jax.jit(jax.vmap(one))(keys)


def gap(view: world.View, target: jax.Array, pose: jax.Array) -> jax.Array:
  """Steps to the target with no walls, `[...]` of poses `[..., 3]`."""
  target = jnp.broadcast_to(target, (*pose.shape[:-1], 2))
  return jnp.abs(view.nearest(target - pose[..., :2])).sum(-1)


def random_player(env: envs.Env):
  """Any action."""

  def act(params, key, state, target, pose):
    return jax.random.randint(key, (), 0, env.num_actions)

  return act


def greedy_player(env: envs.Env):
  """Any action that would lessen the distance with no walls."""

  def act(params, key, state, target, pose):
    after = jax.vmap(env.view.move, in_axes=(None, 0))(
      pose, jnp.arange(env.num_actions)
    )
    closer = gap(env.view, target, after) < gap(env.view, target, pose)
    return jax.random.categorical(key, jnp.where(closer, 0.0, -1e9))

  return act


def shooting_player(env: envs.Env, model: world.World, **options):
  """Plans in imagination by `plan.shoot`: early arrival is best, else near."""

  def act(params, key, state, target, pose):
    def worth(frames):
      left = gap(env.view, target, frames.pose)
      time = jnp.arange(left.shape[0])
      arrived = jnp.where(left == 0, 100.0 - time, 0.0).max()
      return arrived - left.min() - 0.01 * left[-1]

    found = plan.shoot(
      model,
      params,
      key,
      state,
      return_fn=worth,
      num_actions=env.num_actions,
      **options,
    )
    return found.actions[0]

  return act


def tree_player(env: envs.Env, model: world.World, *, num_simulations: int):
  """Plans by `mctx`'s Gumbel MuZero over the model's frames."""
  mctx = optional.load("mctx")

  def act(params, key, state, target, pose):
    def value(state):
      return -0.1 * gap(env.view, target, state.pose).astype(jnp.float32)

    def reward(frame):
      return (gap(env.view, target, frame.pose) == 0).astype(jnp.float32)

    states = jax.tree.map(lambda x: x[None], state)
    recurrent = plan.recurrent_fn(
      model,
      states.memory,
      reward_fn=reward,
      value_fn=value,
      num_actions=env.num_actions,
      output=mctx.RecurrentFnOutput,
    )
    root = mctx.RootFnOutput(
      prior_logits=jnp.zeros((1, env.num_actions)),
      value=value(state)[None],
      embedding=plan.without_memory(states),
    )
    found = mctx.gumbel_muzero_policy(
      params, key, root, recurrent, num_simulations, gumbel_scale=0.0
    )
    return found.action[0]

  return act


def play(
  env: envs.Env,
  model: world.World,
  params: Any,
  key: jax.Array,
  tasks: Task,
  act,
  *,
  num_steps: int = 12,
) -> jax.Array:
  """Plays tasks `[E]` in the true world; `[E]` int32 steps taken, -1 if none.

  Every true frame is observed before the next plan.
  """

  def episode(key, task):
    state = model.init(params)
    state = model.observe(
      params, state, env.tokens(task.state), jnp.int32(0), env.pose(task.state)
    )

    def step(carry, t):
      state, real, arrived = carry
      key_act, key_env = jax.random.split(jax.random.fold_in(key, t))
      action = act(params, key_act, state, task.target, env.pose(real))
      real = env.step(key_env, real, action)
      state = model.observe(
        params, state, env.tokens(real), action, env.pose(real)
      )
      here = gap(env.view, task.target, env.pose(real)) == 0
      arrived = jnp.where((arrived < 0) & here, t + 1, arrived)
      return (state, real, arrived), None

    (_, _, arrived), _ = jax.lax.scan(
      step, (state, task.state, jnp.int32(-1)), jnp.arange(num_steps)
    )
    return arrived

  keys = keys_lib.per_example(key, tasks.distance.shape[0])
  return jax.vmap(episode)(keys, tasks)
