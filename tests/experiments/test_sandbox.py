"""Programs in the sandbox, and what they earn.

Whatever a program here is aimed at is a decoy that its test has made.
"""

import os
import pathlib
import signal
import sys
import time
import warnings

import jax.numpy as jnp
import pytest

from experiments.common import rewards, sandbox


def check(program, tests=(), **limits):
  return sandbox.run(program, tests, limits=sandbox.Limits(**limits))


def test_tests_pass_or_fail_by_themselves():
  result = check(
    "def f(x):\n  while x == 2: pass\n  if x == 4: import os; os._exit(0)\n"
    "  return x",
    [
      "assert f(1) == 1",
      "assert f(2) == 2",
      "assert f(1) == 2",
      "f(4)",
      "exit()",
      "class passed(Exception): pass\nraise passed",
      "assert f(3) == 3",
    ],
    seconds=2.0,
  )
  assert result.errors == (
    "passed",
    "passed",
    "timeout",
    "raised AssertionError",
    "died",
    "raised SystemExit",
    "raised passed",
    "passed",
  )
  assert result.passed.tolist() == [True] + 5 * [False] + [True]


@pytest.mark.parametrize(
  "program, error",
  [
    ("while 1:\n  try:\n    while 1: pass\n  except: pass", "timeout"),
    ("import time\ntime.sleep(60)", "timeout"),
    ("import os\nos._exit(0)", "died"),
    ("exit()", "raised SystemExit"),
    ("def f(:", "raised SyntaxError"),
  ],
)
def test_programs_that_end_before_their_tests(program, error):
  result = check(program, ["pass"], seconds=1.5)
  assert result.errors == (error, "not run") and not result.passed[0]


@pytest.mark.parametrize(
  "program, error",
  [
    ("x = bytearray(1 << 32)", "MemoryError"),
    ("x = []\nwhile 1: x.append(bytearray(1 << 24))", "MemoryError"),
    ("def f(): f()\nf()", "RecursionError"),
    ("open('a', 'wb').write(bytes(3 << 20))", "OSError"),
    ("x = [open(os.devnull) for _ in range(99)]", "OSError"),
    ("input()", "EOFError"),
    ("os.fork()", "PermissionError"),
    ("os.system('true')", "PermissionError"),
    ("os.kill(os.getppid(), 0)", "PermissionError"),
    ("import subprocess as s\ns.run(['true'])", "PermissionError"),
    (
      "import multiprocessing as m\nm.Process(target=print).start()",
      "PermissionError",
    ),
    (
      "import socket as s\ns.create_connection(('127.0.0.1', 9), 1)",
      "PermissionError",
    ),
    (
      "import resource as r\nr.setrlimit(r.RLIMIT_CPU, (99, 99))",
      "PermissionError",
    ),
  ],
)
def test_limits(several, program, error):
  # One process ran them all, each a test of its own.
  assert several[program] == f"raised {error}"


@pytest.fixture(scope="module")
def several():
  (mark,) = [m for m in test_limits.pytestmark if m.name == "parametrize"]
  tests = [program for program, _ in mark.args[1]]
  result = check("import os", [f"x = None\n{t}" for t in tests], memory_mb=256)
  return dict(zip(tests, result.errors[1:], strict=True))


def test_cpu_time_is_limited():
  # The clock alone would let it run on.
  result = check("while True: pass", ["pass"], seconds=60, cpu_seconds=1)
  assert result.errors == ("died", "not run")


def test_programs_see_nothing_of_ours(monkeypatch, tmp_path):
  monkeypatch.setenv("JDIFF_SECRET", "x")
  result = check(
    "import os, sys\n"
    "print(sorted(os.environ), os.listdir(), sys.flags.isolated)\n"
    "print(sys.argv, sys.stdin.read() == '')\n"
    "if __name__ == '__main__': input()\n"
    "from dataclasses import dataclass\n"
    "@dataclass\nclass A:\n  x: 'int'\n"
    "open('mine', 'w').write('text')\n"
    "import tempfile, shutil\n"
    "with tempfile.TemporaryDirectory() as d: open(d + '/a', 'w')\n"
    "open(os.devnull, 'w').write('text')\n",
    ["from solution import A\nassert A(1).x", "assert open('mine').read()"],
  )
  assert result.errors == ("passed",) * 3, result.output
  names, rest = result.output.split("\n", 1)
  assert "JDIFF_SECRET" not in names and names.endswith("[] 1")
  assert rest == "['-c'] True\n"


