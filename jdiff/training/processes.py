"""Several processes, one run: how they join, and what they must agree on."""

import contextlib
import json
import math
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

ADDRESS, COUNT, INDEX = (
  "JAX_COORDINATOR_ADDRESS",
  "JAX_NUM_PROCESSES",
  "JAX_PROCESS_ID",
)
"""Variables for clusters that JAX does not know; the first is JAX's own."""

_SCRATCH: list[pathlib.Path] = []
"""Directories of runs in progress, which all processes see."""


def join(how: str = "auto") -> None:
  """Joins the processes of this run, before anything asks for devices.

  Args:
    how: "off" never does; "on" always, so that JAX raises where it does not
      know the cluster; "auto" where `count` says that there are several, so
      that a process that is alone waits for no other.

  Raises:
    ValueError: If `how` is none of these, or there are several processes and
      it is not said where to meet.
  """
  if how not in ("auto", "on", "off"):
    raise ValueError(f"how must be 'auto', 'on' or 'off', got {how!r}.")
  if how == "off" or jax.distributed.is_initialized():
    return
  if how == "auto" and count(os.environ) == 1:
    return
  try:
    jax.distributed.initialize(**arguments(os.environ))
  except (ValueError, RuntimeError) as error:
    # Others that do not come, in time.
    if isinstance(error, jax.errors.JaxRuntimeError):
      raise
    raise ValueError(
      f"JAX does not know how to join other processes here ({error}); set "
      f"{ADDRESS}, {COUNT} and {INDEX}, or pass --distributed=off."
    ) from error


def leave(code: int, *, seconds: float = 30.0) -> None:
  """Has this process end with an exit code, whether or not the others do.

  One that has failed would wait for them for five minutes, and they for it. If
  all have failed, they end together and at once.
  """
  if jax.distributed.is_initialized():
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()


def count(environment: Mapping[str, str]) -> int:
  """How many processes an environment says there are; 1 where it is silent.

  `JAX_NUM_PROCESSES`, the tasks of a Slurm step, those of Open MPI, or the
  hosts of a TPU pod. Nobody is asked but the metadata of a TPU's own host.
  """
  if COUNT in environment:
    return _integer(environment, COUNT)
  # Of the step, not of the job: a shell inside an allocation is alone.
  if "SLURM_JOB_ID" in environment and "SLURM_STEP_NODELIST" in environment:
    return _integer(environment, "SLURM_STEP_NUM_TASKS")
  if "OMPI_COMM_WORLD_SIZE" in environment:
    return _integer(environment, "OMPI_COMM_WORLD_SIZE")
  return _tpu_hosts(environment)


def arguments(environment: Mapping[str, str]) -> dict[str, Any]:
  """What `jax.distributed.initialize` is told, beside what it finds itself."""
  found: dict[str, Any] = {}
  if COUNT in environment:
    missing = [name for name in (ADDRESS, INDEX) if name not in environment]
    if missing:
      raise ValueError(f"{COUNT} is set, and {' and '.join(missing)} is not")
    found["coordinator_address"] = environment[ADDRESS]
    found["num_processes"] = _integer(environment, COUNT)
    found["process_id"] = _integer(environment, INDEX)
    # Else it would ask Slurm for a GPU all the same.
    found["cluster_detection_method"] = "deactivate"
  devices = _gpus(environment)
  if devices is not None:
    found["local_device_ids"] = devices
  return found


def _gpus(environment: Mapping[str, str]) -> list[int] | None:
  """Those of this process, where JAX would take others; None is its choice.

  Under Slurm and Open MPI that is the one whose number is the task's on this
  node: wrong where a task has all GPUs of its node, or sees its own alone.
  """
  visible = environment.get("CUDA_VISIBLE_DEVICES", "")
  if "JAX_LOCAL_DEVICE_IDS" in environment or not visible:
    return None
  devices = list(range(len(visible.split(","))))
  tasks, nodes = (
    environment.get(f"SLURM_STEP_NUM_{name}") for name in ("TASKS", "NODES")
  )
  alone_on_node = tasks is not None and tasks == nodes
  return devices if alone_on_node or len(devices) == 1 else None


