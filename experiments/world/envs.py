"""Environments behind one record, and clips recorded from them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.core import keys as keys_lib
from jdiff.world.geometry import View
from jdiff.world.layout import Clip, Layout


class Env(NamedTuple):
  """A world seen through a window of tokens.

  Attributes:
    name: Of the world, in titles.
    view: What its observer sees.
    num_tokens: Kinds of cells `V`.
    num_actions: Actions `A`.
    action_names: Of each action.
    opposite: For each action the one that a controllability test swaps it
      with; itself where there is none.
    reset: `(key) -> state`.
    step: `(key, state, action) -> state`; after the end it may do anything.
    tokens: `(state) -> [N]` int32.
    pose: `(state) -> [3]` int32.
    reward: `(state) -> float32` of the step that led to the state.
    done: `(state) -> bool`: whether the episode is over.
    policy: `(key, state, last_action) -> action`: what clips are recorded with.
    palette: `[V, 3]` uint8 colours of the kinds of cells.
    rewards: Classes of reward that a model may answer; empty for none.
    pixels: `(state) -> [H, W, 3]` float32 in `[0, 1]`, or None.
  """

  name: str
  view: View
  num_tokens: int
  num_actions: int
  action_names: tuple[str, ...]
  opposite: tuple[int, ...]
  reset: Callable[..., Any]
  step: Callable[..., Any]
  tokens: Callable[..., jax.Array]
  pose: Callable[..., jax.Array]
  reward: Callable[..., jax.Array]
  done: Callable[..., jax.Array]
  policy: Callable[..., jax.Array]
  palette: np.ndarray
  rewards: tuple[float, ...] = ()
  pixels: Callable[..., jax.Array] | None = None


def record(
  env: Env,
  key: jax.Array,
  num_episodes: int,
  num_frames: int,
  *,
  observe: Callable[..., Any] | None = None,
) -> Clip | tuple[Clip, Any]:
  """Episodes of the env's own policy, `[E, T]`.

  Frames after an episode's end repeat its last one, with `alive` 0 from the
  frame on that ended it: `whole` tells which clips to keep.

  Args:
    env: The environment.
    key: PRNG key; episode `i` depends on it and `i` alone.
    num_episodes: Episodes `E`.
    num_frames: Frames `T` of each.
    observe: `(state) -> pytree`, gathered beside the clip: pixels, say.

  Returns:
    A `Clip`, and what `observe` saw of each frame if it is given.
  """
  checks.check_int("num_episodes", num_episodes)
  checks.check_int("num_frames", num_frames)

  def frame(state, before, action, alive):
    move = env.view.move_between(env.pose(before), env.pose(state))
    reward = env.reward(state)
    clip = (
      env.tokens(state).astype(jnp.int32),
      action,
      jnp.maximum(move, 0),
      env.pose(state).astype(jnp.int32),
      reward,
      alive,
    )
    return clip, (None if observe is None else observe(state))

  def episode(key):
    key_reset, key_steps = jax.random.split(key)
    state = env.reset(key_reset)
    first = frame(state, state, jnp.int32(0), jnp.int32(1))

    def step(carry, t):
      state, action, alive = carry
      key_policy, key_step = jax.random.split(jax.random.fold_in(key_steps, t))
      action = env.policy(key_policy, state, action).astype(jnp.int32)
      moved = env.step(key_step, state, action)
      going = alive == 1
      after = jax.tree.map(
        lambda new, old: jnp.where(_like(going, new), new, old),
        moved,
        state,
      )
      alive = jnp.where(going & ~env.done(moved), 1, 0).astype(jnp.int32)
      return (after, action, alive), frame(after, state, action, alive)

    _, rest = jax.lax.scan(
      step, (state, jnp.int32(0), jnp.int32(1)), jnp.arange(num_frames - 1)
    )
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)

  keys = keys_lib.per_example(key, num_episodes)
  (tokens, action, move, pose, reward, alive), seen = jax.jit(
    jax.vmap(episode)
  )(keys)
  # An ended episode's last reward is not given again.
  before = jnp.concatenate([jnp.ones_like(alive[:, :1]), alive[:, :-1]], axis=1)
  reward = jnp.where(before == 1, reward, 0.0)
  classes = layout(env).reward_class(reward)
  clip = Clip(tokens, action, move, pose, classes, alive)
  return clip if observe is None else (clip, seen)


def layout(env: Env) -> Layout:
  """Sizes of the blocks of an environment's frames."""
  return Layout(
    env.view.num_cells,
    env.num_tokens,
    env.num_actions,
    env.view.num_moves,
    tuple(env.rewards),
  )


def whole(clip: Any) -> Any:
  """Of what `record` answers the episodes `[E']` that did not end.

  Raises:
    ValueError: If all of them ended.
  """
  clip = jax.tree.map(np.asarray, clip)
  alive = (clip if isinstance(clip, Clip) else clip[0]).alive
  kept = alive.all(axis=1)
  if not kept.any():
    raise ValueError(
      f"all {len(kept)} episodes ended within {alive.shape[1]} frames; pass "
      "fewer frames or another policy."
    )
  return jax.tree.map(lambda x: x[kept], clip)


def render(
  palette: np.ndarray, shape: tuple[int, int], tokens: Any, scale: int = 8
) -> np.ndarray:
  """Frames `[..., N]` as pictures `[..., rows * scale, cols * scale, 3]`."""
  tokens = np.asarray(tokens)
  image = np.asarray(palette)[tokens.reshape(*tokens.shape[:-1], *shape)]
  return image.repeat(scale, axis=-3).repeat(scale, axis=-2)


def sticky(
  key: jax.Array, last: jax.Array, num_actions: int, repeat: float = 0.8
) -> jax.Array:
  """The last action again, or a new one, uniform over `[0, num_actions)`."""
  key_repeat, key_new = jax.random.split(key)
  new = jax.random.randint(key_new, (), 0, num_actions)
  return jnp.where(jax.random.uniform(key_repeat) < repeat, last, new)


def _like(flag, x):
  return flag.reshape((1,) * jnp.ndim(x)) if jnp.ndim(x) else flag
