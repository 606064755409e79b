"""One training loop for every experiment, with what it needs around it."""

from jdiff.training.checkpoint import load_params, save_params
from jdiff.training.experiment import Experiment, Frozen, Study
from jdiff.training.loop import run
from jdiff.training.processes import agree, join, leave, scratch
from jdiff.training.program import compile_experiment
from jdiff.training.records import NonFiniteError
from jdiff.training.saved import build, evaluate, load, sample, stand_in
from jdiff.training.seeds import run_seeds
from jdiff.training.sharding import (
  config_mesh,
  example_keys,
  fetch,
  make_mesh,
  put,
  shard_batch,
)
from jdiff.training.state import (
  TrainState,
  apply_gradients,
  create,
  step_key,
)
from jdiff.training.workdir import check_same_config

__all__ = [
  "Experiment",
  "Frozen",
  "NonFiniteError",
  "Study",
  "TrainState",
  "agree",
  "apply_gradients",
  "build",
  "check_same_config",
  "compile_experiment",
  "config_mesh",
  "create",
  "evaluate",
  "example_keys",
  "fetch",
  "join",
  "leave",
  "load",
  "load_params",
  "make_mesh",
  "put",
  "run",
  "run_seeds",
  "sample",
  "save_params",
  "scratch",
  "shard_batch",
  "stand_in",
  "step_key",
]
