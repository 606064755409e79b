"""Nothing is compiled a second time: not by steps, not by evaluations."""

import contextlib
import logging

import jax
import jax.numpy as jnp
import pytest

from jdiff import training
from tests import helpers
from tests.training import results, systems, toy

# Those whose steps differ in kind: a buffer, a host, a base, batches, a study.
FIRST = ("alignflow_table", "collapse", "gdpo", "mdns", "olla", "tr2d2")
TRAINED = [name for name in systems.SYSTEMS if name != "collapse_closed_form"]


@contextlib.contextmanager
def compilations():
  """Yields a list that gets a line for each program that is compiled."""
  lines = []

  class Handler(logging.Handler):
    def emit(self, record):
      text = record.getMessage()
      if text.startswith("Compiling"):
        lines.append(text)

  logger, handler = logging.getLogger("jax"), Handler()
  logger.addHandler(handler)
  try:
    with jax.log_compiles(True):
      yield lines
  finally:
    logger.removeHandler(handler)


def compiled_between_evaluations(experiment, config, workdir):
  """What the steps between the first two evaluations compiled, and the second.

  All that a run does later has happened by then: a step, a record, a save.
  """
  marks = []

  def evaluate(params, key, *, final):
    values = experiment.evaluate(params, key, final=final)
    marks.append(len(lines))
    return values

  with compilations() as lines:
    results.run(experiment._replace(evaluate=evaluate), config, workdir)
  assert len(marks) == 3
  return lines[: marks[0]], lines[marks[0] : marks[1]]


@pytest.mark.slow
@pytest.mark.parametrize("name", helpers.thorough(TRAINED, FIRST))
def test_steps_and_evaluations_compile_once(name, tmp_path):
  systems.prepare(tmp_path / "data")
  experiment, config = systems.build(name, tmp_path / "data")
  config.mesh.data = 1
  workdir = tmp_path / "run"
  if isinstance(experiment, training.Study):
    with compilations() as lines:
      results.run(experiment, config, workdir)
    # Each of its runs is an experiment of its own.
    assert num_steps_compiled(lines) == len(list(workdir.rglob("checkpoints")))
    return
  config.num_steps = 3 * config.eval_every
  first, later = compiled_between_evaluations(experiment, config, workdir)
  # A base that is tuned was trained before, by a step of its own.
  assert num_steps_compiled(first) == 1 + ("base" in config)
  # The chains that these look at have grown.
  grown = ("Compiling jit(ess) ", "Compiling jit(r_hat) ")
  assert [line for line in later if not line.startswith(grown)] == []


def num_steps_compiled(lines):
  return sum(line.startswith("Compiling jit(step) ") for line in lines)


def test_a_step_whose_batches_change_shape_is_seen(tmp_path):
  base = toy.build(toy.CONFIG)

  def batches(step):
    return jnp.zeros((16 if step < 15 else 1, 1))

  _, later = compiled_between_evaluations(
    base._replace(batches=batches), toy.CONFIG, tmp_path
  )
  assert any("jit(step)" in line for line in later)
