"""Real runs, killed at random moments, end with the same bits.

`make test-faults`: each of these runs is killed ten times, by SIGKILL or by
SIGTERM, in whatever it is doing (imports, compilation, a step, a save, an
evaluation, the figures), and started again by the same command.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests import helpers

ROOT = pathlib.Path(__file__).resolve().parents[1]
KILLS = 10
CLOCK = ("wall_seconds", "tokens_per_second")
# By name: a config and what shortens it. Together: a buffer in the state, a
# host in each step, a base that is trained first, a study of several runs.
RUNS = {
  "mdns": ("mdns/ising.py:smoke", {"num_steps": 60, "num_eval": 1024}),
  "alignflow": (
    "alignflow/checkerboard.py:smoke",
    {"num_steps": 300, "warmup_steps": 10, "checkpoint_every": 50},
  ),
  "tr2d2": ("tr2d2/enumerable.py:smoke", {}),
  "gdpo": ("gdpo/parity.py:smoke", {}),
  "collapse": ("collapse/digits.py:smoke", {}),
}


def command(name, workdir, **changes):
  config, fields = RUNS[name]
  fields = fields | changes
  return [
    *(sys.executable, "-m", "experiments.main"),
    *(f"--config=experiments/{config}", f"--workdir={workdir}"),
    *(f"--config.{field}={value}" for field, value in fields.items()),
  ]


def start(name, workdir):
  return subprocess.Popen(
    command(name, workdir),
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": helpers.one_device_flags()},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(name, workdir):
  process = start(name, workdir)
  out, _ = process.communicate(timeout=600)
  assert process.returncode == 0, out[-2000:]


def kill(name, workdir, number, delay):
  """Whether the run was still going on when its time had come."""
  process = start(name, workdir)
  try:
    out, _ = process.communicate(timeout=delay)
    assert process.returncode == 0, out[-2000:]
    return False
  except subprocess.TimeoutExpired:
    process.send_signal(number)
  out, _ = process.communicate(timeout=300)
  # SIGTERM before its handler is there ends the process as a shell's would;
  # after the last step nothing is left to save.
  allowed = {-number, 0} if number == signal.SIGKILL else {-number, 143, 0}
  assert process.returncode in allowed, out[-2000:]
  return True


def timeless(value):
  return {k: v for k, v in value.items() if k not in CLOCK}


def record(workdir):
  """Everything that a run and the runs below it have written, clocks apart."""
  found = {}
  for path in sorted(workdir.rglob("*")):
    name = path.relative_to(workdir).as_posix()
    if path.name == "metrics.jsonl":
      lines = path.read_text().splitlines()
      found[name] = [timeless(json.loads(line)) for line in lines]
    elif path.name == "report.json":
      found[name] = timeless(json.loads(path.read_text()))
    elif path.name == "checkpoints":
      steps = [int(p.name) for p in path.iterdir() if p.name.isdecimal()]
      found[name] = sorted(steps)[-1:]
  return found


def newest_state(workdir):
  directory, *_ = sorted(workdir.rglob("checkpoints"))
  steps = [int(p.name) for p in directory.iterdir() if p.name.isdecimal()]
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(directory / str(max(steps)) / "state")


def assert_same(whole, killed):
  one, other = record(whole), record(killed)
  assert one.keys() == other.keys()
  for name in one:
    assert one[name] == other[name], name

  def equal(a, b):
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = map(jax.random.key_data, (a, b))
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

  jax.tree.map(equal, newest_state(whole), newest_state(killed))


@pytest.mark.faults
@pytest.mark.parametrize("name", RUNS)
def test_ten_kills_change_nothing(name, tmp_path):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  begun = time.monotonic()
  finish(name, whole)
  seconds = json.loads((whole / "report.json").read_text())["wall_seconds"]
  before = time.monotonic() - begun - seconds
  rng = np.random.default_rng(sorted(RUNS).index(name))
  kills = 0
  for i in range(KILLS):
    number = (signal.SIGKILL, signal.SIGTERM)[i % 2]
    kills += kill(name, killed, number, rng.uniform(1, before + seconds / 5))
  finish(name, killed)
  print(f"{name}: {kills} kills of a run of {before:.0f} + {seconds:.0f} s")
  assert kills >= KILLS - 2, "too few: it was over before"
  assert_same(whole, killed)
