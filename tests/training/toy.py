"""A linear regression that the tests of the loop train."""

import jax
import jax.numpy as jnp
import optax

from jdiff import training

CONFIG = {
  "experiment": "tests.training.toy",
  "variant": "tiny",
  "name": "toy",
  "seed": 0,
  "num_steps": 30,
  "log_every": 5,
  "eval_every": 10,
  "checkpoint_every": 6,
  "mesh": {"data": 1, "fsdp": 1},
  "learning_rate": 0.05,
  "width": 4,
  "num_eval": 1000,
  "nan_step": -1,
}


def config(**changes):
  return CONFIG | changes


def build(config):
  optimizer = optax.adam(config["learning_rate"])
  width = config["width"]
  truth = jnp.linspace(-2.0, 3.0, width)

  def init(key):
    key_init, key_run = jax.random.split(key)
    params = {"w": jax.random.normal(key_init, (width,))}
    return training.create(key_run, params, optimizer)

  def loss_fn(params, x):
    return jnp.mean((x @ (params["w"] - truth)) ** 2)

  def step(state, batch):
    x = jax.random.normal(training.step_key(state), (16, width)) + batch
    x = training.shard_batch(x)
    loss, grads = jax.value_and_grad(loss_fn)(state.params, x)
    bad = jnp.where(state.step == config["nan_step"] - 1, jnp.nan, 1)
    state = training.apply_gradients(
      state,
      jax.tree.map(lambda g: bad * g, grads),
      optimizer,
      ema_decay=0.9,
    )
    return state, {"loss": loss, "count": state.step}

  def batches(step):
    return jnp.full((16, 1), 0.01 * step)

  def evaluate(params, key, *, final):
    x = jax.random.normal(
      key, (config["num_eval"] // (1 if final else 10), width)
    )
    errors = (x @ (params["w"] - truth)) ** 2
    return {
      "mse": {
        "value": errors.mean(),
        "se": errors.std() / len(x) ** 0.5,
        "exact": 0.0,
      },
      "first_weight": params["w"][0],
      "nfe": 1,
    }

  def sample(params, key, num_samples):
    return jax.random.normal(key, (num_samples, width)) + params["w"][None]

  def figures(params, key, directory, history):
    (directory / "curve.png").write_text(str(len(history)))

  def apply(params, x):
    return x @ params["w"]

  return training.Experiment(
    init,
    step,
    evaluate,
    apply=apply,
    sample=sample,
    batches=batches,
    figures=figures,
  )
