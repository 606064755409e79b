"""Actions for recorded clips that have none, and how well they are told."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.world import envs
from jdiff import nets
from jdiff.methods import latent_action
from jdiff.world.layout import Clip

BATCH_SIZE = 256
CHUNK = 1024


def fit(
  env: envs.Env,
  clip: Clip,
  key: jax.Array,
  *,
  num_codes: int,
  num_steps: int = 200,
) -> tuple[Any, Any]:
  """Fits codes to the transitions of clips `[E, T]`: `(params, network)`."""
  network = nets.shifts(env.view.shape, env.num_tokens, num_codes)
  before, after = _transitions(clip)
  optimizer = optax.adam(optax.cosine_decay_schedule(0.1, num_steps, 0.05))
  loss = functools.partial(latent_action.loss, transition_fn=network.apply)

  @jax.jit
  def train(key, before, after):
    params = network.init(jax.random.fold_in(key, 0))

    def step(carry, i):
      params, opt_state = carry
      rows = jax.random.randint(
        jax.random.fold_in(key, i + 1), (BATCH_SIZE,), 0, len(before)
      )
      grads = jax.grad(lambda p: loss(p, before[rows], after[rows]).mean())(
        params
      )
      updates, opt_state = optimizer.update(grads, opt_state)
      return (optax.apply_updates(params, updates), opt_state), None

    carry = (params, optimizer.init(params))
    (params, _), _ = jax.lax.scan(step, carry, jnp.arange(num_steps))
    return params

  return train(key, jnp.asarray(before), jnp.asarray(after)), network


def label(params: Any, network: Any, clip: Clip) -> Clip:
  """The clips with codes for actions; the first frame's stays 0."""
  before, after = _transitions(clip)
  codes = jax.jit(
    lambda x, y: jnp.argmax(
      latent_action.posterior(
        params, x, y, transition_fn=network.apply
      ).log_code,
      axis=1,
    )
  )
  found = [
    np.asarray(codes(before[i : i + CHUNK], after[i : i + CHUNK]))
    for i in range(0, len(before), CHUNK)
  ]
  shape = (clip.action.shape[0], clip.action.shape[1] - 1)
  action = np.array(clip.action)
  action[:, 0] = 0
  action[:, 1:] = np.concatenate(found).reshape(shape)
  return clip._replace(action=action.astype(np.int32))


def relabelled(
  env: envs.Env, clip: Clip, key: jax.Array, *, num_codes: int
) -> tuple[envs.Env, Callable[[Clip], Clip]]:
  """The environment with codes for actions, and what labels its clips."""
  params, network = fit(env, clip, key, num_codes=num_codes)
  coded = label(params, network, clip).action[:, 1:]
  return (
    env._replace(
      num_actions=num_codes,
      action_names=tuple(f"code {i}" for i in range(num_codes)),
      opposite=opposites(coded, clip.move[:, 1:], env, num_codes),
    ),
    lambda clip: label(params, network, clip),
  )


def purity(codes: np.ndarray, labels: np.ndarray) -> float:
  """Share of transitions whose code's commonest label is theirs."""
  codes, labels = np.ravel(codes), np.ravel(labels)
  right = 0
  for code in np.unique(codes):
    right += np.bincount(labels[codes == code]).max()
  return right / len(codes)


def opposites(
  codes: np.ndarray, moves: np.ndarray, env: envs.Env, num_codes: int
) -> tuple[int, ...]:
  """For each code the one that mostly undoes its move; itself if none does."""
  commonest = [
    int(np.bincount(moves[codes == c]).argmax()) if (codes == c).any() else 0
    for c in range(num_codes)
  ]
  steps = [env.view.moves[m] for m in commonest]
  back = [tuple(-x for x in step) for step in steps]
  return tuple(
    steps.index(b) if b in steps and b != s else c
    for c, (s, b) in enumerate(zip(steps, back, strict=True))
  )


def _transitions(clip):
  cells = clip.tokens.shape[-1]
  before = np.asarray(clip.tokens)[:, :-1].reshape(-1, cells)
  after = np.asarray(clip.tokens)[:, 1:].reshape(-1, cells)
  return before, after
