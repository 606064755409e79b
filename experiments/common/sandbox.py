"""Runs a program that a model wrote, and its tests, in a process with limits.

Every run is a fresh isolated interpreter (`python -I`) in an empty temporary
folder, with an empty environment, nothing on standard input, limits on CPU
seconds, memory, file size and open files, and a clock that ends its whole
process group. It needs Linux. On top of that come, as far as the machine can
(`isolation()` says):

- Landlock (Linux 5.13) refuses to write, make, move and remove files outside
  the folder; later kernels also refuse to cut them short (6.2), TCP (6.7) and
  signals to other processes (6.12); it leaves modes and times of files alone;
- `unshare` gives no network interface, and a process table that ends with it;
- root becomes the user `nobody`, if that user can read the interpreter; else it
  stays root without capabilities, and then Landlock is a condition: `run`
  raises where a model's program would be root and not confined;
- users other than root can start no further process or thread.

An audit hook refuses the same things from within. It is a guard against
accidents, which native code and `ctypes` pass by, and no wall.

What is not prevented: whatever the user may read can be read. Without Landlock
a hostile program can write what the user may write; without both Landlock and
`unshare` it reaches the network, and a process in a session of its own outlives
the run. Where it stays root it can start processes until the clock ends. Many
files can fill the disk. A program can look for the verdict's channel in its own
process and forge it, or satisfy tests by odd `__eq__` methods. Use a virtual
machine for programs that may be hostile.
"""

import concurrent.futures
import contextlib
import functools
import json
import os
import pathlib
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jdiff.core import checks

CHILD = pathlib.Path(__file__).with_name("sandbox_child.py")
NOBODY = 65534
OUTPUT_BYTES = 4096
"""How much of the output's end is kept."""
MAX_REPORT = 1 << 12
"""Bytes that a process may report for each test."""


class Limits(NamedTuple):
  """What a run may use.

  Attributes:
    seconds: Wall-clock time for the program, and again for each test.
    cpu_seconds: CPU time of one process, an integer.
    memory_mb: Address space in MiB, an integer.
    file_mb: Size of one file in MiB, an integer; printed output is one.
  """

  seconds: float = 3.0
  cpu_seconds: int = 10
  memory_mb: int = 512
  file_mb: int = 1


class Result(NamedTuple):
  """How a program did.

  Attributes:
    passed: `[N]` bool, one for each test.
    errors: What happened to the program, and then to each test: "passed",
      "raised" and the exception's name, "timeout" by the clock, "died" (of the
      CPU limit among other ways), or "not run" where the program itself failed.
    output: End of what it printed.
  """

  passed: np.ndarray
  errors: tuple[str, ...]
  output: str


class Isolation(NamedTuple):
  """What surrounds a process beyond limits and the audit hook.

  Attributes:
    command: What the interpreter is started by: `unshare`, or nothing.
    user: Id of the user that it becomes, None for one's own.
    confined: Whether the kernel refuses changes to files elsewhere.
  """

  command: tuple[str, ...] = ()
  user: int | None = None
  confined: bool = False


@functools.cache
def isolation() -> Isolation:
  """The strongest isolation that works on this machine; tried once.

  Raises:
    RuntimeError: If programs could only run as root and unconfined.
  """
  unshare = shutil.which("unshare")
  flags = ("--net", "--pid", "--fork", "--kill-child", "--")
  # A user namespace lets others than root have the rest.
  own_user = (unshare, "--user", *flags) if unshare else ()
  candidates = [Isolation(own_user), Isolation()]
  if os.geteuid() == 0:
    candidates = [Isolation(c.command, NOBODY) for c in candidates]
    candidates += [Isolation((unshare, *flags) if unshare else ())]
    candidates += [Isolation()]
  # Reads modules late, as a program might.
  program = "import decimal, json, random, statistics"
  for candidate in dict.fromkeys(candidates):
    reports, _ = _process(program, [], Limits(10.0), candidate)
    if reports.get("program") == "passed":
      return candidate._replace(confined="files" in reports)
  raise RuntimeError(
    "no sandbox works on this machine: it needs Linux, and a user other than "
    "root, or Landlock (Linux 5.13)."
  )


