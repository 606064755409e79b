"""Evaluates a world model on held-out episodes, and draws what it imagines."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import metrics as metrics_lib
from experiments.common import plots
from experiments.world import evaluate, figures, latent, parts
from jdiff import selection, training
from jdiff.world import metrics

HORIZONS = (1, 4, 8, 16)


class Evaluator:
  """One-step and rollout accuracies, each with the memory off beside it."""

  def __init__(self, config, system):
    self.config, self.system = config, system
    self._one_step = jax.jit(
      functools.partial(
        evaluate.one_step, system, first=config.data.num_frames // 2
      )
    )
    prefix = config.eval.num_prefix
    self._rollouts = jax.jit(
      functools.partial(evaluate.rollouts, system, prefix=prefix)
    )
    self._loops = jax.jit(functools.partial(evaluate.loops, system))
    self._swap = jax.jit(
      functools.partial(evaluate.swap, system, prefix=prefix)
    )
    self._meetings = jax.jit(
      functools.partial(evaluate.meetings, system, steps=config.eval.loop_steps)
    )
    self._loss = jax.jit(parts.loss(config, system.parts, clean=True))

  @functools.cached_property
  def clips(self):
    """Held-out episodes, as NumPy arrays."""
    clips = parts.recorded(self.config, self.system.env, "test")
    return self.system.label(clips)

  @property
  def has_memory(self):
    """Whether there is anything to turn off."""
    return self.system.parts.memory.num_frames > 0

  def evaluate(self, params, key, *, final: bool):
    """Names ending in `_off` are of the same weights with the memory off."""
    key_loss, key_roll, key_loop, key_swap, key_meet, key_way = (
      jax.random.split(key, 6)
    )
    clips = self.clips
    _, info = self._loss(
      params, training.example_keys(key_loss, len(clips.action)), clips
    )
    result = {"nll_per_site": metrics_lib.mean(info["nll"])}
    if "move_accuracy" in info:
      result["move_accuracy"] = metrics_lib.mean(info["move_accuracy"])
    found = training.fetch(self._one_step(params, clip=clips))
    for i, name in enumerate(metrics.CLASSES):
      for tally, suffix in self._both(found.on, found.off):
        result |= _share(f"{name}_accuracy{suffix}", tally, i)
    result |= _share("frame_accuracy", found.frames)
    if self.system.parts.layout.rewards:
      result |= _share("reward_accuracy", found.rewards)
    if not final:
      return result
    for suffix, is_on in self._switches():
      rollout = training.fetch(
        self._rollouts(params, key_roll, self._rows(), is_on=is_on)
      )
      for h in HORIZONS:
        if h <= self.config.eval.horizon:
          name = f"known_accuracy_{h}{suffix}"
          result |= _share(name, rollout.known, h - 1)
      result[f"horizon{suffix}"] = metrics_lib.mean(rollout.horizon)
      if not suffix:
        result |= _share("pose_accuracy", rollout.pose, -1)
        result |= self._drift(rollout.tokens)
    if self._can_return:
      clip, actions = self._loop_starts(key_way)
      for suffix, is_on in self._switches():
        loops = training.fetch(
          self._loops(params, key_loop, clip, actions, is_on=is_on)
        )
        result |= _share(f"loop_accuracy{suffix}", loops.cells)
        result |= _share(f"loop_exact{suffix}", loops.exact)
        result[f"num_loops{suffix}"] = {"value": int(loops.closed.hits)}
    if any(a != b for a, b in enumerate(self.system.env.opposite)):
      swapped = training.fetch(self._swap(params, key_swap, self._rows()))
      result |= _share("swap_accuracy_true", swapped, 0)
      result |= _share("swap_accuracy_opposite", swapped, 1)
    if self._can_return and self.has_memory:
      met = training.fetch(self._meetings(params, key_meet, self._rows()))
      result |= _share("meeting_accuracy", met.shared)
      result |= _share("meeting_accuracy_apart", met.apart)
    if self.config.data.labels == "latent":
      share = latent.purity(clips.action[:, 1:], clips.move[:, 1:])
      result["action_purity"] = {"value": share}
    result["nfe"] = self.config.sampler.num_steps
    return result

  def sample(self, params, key, num_samples):
    """`[num_samples, H, N]` int32 imagined frames after held-out prefixes."""
    draws, rows = [], self._rows()
    while sum(map(len, draws)) < num_samples:
      key, key_roll = jax.random.split(key)
      rollout = self._rollouts(params, key_roll, rows, is_on=True)
      draws.append(training.fetch(rollout.tokens))
    return np.concatenate(draws)[:num_samples]

  def figures(self, params, key, directory, history):
    """Rollouts and loops beside the truth, and training curves."""
    directory = pathlib.Path(directory)
    env, config = self.system.env, self.config
    plots.curves(
      directory / "training.png",
      history,
      [
        "loss",
        ("eval/revisit_accuracy", "eval/revisit_accuracy_off"),
        ("eval/window_accuracy", "eval/new_accuracy"),
      ],
    )
    key_roll, key_loop, key_meet, key_way = jax.random.split(key, 4)
    rows = self._rows()
    true = rows.tokens[:, config.eval.num_prefix :]
    # An episode that goes far, and comes back: what a memory is for.
    index = self._most_revisits()
    rollouts = {"true": true[index]}
    for suffix, is_on in self._switches():
      tokens = self._rollouts(params, key_roll, rows, is_on=is_on).tokens
      label = "imagined, memory off" if suffix else "imagined"
      rollouts[label] = training.fetch(tokens)[index]
    figures.film(directory / "rollout.png", env, rollouts)
    figures.gif(directory / "rollout.gif", env, rollouts)
    if self._can_return:
      clip, actions = self._loop_starts(key_way)
      loops, maps, best = {}, {}, 0
      for suffix, is_on in self._switches():
        found = training.fetch(
          self._loops(params, key_loop, clip, actions, is_on=is_on)
        )
        start = np.asarray(clip.tokens)[:, :1]
        path = np.concatenate([start, found.tokens], axis=1)
        same = (path[:, 0] == path[:, -1]).mean(1)
        if not suffix:
          best = int(np.argmax(same))
        label = "memory off" if suffix else "with memory"
        loops[label] = path[best]
        pose = np.concatenate([np.asarray(clip.pose), found.pose], axis=1)
        maps[label] = (path[best], pose[best])
      figures.film(directory / "loop.png", env, loops)
      figures.gif(directory / "loop.gif", env, loops)
      figures.maps(directory / "revisits.png", env, maps)
      if self.has_memory:
        met = training.fetch(self._meetings(params, key_meet, rows))
        figures.film(
          directory / "meeting.png",
          env,
          {
            "left by the first": met.left[0, 0],
            "seen by the second": met.seen[0, 0],
            "the second, alone": met.seen[1, 0],
          },
        )

  def _both(self, on, off):
    pairs = [(on, "")]
    return pairs + [(off, "_off")] if self.has_memory else pairs

  def _switches(self):
    switches = [("", True)]
    return switches + [("_off", False)] if self.has_memory else switches

  def _rows(self):
    last = self.config.eval.num_prefix + self.config.eval.horizon
    return jax.tree.map(lambda x: x[:, :last], self.clips)

  @property
  def _can_return(self):
    opposite = self.system.env.opposite
    return self.system.parts.layout.num_moves > 1 and any(
      a != b for a, b in enumerate(opposite)
    )

  def _loop_starts(self, key):
    """First frames, and one direction each."""
    num, steps = self.config.eval.num_loops, self.config.eval.loop_steps
    clips = self.clips
    frames = np.linspace(0, clips.action.size - 1, num).astype(int)
    clip = jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:])[frames], clips)
    opposite = np.asarray(self.system.env.opposite)
    moving = jnp.asarray(np.flatnonzero(opposite != np.arange(len(opposite))))
    chosen = jax.random.choice(key, moving, (num, 1))
    return clip, jnp.repeat(chosen, steps, axis=1).astype(jnp.int32)

  def _drift(self, tokens):
    """How imagined frames differ from true ones in law."""
    prefix, num_tokens = self.config.eval.num_prefix, self.system.env.num_tokens
    true = self._rows().tokens[:, prefix:]
    divergence = metrics_lib.histogram_kl(
      np.ravel(tokens[:, -1]),
      np.ravel(true[:, -1]),
      interval=(-0.5, num_tokens - 0.5),
      num_bins=num_tokens,
    )
    result = {"token_kl": {"value": divergence}}
    shape = self.system.env.view.shape
    if min(shape) >= 3 and tokens.shape[1] >= 2 and len(tokens) >= 4:
      half = len(true) // 2
      of = functools.partial(
        metrics.clip_features, shape=shape, num_tokens=num_tokens
      )
      sets = [of(jnp.asarray(x)) for x in (tokens[:half], true[:half])]
      other = of(jnp.asarray(true[half:]))
      result["frechet"] = {"value": float(selection.frechet(sets[0], other))}
      result["frechet_real"] = {
        "value": float(selection.frechet(sets[1], other))
      }
    return result

  def _most_revisits(self):
    """The episode whose imagined frames show most cells that are known."""

    def count(pose):
      classes = jax.vmap(
        functools.partial(
          metrics.cell_classes,
          self.system.env.view,
          window=self.config.window,
        ),
        in_axes=(None, 0),
      )(pose, jnp.arange(self.config.eval.num_prefix, pose.shape[0]))
      return classes[:, 1].sum()

    return int(np.argmax(jax.jit(jax.vmap(count))(self._rows().pose)))


def _share(name, tally, index=()):
  """A share of hits; nothing without trials.

  The standard error is as if cells were independent, which within an episode
  they are not: read it as a lower bound.
  """
  hits, trials = np.asarray(tally.hits)[index], np.asarray(tally.trials)[index]
  if not trials:
    return {}
  share = float(hits) / float(trials)
  return {
    name: {"value": share, "se": (share * (1 - share) / float(trials)) ** 0.5}
  }
