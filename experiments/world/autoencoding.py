"""Trains a tokenizer of pixels: the first of two stages of a pixel world."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from experiments.common import data as data_lib
from experiments.common import fields as fields_lib
from experiments.common import metrics as metrics_lib
from experiments.common import plots
from experiments.world import envs
from experiments.world import parts as parts_lib
from jdiff import nets, training
from jdiff.world import metrics, tokenizers

NUM_SHOWN = 12


def build(config: ml_collections.ConfigDict) -> training.Experiment:
  """An autoencoder through FSQ, on the frames of an environment with pixels.

  The loss is the squared error, with pixels that move weighted up: a ball is
  one pixel in a hundred, and a decoder that leaves it out makes a world that
  cannot be played.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others.
    ImportError: If the environment's package is not installed.
  """
  fields_lib.check(config)
  env = parts_lib.env(config.env)
  net, tokenizer = parts(config, env)
  optimizer = parts_lib.optimizer(config)

  @functools.cache
  def source():
    _, frames = recorded(config, env, "train")
    frames = frames.reshape(-1, *frames.shape[2:])
    rows = data_lib.batches(
      len(frames), batch_size=config.batch_size, seed=config.seed
    )
    return frames, rows

  @functools.cache
  def held_out():
    _, frames = recorded(config, env, "test")
    frames = frames.reshape(-1, *frames.shape[2:])
    num = min(len(frames), config.num_eval)
    return frames[np.linspace(0, len(frames) - 1, num).astype(int)]

  def init(key):
    key_params, key_state = jax.random.split(key)
    return training.create(key_state, net.init(key_params), optimizer)

  def step(state, frames):
    obs = as_floats(frames)
    gap = jnp.abs(obs - obs.mean(axis=0, keepdims=True))
    weight = 1 + config.contrast * gap.max(axis=-1, keepdims=True)

    def objective(params):
      shown, tokens = tokenizer.reconstruct(params, obs)
      error = jnp.square(shown - obs)
      return jnp.mean(weight * error), (jnp.mean(error), tokens)

    (loss, (error, tokens)), grads = jax.value_and_grad(
      objective, has_aux=True
    )(state.params)
    counts = jnp.bincount(tokens.reshape(-1), length=tokenizer.num_tokens)
    values = {
      "loss": loss,
      "mse": error,
      "num_codes": jnp.sum(counts > 0),
      "grad_norm": optax.tree.norm(grads),
    }
    state = training.apply_gradients(
      state, grads, optimizer, ema_decay=config.ema_decay
    )
    return state, values

  def batches(step):
    frames, rows = source()
    return frames[rows(step)]

  reconstruct = jax.jit(tokenizer.reconstruct)

  def evaluate(params, key, *, final):
    del key, final
    obs = as_floats(held_out())
    shown, tokens = training.fetch(reconstruct(params, obs))
    return {
      "psnr": metrics_lib.mean(metrics.psnr(np.clip(shown, 0, 1), obs)),
      **usage(tokens, tokenizer.num_tokens),
      "nfe": 1,
    }

  def figures(params, key, directory, history):
    del key
    names = ["loss", "eval/psnr", ("num_codes", "eval/num_codes")]
    plots.curves(directory / "training.png", history, names)
    frames = held_out()
    obs = as_floats(frames[:: max(1, len(frames) // NUM_SHOWN)][:NUM_SHOWN])
    shown, _ = training.fetch(reconstruct(params, obs))
    panels = {"frames": 2 * obs - 1, "through tokens": 2 * shown - 1}
    plots.images(directory / "reconstructions.png", panels)

  return training.Experiment(
    init=init,
    step=step,
    evaluate=evaluate,
    apply=tokenizer.reconstruct,
    batches=batches,
    figures=figures,
  )


def parts(
  config, env: envs.Env
) -> tuple[nets.AutoEncoder, tokenizers.Tokenizer]:
  """The autoencoder of `config.net` and its tokenizer."""
  options = config.net
  net = nets.autoencoder(
    frame_shape(env),
    len(config.levels),
    patch_size=config.patch_size,
    width=options.width,
    num_layers=options.num_layers,
    num_heads=options.num_heads,
    center=options.center,
    scale=options.scale,
    compute_dtype=jnp.dtype(options.compute_dtype),
  )
  return net, tokenizers.fsq(net.encode, net.decode, config.levels)


def frame_shape(env: envs.Env) -> tuple[int, int, int]:
  """`(H, W, C)` of an environment's pixels."""
  if env.pixels is None:
    raise ValueError(
      f"config.env.name must be a world with pixels, got {env.name!r}."
    )
  shape = jax.eval_shape(lambda key: env.pixels(env.reset(key)), _key()).shape
  return (shape[0], shape[1], shape[2])


def recorded(config, env: envs.Env, split: str):
  """Clips of a split and their frames, `[E, T, H, W, C]` uint8."""
  return parts_lib.recorded(
    config,
    env,
    split,
    lambda state: jnp.round(255 * env.pixels(state)).astype(jnp.uint8),
  )


def as_floats(frames):
  """Bytes as pixels in `[0, 1]`."""
  return frames.astype(np.float32) / 255


def usage(tokens, num_tokens: int) -> dict[str, dict[str, float]]:
  """How many codes are in use, their share, and how many it is as good as."""
  counts = np.bincount(np.ravel(tokens), minlength=num_tokens)
  share = counts[counts > 0] / counts.sum()
  return {
    "num_codes": {"value": int((counts > 0).sum())},
    "code_share": {"value": float((counts > 0).mean())},
    "perplexity": {"value": float(np.exp(-np.sum(share * np.log(share))))},
  }


def _key():
  return jax.random.key(0)
