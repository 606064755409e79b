"""A run in two processes, as on two hosts."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from tests import helpers

CHILD = pathlib.Path(__file__).parent / "process.py"


@pytest.mark.slow
def test_two_processes_train_evaluate_and_sample(tmp_path):
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  environment = os.environ | {"XLA_FLAGS": helpers.one_device_flags()}
  children = [
    subprocess.Popen(
      [sys.executable, CHILD, str(port), str(i), "2", tmp_path],
      env=environment,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  for child in children:
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors[-2000:]
  values = {(tmp_path / f"process_{i}").read_text() for i in range(2)}
  assert len(values) == 1
  assert (tmp_path / "figures" / "training.png").exists()
