"""A linear regression that every test of the loop trains."""

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
}
TRUTH = jnp.array([1.0, -2.0, 0.5, 3.0])


def build(config):
  optimizer = optax.adam(config["learning_rate"])

  def init(key):
    key_init, key_run = jax.random.split(key)
    params = {"w": jax.random.normal(key_init, (4,))}
    return training.create(key_run, params, optimizer)

  def loss_fn(params, x, y):
    return jnp.mean((x @ params["w"] - y) ** 2)

  def step(state, batch):
    x = jax.random.normal(training.step_key(state), (16, 4)) + batch
    x = training.shard_batch(x)
    loss, grads = jax.value_and_grad(loss_fn)(state.params, x, x @ TRUTH)
    state = training.apply_gradients(state, grads, optimizer, ema_decay=0.9)
    return state, {"loss": loss, "count": state.step}

  def batches(step):
    return jnp.full((16, 1), 0.01 * step)

  def evaluate(params, key, *, final):
    x = jax.random.normal(key, (1000 if final else 100, 4))
    errors = (x @ (params["w"] - TRUTH)) ** 2
    return {
      "mse": {
        "value": errors.mean(),
        "se": errors.std() / len(x) ** 0.5,
        "exact": 0.0,
      },
      "w0": params["w"][0],
      "nfe": 1,
    }

  def sample(params, key, num_samples):
    return jax.random.normal(key, (num_samples, 4)) + params["w"]

  def figures(params, key, directory, history):
    (directory / "curve.png").write_bytes(b"%d" % len(history))

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
