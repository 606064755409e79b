"""The training state, and the two moves every experiment makes with it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdiff.core import checks
from jdiff.core import ema as ema_lib
from jdiff.core.types import Params


class TrainState(NamedTuple):
  """Everything that a run needs to continue.

  Attributes:
    step: Scalar int32, optimiser steps completed.
    key: The run's PRNG key; it never changes, `step_key` derives from it.
    params: Parameters being optimised, float32.
    ema: Their average, the parameters that are evaluated.
    opt_state: The optimiser's state.
    extra: Any pytree that an experiment carries (replay buffer, stage), or
      None.
    frozen: Any pytree that steps read and never change (a reference's
      parameters), or None. Checkpoints leave it out; see `Experiment.frozen`.
  """

  step: jax.Array
  key: jax.Array
  params: Params
  ema: Params
  opt_state: Any
  extra: Any = None
  frozen: Any = None


def create(
  key: jax.Array,
  params: Params,
  optimizer: optax.GradientTransformation,
  extra: Any = None,
  frozen: Any = None,
) -> TrainState:
  """The state before the first step.

  Args:
    key: PRNG key of the run, kept in the state.
    params: Initial parameters.
    optimizer: An optax transformation.
    extra: What else the experiment carries from step to step.
    frozen: What steps read and never change.
  """
  checks.check_key(key)
  return TrainState(
    jnp.int32(0), key, params, params, optimizer.init(params), extra, frozen
  )


def step_key(state: TrainState) -> jax.Array:
  """The key of this step: a function of the run's key and the step alone."""
  return jax.random.fold_in(state.key, state.step)


def apply_gradients(
  state: TrainState,
  grads: Params,
  optimizer: optax.GradientTransformation,
  *,
  ema_decay: float,
  extra: Any = ...,
) -> TrainState:
  """One optimiser step, with its average and its counter.

  Args:
    state: The state before the step.
    grads: Gradients of the loss, shaped like `state.params`.
    optimizer: The transformation given to `create`.
    ema_decay: Weight of the OLD average, in `[0, 1)`; 0 keeps none.
    extra: The new `extra`; left out, the old one stays.
  """
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  step = state.step + 1
  ema = ema_lib.update(state.ema, params, ema_decay=ema_decay, count=step)
  extra = state.extra if extra is ... else extra
  return state._replace(
    step=step, params=params, ema=ema, opt_state=opt_state, extra=extra
  )
