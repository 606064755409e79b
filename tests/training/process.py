"""One of several processes that train together; see `test_processes`.

Jobs are `[{"name", "folder", "stop", "draws"}]`: a system, where it lives, the
step during which the last process gets a SIGTERM (0 for none), and whether to
sample what was learnt. It leaves what it drew and what it wrote itself:
checkpoints apart, of which Orbax has every process write its part.
"""

import json
import os
import pathlib
import signal
import sys

import jax

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def watch(folder):
  """A list, which grows, of what this process makes or changes in there."""
  found = []

  def hook(event, args):
    if event == "open":
      writes = args[2] & WRITES or set(str(args[1])) & set("wax+")
    else:
      writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
    if writes:
      path = str(args[0])
      if path.startswith(str(folder)) and "/checkpoints" not in path:
        found.append(path)

  sys.addaudithook(hook)
  return found


def with_signal(experiment, stop):
  """The same, but the last process is told to end while it reads a batch."""

  def batches(step):
    if step == stop - 1 and jax.process_index() == jax.process_count() - 1:
      os.kill(os.getpid(), signal.SIGTERM)
    return experiment.batches(step)

  return experiment._replace(batches=batches)


def main(out, jobs):
  from jdiff import training

  training.join("auto")
  from tests.training import results, systems

  out = pathlib.Path(out)
  written = watch(out.parent)
  found = {"devices": len(jax.devices()), "written": written, "drawn": {}}
  for job in json.loads(jobs):
    folder = pathlib.Path(job["folder"])
    experiment, config = systems.build(job["name"], folder)
    if job["stop"]:
      try:
        results.run(
          with_signal(experiment, job["stop"]), config, folder / "run"
        )
      except SystemExit as error:
        steps = [record["step"] for record in results.metrics(folder / "run")]
        found |= {"stopped": error.code, "steps": steps}
    results.run(experiment, config, folder / "run")
    if job["draws"]:
      drawn = training.sample(
        folder / "run", 4, build=lambda config, made=experiment: made
      )
      found["drawn"][job["name"]] = drawn.tolist()
  (out / f"process_{jax.process_index()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
  # Run as a file: the repository's root is not on the path yet.
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
  main(*sys.argv[1:])
