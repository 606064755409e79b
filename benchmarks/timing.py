"""Timing side by side: what every benchmark prints its numbers with."""

import json
import math
import os
import time

import jax

ROUNDS = 5
KEEP = "JDIFF_RATIOS"
"""Names a file that gets a line for each ratio; `run_all` sets it."""


def keep(title, row, ratio, baseline):
  """Notes a ratio that a table prints, for the table of all of them."""
  if KEEP in os.environ:
    with open(os.environ[KEEP], "a") as file:
      file.write(json.dumps([title, row, float(ratio), baseline]) + "\n")


def where():
  """What a table was measured with, in one line."""
  device = jax.devices()[0]
  return f"jax {jax.__version__}, {device.device_kind} ({device.platform})"


def measure(runs, rounds=ROUNDS):
  """`{name: (steady seconds, compile seconds)}` of blocking calls, in turns."""
  first, best = {}, dict.fromkeys(runs, math.inf)
  for turn in range(1 + rounds):
    for name, run in runs.items():
      start = time.perf_counter()
      jax.block_until_ready(run())
      seconds = time.perf_counter() - start
      if turn == 0:
        first[name] = seconds
      else:
        best[name] = min(best[name], seconds)
  return {name: (best[name], first[name] - best[name]) for name in runs}


def memory(run):
  """`(seconds, bytes held before, peak above them)` of one call; Linux only.

  Making arguments may have peaked higher than holding them, so the peak is
  counted anew.
  """
  held = _status("VmRSS")
  with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
  start = time.perf_counter()
  jax.block_until_ready(run())
  seconds = time.perf_counter() - start
  return seconds, held, _status("VmHWM") - held


def _status(name):
  with open("/proc/self/status") as lines:
    for line in lines:
      if line.startswith(name + ":"):
        return 1024 * int(line.split()[1])
  raise KeyError(name)


def race(title, runs, nfe, batch):
  """Prints the table of `{name: run}`; the first row is the baseline."""
  times = measure(runs)
  baseline = next(iter(runs))
  width = max(map(len, runs))
  print(f"\n{title}; float32, batch {batch}, baseline: {baseline}")
  print(
    f"{'':{width}}  {'nfe':>4}  {'ms':>9}  {'rollouts/s':>10}  {'ratio':>7}"
    "  compile s"
  )
  for name, (seconds, compiling) in times.items():
    ratio = times[baseline][0] / seconds
    keep(f"{title}, batch {batch}", name, ratio, baseline)
    print(
      f"{name:{width}}  {nfe[name]:4d}  {1e3 * seconds:9.2f}  "
      f"{batch / seconds:10.0f}  {ratio:7.3f}  {compiling:9.2f}",
      flush=True,
    )
