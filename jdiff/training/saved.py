"""What a working directory can do once it holds a checkpoint."""

import importlib
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from jdiff.core import checks
from jdiff.training import checkpoint as checkpoint_lib
from jdiff.training import loop, sharding
from jdiff.training import program as program_lib
from jdiff.training import records as records_lib
from jdiff.training import workdir as workdir_lib
from jdiff.training.experiment import Experiment, Study

PACKAGE = "experiments"
"""Where a config that comes from a file finds its `build`."""

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)

Build = Callable[[Any], Experiment | Study]


def build(config: Any) -> Experiment | Study:
  """Imports the module that `config.experiment` names, and calls its build.

  Raises:
    ValueError: If there is no such module or it has no `build`.
  """
  config = workdir_lib.checked_config(config)
  name = config.experiment
  if not _MODULE.fullmatch(name):
    raise ValueError(
      "config.experiment must name a module, such as "
      f"'{PACKAGE}.mdns.experiment', got {name!r}."
    )
  try:
    module = importlib.import_module(name)
  except ModuleNotFoundError as error:
    # Something that the module itself imports is another matter.
    if error.name is None or not f"{name}.".startswith(f"{error.name}."):
      raise
    raise ValueError(
      f"config.experiment is {name!r}, and no module of that name is found."
    ) from None
  if not hasattr(module, "build"):
    raise ValueError(
      f"config.experiment is {name!r}, a module without build(config)."
    )
  return _called(module.build, config)


def stand_in(config: Any) -> Experiment:
  """An experiment of the same shapes, to be compiled and not run.

  That is `stand_in(config)` of the module that `config.experiment` names, if it
  has one (data or a base are not here), else `build`; of a study its largest
  run.

  Raises:
    ValueError: As `build`; or if a study trains nothing.
  """
  name = workdir_lib.checked_config(config).experiment
  try:
    module = importlib.import_module(name) if _MODULE.fullmatch(name) else None
  except ModuleNotFoundError:
    module = None
  make = getattr(module, "stand_in", None)
  experiment = build(config) if make is None else _called(make, config)
  if not isinstance(experiment, Study):
    return experiment
  if experiment.largest is None:
    raise ValueError(f"{name} trains nothing that could be planned.")
  return experiment.largest


def load(
  workdir: str | os.PathLike,
  *,
  build: Build | None = None,
  mesh: Mesh | None = None,
) -> tuple[Callable[..., Any] | None, Any, ml_collections.ConfigDict]:
  """Restores what a run has learnt, for use in other code.

  Args:
    workdir: Directory of a run with at least one checkpoint.
    build: `build(config) -> Experiment`; by default the one of the module
      that the config names.
    mesh: Where to put the parameters, by default on one device.

  Returns:
    `(apply, params, config)`: the experiment's network (None if it names
    none), the parameters that it evaluates (their average, or with adapters
    `nets.lora.Adapted`, which `apply` takes as well) and the config.

  Raises:
    ValueError: If the workdir holds no run or no usable checkpoint.
  """
  if mesh is None:
    mesh = sharding.make_mesh(1, 1, devices=jax.local_devices())
  experiment, config, params, _ = _open(workdir, build, mesh)
  return experiment.apply, params, config


def evaluate(
  workdir: str | os.PathLike,
  *,
  build: Build | None = None,
  progress: bool = True,
) -> dict[str, Any]:
  """Evaluates the newest checkpoint again and rewrites the report.

  The key is that of the run's own last evaluation, so the same code on the
  same mesh gives the same numbers. Figures are drawn again too.
  """
  mesh = _mesh(workdir)
  workdir = pathlib.Path(workdir)
  with workdir_lib.compile_cache(workdir), jax.set_mesh(mesh):
    experiment, config, params, step = _open(workdir, build, mesh)
    history = records_lib.read_history(workdir, step)
    seconds = history[-1]["wall_seconds"] if history else 0.0
    measured = loop.final_report(experiment, config, params, step)
    loop.draw_figures(experiment, config, workdir, params, history)
  report = records_lib.report(config, step, measured, seconds)
  workdir_lib.write_json(workdir / workdir_lib.REPORT, report)
  if progress and not jax.process_index():
    print(records_lib.table(report), flush=True)
  return report


