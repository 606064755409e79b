"""Plans: what they compile, print and refuse. The chips are this machine's."""

import importlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections
import optax
import pytest

from jdiff import training
from jdiff.training import cost, plan
from tests.training import toy


def config(**fields):
  return ml_collections.ConfigDict(toy.config(**fields))


def named_build(width=64):
  """A step whose one large parameter is split over `fsdp` and `tensor`."""
  optimizer = optax.sgd(0.1)

  def init(key, frozen):
    del frozen
    return training.create(
      key, {"up": {"kernel": jnp.ones((width, width))}}, optimizer
    )

  def step(state, batch):
    def loss(params):
      y = batch @ state.frozen["base"] @ params["up"]["kernel"]
      return jnp.mean(jnp.square(y))

    value, grads = jax.value_and_grad(loss)(state.params)
    state = training.apply_gradients(state, grads, optimizer, ema_decay=0.0)
    return state, {"loss": value}

  def names(path):
    return ("width", "mlp") if path[-2:] == ("up", "kernel") else None

  def never(shardings):
    raise AssertionError("nothing may be loaded to plan")

  abstract = {"base": jax.ShapeDtypeStruct((width, width), jnp.bfloat16)}
  return training.Experiment(
    init,
    step,
    lambda params, key, *, final: {},
    batches=lambda step: jnp.ones((16, width), jnp.float32),
    frozen=training.Frozen(abstract, never),
    axes=names,
  )


def test_bytes_and_products_a_chip():
  fields = config(mesh={"data": 2, "fsdp": 2, "tensor": 2})
  (one,) = plan.compile_for(named_build(), fields, jax.devices())
  assert (one.name, one.error) == ("step", "")
  # Parameter and average over four chips, the base and a batch's quarter.
  large = 2 * 64 * 64 * 4 / 4
  least = large + 64 * 64 * 2 + 16 * 64 * 4 / 4
  assert least <= one.arguments <= least + 64
  assert one.outputs < 64 + 8  # the state goes out where it came in
  # Forward two products, backward one of either kind for the trained kernel.
  products = 2 * 16 * 64 * 64 * (2 + 1)
  assert one.flops * 8 == products
  assert one.collectives
  assert one.total == one.arguments + one.outputs + one.temporaries


def test_rollouts_are_compiled_before_steps():
  experiment = toy.build(toy.config())
  called = []

  def host(rollout):
    called.append(rollout)
    return rollout + 1

  experiment = experiment._replace(
    collect=lambda state, batch: (state, batch * 2),
    host=host,
    step=lambda state, batch: experiment.step(state, batch[0]),
  )
  step = toy.build(toy.config()).step
  experiment = experiment._replace(step=lambda s, b: step(s, b[0]))
  found = plan.compile_for(experiment, config(), jax.devices())
  assert [one.name for one in found] == ["rollout", "step"]
  assert called[0].shape == (16, 1) and not called[0].any()


@pytest.mark.parametrize(
  "topology, message",
  [
    ("v9:2x2", "with a chip of v5e"),
    ("v5e", "must be CHIP:SHAPE"),
    ("v5e:2xtwo", "got 'v5e:2xtwo'"),
    ("h100:2x8", "such as v5e:8x8"),
  ],
)
def test_topologies_that_are_none(topology, message):
  with pytest.raises(ValueError, match=message):
    plan.parse(topology)


def test_a_mesh_that_does_not_fit():
  fields = config(mesh={"data": 1, "fsdp": 3, "tensor": 1})
  with pytest.raises(
    ValueError, match="mesh.fsdp must divide width of up/kern"
  ):
    plan.compile_for(named_build(), fields, jax.devices())
  fields = config(mesh={"data": 1, "fsdp": 1, "tensor": 3})
  with pytest.raises(ValueError, match="got mesh.tensor=3 and mlp=64"):
    plan.compile_for(named_build(), fields, jax.devices())
  fields = config(mesh={"data": 4, "fsdp": 4, "tensor": 1})
  with pytest.raises(ValueError, match="needs 16 devices, got 8"):
    plan.compile_for(named_build(), fields, jax.devices())


def test_tables_say_what_fits_and_what_binds():
  chip = plan.CHIPS["v5e"]
  messages = {"all-gather": cost.Collectives(3, 2e11)}
  one = plan.Compiled(
    "step", 2**30, 0.0, 2**31, 197e12, 0.41e12, 1, collectives=messages
  )
  assert one.fits(chip)
  assert plan.roofline(one, chip) == {
    "products": 1.0,
    "memory": 0.5,
    "links": 2.0,
  }
  text = plan.table("run", "v5e:4x4", config(), [one])
  for part in (
    "run on v5e:4x4, mesh data=1 x fsdp=1",
    "3.00 GiB a chip, 20.1% of its memory",
    "197 TFLOP a chip, 1 loops of unknown length counted once",
    "3 all-gather (186.26 GiB sent)",
    "estimate, at least: products 1 s, memory 500 ms, links 2 s",
    "bound by links",
  ):
    assert part in text, text
  assert text.endswith("  fits")
  for bad in (
    one._replace(temporaries=2.0**34),
    plan.Compiled("step", error="x"),
  ):
    assert not bad.fits(chip)
    assert "DOES NOT FIT" in plan.table("run", "v5e:4x4", config(), [bad])
  unknown = plan.table(
    "run", "v5e:4x4", config(), [one._replace(collectives=None)]
  )
  assert "plan the same mesh on v5e" in unknown


@pytest.mark.parametrize("system", ["alignflow", "collapse", "memorization"])
def test_sets_that_are_not_here_are_stood_in_for(system):
  module = importlib.import_module(f"experiments.{system}.cifar10")
  config = module.get_config("pod")
  with pytest.raises(FileNotFoundError):
    training.build(config)
  experiment = training.stand_in(config)
  assert isinstance(experiment, training.Experiment)
  key = jax.eval_shape(jax.random.key, 0)
  assert jax.eval_shape(experiment.init, key).params


def test_planning_from_the_command_line():
  # Its own process, which has no compiler of the chip or has one.
  done = subprocess.run(
    [
      *(sys.executable, "-m", "experiments.main", "--plan=v5e:2x2"),
      "--config=tests/training/toy_config.py:short",
    ],
    capture_output=True,
    text=True,
    env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    check=False,
  )
  if done.returncode:
    assert 'pip install "jdiff-research[plan]"' in done.stderr
    assert done.returncode == 2 and "Traceback" not in done.stderr
  else:
    assert "toy (short) on v5e:2x2" in done.stdout
    assert done.stdout.rstrip().endswith("fits")
