"""A disk that is full, and one that cannot be written to."""

import os
import pathlib
import subprocess
import sys

import pytest

from jdiff import training
from tests.training import results, toy

ROOT = pathlib.Path(__file__).parents[2]
# Random numbers, so that they cannot be compressed into what there is room for.
CONFIG = toy.config(width=100_000, num_eval=10)
SCRIPT = """
import resource, sys
from jdiff import training
from tests.training import test_disk, toy

room, last = int(sys.argv[2]), int(sys.argv[3])
if room:
  resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
base = toy.build(test_disk.CONFIG)

def batches(step):
  if step == last:
    raise SystemExit(9)
  return base.batches(step)

experiment = base._replace(batches=batches)
training.run(experiment, test_disk.CONFIG, sys.argv[1], progress=False)
"""


def go(workdir, *, room=0, last=-1):
  return subprocess.run(
    [sys.executable, "-c", SCRIPT, str(workdir), str(room), str(last)],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
  )


def kept(workdir):
  names = [path.name for path in (workdir / "checkpoints").iterdir()]
  return sorted(name for name in names if name.isdecimal())


def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path):
  whole, full = tmp_path / "whole", tmp_path / "full"
  results.run(toy.build(CONFIG), CONFIG, whole)
  assert go(full, last=14).returncode == 9
  assert kept(full) == ["12", "6"]
  # Too little for a checkpoint, enough for the lines of metrics.
  done = go(full, room=200_000)
  assert done.returncode == 1
  # Orbax's own threads may have more to say while the process ends.
  start = "OSError: the checkpoint of step 18 could not be written"
  lines = [x for x in done.stderr.splitlines() if x.startswith(start)]
  assert "File too large" in lines[-1] and "there is that of 12" in lines[-1]
  assert kept(full) == ["12", "6"]
  assert go(full).returncode == 0
  results.assert_same_run(whole, full)


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
  # Nobody, not even root, makes a folder in a file.
  (tmp_path / "file").write_text("")
  workdir = tmp_path / "file" / "run"
  with pytest.raises(OSError, match="file/run"):
    training.run(toy.build(CONFIG), CONFIG, workdir, progress=False)
