"""A world from pixels: a tokenizer, then a world model of its tokens.

| run | folder | what it is |
|---|---|---|
| tokenizer | `tokenizer` | an autoencoder through FSQ, on recorded frames |
| world | `world` | `experiments.world.experiment`, cells being patches |

Tokens of pixels are never exact, so what is imagined is compared as pictures.
The controls are the last real frame, repeated, and the true frames through the
tokenizer: below the first nothing was learnt, and nothing is above the second.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.common import fields as fields_lib
from experiments.common import metrics as metrics_lib
from experiments.common import plots
from experiments.world import autoencoding, envs, experiment, report
from experiments.world import parts as parts_lib
from jdiff import training
from jdiff.core.types import Params
from jdiff.world import geometry, metrics, tokenizers

CONTROL_HORIZON = 4
"""Frames after which other actions must show, as in Genie's figure."""


def build(config: ml_collections.ConfigDict) -> training.Study:
  """The study of a config of pixels.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others.
    ImportError: If the environment's package is not installed.
  """
  fields_lib.check(config)
  env = parts_lib.env(config.env)
  # What does not fit must be known before the first stage is trained.
  autoencoding.build(stage(config, "tokenizer"))
  _, tokenizer = autoencoding.parts(config.tokenizer, env)
  world = experiment.build(
    stage(config, "world"), patch_world(config, env, tokenizer, None)
  )

  def run(workdir: pathlib.Path, progress: bool) -> dict[str, Any]:
    fields = stage(config, "tokenizer")
    folder = workdir / "tokenizer"
    built = autoencoding.build(fields)
    first = training.run(built, fields, folder, progress=progress)
    _, params, _ = training.load(folder, build=lambda _: built)
    params = jax.device_get(params)
    second = training.run(
      build_world(config, env, tokenizer, params),
      stage(config, "world"),
      workdir / "world",
      progress=progress,
    )
    return {
      **{f"tokenizer/{k}": v for k, v in first["metrics"].items()},
      **second["metrics"],
      "nfe": second["nfe"],
    }

  return training.Study(run, world)


def stand_in(config: ml_collections.ConfigDict) -> training.Experiment:
  """The second stage, whose tokenizer has learnt nothing."""
  fields_lib.check(config)
  env = parts_lib.env(config.env)
  net, tokenizer = autoencoding.parts(config.tokenizer, env)
  return build_world(config, env, tokenizer, net.init(jax.random.key(0)))


def stage(config, name: str) -> ml_collections.ConfigDict:
  """The config of one of the two runs."""
  fields = config.to_dict()
  options = fields.pop("tokenizer")
  if name == "tokenizer":
    kept = ("variant", "seed", "env", "data", "mesh")
    fields = {key: fields[key] for key in kept} | options
    fields["experiment"] = "experiments.world.autoencoding"
  else:
    fields["experiment"] = "experiments.world.experiment"
  fields["name"] = f"{config.name} {name}"
  return ml_collections.ConfigDict(fields).lock()


def patch_world(
  config, env: envs.Env, tokenizer: tokenizers.Tokenizer, params: Params
) -> envs.Env:
  """The environment whose cells are patches and whose tokens are codes.

  Args:
    config: The study's.
    env: One with pixels, whose observer never moves.
    tokenizer: Of its frames.
    params: The tokenizer's; None for sizes alone.
  """
  if env.view.num_moves > 1:
    raise ValueError(
      "config.env must be a world whose observer stays, for a patch to be a "
      f"cell of it, got {env.name!r} with {env.view.num_moves} moves."
    )
  shape = autoencoding.frame_shape(env)
  size = config.tokenizer.patch_size
  rows, cols = shape[0] // size, shape[1] // size
  palette = np.zeros((tokenizer.num_tokens, 3), np.uint8)
  if params is not None:
    palette = _colours(tokenizer, params, rows * cols)
  return env._replace(
    name=f"{env.name}, patches",
    view=geometry.View(rows, cols, (0, 0)),
    num_tokens=tokenizer.num_tokens,
    # The pixels as they are recorded: whole bytes.
    tokens=lambda state: tokenizer.encode(
      params, jnp.round(255 * env.pixels(state)) / 255
    ),
    palette=palette,
  )


