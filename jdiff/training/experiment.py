"""What an experiment gives to the loop: a record of pure functions."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jdiff.training.state import TrainState


def _ema(state: TrainState) -> Any:
  return state.ema


class Frozen(NamedTuple):
  """Arrays that an experiment reads and never changes: a base's parameters.

  They are part of the state, `state.frozen`, and so are split over the mesh and
  never copied, but no part of checkpoints.

  Attributes:
    abstract: Their shapes and dtypes, known before anything is loaded.
    load: `load(shardings) -> arrays`, on the devices; called when a run begins
      or goes on, and must answer the same each time.
  """

  abstract: Any
  load: Callable[[Any], Any]


class Experiment(NamedTuple):
  """The parts of one experiment.

  `init`, `step` and `collect` are pure; the loop jits them, lays the state
  over the mesh and donates it. The other functions are called on the host,
  under the mesh (`jax.set_mesh`), and jit what they like.

  Attributes:
    init: `init(key) -> TrainState`; `init(key, frozen)` where that is given,
      which need not put it into the state.
    step: `step(state, batch) -> (state, metrics)`: one optimiser step, which
      advances `state.step` by one. `metrics` is a flat dict of scalars; one
      called `"tokens"`, those that a step handles, is also recorded per second.
      With no `batches` and no `collect` the batch is None.
    evaluate: `evaluate(params, key, *, final) -> metrics`, every `eval_every`
      steps and at the end (`final=True`: use more samples). Each value is a
      number or `{"value", "se", "exact"}`, the last two optional. A metric
      called `"nfe"`, network evaluations a sample, becomes the report's
      `nfe`.
    apply: The network, `apply(params, ...)`, for `load`.
    params: `params(state) -> params` to evaluate; by default the average.
    sample: `sample(params, key, num_samples) -> array`, for `load.sample`.
    collect: `collect(state) -> (state, rollout)`, or `collect(state, batch)`
      where `batches` is given. Its state must not advance `state.step`.
    host: `host(rollout) -> arrays`: any Python, on NumPy arrays; a pure
      function of the rollout, or a resumed run differs. `step` then gets
      `(rollout, arrays)` as its batch, `(rollout, None)` without `host`.
    batches: `batches(step) -> batch`: the global batch of that step (0 is
      the first), a pure function of the step, NumPy or JAX arrays.
    figures: `figures(params, key, directory, history)` writes PNGs;
      `history` is the list of records in `metrics.jsonl`.
    frozen: A `Frozen`, for arrays too large to be saved with every checkpoint.
    axes: `(path) -> names` of a parameter's axes, as `nets.Network.axes`: how
      parameters, their moments and averages are split over the mesh, all that
      end on the same keys alike. What has no names is split by its sizes.
  """

  init: Callable[..., TrainState]
  step: Callable[..., tuple[TrainState, dict[str, Any]]]
  evaluate: Callable[..., dict[str, Any]]
  apply: Callable[..., Any] | None = None
  params: Callable[[TrainState], Any] = _ema
  sample: Callable[..., Any] | None = None
  collect: Callable[..., tuple[TrainState, Any]] | None = None
  host: Callable[[Any], Any] | None = None
  batches: Callable[[int], Any] | None = None
  figures: Callable[..., None] | None = None
  frozen: Frozen | None = None
  axes: Callable[[tuple[str, ...]], Any] | None = None


class Study(NamedTuple):
  """Runs that build on one another, reported as one.

  Attributes:
    run: `run(workdir, progress) -> metrics`, as `evaluate` answers them. It
      calls `training.run` for each of its runs, in folders of `workdir`: those
      that are finished are only read and one that was cut off continues, so
      that a study resumes if what it does between them depends on the config
      and on its runs alone. Figures go to `workdir / "figures"`. The report's
      `wall_seconds` are those of the call that finished it.
    largest: The run that takes most of a device, for plans; None where nothing
      is trained.
  """

  run: Callable[[pathlib.Path, bool], dict[str, Any]]
  largest: Experiment | None = None