def _tpu_hosts(environment: Mapping[str, str]) -> int:
  """Of a pod, over all slices."""
  from jax._src import cloud_tpu_init, clusters

  if not cloud_tpu_init.running_in_cloud_tpu_vm:
    return 1
  hosts = environment.get("TPU_PROCESS_ADDRESSES")
  hosts = hosts or environment.get("TPU_WORKER_HOSTNAMES")
  # Known to JAX since 0.12.
  if path := environment.get("TPU_PROCESS_ADDRESSES_PATH"):
    hosts = pathlib.Path(path).read_text()
  if hosts:
    slices = environment.get("MEGASCALE_NUM_SLICES") or "1"
    return len(hosts.split(",")) * int(slices)
  try:
    cluster = clusters.GceTpuCluster
    return cluster.get_process_count() if cluster.is_env_present() else 1
  except (ImportError, OSError):
    # No metadata: a machine with chips that is no VM of the cloud's.
    return 1


def _integer(environment: Mapping[str, str], name: str) -> int:
  text = environment.get(name, "1")
  if not text.isdecimal():
    raise ValueError(f"{name} must be an integer >= 0, got {text!r}.")
  return int(text)


def agree(make: Callable[[], Any]) -> Any:
  """What `make` answers on the first process, as JSON has it, on all.

  For what files say: others may see them later. All wait for one another.

  Raises:
    ValueError: On all, if `make` does.
    OSError: Likewise.
  """
  if jax.process_count() == 1:
    return make()
  # Heavy and needed by pods alone.
  from jax.experimental import multihost_utils

  text = b"" if jax.process_index() else json.dumps(_outcome(make)).encode()
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  # Few sizes, because each is compiled. JSON may end in spaces.
  room = 2 ** max(8, math.ceil(math.log2(max(size, 1))))
  padded = np.frombuffer(text.ljust(room), np.uint8)
  told = multihost_utils.broadcast_one_to_all(padded).tobytes()
  value, error = json.loads(told)
  if error is not None:
    kind, said = error
    raise (OSError if kind == "OSError" else ValueError)(said)
  return value


def _outcome(make: Callable[[], Any]) -> tuple[Any, tuple[str, str] | None]:
  """What it answers, or the kind and text of its error: the others wait."""
  try:
    return make(), None
  except OSError as error:
    return None, ("OSError", str(error))
  except ValueError as error:
    return None, ("ValueError", str(error))


@contextlib.contextmanager
def scratch_in(directory: str | os.PathLike) -> Iterator[None]:
  """Where `scratch` lies meanwhile, if there are several processes."""
  _SCRATCH.append(pathlib.Path(directory).absolute())
  try:
    yield
  finally:
    _SCRATCH.pop()


@contextlib.contextmanager
def scratch() -> Iterator[pathlib.Path]:
  """A directory that all processes see, and that is gone afterwards.

  Raises:
    ValueError: If there are several processes, and no run is in progress.
  """
  if jax.process_count() == 1:
    with tempfile.TemporaryDirectory() as directory:
      yield pathlib.Path(directory)
    return
  if not _SCRATCH:
    raise ValueError(
      "several processes share files in the folder of a run alone; call this "
      "from one."
    )

  def make():
    _SCRATCH[-1].mkdir(parents=True, exist_ok=True)
    return tempfile.mkdtemp(prefix="scratch_", dir=_SCRATCH[-1])

  shared = pathlib.Path(agree(make))
  try:
    yield shared
    # Nobody reads any more.
    agree(lambda: None)
  finally:
    if not jax.process_index():
      shutil.rmtree(shared, ignore_errors=True)