def run(
  program: str, tests: Sequence[str] = (), *, limits: Limits | None = None
) -> Result:
  """Runs a program, and then each test in the names that it has defined.

  Tests run one after the other in one process. One that hangs or kills the
  process fails alone: the program is started again for those after it.

  Args:
    program: Python source.
    tests: Python sources; one passes by raising nothing.
    limits: `Limits()` by default.

  Raises:
    ValueError: If a limit is not positive.
    RuntimeError: If no isolation will do; see `isolation`.
  """
  limits = _checked(Limits() if limits is None else limits)
  around = isolation()
  errors = ["not run"] * (1 + len(tests))
  start, output = 0, ""
  while True:
    reports, output = _process(
      program, list(enumerate(tests))[start:], limits, around
    )
    errors[0] = reports.get("program", reports["end"])
    if errors[0] != "passed":
      break
    while start < len(tests) and str(start) in reports:
      errors[1 + start] = reports[str(start)]
      start += 1
    if start < len(tests):
      errors[1 + start] = reports["end"]
      start += 1
    if start == len(tests):
      break
  if errors[0] != "passed":
    # Also where a later start failed: a program that sometimes does.
    errors[1:] = ["not run"] * len(tests)
  passed = np.array([error == "passed" for error in errors[1:]], bool)
  return Result(passed, tuple(errors), output)


def run_all(
  jobs: Sequence[tuple[str, Sequence[str]]],
  *,
  limits: Limits | None = None,
  num_workers: int | None = None,
) -> list[Result]:
  """`run` for each `(program, tests)`, several at a time, results in order.

  Args:
    jobs: Programs, each with its tests.
    limits: For each process.
    num_workers: Processes at a time; by default one for each CPU, at most 8.
  """
  if num_workers is None:
    num_workers = min(8, os.cpu_count() or 1)
  checks.check_int("num_workers", num_workers)
  with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
    return list(pool.map(lambda job: run(*job, limits=limits), jobs))


def _checked(limits: Limits) -> Limits:
  checks.check_finite("seconds", limits.seconds, positive=True)
  for name in ("cpu_seconds", "memory_mb", "file_mb"):
    checks.check_int(name, getattr(limits, name))
  return limits


@functools.cache
def _child() -> str:
  # Passed as text: the user that runs it need not be able to read this folder.
  return CHILD.read_text()


def _process(
  program: str, tests: Sequence[Any], limits: Limits, around: Isolation
) -> tuple[dict[str, str], str]:
  """One process: `{"program" | test's number: what happened, "end": ...}`."""
  nonce = secrets.token_hex(16)
  with (
    tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    tempfile.TemporaryFile() as output,
  ):
    owner: dict[str, Any] = {}
    if around.user is not None:
      os.chown(folder, around.user, around.user)
      owner = dict(user=around.user, group=around.user, extra_groups=[])
    channel, theirs = os.pipe()
    try:
      process = subprocess.Popen(
        [*around.command, sys.executable, "-I", "-B", "-c", _child()],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        cwd=folder,
        env={},
        pass_fds=(theirs,),
        # A process group of its own, to be ended as one.
        start_new_session=True,
        **owner,
      )
    except OSError as error:
      os.close(channel)
      return {"end": "died"}, str(error)
    finally:
      os.close(theirs)
    try:
      job = json.dumps(
        {
          "program": program,
          "tests": [(str(i), test) for i, test in tests],
          "limits": limits._asdict(),
          "nonce": nonce,
          "channel": theirs,
          # Told, as in a user namespace it would not know.
          "root": os.geteuid() == 0 and not around.user,
        }
      )
      with contextlib.suppress(BrokenPipeError):
        process.stdin.write(job.encode())
      with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
      most = MAX_REPORT * (1 + len(tests))
      reports = _listen(channel, nonce, limits.seconds, most)
    finally:
      os.close(channel)
      # Before the process is reaped its group's number cannot be another's.
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    reports.setdefault("end", "died")
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - OUTPUT_BYTES))
    return reports, output.read().decode(errors="replace")


def _listen(
  channel: int, nonce: str, seconds: float, most: int
) -> dict[str, str]:
  """Reads reports until the other end closes, or nothing comes in time."""
  reports: dict[str, str] = {}
  rest, heard = b"", 0
  deadline = time.monotonic() + seconds
  while "end" not in reports:
    left = deadline - time.monotonic()
    if left <= 0 or not select.select([channel], [], [], left)[0]:
      reports["end"] = "timeout"
      break
    chunk = os.read(channel, 4096)
    heard += len(chunk)
    if not chunk or heard > most:
      break
    *lines, rest = (rest + chunk).split(b"\n")
    for line in lines:
      word, _, report = line.decode(errors="replace").partition(" ")
      name, _, what = report.partition(" ")
      if word == nonce and what:
        reports[name] = what
        # Each test has its own time.
        deadline = time.monotonic() + seconds
  return reports
