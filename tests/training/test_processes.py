"""Every trainer in two processes, as on two hosts, and in one."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import pytest

from tests import helpers
from tests.training import results, systems

CHILD = pathlib.Path(__file__).parent / "process.py"

GROUPS = {
  # One jitted step; pairs made on the host; and keys made outside of jit.
  "first": ("mdns", "alignflow_minibatch", "collapse_closed_form"),
  "samplers": ("olla", "pdns", "alignflow_table", "mdns_split"),
  "language": ("masked_lm", "gdpo", "dmpo"),
  "search": ("tr2d2", "memorization_sweep"),
  "memorization": ("memorization",),
  "collapse": ("collapse",),
  "world": ("world",),
  "pixels": ("world_pixels",),
}

STOPPED = "alignflow_minibatch"
"""Told to stop at its second step, in one of the launches."""

SCALES = {
  "pdns": {"mean_": 6.0},
  "memorization_sweep": {"frechet": 8.0},
  "world_pixels": {"delta_psnr": 8.0},
}
"""What cancels in a metric, where that is far more than the metric itself.

The averages of PDNS are of coordinates about as large as this; a Fréchet
distance is what is left of the traces of two covariances in four dimensions;
and a gap of two PSNRs of decibels like these.
One process adds eight devices' sums in another order than two do, and float32
keeps seven digits of what is added.
"""


def free_port():
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


def devices(num):
  flags = helpers.one_device_flags()
  return {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={num}"}


def explicit(index, num, port):
  return {
    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
    "JAX_NUM_PROCESSES": str(num),
    "JAX_PROCESS_ID": str(index),
  }


def slurm(index, num, port):
  """What a step of Slurm has, on one node."""
  return {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NUM_TASKS": str(num),
    "SLURM_NTASKS": str(num),
    "SLURM_PROCID": str(index),
    "SLURM_LOCALID": str(index),
    "JAX_COORDINATOR_PORT": str(port),
  }


def launch(num, folder, jobs, cache, cluster):
  """Trains in `num` processes of eight devices together; what each leaves."""
  port, out = free_port(), folder / "out"
  out.mkdir(parents=True)
  environment = os.environ | {
    **devices(8 // num),
    # Two launches compile the same programs.
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  children = []
  for index in range(num):
    # A step of one task is alone, and joins nobody.
    own = cluster(index, num, port)
    children.append(
      subprocess.Popen(
        [sys.executable, CHILD, out, json.dumps(jobs)],
        env=environment | own,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  try:
    for child in children:
      _, errors = child.communicate(timeout=900)
      assert child.returncode == 0, errors[-3000:]
  finally:
    for child in children:
      child.kill()
  return [
    json.loads((out / f"process_{i}.json").read_text()) for i in range(num)
  ]


def job(name, folder, stop=0, draws=False):
  systems.prepare(folder / name)
  path = str(folder / name)
  return {"name": name, "folder": path, "stop": stop, "draws": draws}


def half(whole, folder):
  """A run as it was at its checkpoint half way, in another folder."""
  shutil.copytree(whole, folder)
  steps = sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
  assert len(steps) == 2
  shutil.rmtree(folder / "checkpoints" / str(steps[-1]))
  (folder / "report.json").unlink()


@pytest.fixture(
  scope="module", params=helpers.thorough(list(GROUPS), ["first"])
)
def launches(request, tmp_path_factory):
  """`(names, folder, {launch: what its processes leave})`.

  `two` and `again` are launches of two processes, `one` is of one.
  """
  names = GROUPS[request.param]
  if request.param == "pixels":
    pytest.importorskip("gymnax", exc_type=ImportError)
  folder = tmp_path_factory.mktemp(request.param)
  found = {}
  for name, num, cluster in (
    ("two", 2, explicit),
    ("one", 1, slurm),
    ("again", 2, slurm),
  ):
    jobs = [
      job(
        n,
        folder / name,
        stop=2 if (n, name) == (STOPPED, "again") else 0,
        # One is enough: to restore takes as long as to run.
        draws=(n, name) == ("mdns", "two"),
      )
      for n in names
    ]
    if (request.param, name) == ("first", "again"):
      # What one process has begun.
      half(folder / "one" / "mdns" / "run", folder / "on" / "mdns" / "run")
      jobs.append(job("mdns", folder / "on"))
    cache = folder / f"cache_{num}"
    found[name] = launch(num, folder / name, jobs, cache, cluster)
  return names, folder, found


def numbers(run):
  """`{(file, line, name): (value, scale)}` of a run and those inside it.

  The scale of an estimate's standard error is the estimate: where values
  hardly differ, their spread has fewer digits than they.
  """
  found = {}
  for path in sorted(run.rglob("metrics.jsonl")):
    for line, record in enumerate(results.metrics(path.parent)):
      # Of the clock.
      record.pop("tokens_per_second", None)
      for name, value in record.items():
        of = record.get(name.removesuffix("_se"))
        found[str(path.relative_to(run)), line, name] = value, of
  for path in sorted(run.rglob("report.json")):
    for name, entry in results.report(path.parent)["metrics"].items():
      for field, value in entry.items():
        key = str(path.relative_to(run)), name, field
        found[key] = value, entry["value"]
  return found


def files(run):
  """Those of a run, its checkpoints and what was drawn of it apart."""
  found = (str(path.relative_to(run)) for path in run.rglob("*.*"))
  return sorted(f for f in found if "checkpoints" not in f and "npy" not in f)


def differences(one, other, scales):
  """Those beyond float noise, `{key: (value, value)}`."""
  one, other = numbers(one), numbers(other)
  assert one.keys() == other.keys()
  found = {}
  for key, (value, of) in one.items():
    again = other[key][0]
    if value == again:
      continue
    path = "/".join(map(str, key))
    scale = max(
      [abs(x) for x in (value, again, of) if x is not None]
      + [size for part, size in scales.items() if part in path]
    )
    if None in (value, again) or abs(value - again) > 1e-6 * scale:
      found[key] = value, again
  return found


@pytest.mark.slow
def test_two_processes_repeat_themselves(launches):
  names, folder, found = launches
  for name in names:
    one, other = (folder / which / name / "run" for which in ("two", "again"))
    assert numbers(one) and numbers(one) == numbers(other)
    assert files(one) == files(other)
  first, second = (process["drawn"] for process in found["two"])
  assert first == second and ("mdns" in first) == ("mdns" in names)


@pytest.mark.slow
def test_two_processes_are_as_one(launches):
  names, folder, found = launches
  assert all(p["devices"] == 8 for one in found.values() for p in one)
  for name in names:
    one, two = (folder / which / name / "run" for which in ("one", "two"))
    assert not differences(one, two, SCALES.get(name, {}))


def test_differences_are_seen(tmp_path):
  for name, loss in (("one", 2.0), ("near", 2.000001), ("far", 2.0002)):
    record = {"step": 1, "loss": loss, "wall_seconds": 0.0}
    (tmp_path / name).mkdir()
    (tmp_path / name / "metrics.jsonl").write_text(json.dumps(record) + "\n")
  assert not differences(tmp_path / "one", tmp_path / "near", {})
  assert differences(tmp_path / "one", tmp_path / "far", {})


@pytest.mark.slow
def test_the_first_process_writes_alone(launches):
  _, _, found = launches
  for which in ("two", "again"):
    first, second = found[which]
    assert second["written"] == []
    assert any(path.endswith("metrics.part") for path in first["written"])


@pytest.mark.slow
@pytest.mark.parametrize("launches", ["first"], indirect=True)
def test_a_signal_to_one_process_stops_both(launches):
  _, _, found = launches
  for process in found["again"]:
    # Of SIGTERM, and what it began was finished: the records are compared.
    assert process["stopped"] == 143
    assert process["steps"][-1] == 2
  assert "stopped" not in found["two"][0]


@pytest.mark.slow
@pytest.mark.parametrize("launches", ["first"], indirect=True)
def test_a_run_goes_on_in_more_and_in_fewer_processes(launches, tmp_path):
  _, folder, _ = launches
  one, two = (folder / which / "mdns" / "run" for which in ("one", "two"))
  assert not differences(one, folder / "on" / "mdns" / "run", {})
  half(two, tmp_path / "run")
  experiment, config = systems.build("mdns", tmp_path)
  config.mesh.data = 1
  results.run(experiment, config, tmp_path / "run")
  assert not differences(two, tmp_path / "run", {})


@pytest.mark.thorough
def test_the_entry_point_joins_and_stops(tmp_path):
  port = free_port()
  children = [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "experiments.main"),
        "--config=experiments/mdns/ising.py:smoke",
        f"--workdir={tmp_path / 'run'}",
        "--config.num_steps=100000",
        "--config.log_every=1",
      ],
      cwd=CHILD.parents[2],
      env=os.environ | devices(4) | explicit(index, 2, port),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  records = tmp_path / "run" / "metrics.jsonl"
  try:
    while not records.exists() or records.stat().st_size < 1000:
      assert all(child.poll() is None for child in children)
      time.sleep(0.1)
    children[1].terminate()
    errors = [child.communicate(timeout=300)[1] for child in children]
  finally:
    for child in children:
      child.kill()
  assert [child.returncode for child in children] == [143, 143], errors
  assert "SIGTERM: saved after step" in errors[0]
  assert "saved after step" not in errors[1]
  last = results.metrics(tmp_path / "run")[-1]["step"]
  assert (tmp_path / "run" / "checkpoints" / str(last)).is_dir()