def build_world(
  config, env: envs.Env, tokenizer: tokenizers.Tokenizer, params: Params
) -> training.Experiment:
  """The second stage: the world experiment, measured in pixels too."""
  fields = stage(config, "world")
  patches = patch_world(config, env, tokenizer, params)
  built = experiment.build(fields, patches)
  evaluator = Evaluator(fields, parts_lib.system(fields, patches))
  evaluator.show = jax.jit(
    lambda tokens: jnp.clip(tokenizer.decode(params, tokens), 0, 1)
  )
  evaluator.source = env
  return built._replace(
    evaluate=evaluator.evaluate,
    sample=evaluator.sample,
    figures=evaluator.figures,
  )


class Evaluator(report.Evaluator):
  """The world evaluator, and pictures beside the true ones."""

  show: Any
  source: envs.Env

  def evaluate(self, params, key, *, final: bool):
    """PSNRs are means over episodes, in dB."""
    result = super().evaluate(params, key, final=final)
    if not final:
      return result
    key_roll, key_action = jax.random.split(jax.random.fold_in(key, 1))
    true, rows = self._true, self._rows()
    prefix = self.config.eval.num_prefix
    imagined = self._imagine(params, key_roll, rows)
    last = self.show(rows.tokens[:, prefix - 1 : prefix])
    ceiling = self.show(rows.tokens[:, prefix:])
    for h in report.HORIZONS:
      if h <= self.config.eval.horizon:
        for name, frames in (
          ("psnr", imagined[:, h - 1]),
          ("psnr_still", last[:, 0]),
          ("psnr_ceiling", ceiling[:, h - 1]),
        ):
          decibels = metrics.psnr(np.asarray(frames), true[:, h - 1])
          result[f"{name}_{h}"] = metrics_lib.mean(decibels)
    at = min(CONTROL_HORIZON, self.config.eval.horizon) - 1
    # Actions at random in place of the true ones, the same draws beside.
    actions = jax.random.randint(
      key_action, rows.action.shape, 0, self.source.num_actions
    )
    other = self._imagine(
      params, key_roll, rows._replace(action=_after(rows, actions, prefix))
    )
    gap = metrics.psnr(np.asarray(imagined[:, at]), true[:, at]) - metrics.psnr(
      np.asarray(other[:, at]), true[:, at]
    )
    result[f"delta_psnr_{at + 1}"] = metrics_lib.mean(gap)
    return result

  def figures(self, params, key, directory, history):
    """True and imagined frames of an episode, and training curves."""
    directory = pathlib.Path(directory)
    names = ["loss", "eval/nll_per_site", "eval/window_accuracy"]
    plots.curves(directory / "training.png", history, names)
    rows = self._rows()
    prefix = self.config.eval.num_prefix
    imagined = self._imagine(params, key, rows)
    ceiling = self.show(rows.tokens[:, prefix:])
    panels = {}
    for episode in range(min(2, len(rows.action))):
      panels[f"true {episode}"] = self._true[episode]
      panels[f"tokens {episode}"] = ceiling[episode]
      panels[f"imagined {episode}"] = imagined[episode]
    panels = {name: 2 * np.asarray(x) - 1 for name, x in panels.items()}
    plots.images(directory / "rollout.png", panels)

  @property
  def _true(self):
    """True pixels after the prefix, `[E, H, ...]` in `[0, 1]`."""
    if not hasattr(self, "_frames"):
      _, self._frames = autoencoding.recorded(self.config, self.source, "test")
    first = self.config.eval.num_prefix
    last = first + self.config.eval.horizon
    return autoencoding.as_floats(self._frames[:, first:last])

  def _imagine(self, params, key, rows):
    rollout = self._rollouts(params, key, rows, is_on=True)
    return self.show(training.fetch(rollout.tokens))


def _after(rows, actions, prefix):
  """True actions before the prefix's end, other ones after it."""
  actions = np.asarray(actions, np.int32)
  return np.concatenate(
    [np.asarray(rows.action)[:, :prefix], actions[:, prefix:]], axis=1
  )


def _colours(tokenizer, params, num_cells):
  """`[V, 3]` uint8: the mean colour of each code, everywhere in a frame."""
  mean = jax.jit(
    lambda token: jnp.mean(
      tokenizer.decode(params, jnp.full(num_cells, token)), axis=(0, 1)
    )
  )
  colours = jax.lax.map(mean, jnp.arange(tokenizer.num_tokens), batch_size=64)
  return np.asarray(jnp.round(255 * jnp.clip(colours, 0, 1)), np.uint8)
