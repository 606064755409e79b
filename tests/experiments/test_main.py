import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "--config=tests/training/toy_config.py:"

# One interpreter imports everything and forks for each command line, before
# JAX starts any thread: a fresh start each would take most of a minute.
DRIVER = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import experiments.main
from absl import app
app.define_help_flags()

for number, argv in enumerate(json.loads(sys.argv[1])):
  pid = os.fork()
  if pid == 0:
    for fd, name in ((1, "out"), (2, "err")):
      path = os.path.join(sys.argv[2], f"{name}{number}")
      os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), fd)
    code = 0
    sys.argv = ["main", *argv]  # config_flags looks for overrides here.
    try:
      experiments.main.guarded(sys.argv)
    except SystemExit as error:
      code = error.code
    except BaseException:
      import traceback
      traceback.print_exc()
      code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def commands(workdir):
  """`name: (arguments, exit code, what the one line of stderr holds)`."""
  run, here = f"--workdir={workdir}/run", CONFIG + "short"
  other = f"--workdir={workdir}/other"
  return {
    "train": ([here, run], 0, None),
    "again": ([here, run], 0, None),
    "eval": ([here, run, "--mode=eval"], 0, None),
    "sample": ([here, run, "--mode=sample", "--num_samples=3"], 0, None),
    "file_names_code": (
      [run, "--mode=eval"],
      2,
      "a config of a workdir may name modules of experiments alone",
    ),
    "override": ([here, other, "--config.num_steps=2"], 0, None),
    "seeds": (
      [here, f"--workdir={workdir}/seeds", "--seeds=0,1"],
      0,
      None,
    ),
    "changed": (
      [here, run, "--config.learning_rate=0.5"],
      2,
      "learning_rate (0.05 there, 0.5 here)",
    ),
    "changed_eval": (
      [CONFIG + "tiny", run, "--mode=eval"],
      2,
      "num_steps (4 there, 30 here)",
    ),
    "unknown_field": (
      [here, run, "--config.learning_rat=1"],
      2,
      "--config.learning_rat=1 sets no field of the config; did you mean "
      "learning_rate?",
    ),
    "bad_value": ([here, run, "--config.seed=a"], 2, "'a'"),
    "unknown_variant": (
      [CONFIG + "smoke", run],
      2,
      "must name one of tiny, short, nan, bad; got 'smoke'.",
    ),
    "no_variant": ([CONFIG[:-1], run], 2, "got none."),
    "bad_variant": (
      [CONFIG + "bad", run],
      2,
      "'bad' sets no_such_field, which its base config does not have.",
    ),
    "no_file": (
      ["--config=nowhere.py:x", run],
      2,
      "No such file or directory: 'nowhere.py'",
    ),
    "no_config": ([run], 2, "--config=<file>.py:<variant> is needed"),
    "no_workdir": ([here], 2, "--workdir=W is needed"),
    "unknown_flag": ([here, run, "--wrkdir=x"], 2, "'wrkdir'"),
    "bad_mode": ([here, run, "--mode=test"], 2, "train|eval|sample"),
    "argument": ([here, run, "eval"], 2, "unexpected argument 'eval'"),
    "bad_seeds": ([here, other, "--seeds=a"], 2, "--seeds must be like"),
    "seeds_eval": ([run, "--mode=eval", "--seeds=0"], 2, "--seeds trains"),
    "empty_eval": (
      [f"--workdir={workdir}/none", "--mode=eval"],
      2,
      "holds no run",
    ),
    "bad_module": (
      [here, f"--workdir={workdir}/m", "--config.experiment=a.b"],
      2,
      "'a.b', and no module of that name",
    ),
    "bad_mesh": (
      [here, f"--workdir={workdir}/m", "--config.mesh.fsdp=99"],
      2,
      "needs 99 devices",
    ),
    "bad_count": (
      [here, f"--workdir={workdir}/m", "--config.log_every=0"],
      2,
      "config.log_every must be >= 1, got 0.",
    ),
    "nan": (
      [CONFIG + "nan", f"--workdir={workdir}/nan"],
      1,
      "metric loss is nan at step 10",
    ),
    "help": (["--help"], 1, None),
  }


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
  """`name: (exit code, stdout, stderr)`, and the directory."""
  workdir = tmp_path_factory.mktemp("main")
  cases = commands(workdir)
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      DRIVER,
      json.dumps([argv for argv, _, _ in cases.values()]),
      str(workdir),
    ],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  codes = [int(line) for line in done.stdout.split()]
  texts = [
    [(workdir / f"{kind}{i}").read_text() for kind in ("out", "err")]
    for i in range(len(codes))
  ]
  return {
    name: (code, *text)
    for name, code, text in zip(cases, codes, texts, strict=True)
  }, workdir


@pytest.mark.parametrize("name", commands("W"))
def test_exit_codes_and_messages(outcomes, name):
  results, workdir = outcomes
  _, code, message = commands(workdir)[name]
  got, _, err = results[name]
  assert got == code, err
  if message is not None:
    assert message in err
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ") and message in line
    assert "Traceback" not in err
    if code == 2:
      assert err.count("\n") == 1


def test_modes_do_their_work(outcomes):
  results, workdir = outcomes
  for name in ("train", "again", "eval"):
    assert "error in SE" in results[name][1]
  assert "float32[3, 4]" in results["sample"][1]
  assert np.load(workdir / "run" / "samples.npy").shape == (3, 4)
  report = json.loads((workdir / "run" / "report.json").read_text())
  assert (report["variant"], report["steps"]) == ("short", 4)
  report = json.loads((workdir / "other" / "report.json").read_text())
  assert report["steps"] == 2
  summary = json.loads((workdir / "seeds" / "summary.json").read_text())
  assert summary["seeds"] == [0, 1]
  # What could not start has claimed no directory.
  assert not (workdir / "m").exists() and not (workdir / "none").exists()
  assert "USAGE" in results["help"][1]
