"""From the command to the first step of every smoke config, and where it goes.

  python -m benchmarks.startup [word ...]

Words pick config files by their path. Each row is two processes that train and
stop after one step, the second with the first's compiled programs (`again`).
`start`: Python, JAX, the experiment's imports and its config. `build`: data,
tables, whatever `build` makes. `init`: the state, where a base is tuned up to
the first step of that one's training. `step`: compiling and taking it. Of a
study the first of its runs counts. Seconds of wall time.
"""

import importlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks import timing

ROOT = pathlib.Path(__file__).parents[1]
STAGES = ("start", "build", "init", "step")


def config_files():
  """`{system/task: module}` of config files that have a smoke variant."""
  found = {}
  for path in sorted((ROOT / "experiments").glob("*/*.py")):
    if "def get_config(variant:" not in path.read_text():
      continue
    name = path.relative_to(ROOT / "experiments").with_suffix("").as_posix()
    module = "experiments." + name.replace("/", ".")
    try:
      importlib.import_module(module).get_config("smoke")
      found[name] = module
    except ValueError:
      pass  # No such variant.
  return found


def one(module, workdir, begun):
  """Trains for one step and prints when each stage had ended."""
  from jdiff import training
  from jdiff.training import loop

  ends = {}
  config = importlib.import_module(module).get_config("smoke")
  importlib.import_module(config.experiment)
  ends["start"] = time.time()
  experiment = training.build(config)
  ends["build"] = time.time()
  advance = loop._Run.advance

  def first(self, state, step):
    ends["init"] = time.time()
    advance(self, state, step)
    ends["step"] = time.time()
    raise SystemExit

  loop._Run.advance = first
  try:
    training.run(experiment, config, workdir, progress=False)
  except SystemExit:
    pass
  times = [begun, *(ends.get(stage, time.time()) for stage in STAGES)]
  print(json.dumps([b - a for a, b in zip(times, times[1:], strict=False)]))


def measure(module, workdir):
  command = (sys.executable, "-m", "benchmarks.startup", "--one", module)
  done = subprocess.run(
    [*command, str(workdir), repr(time.time())],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise RuntimeError(done.stderr.strip().splitlines()[-1])
  return json.loads(done.stdout.splitlines()[-1])


def main():
  if sys.argv[1:2] == ["--one"]:
    one(*sys.argv[2:4], float(sys.argv[4]))
    return
  print(timing.where())
  print(f"{'':24}" + "".join(f"{s:>8}" for s in (*STAGES, "all", "again")))
  for name, module in config_files().items():
    if sys.argv[1:] and not any(word in name for word in sys.argv[1:]):
      continue
    try:
      with tempfile.TemporaryDirectory() as directory:
        cold = measure(module, pathlib.Path(directory) / "run")
        warm = measure(module, pathlib.Path(directory) / "run")
    except RuntimeError as error:
      print(f"{name:24}not measured: {error}", flush=True)
      continue
    row = [*cold, sum(cold), sum(warm)]
    print(f"{name:24}" + "".join(f"{s:8.2f}" for s in row), flush=True)


if __name__ == "__main__":
  main()
