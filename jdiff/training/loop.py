"""The training loop that every experiment runs in."""

import os
import pathlib
import sys
import tempfile
import time
from typing import Any

import jax
import tqdm

from jdiff.training import checkpoint as checkpoint_lib
from jdiff.training import processes, sharding
from jdiff.training import program as program_lib
from jdiff.training import records as records_lib
from jdiff.training import stop as stop_lib
from jdiff.training import workdir as workdir_lib
from jdiff.training.experiment import Experiment, Study
from jdiff.training.state import TrainState

# What the run's key is folded with, for each of its uses.
INIT_KEY, EVAL_KEY, SAMPLE_KEY, FIGURE_KEY = range(4)


def run(
  experiment: Experiment | Study,
  config: Any,
  workdir: str | os.PathLike,
  *,
  progress: bool = True,
) -> dict[str, Any]:
  """Trains an experiment, or continues to, and reports.

  A run that was stopped or killed continues from its newest checkpoint and
  ends with the numbers of one that was not, wall time apart. A finished one
  is only reported again.

  Args:
    experiment: Its functions; or a study, whose own runs have folders.
    config: A `ConfigDict` or a dict with the fields `experiment`, `variant`,
      `name`, `seed`, `num_steps`, `log_every`, `eval_every`,
      `checkpoint_every`, `mesh.data` and `mesh.fsdp` (and `mesh.tensor`);
      it may hold more.
    workdir: Gets `config.json`, `metrics.jsonl`, `report.json`,
      `checkpoints/`, `figures/` and `xla_cache/`.
    progress: Whether to show progress on stderr and the table on stdout.

  Returns:
    The report, as in `report.json`: `{"experiment", "name", "variant",
    "seed", "steps", "nfe", "wall_seconds", "metrics": {name: {"value", "se",
    "exact"}}}`, None where unknown.

  Raises:
    ValueError: If the config lacks something, the workdir belongs to another
      config, or the newest checkpoint does not fit or is damaged.
    NonFiniteError: If a metric or parameter stops being finite. The last
      checkpoint is from before.
    SystemExit: 143 or 130, on SIGTERM or SIGINT, after saving.
  """
  config = workdir_lib.checked_config(config)
  workdir = pathlib.Path(workdir)
  if (workdir / workdir_lib.CONFIG).exists():
    workdir_lib.check_same_config(workdir, config)
  report = processes.agree(lambda: workdir_lib.read_report(workdir))
  if report is None or report["steps"] != config.num_steps:
    mesh = sharding.config_mesh(config.mesh)
    with workdir_lib.compile_cache(workdir), jax.set_mesh(mesh):
      if isinstance(experiment, Study):
        report = _study(experiment, config, workdir, progress)
      else:
        report = _Run(experiment, config, workdir, mesh, progress).go()
  if progress and not jax.process_index():
    print(records_lib.table(report), flush=True)
  return report


def run_key(config: Any, *data: int) -> jax.Array:
  """A key that depends on the seed, the use and the step alone."""
  key = jax.random.key(config.seed)
  for number in data:
    key = jax.random.fold_in(key, number)
  return key


def final_report(
  experiment: Experiment, config: Any, params: Any, step: int
) -> dict[str, dict[str, Any]]:
  """The last evaluation of a run, with the key it always has."""
  key = run_key(config, EVAL_KEY, step)
  return records_lib.measurements(experiment.evaluate(params, key, final=True))


def draw_figures(
  experiment: Experiment,
  config: Any,
  workdir: pathlib.Path,
  params: Any,
  history: list[dict[str, Any]],
) -> None:
  """Calls `figures`; processes but the first draw into the void."""
  if experiment.figures is None:
    return
  key = run_key(config, FIGURE_KEY)
  with tempfile.TemporaryDirectory() as void:
    # All take part, because params may be spread over processes.
    directory = pathlib.Path(void)
    if not jax.process_index():
      directory = workdir / workdir_lib.FIGURES
      directory.mkdir(exist_ok=True)
    experiment.figures(params, key, directory, history)


def _study(study, config, workdir, progress) -> dict[str, Any]:
  """Its runs, and the report; seconds are those of this call."""
  workdir_lib.write_config(workdir, config)
  if not jax.process_index():
    (workdir / workdir_lib.FIGURES).mkdir(parents=True, exist_ok=True)
  started = time.monotonic()
  measured = records_lib.measurements(study.run(workdir, progress))
  report = records_lib.report(
    config, config.num_steps, measured, time.monotonic() - started
  )
  workdir_lib.write_json(workdir / workdir_lib.REPORT, report)
  return report


