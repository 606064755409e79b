"""An experiment compiled for a mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jdiff.core import checks
from jdiff.training import sharding
from jdiff.training.experiment import Experiment
from jdiff.training.state import TrainState

RESERVED = ("step", "wall_seconds")
"""Names that every record has already."""


class Program(NamedTuple):
  """Jitted functions with their shardings; call them under `mesh`.

  Attributes:
    mesh: Where everything lives.
    abstract: Shapes and dtypes of the state.
    shardings: Its shardings.
    init: `init(key) -> state`, with what is frozen.
    frozen: `frozen() -> arrays`, loaded anew: what a restored state lacks.
    collect: `collect(state, ...) -> (state, rollout)`, donating, or None.
    step: `step(state, batch) -> (state, metrics)`, donating the state.
    all_finite: `all_finite(state) -> bool`: parameters and their average.
  """

  mesh: Mesh
  abstract: TrainState
  shardings: TrainState
  init: Callable[..., TrainState]
  frozen: Callable[[], Any]
  collect: Callable[..., tuple[TrainState, Any]] | None
  step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
  all_finite: Callable[..., jax.Array]


def compile_experiment(experiment: Experiment, mesh: Mesh) -> Program:
  """Prepares an experiment for a mesh; compilation happens at first use.

  Raises:
    ValueError: If `host` is given without `collect`.
    TypeError: If `init` does not return a `TrainState`; later, while tracing,
      if `step` changes the shapes of the state or reports metrics that are
      not scalars.
  """
  if experiment.host is not None and experiment.collect is None:
    raise ValueError("an experiment with host must have collect too.")

  held = experiment.frozen

  def init(key, *frozen):
    state = experiment.init(key, *frozen)
    if not isinstance(state, TrainState):
      raise TypeError(
        f"init must return a TrainState, got {type(state).__name__}."
      )
    return _strong(state._replace(frozen=None))

  args = () if held is None else (held.abstract,)
  with jax.set_mesh(mesh):
    abstract = jax.eval_shape(init, jax.eval_shape(jax.random.key, 0), *args)
  abstract = abstract._replace(frozen=args[0] if args else None)
  shardings = sharding.state_shardings(abstract, mesh, axes=experiment.axes)
  start = jax.jit(init, out_shardings=shardings._replace(frozen=None))

  def frozen():
    return None if held is None else held.load(shardings.frozen)

  def begin(key):
    arrays = frozen()
    state = start(key, *(() if held is None else (arrays,)))
    # Outside, or the program would copy it.
    return state._replace(frozen=arrays)

  everywhere = NamedSharding(mesh, PartitionSpec())

  def step(state, batch):
    state, metrics = experiment.step(state, batch)
    state = _strong(state)
    _check_state("step", state, abstract)
    _check_metrics(metrics)
    return state, metrics

  def collect(state, *batch):
    assert experiment.collect is not None
    state, rollout = experiment.collect(state, *batch)
    state = _strong(state)
    _check_state("collect", state, abstract)
    return state, rollout

  def all_finite(state):
    leaves = jax.tree.leaves((state.params, state.ema))
    floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in floats]))

  return Program(
    mesh,
    abstract,
    shardings,
    begin,
    frozen,
    None
    if experiment.collect is None
    else jax.jit(collect, out_shardings=(shardings, None), donate_argnums=0),
    jax.jit(step, out_shardings=(shardings, everywhere), donate_argnums=0),
    jax.jit(all_finite, out_shardings=everywhere),
  )


def restore(
  program: Program, checkpoints: Any, step: int, *, with_frozen: bool = True
) -> TrainState:
  """The state of a checkpoint, with what is frozen.

  Args:
    program: Whose it is.
    checkpoints: An open `checkpoint.Checkpoints`.
    step: One that it has.
    with_frozen: Whether that is loaded; else the state has None there.
  """
  state = checkpoints.restore(
    step,
    program.abstract._replace(frozen=None),
    program.shardings._replace(frozen=None),
  )
  return state._replace(frozen=program.frozen() if with_frozen else None)


def describe(x: Any) -> str:
  """`dtype[shape]` of an array, in words that errors can use."""
  return f"{x.dtype}{list(x.shape)}"


def leaves_by_path(tree: Any) -> dict[str, str]:
  """`{path: dtype[shape]}` of every leaf."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path).lstrip("."): describe(leaf)
    for path, leaf in leaves
  }


def _strong(tree: Any) -> Any:
  """Drops weak types, which would make the second step compile again."""

  def strong(x):
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      return x
    return jax.lax.convert_element_type(x, x.dtype)

  return jax.tree.map(strong, tree)


def _check_state(name: str, state: Any, abstract: TrainState) -> None:
  if not isinstance(state, TrainState):
    raise TypeError(
      f"{name} must return a TrainState first, got {type(state).__name__}."
    )
  new, old = leaves_by_path(state), leaves_by_path(abstract)
  for path in sorted(new.keys() | old.keys()):
    if new.get(path) != old.get(path):
      raise TypeError(
        f"{name} must keep the shapes and dtypes of the state, but {path} "
        f"turned from {old.get(path, 'nothing')} into "
        f"{new.get(path, 'nothing')}."
      )
  structures = {jax.tree.structure(tree) for tree in (state, abstract)}
  if len(structures) > 1:
    raise TypeError(f"{name} must keep the containers of the state as init.")


def _check_metrics(metrics: Any) -> None:
  if not isinstance(metrics, dict):
    raise TypeError(
      f"step must return a dict of metrics, got {type(metrics).__name__}."
    )
  for name, value in metrics.items():
    if name in RESERVED or name.startswith("eval/"):
      raise ValueError(f"metric name {name!r} is reserved; choose another.")
    checks.check_shape(f"metric {name!r}", value, ())