def sample(
  workdir: str | os.PathLike, num_samples: int, *, build: Build | None = None
) -> np.ndarray:
  """Draws from the newest checkpoint; writes `samples.npy` in the workdir.

  The draw depends on the seed and on `num_samples` alone.

  Raises:
    ValueError: If the experiment has nothing to sample, beside the errors of
      `load`.
  """
  checks.check_int("num_samples", num_samples)
  mesh = _mesh(workdir)
  workdir = pathlib.Path(workdir)
  with workdir_lib.compile_cache(workdir), jax.set_mesh(mesh):
    experiment, config, params, _ = _open(workdir, build, mesh)
    if experiment.sample is None:
      raise ValueError(f"{config.experiment} has no sample function.")
    key = loop.run_key(config, loop.SAMPLE_KEY)
    samples = sharding.fetch(experiment.sample(params, key, num_samples))
  samples = np.asarray(samples)
  if not jax.process_index():
    np.save(workdir / "samples.npy", samples)
  return samples


def _mesh(workdir: str | os.PathLike) -> Mesh:
  return sharding.config_mesh(workdir_lib.read_config(workdir).mesh)


def _called(make: Build, config: Any) -> Experiment | Study:
  """`make(config)`, with one kind of error for a field that is not there."""
  try:
    return make(config)
  except (AttributeError, KeyError) as error:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
      trace = trace.tb_next
    place = "" if trace is None else trace.tb_frame.f_globals["__name__"]
    if not place.startswith(ml_collections.__name__):
      raise
    said = re.findall(r"\w+", str(error).split("no attribute")[-1])
    raise ValueError(
      f"config lacks {said[0] if said else 'a field'}, which "
      f"{config['experiment']} reads."
    ) from error


def _build_stored(config: Any) -> Experiment | Study:
  """`build` of a config that a file holds, which is not to choose any code.

  Importing a module runs it, and a folder may be somebody else's. So a file may
  name what lies in `experiments`, or what this process has imported by itself.

  Raises:
    ValueError: If it names another module.
  """
  name = config.experiment
  if not name.startswith(f"{PACKAGE}.") and name not in sys.modules:
    raise ValueError(
      f"config.experiment is {name!r}, and a config of a workdir may name "
      f"modules of {PACKAGE} alone, or imported ones; import it first, or pass "
      "build=."
    )
  return build(config)


def _open(workdir, make: Build | None, mesh: Mesh):
  """`(experiment, config, params, step)` of the newest checkpoint."""
  config = workdir_lib.read_config(workdir)
  experiment = (_build_stored if make is None else make)(config)
  if isinstance(experiment, Study):
    runs = sorted(
      str(path.parent.relative_to(workdir))
      for path in pathlib.Path(workdir).rglob(workdir_lib.CONFIG)
      if path.parent != pathlib.Path(workdir)
    )
    raise ValueError(
      f"{workdir} holds a study of several runs; name the folder of one of "
      f"them: {', '.join(runs) or 'none has begun'}."
    )
  program = program_lib.compile_experiment(experiment, mesh)
  directory = pathlib.Path(workdir) / workdir_lib.CHECKPOINTS
  if not directory.is_dir():
    raise ValueError(f"{workdir} holds no checkpoint yet; train it first.")
  with checkpoint_lib.Checkpoints(directory, read_only=True) as checkpoints:
    step = checkpoints.newest()
    if step is None:
      raise ValueError(f"{workdir} holds no checkpoint yet; train it first.")
    # The average looks at nothing that is frozen, which may be large or gone.
    own = experiment.params is not Experiment._field_defaults["params"]
    state = program_lib.restore(program, checkpoints, step, with_frozen=own)
  return experiment, config, experiment.params(state), step
