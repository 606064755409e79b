"""Builds the captioned world: clips and captions as one masked sequence.

One network and one objective for all directions: of each example in a batch
the caption, the frames, a clip's later frames or all of it are masked.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from experiments.common import data as data_lib
from experiments.common import fields as fields_lib
from experiments.common import metrics as metrics_lib
from experiments.common import plots
from experiments.world import envs, events, figures, parts, tile_world
from jdiff import ctmc, elbo, nets, training
from jdiff.core import checks
from jdiff.world import sequence

TASKS = ("joint", "caption", "frames", "future")
"""What is open: all, the caption, the frames, all but the first frame."""

NUM_SHOWN = 4
"""Clips in a figure."""


def build(config: ml_collections.ConfigDict) -> training.Experiment:
  """Joins the tile world, its captions, network and sampler.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others.
  """
  fields_lib.check(config)
  _check(config)
  env = environment(config)
  canvas = make_canvas(config, env)
  net = network(config, canvas)
  logits_fn = net.apply
  loss_fn = functools.partial(
    elbo.masked_cross_entropy, logits_fn=logits_fn, mask_id=canvas.mask_id
  )
  law = ctmc.count_masks(config.num_masks)
  opens = jnp.asarray(np.stack([open_sites(canvas, t) for t in TASKS]))
  weights = jnp.log(jnp.asarray(config.task_weights, jnp.float32))
  optimizer = parts.optimizer(config)

  @functools.cache
  def source():
    train, test = canvases(config, env, canvas)
    rows = data_lib.batches(
      len(train), batch_size=config.batch_size, seed=config.seed
    )
    return train, test, rows

  def init(key):
    key_params, key_state = jax.random.split(key)
    return training.create(key_state, net.init(key_params), optimizer)

  def step(state, tokens):
    key_task, key_mask = jax.random.split(training.step_key(state))
    size = tokens.shape[0]
    task = jax.vmap(lambda key: jax.random.categorical(key, weights))(
      training.example_keys(key_task, size)
    )
    valid = opens[task]
    keys = training.example_keys(key_mask, size)

    def objective(params):
      nll, _ = loss_fn(params, keys, tokens, draw_masks=law, valid=valid)
      # A site: else frames, with ten times the sites, would drown captions.
      return (nll / valid.sum(axis=1)).mean()

    loss, grads = jax.value_and_grad(objective)(state.params)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    state = training.apply_gradients(
      state, grads, optimizer, ema_decay=config.ema_decay
    )
    return state, metrics

  def batches(step):
    train, _, rows = source()
    return train[rows(step)]

  evaluator = Evaluator(config, env, canvas, logits_fn, lambda: source()[:2])
  return training.Experiment(
    init=init,
    step=step,
    evaluate=evaluator.evaluate,
    apply=logits_fn,
    sample=evaluator.sample,
    batches=batches,
    figures=evaluator.figures,
  )


def environment(config) -> envs.Env:
  """The tile world under a policy that never waits."""
  env = tile_world.env(size=config.env.size, view=config.env.view)
  return events.walker(env, config.env.repeat)


def make_canvas(config, env: envs.Env) -> sequence.Canvas:
  """The layout of clips of `config.num_frames` frames and their captions."""
  return sequence.Canvas(
    env.view.shape,
    config.num_frames,
    env.num_tokens,
    tuple(len(words) for words in events.SLOTS),
    config.num_frames - 1,
  )


def network(config, canvas: sequence.Canvas) -> nets.Network:
  """The network of `config.net`."""
  options = config.net
  return nets.clips(
    canvas.allowed(),
    shape=canvas.shape,
    num_frames=canvas.num_frames,
    width=options.width,
    num_layers=options.num_layers,
    num_heads=options.num_heads,
    remat=options.remat,
    compute_dtype=jnp.dtype(options.compute_dtype),
  )


def open_sites(canvas: sequence.Canvas, task: str) -> np.ndarray:
  """`[L]` bool: what a task of `TASKS` leaves open."""
  is_open = np.zeros(canvas.length, bool)
  if task != "frames":
    is_open[canvas.word_sites] = True
  if task != "caption":
    is_open[canvas.frame_sites] = True
  if task == "future":
    is_open[canvas.frame_sites[0]] = False
  return is_open


def canvases(
  config, env: envs.Env, canvas: sequence.Canvas
) -> tuple[np.ndarray, np.ndarray]:
  """Canvases `[N, L]` int32: to train on, and held out.

  The first are every clip of every episode, the others the last clip of each
  of other episodes: of maps never seen, one each, so that they are independent.
  """
  num = config.data.num_episodes
  key = jax.random.fold_in(jax.random.key(config.seed), 2**20)
  clip = envs.record(
    env, key, num + config.data.num_test, config.data.num_frames
  )
  starts = np.arange(config.data.num_frames - config.num_frames + 1)
  at = starts[:, None] + np.arange(config.num_frames)
  tokens, move = (np.asarray(x)[:, at] for x in (clip.tokens, clip.move))
  words = events.captions(env.view, tokens, move)
  packed = np.asarray(canvas.pack(words, tokens))
  return packed[:num].reshape(-1, canvas.length), packed[num:, -1]


class Evaluator:
  """Generates each modality from the other, and holds it to the truth."""

  def __init__(self, config, env, canvas, logits_fn, source):
    self.config, self.env, self.canvas = config, env, canvas
    self._source = source
    self._loss = jax.jit(
      functools.partial(
        elbo.masked_cross_entropy,
        logits_fn=logits_fn,
        mask_id=canvas.mask_id,
        draw_masks=ctmc.count_masks(config.eval.num_masks),
      )
    )
    self._read = jax.jit(functools.partial(events.read, env.view))

    @functools.partial(jax.jit, static_argnames=("is_open", "num_steps"))
    def fill(params, keys, tokens, is_open, num_steps):
      return sequence.infill(
        params,
        keys,
        tokens,
        np.flatnonzero(~np.asarray(is_open)),
        logits_fn=logits_fn,
        mask_id=canvas.mask_id,
        num_steps=num_steps,
        order=config.sampler.order,
        temperature=config.sampler.temperature,
        min_p=config.sampler.min_p,
      ).samples

    self._fill = fill

  @functools.cached_property
  def clips(self):
    """Held-out canvases `[N, L]`."""
    return self._source()[1]

  def words(self, tokens):
    """Captions of canvases, as NumPy arrays."""
    return np.asarray(self.canvas.words(tokens))

  def generate(self, params, key, tokens, task):
    """Canvases with the open sites of a task filled in; `[N, L]` NumPy."""
    is_open = open_sites(self.canvas, task)
    if task == "future":
      # The caption too: what happens is asked for.
      is_open[self.canvas.word_sites] = False
    num_steps = min(self.config.sampler.num_steps, int(is_open.sum()))
    keys = training.example_keys(key, len(tokens))
    # In parts of one size: one program, whatever the number of clips.
    size = self.config.eval.num_quick
    rows = np.arange(-(-len(tokens) // size) * size) % len(tokens)
    filled = [
      training.fetch(
        self._fill(
          params, keys[part], tokens[part], tuple(is_open.tolist()), num_steps
        )
      )
      for part in rows.reshape(-1, size)
    ]
    return np.concatenate(filled)[: len(tokens)]

  def evaluate(self, params, key, *, final: bool):
    """Shares of held-out clips, each beside what needs no model."""
    key_loss, *key_tasks = jax.random.split(key, 1 + len(TASKS))
    key_of = dict(zip(TASKS, key_tasks, strict=True))
    clips, canvas = self.clips, self.canvas
    if not final:
      clips = clips[: self.config.eval.num_quick]
    true = self.words(clips)
    result = {}
    for task in ("joint", "caption", "frames"):
      is_open = open_sites(canvas, task)
      valid = np.broadcast_to(is_open, clips.shape)
      keys = training.example_keys(key_loss, len(clips))
      nll, _ = self._loss(params, keys, clips, valid=valid)
      nll = training.fetch(nll) / is_open.sum()
      result[f"nll_{task}"] = metrics_lib.mean(nll)

    # Frames to caption.
    filled = self.generate(params, key_of["caption"], clips, "caption")
    result |= _compare("caption", self.words(filled), true)
    # Caption to frames, read back from the frames alone.
    filled = self.generate(params, key_of["frames"], clips, "frames")
    found, overlap = training.fetch(self._read(canvas.frames(filled)))
    result |= _compare("frames", found, true)
    if not final:
      return result
    result["frames_exact_shuffled"] = _exact(found, np.roll(true, 1, axis=0))
    result["frames_overlap"] = metrics_lib.mean(overlap.mean(1))
    result["frames_seamless"] = metrics_lib.mean((overlap == 1).all(1))
    result |= self._baselines(true)
    # Caption and first frame to the later ones.
    filled = self.generate(params, key_of["future"], clips, "future")
    found, overlap = training.fetch(self._read(canvas.frames(filled)))
    result |= _compare("future", found, true)
    result["future_overlap"] = metrics_lib.mean(overlap.mean(1))
    # Both from nothing: do they tell the same?
    filled = self.generate(params, key_of["joint"], clips, "joint")
    found, overlap = training.fetch(self._read(canvas.frames(filled)))
    result["joint_exact"] = _exact(found, self.words(filled))
    result["joint_seamless"] = metrics_lib.mean((overlap == 1).all(1))
    result["nfe"] = self.config.sampler.num_steps
    return result

  def _baselines(self, true):
    """The commonest caption and words of training, and the reader itself."""
    words = self.words(self._source()[0])
    flat, counts = np.unique(
      words.reshape(len(words), -1), axis=0, return_counts=True
    )
    caption = flat[counts.argmax()].reshape(words.shape[1:])
    common = [
      np.bincount(column).argmax() for column in words.reshape(len(words), -1).T
    ]
    common = np.asarray(common).reshape(words.shape[1:])
    found, _ = training.fetch(self._read(self.canvas.frames(self.clips)))
    return {
      "majority_exact": _exact(np.broadcast_to(caption, true.shape), true),
      "majority_word": metrics_lib.mean((common == true).mean(axis=(1, 2))),
      "shuffled_exact": _exact(np.roll(true, 1, axis=0), true),
      "reader_exact": _exact(found, true),
    }

  def sample(self, params, key, num_samples):
    """`[num_samples, L]` int32 canvases, frames after held-out captions."""
    rows = np.arange(num_samples) % len(self.clips)
    return self.generate(params, key, self.clips[rows], "frames")

  def figures(self, params, key, directory, history):
    """Generated clips beside the captions that they are of, and curves."""
    directory = pathlib.Path(directory)
    plots.curves(
      directory / "training.png",
      history,
      [
        "loss",
        ("eval/caption_exact", "eval/frames_exact"),
        ("eval/caption_word", "eval/frames_word"),
      ],
    )
    clips = self.clips[: self.config.eval.num_quick]
    key_frames, key_caption = jax.random.split(key)
    asked = [events.text(w) for w in self.words(clips)]
    filled = self.generate(params, key_frames, clips, "frames")
    self._film(directory / "caption_to_frames.png", asked, filled)
    filled = self.generate(params, key_caption, clips, "caption")
    told = [events.text(w) for w in self.words(filled)]
    self._film(directory / "frames_to_caption.png", told, filled)

  def _film(self, path, labels, filled):
    frames = self.canvas.frames(filled)
    rows = {}
    for label, clip in zip(labels, frames, strict=True):
      # Captions as labels: one clip of each, in short lines.
      for word in (" on ", " into "):
        label = label.replace(word, f"\n{word[1:]}")
      rows.setdefault(label.replace(", ", "\n"), clip)
    rows = dict(list(rows.items())[:NUM_SHOWN])
    figures.film(path, self.env, rows)


def _exact(words, true):
  return metrics_lib.mean((words == true).all(axis=(1, 2)))


def _compare(name, words, true):
  """Captions that are right to the word, and right words; over clips."""
  return {
    f"{name}_exact": _exact(words, true),
    f"{name}_word": metrics_lib.mean((words == true).mean(axis=(1, 2))),
  }


def _check(config) -> None:
  parts.check_sampler(config)
  checks.check_int("config.num_frames", config.num_frames, 2)
  if config.num_frames > config.data.num_frames:
    raise ValueError(
      "config.num_frames must be at most config.data.num_frames="
      f"{config.data.num_frames}, got {config.num_frames}."
    )
  weights = tuple(config.task_weights)
  if len(weights) != len(TASKS) or min(weights) < 0 or not max(weights) > 0:
    raise ValueError(
      f"config.task_weights must be {len(TASKS)} numbers >= 0, of {TASKS}, "
      f"not all 0; got {weights}."
    )