# Natively: past the audit hook, so that the kernel itself is asked.
NATIVE = "import ctypes\nlibc = ctypes.CDLL(None)\n"


def test_other_folders_stay_as_they_are(tmp_path):
  decoy = tmp_path / "decoy"
  decoy.mkdir()
  (decoy / "kept").write_text("kept")
  # Open to all, so that only the sandbox is in the way.
  os.chmod(decoy, 0o777)
  os.chmod(decoy / "kept", 0o666)
  tests = [
    "open(D + '/new', 'w')",
    "open(D + '/kept', 'a').write('x')",
    "os.open(D + '/kept', os.O_WRONLY | os.O_TRUNC)",
    "os.unlink(D + '/kept')",
    "d = os.open(D, os.O_RDONLY); os.unlink('kept', dir_fd=d)",
    "d = os.open(D, os.O_RDONLY); os.mkdir('new', dir_fd=d)",
    "shutil.rmtree(D)",
    "os.rename(D + '/kept', 'mine')",
    "open('mine', 'w'); os.rename('mine', D + '/new')",
    "os.symlink(D, 'link'); open('link/new', 'w')",
    "os.link(D + '/kept', 'yours'); open('yours', 'w')",
    "os.mkdir(D + '/new')",
    "os.truncate(D + '/kept', 0)",
    "os.chmod(D + '/kept', 0o600)",
    "os.chdir(D); open('new', 'w')",
    "os.chdir(D); os.unlink('kept')",
  ]
  result = check(f"import os, shutil\nD = {str(decoy)!r}", tests)
  for test, error in zip(tests, result.errors[1:], strict=True):
    assert error == "raised PermissionError", test
  assert os.listdir(decoy) == ["kept"]
  assert (decoy / "kept").read_text() == "kept"
  if not sandbox.isolation().confined:
    return
  path = repr(os.fsencode(decoy))
  result = check(
    f"{NATIVE}D = {path}\n"
    "assert libc.unlink(D + b'/kept') == -1\n"
    "assert libc.open(D + b'/new', 0o101, 0o666) == -1\n"
    "assert libc.open(D + b'/kept', 0o1001) == -1\n"
    "assert libc.mkdir(D + b'/new', 0o777) == -1\n"
  )
  assert result.errors == ("passed",), result.output
  assert os.listdir(decoy) == ["kept"]
  assert (decoy / "kept").read_text() == "kept"


def running(name):
  """Processes of this machine by the name that they gave themselves."""
  found = []
  for process in filter(str.isdigit, os.listdir("/proc")):
    try:
      comm = pathlib.Path("/proc", process, "comm").read_text()
    except OSError:
      continue
    if comm.strip() == name:
      found.append(int(process))
  return found


def test_nothing_outlives_a_run():
  around, root = sandbox.isolation(), os.geteuid() == 0
  if not sys.platform.startswith("linux") or (not around.command and root):
    pytest.skip("needs unshare, or a user other than root")
  name = f"left{os.getpid()}"
  # A child in a session of its own, out of the process group's reach.
  program = (
    f"{NATIVE}import time\n"
    "child = libc.fork()\n"
    "if child == 0:\n"
    "  libc.setsid()\n"
    f"  libc.prctl(15, b'{name}')\n"
    "  time.sleep(60)\n"
    # Until the child has left the group.
    "time.sleep(0.3)\n"
    "print('forked', child)\n"
  )
  result = check(program)
  assert "forked" in result.output
  # Dying is not instant.
  for _ in range(100):
    if not running(name):
      break
    time.sleep(0.05)
  assert not running(name)
  if root and around.confined:
    # The control: without a process table of its own the child is there.
    sandbox._process(program, [], sandbox.Limits(), sandbox.Isolation())
    left = running(name)
    for process in left:
      os.kill(process, signal.SIGKILL)
    assert left


