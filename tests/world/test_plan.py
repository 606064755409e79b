"""Planning in a world whose answers are known."""

import functools

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest

from jdiff import world
from jdiff.core.frames import KeyValues, WorldNetwork
from jdiff.world import memory as memory_lib
from jdiff.world import plan

VIEW = world.View(1, 1, (0, 0), ((0, 0, 0), (0, -1, 0), (0, 1, 0)))
LAYOUT = world.Layout(1, 2, 3, 3, rewards=(0.0, 1.0))
MEMORY = memory_lib.bank(VIEW, capacity=4, num_frames=1)


def line_world():
  """Actions are moves on a line; one cell, which shows nothing."""

  def keep(params, tokens, *rest):
    shape = (1, *tokens.shape[:-1], 1, 1, 1)
    return KeyValues(jnp.zeros(shape), jnp.zeros(shape))

  def logits(params, blocks, context, sites=None):
    allowed = jnp.asarray(LAYOUT.allowed())
    table = jnp.where(allowed, 0.0, -jnp.inf)
    # No reward, and the world goes on.
    _, _, _, rewards, alive = LAYOUT.starts
    table = table.at[2, rewards].add(50.0).at[3, alive + 1].add(50.0)
    answer = jnp.broadcast_to(table, (*blocks.shape[:2], *table.shape))
    return answer if sites is None else answer[:, :, sites]

  def move(params, tokens, action):
    return 50.0 * jax.nn.one_hot(action, 3)

  network = WorldNetwork(lambda key: {}, keep, keep, logits, move)
  return world.world(
    network, LAYOUT, VIEW, MEMORY, window=2, num_steps=1, temperature=0.0
  )


MODEL = line_world()


def start():
  state = MODEL.init({})
  return MODEL.observe(
    {}, state, jnp.zeros(1, jnp.int32), jnp.int32(0), jnp.zeros(3, jnp.int32)
  )


def reach(target, frames):
  """Minus the least distance to a place on the line."""
  return -jnp.abs(frames.pose[:, 1] - target).min().astype(jnp.float32)


@functools.cache
def shooter(num_samples, num_iterations, horizon=3):
  def run(key, target):
    return plan.shoot(
      MODEL,
      {},
      key,
      start(),
      return_fn=functools.partial(reach, target),
      num_actions=3,
      horizon=horizon,
      num_samples=num_samples,
      num_iterations=num_iterations,
    )

  return jax.jit(jax.vmap(run))


def test_enough_random_shots_find_the_only_way():
  # Three steps one way: 1 of 27 sequences. 512 all miss with 4e-9.
  keys = jax.random.split(jax.random.key(0), 4)
  targets = jnp.array([3, -3, 3, -3])
  found = shooter(512, 1)(keys, targets)
  assert (found.value == 0).all()
  want = jnp.where(targets > 0, 2, 1)
  assert (found.actions == want[:, None]).all()
  assert found.values.shape == (4, 1, 512)
  assert (found.nfe == 512 * 3).all()


def test_a_plan_is_worth_what_it_is_said_to_be():
  found = shooter(8, 2)(jax.random.split(jax.random.key(1), 8), jnp.full(8, 2))
  assert (found.values.max((1, 2)) == found.value).all()
  for i in range(2):
    _, frames = MODEL.imagine({}, jax.random.key(0), start(), found.actions[i])
    assert reach(2, frames) == found.value[i]


def test_elites_find_what_as_many_random_shots_do_not():
  # Six steps one way: 1 of 729 sequences; 96 random ones hit it with .12.
  keys = jax.random.split(jax.random.key(2), 32)
  target = jnp.full(32, 6)
  elites = shooter(24, 4, 6)(keys, target).value == 0
  random = shooter(96, 1, 6)(keys, target).value == 0
  assert elites.mean() > 0.6
  assert random.mean() < 0.4


def test_shots_leave_the_memory_alone():
  state = start()
  _, _ = MODEL.imagine({}, jax.random.key(0), state, jnp.array([1, 2]))
  after, _ = MODEL.imagine(
    {}, jax.random.key(0), state, jnp.array([1, 2]), True
  )
  same = jax.tree.map(jnp.array_equal, after.memory, state.memory)
  assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("target", [2, -2])
def test_a_tree_goes_towards_the_reward(target):
  def value(state):
    return jnp.float32(0)

  def reward(frame):
    return (frame.pose[1] == target).astype(jnp.float32)

  states = jax.tree.map(lambda x: x[None], start())
  recurrent = plan.recurrent_fn(
    MODEL,
    states.memory,
    reward_fn=reward,
    value_fn=value,
    num_actions=3,
    discount=0.9,
    output=mctx.RecurrentFnOutput,
  )
  root = mctx.RootFnOutput(
    prior_logits=jnp.zeros((1, 3)),
    value=jnp.zeros(1),
    embedding=plan.without_memory(states),
  )
  found = jax.jit(
    functools.partial(
      mctx.gumbel_muzero_policy,
      recurrent_fn=recurrent,
      num_simulations=48,
      gumbel_scale=0.0,
    )
  )({}, jax.random.key(0), root)
  assert found.action[0] == (2 if target > 0 else 1)
  # Nodes hold no bank.
  assert found.search_tree.embeddings.memory == ()


def test_an_edge_is_a_step_of_the_world():
  states = jax.tree.map(lambda x: x[None], start())
  recurrent = plan.recurrent_fn(
    MODEL,
    states.memory,
    reward_fn=lambda frame: frame.pose[1].astype(jnp.float32),
    value_fn=lambda state: 2.0 * state.pose[1],
    num_actions=3,
    discount=0.5,
    output=mctx.RecurrentFnOutput,
  )
  found, after = recurrent(
    {}, jax.random.key(0), jnp.array([2]), plan.without_memory(states)
  )
  assert (found.reward[0], found.value[0], found.discount[0]) == (1, 2, 0.5)
  np.testing.assert_array_equal(after.pose[0], [0, 1, 0])


@pytest.mark.parametrize(
  "options, message",
  [
    ({"horizon": 0}, "horizon must be >= 1"),
    ({"num_samples": 0}, "num_samples must be >= 1"),
    ({"num_elites": 9}, "num_elites must be at most num_samples=8, got 9"),
    ({"smoothing": 1.5}, r"smoothing must lie in \[0, 1\], got 1.5"),
  ],
)
def test_bad_options_are_refused(options, message):
  sizes = dict(num_actions=3, horizon=2, num_samples=8) | options
  with pytest.raises(ValueError, match=message):
    plan.shoot(
      MODEL,
      {},
      jax.random.key(0),
      start(),
      return_fn=functools.partial(reach, 1),
      **sizes,
    )


def test_a_discount_out_of_range_is_refused():
  with pytest.raises(ValueError, match=r"discount must lie in \(0, 1\]"):
    plan.recurrent_fn(
      MODEL,
      None,
      reward_fn=None,
      value_fn=None,
      num_actions=3,
      discount=0.0,
      output=mctx.RecurrentFnOutput,
    )
