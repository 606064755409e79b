import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np

from tests.training import results, toy

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = """
import sys, time
from jdiff import training
from tests.training import toy

base = toy.build(toy.CONFIG)

def batches(step):
  time.sleep(0.05)
  return base.batches(step)

training.run(base._replace(batches=batches), toy.CONFIG, sys.argv[1])
"""


def start(workdir):
  return subprocess.Popen(
    [sys.executable, "-c", SCRIPT, str(workdir)],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def test_killed_at_three_moments_the_run_ends_the_same(tmp_path):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  results.run(toy.build(toy.CONFIG), toy.CONFIG, whole)
  delays = np.random.default_rng(0).uniform(0.0, 0.35, 3)
  for delay in delays:
    process = start(killed)
    path = killed / "metrics.jsonl"
    size = path.stat().st_size if path.exists() else 0
    while process.poll() is None:
      # Resuming cuts the file back first, so wait for any change.
      if path.exists() and path.stat().st_size != size:
        break
      time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, out
  process = start(killed)
  out, _ = process.communicate(timeout=120)
  assert process.returncode == 0, out
  results.assert_same_run(whole, killed)