def test_root_is_not_left_with_the_audit_hook_alone(monkeypatch):
  if os.geteuid() != 0:
    pytest.skip("needs root")
  monkeypatch.setattr(
    sandbox,
    "_child",
    lambda: sandbox.CHILD.read_text().replace(
      "if version < 1:", "if version < 99:"
    ),
  )
  reports, _ = sandbox._process(
    "print('ran')", [], sandbox.Limits(), sandbox.Isolation()
  )
  assert reports["program"] == "refused" and "files" not in reports
  sandbox.isolation.cache_clear()
  try:
    monkeypatch.setattr(sandbox, "NOBODY", 0)
    with pytest.raises(RuntimeError, match="no sandbox works"):
      sandbox.isolation()
  finally:
    sandbox.isolation.cache_clear()


def test_a_flood_of_output_is_cut():
  result = check("print('a' * 10000 + 'end')", ["pass"])
  assert len(result.output) == sandbox.OUTPUT_BYTES
  assert result.output.endswith("aend\n")


@pytest.mark.parametrize(
  "limits, message",
  [
    ({"seconds": 0}, "seconds must be positive"),
    ({"memory_mb": 0}, "memory_mb must be >= 1"),
    ({"cpu_seconds": -1}, "cpu_seconds must be >= 1"),
  ],
)
def test_wrong_limits_are_refused(limits, message):
  with pytest.raises(ValueError, match=message):
    check("pass", **limits)


def test_programs_are_not_started_by_a_fork():
  # JAX has threads, which a fork would break, and warns of one.
  jnp.zeros(2).block_until_ready()
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert check("x = 1", ["assert x"]).passed.all()


# Programs as rewards.


def score(reward, completion, row=None):
  (value,) = reward([""], [completion], [row or {}])
  return value


def fenced(program, answer=True):
  block = f"```python\n{program}```"
  return f"so <answer>\n{block}\n</answer>" if answer else f"so {block}"


def test_mbpp():
  row = {
    "test_list": [
      "assert add(1, 2) == 3",
      "assert add(1, 2) == THREE",
      "assert add(1, 2) == 4",
      "assert add('a', 'b') == 'ab'",
    ],
    "test_setup_code": "THREE = 3",
  }
  good = "def add(a, b):\n  return a + b\n"
  completions = [
    fenced(good),
    fenced(good, answer=False),
    # The first block counts, and stands outside the tags here.
    "```python\npass\n```" + fenced(good),
    fenced("def add(a, b):\n  return 3\n"),
    fenced("def add(:"),
    good,
    "<answer>```python\n```</answer>",
    fenced("exit()\n"),
  ]
  rows = [row] * len(completions)
  style = rewards.code_format(completions, completions, rows)
  assert style.tolist() == [0.5, 0, 0, 0.5, 0.5, 0, 0, 0.5]
  tests = rewards.code_tests(num_workers=2)(completions, completions, rows)
  assert tests.tolist() == [0.75, 0.75, 0, 0.5, 0, 0, 0, 0]
  both = rewards.load("mbpp")(completions[:2], completions[:2], rows[:2])
  assert both.tolist() == [1.25, 0.75]
  sanitised = {"test_imports": ["import math"], "test_list": ["math.pi, add"]}
  assert score(rewards.code_tests(), fenced(good), sanitised) == 1
  assert score(rewards.code_tests(), fenced(good), {"test_list": []}) == 0
  with pytest.raises(ValueError, match="rows must hold test_list, or prompt"):
    score(rewards.code_tests(), fenced(good), {"tests": []})


def test_humaneval():
  row = {
    "prompt": "from typing import List\n\n\ndef total(x: List[int]) -> int:\n"
    '  """Sum."""\n',
    "test": "def check(candidate):\n  assert candidate([1, 2]) == 3\n",
    "entry_point": "total",
  }
  for program, expected in (
    ("def total(x: List[int]) -> int:\n  return sum(x)\n", 1.5),
    ("  return sum(x)\n", 1.5),
    ("def total(x):\n  return 4\n", 0.5),
    ("def other(x):\n  return sum(x)\n", 0.5),
  ):
    assert score(rewards.load("humaneval"), fenced(program), row) == expected