class _Run:
  """One call of `run`: what its parts share."""

  def __init__(self, experiment, config, workdir, mesh, progress):
    self.experiment, self.config = experiment, config
    self.workdir = workdir
    self.show = progress and not jax.process_index()
    # Simulated devices share a few threads: queued steps can wait for one
    # another's collectives for ever.
    devices = mesh.devices.ravel()
    self.in_lockstep = len(devices) > 1 and devices[0].platform == "cpu"
    self.program = program_lib.compile_experiment(experiment, mesh)

  def go(self) -> dict[str, Any]:
    directory = self.workdir / workdir_lib.CHECKPOINTS
    with (
      checkpoint_lib.Checkpoints(directory) as self.checkpoints,
      stop_lib.Stop() as self.stop,
    ):
      step = self.checkpoints.newest() or 0
      if step:
        state = program_lib.restore(self.program, self.checkpoints, step)
      else:
        state = self.program.init(run_key(self.config, INIT_KEY))
      # Only now: a config that cannot begin does not claim the directory.
      workdir_lib.write_config(self.workdir, self.config)
      self.records = records_lib.Records(self.workdir, step)
      history = self.records.history
      before = history[-1]["wall_seconds"] if history else 0.0
      self.started = time.monotonic() - before
      self.bar = tqdm.tqdm(
        total=self.config.num_steps,
        initial=step,
        disable=None if self.show else True,
        file=sys.stderr,
      )
      try:
        return self.loop(state, step)
      finally:
        self.bar.close()
        self.records.close()

  def loop(self, state: TrainState, step: int) -> dict[str, Any]:
    config = self.config
    metrics: dict[str, Any] = {}
    while step < config.num_steps:
      # Here, not after the step, so that an evaluation that a signal or a
      # crash cut off is made up for when the run resumes.
      due = step and step % config.eval_every == 0
      if due and not self.records.has_evaluation(step):
        self.evaluate(state, step, metrics)
      state, metrics = self.advance(state, step)
      step += 1
      self.bar.update()
      last = step == config.num_steps
      log = last or step % config.log_every == 0
      if log:
        self.log(state, step, metrics)
      stop = self.stop.requested(log)
      if stop or last or step % config.checkpoint_every == 0:
        self.save(state, step, metrics)
      if stop:
        self.leave(step)
    return self.finish(state, step)

  def advance(self, state: TrainState, step: int):
    """One step; real devices are not waited for, except for `host`."""
    experiment, program = self.experiment, self.program
    batch = None
    if experiment.batches is not None:
      batch = sharding.put_batch(experiment.batches(step), program.mesh)
    if program.collect is not None:
      args = () if experiment.batches is None else (batch,)
      state, rollout = program.collect(state, *args)
      arrays = None
      if experiment.host is not None:
        arrays = experiment.host(sharding.fetch(rollout))
        arrays = sharding.put_batch(arrays, program.mesh)
      batch = (rollout, arrays)
    state, metrics = program.step(state, batch)
    if self.in_lockstep:
      jax.block_until_ready(metrics)
    return state, metrics

  def seconds(self) -> float:
    return time.monotonic() - self.started

  def log(self, state: TrainState, step: int, metrics: dict[str, Any]) -> None:
    count, fetched = jax.device_get((state.step, metrics))
    if count != step:
      raise ValueError(
        f"step must advance state.step by one, found {count} after {step} "
        "steps; use training.apply_gradients or add one yourself."
      )
    values = records_lib.finite(step, fetched, self.checkpoints.newest())
    if "tokens" in values:
      values["tokens_per_second"] = self.rate(step, values["tokens"])
    self.records.write(step, values, self.seconds())
    first = [n for n in ("loss", "elbo", "ess_fraction") if n in values]
    names = dict.fromkeys([*first, *values])
    shown = {name: f"{values[name]:.4g}" for name in list(names)[:4]}
    if not self.bar.disable:
      self.bar.set_postfix(shown)
    else:
      self.say(step, shown)

  def rate(self, step: int, tokens: int | float) -> float:
    """Tokens a second since the last record, or the start."""
    before = self.records.history[-1:] or [{"step": 0, "wall_seconds": 0.0}]
    seconds = self.seconds() - before[0]["wall_seconds"]
    return round(tokens * (step - before[0]["step"]) / max(seconds, 1e-3), 1)

  def say(self, step: int, shown: dict[str, str]) -> None:
    if self.show:
      text = "  ".join(f"{name} {value}" for name, value in shown.items())
      line = f"step {step}/{self.config.num_steps}  {text}"
      self.bar.write(line, file=sys.stderr)

  def save(self, state: TrainState, step: int, metrics: dict[str, Any]):
    """Saves, if everything is finite: a checkpoint never holds a NaN."""
    good, fetched = jax.device_get((self.program.all_finite(state), metrics))
    kept = self.checkpoints.newest()
    records_lib.finite(step, fetched, kept)
    if not good:
      raise records_lib.non_finite("params are not finite", step, kept)
    self.checkpoints.save(step, state._replace(frozen=None))

  def leave(self, step: int) -> None:
    self.checkpoints.wait()
    raise self.stop.exit(step)

  def evaluate(self, state: TrainState, step: int, metrics: dict[str, Any]):
    key = run_key(self.config, EVAL_KEY, step)
    params = self.experiment.params(state)
    try:
      with self.stop.interruptible():
        values = self.experiment.evaluate(params, key, final=False)
    except stop_lib.Interrupted:
      self.save(state, step, metrics)
      self.leave(step)
    record = records_lib.evaluation_record(records_lib.measurements(values))
    self.records.write(step, record, self.seconds())
    numbers = [(k, v) for k, v in record.items() if v is not None]
    self.say(step, {name: f"{value:.4g}" for name, value in numbers[:4]})

  def finish(self, state: TrainState, step: int) -> dict[str, Any]:
    """The last evaluation, the figures and the report; all repeatable."""
    self.checkpoints.wait()
    params = self.experiment.params(state)
    try:
      with self.stop.interruptible():
        measured = final_report(self.experiment, self.config, params, step)
        if not self.records.has_evaluation(step):
          record = records_lib.evaluation_record(measured)
          self.records.write(step, record, self.seconds())
        draw_figures(
          self.experiment,
          self.config,
          self.workdir,
          params,
          self.records.history,
        )
    except stop_lib.Interrupted:
      self.leave(step)
    report = records_lib.report(self.config, step, measured, self.seconds())
    workdir_lib.write_json(self.workdir / workdir_lib.REPORT, report)
    return report
