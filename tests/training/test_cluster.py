"""Which environments name several processes, and what JAX is told then."""

import pathlib
import subprocess
import sys

import jax
import pytest
from absl import flags
from jax._src import cloud_tpu_init

from experiments import main
from jdiff.training import processes

STEP = {
  "SLURM_JOB_ID": "17",
  "SLURM_STEP_NODELIST": "node[3-4]",
  "SLURM_NTASKS": "16",
  "SLURM_STEP_NUM_TASKS": "16",
  "SLURM_STEP_NUM_NODES": "2",
  "SLURM_PROCID": "11",
  "SLURM_LOCALID": "3",
  "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}
ONE_A_NODE = STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}
EXPLICIT = {
  "JAX_COORDINATOR_ADDRESS": "host:1234",
  "JAX_NUM_PROCESSES": "4",
  "JAX_PROCESS_ID": "3",
}


def without(environment, name):
  return {k: v for k, v in environment.items() if k != name}


@pytest.mark.parametrize(
  "environment, count",
  [
    ({}, 1),
    (STEP, 16),
    # A script of sbatch, and a shell in an allocation of many tasks.
    (without(STEP, "SLURM_STEP_NODELIST"), 1),
    (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, 1),
    ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
    (EXPLICIT, 4),
    (STEP | EXPLICIT | {"JAX_NUM_PROCESSES": "1"}, 1),
    # Where to meet does not say how many come.
    ({"JAX_COORDINATOR_ADDRESS": "host:1234"}, 1),
    # No TPU is here, whatever the variables say.
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, 1),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, 1),
  ],
)
def test_how_many_processes_an_environment_names(environment, count):
  assert processes.count(environment) == count


@pytest.mark.parametrize(
  "environment, count",
  [
    ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, 4),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, 1),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "MEGASCALE_NUM_SLICES": "2"}, 4),
    ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, 2),
  ],
)
def test_hosts_of_a_pod(environment, count, monkeypatch):
  monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
  assert processes.count(environment) == count


def test_hosts_of_a_pod_from_a_file(tmp_path, monkeypatch):
  monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
  (tmp_path / "hosts").write_text("a:1,b:1,c:1\n")
  path = str(tmp_path / "hosts")
  assert processes.count({"TPU_PROCESS_ADDRESSES_PATH": path}) == 3


@pytest.mark.parametrize(
  "answer, count",
  [
    (lambda key: ("h0,h1,h2,h3", 200), 4),
    (lambda key: ("h0", 200), 1),
    (lambda key: ("", 404), 1),
    (None, 1),
  ],
)
def test_hosts_of_a_pod_by_its_metadata(answer, count, monkeypatch):
  from jax._src.clusters import cloud_tpu_cluster

  def metadata(key):
    if answer is None:
      raise ConnectionError("no metadata here")
    return ("", 404) if key == "tpu-env" else answer(key)

  monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
  monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
  monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", metadata)
  monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
  monkeypatch.delenv("MEGASCALE_NUM_SLICES", raising=False)
  assert processes.count({}) == count


@pytest.mark.parametrize(
  "environment, devices",
  [
    (STEP, None),
    (ONE_A_NODE, list(range(8))),
    # Bound to one GPU, which is the first that it sees.
    (STEP | {"CUDA_VISIBLE_DEVICES": "5"}, [0]),
    (ONE_A_NODE | {"JAX_LOCAL_DEVICE_IDS": "0,1"}, None),
    (without(ONE_A_NODE, "CUDA_VISIBLE_DEVICES"), None),
    ({}, None),
  ],
)
def test_which_gpus_are_a_task_s(environment, devices):
  assert processes.arguments(environment).get("local_device_ids") == devices


@pytest.fixture
def asked(monkeypatch):
  """What `jax.distributed.initialize` was called with, each time."""
  calls = []

  def initialize(**arguments):
    calls.append(arguments)

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  for name in (*STEP, *EXPLICIT, "OMPI_COMM_WORLD_SIZE"):
    monkeypatch.delenv(name, raising=False)
  return calls


def test_a_process_that_is_alone_joins_only_if_told_to(asked):
  processes.join()
  processes.join("off")
  assert asked == []
  processes.join("on")
  assert asked == [{}]


def test_a_task_of_many_joins_unless_told_not_to(asked, monkeypatch):
  for name, value in EXPLICIT.items():
    monkeypatch.setenv(name, value)
  processes.join("off")
  assert asked == []
  processes.join()
  assert asked == [
    {
      "coordinator_address": "host:1234",
      "num_processes": 4,
      "process_id": 3,
      "cluster_detection_method": "deactivate",
    }
  ]


def test_what_cannot_be_joined_is_said(monkeypatch):
  with pytest.raises(ValueError, match="how must be"):
    processes.join("maybe")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
  with pytest.raises(ValueError, match="JAX_COORDINATOR_ADDRESS and JAX_PROC"):
    processes.join()
  monkeypatch.setenv("JAX_NUM_PROCESSES", "four")
  with pytest.raises(ValueError, match="must be an integer"):
    processes.join()
  monkeypatch.delenv("JAX_NUM_PROCESSES")
  # Of Open MPI, but nothing that JAX could find the others by.
  monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
  with pytest.raises(ValueError, match="set JAX_COORDINATOR_ADDRESS"):
    processes.join()


@pytest.mark.parametrize(
  "argument, how",
  {
    "": "auto",
    "--distributed": "on",
    "--nodistributed": "off",
    "--distributed=auto": "auto",
    "--distributed=off": "off",
    "--distributed=on": "on",
  }.items(),
)
def test_the_flag_has_three_values_and_two_short_forms(argument, how):
  main.FLAGS.unparse_flags()
  main.FLAGS(["main", *argument.split()])
  assert main.FLAGS.distributed == how
  main.FLAGS.unparse_flags()


def test_the_flag_has_no_other_values():
  with pytest.raises(flags.IllegalFlagValueError, match="should be one of"):
    main.FLAGS(["main", "--distributed=maybe"])


def test_a_process_that_failed_does_not_wait_for_the_others():
  code = """
import time
import jax
from jdiff import training
training.leave(7, seconds=0.1)
assert not training.processes.threading.enumerate()[1:]
jax.distributed.is_initialized = lambda: True
training.leave(7, seconds=0.1)
time.sleep(60)
"""
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=pathlib.Path(__file__).parents[2]
  )
  assert done.returncode == 7


def test_one_process_agrees_with_itself():
  assert processes.agree(lambda: {"a": (1,)}) == {"a": (1,)}
  with processes.scratch() as folder:
    assert folder.is_dir()
  assert not folder.exists()
