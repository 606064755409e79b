"""Five arms: what pruning does to memorisation, and what it does not.

| arm | folder | what it is |
|---|---|---|
| `original` | `original` | a DiT trained on few images |
| `pruned` | | the original without its least important heads |
| `pruned_finetune` | `pruned` | the same, trained on for a few steps |
| `random_finetune` | `random` | as many random heads closed, trained on |
| `continue` | `continue` | no head closed, trained on for as many steps |

The last is the control that the fine-tuned arms must be compared with: it is
not enough that they copy less than the original.

Ye et al., "Provable Separations between Memorization and Generalization in
Diffusion Models" (ICLR 2026, arXiv:2511.03202), algorithm 1. Numbers of steps,
rates and the score of a head are our choice.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.common import data as data_lib
from experiments.common import fields as fields_lib
from experiments.common import plots
from experiments.memorization import clock, experiment, figures, report
from experiments.memorization import data as rows_lib
from jdiff import training
from jdiff.core.types import Pairs
from jdiff.methods import pruning
from jdiff.training import records

FOLDERS = {
  "original": "original",
  "pruned_finetune": "pruned",
  "random_finetune": "random",
  "continue": "continue",
}
"""The arms that are trained, and where. `pruned` is only evaluated."""

ARMS = ("original", "pruned", *list(FOLDERS)[1:])

# The training loop has other uses of the seed, counted from 0.
_KEYS = 16


def build(
  config: ml_collections.ConfigDict, dataset: data_lib.Dataset | None = None
) -> training.Study:
  """The study of a config of images.

  Args:
    config: One of `digits`, `mnist` and `cifar10`.
    dataset: The set, by default the one that `config.data` names.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others; in
      particular a fraction that closes no head, or all.
    FileNotFoundError: If the data must be prepared first.
  """
  fields_lib.check(config)
  _check(config)
  if dataset is None:
    options = config.data.to_dict()
    dataset = data_lib.load(options.pop("name"), **options)
  return training.Study(_Arms(config, dataset).run)


def stand_in(config: ml_collections.ConfigDict) -> training.Experiment:
  """The training of the original, on rows made up."""
  fields_lib.check(config)
  rows = data_lib.stand_in(config.data.name)
  rows = rows._replace(test=rows.train)
  # Batches are what is compiled: their shape does not depend on how many.
  num_train = min(config.num_train, len(rows.train))
  fields = experiment.part(config, "original", num_train=num_train)
  return experiment.build(fields, rows)


class _Arms:
  """One study: what its runs share."""

  def __init__(self, config, dataset):
    self.config, self.dataset = config, dataset
    self.train = rows_lib.load(config, dataset).dataset.train
    self.fields = experiment.part(config, "original")
    self.original = experiment.build(self.fields, dataset)
    # What does not fit must be known before hours of training.
    experiment.build(_finetuning(config, "continue", _all(config)), dataset)
    prune, time = config.prune, config.time
    law = clock.draw_time("beta", time.t_min, time.t_max, prune.beta)
    self.loss = experiment.make_loss(config.loss, self.original.apply, law)
    key = jax.random.fold_in(jax.random.key(config.seed), _KEYS)
    self.keys = dict(
      zip(
        ("score", "random", "pruned", "shown"),
        jax.random.split(key, 4),
        strict=True,
      )
    )

  def run(self, workdir: pathlib.Path, progress: bool) -> dict[str, Any]:
    """All arms, and the report."""

    def trained(arm, built, fields):
      folder = workdir / FOLDERS[arm]
      found = training.run(built, fields, folder, progress=progress)
      mesh = training.config_mesh(self.config.mesh)
      _, params, _ = training.load(folder, build=lambda _: built, mesh=mesh)
      metrics[arm], pictures[arm] = found["metrics"], self.shown(built, params)
      return params

    metrics: dict[str, Any] = {}
    pictures: dict[str, np.ndarray] = {}
    whole = trained("original", self.original, self.fields)
    network = training.fetch(whole["network"])
    importance = self.importance(network)
    gates = self.gates(importance)
    for arm, gate in gates.items():
      fields = _finetuning(self.config, FOLDERS[arm], gate)
      built = experiment.build(fields, self.dataset, network)
      if arm == "pruned_finetune":
        # Where the original's lie, so that programs are shared.
        gate = jax.device_put(jnp.asarray(gate), whole["gates"].sharding)
        params = {**whole, "gates": gate}
        found = built.evaluate(params, self.keys["pruned"], final=True)
        metrics["pruned"] = records.measurements(found)
        pictures["pruned"] = self.shown(built, params)
      trained(arm, built, fields)
    table = _joined(metrics)
    if not jax.process_index():
      self.draw(workdir / "figures", table, importance, gates, pictures)
    return table | {"nfe": self.config.sampler.num_steps}

  def importance(self, network) -> np.ndarray:
    """`[L, H]`, of the loss at the small times of the paper's Beta law."""
    batches = self.original.batches
    assert batches is not None
    num = self.config.prune.num_batches
    rows = np.stack([batches(step)["data"] for step in range(num)])

    @jax.jit
    def score(network, key, rows):
      def loss_fn(gates, key, rows):
        key_noise, key_loss = jax.random.split(key)
        noise = jax.random.normal(key_noise, rows.shape)
        params = {"network": network, "gates": gates}
        return self.loss(params, key_loss, Pairs(noise, rows))

      return pruning.head_importance(
        _all(self.config),
        key,
        rows,
        loss_fn=loss_fn,
        criterion=self.config.prune.criterion,
      )

    return np.asarray(score(network, self.keys["score"], rows))

  def gates(self, importance) -> dict[str, np.ndarray]:
    """Those of each fine-tuned arm, `[L, H]`."""
    everything = _all(self.config)
    at_random = pruning.head_importance(
      everything, self.keys["random"], None, criterion="random"
    )
    return {
      "pruned_finetune": _gates(self.config, importance),
      "random_finetune": _gates(self.config, at_random),
      "continue": np.asarray(everything),
    }

  def shown(self, built, params) -> np.ndarray:
    """Samples to look at, from the same noise for every arm."""
    return built.sample(params, self.keys["shown"], report.PICTURES)

  def draw(self, folder, table, importance, gates, pictures):
    """Shares of copies, heads, and samples above what they are nearest to."""
    figures.shares(folder / "memorised.png", table, ARMS)
    closed = {"lowest": gates["pruned_finetune"]}
    closed["random"] = gates["random_finetune"]
    figures.heads(folder / "heads.png", importance, closed)
    panels = {}
    for arm in ARMS:
      panels[arm] = pictures[arm]
      panels[f"nearest to {arm}"] = report.nearest(pictures[arm], self.train)
    plots.images(folder / "samples.png", panels)


def _gates(config, importance) -> np.ndarray:
  """Zeros and ones; raises if `config.prune` closes no head, or all."""
  prune = config.prune
  gates = np.asarray(
    pruning.make_gates(
      importance, prune.fraction, scope=prune.scope, keep_one=prune.keep_one
    )
  )
  if gates.all() or not gates.any():
    raise ValueError(
      f"config.prune.fraction={prune.fraction} closes "
      f"{'every one' if gates.size and not gates.any() else 'none'} of the "
      f"{gates.size} heads; pass a share that closes some."
    )
  return gates


def _all(config) -> jax.Array:
  return jnp.ones((config.net.num_layers, config.net.num_heads))


def _finetuning(config, name: str, gates) -> ml_collections.FrozenConfigDict:
  """The config of a short run from the original's weights."""
  tune = config.finetune
  return experiment.part(
    config,
    name,
    start="original",
    gates=tuple(tuple(int(gate) for gate in layer) for layer in gates),
    num_steps=tune.num_steps,
    learning_rate=tune.rate * config.learning_rate,
    schedule="cosine",
    warmup_steps=0,
  )


def _joined(metrics: dict[str, Any]) -> dict[str, Any]:
  """Flat names, `<arm>/<metric>`, and the two numbers that decide.

  `memorised_change` is the pruned and fine-tuned arm's share less that of the
  control, `frechet_ratio` its distance over the original's.
  """
  shared = {
    name: metrics["original"][name]
    for name in report.OF_THE_ROWS
    if name in metrics["original"]
  }
  table = {
    f"{arm}/{name}": value
    for arm in ARMS
    for name, value in metrics[arm].items()
    if name not in (*report.OF_THE_ROWS, "nfe")
  }
  tuned, control = (
    table[f"{arm}/memorised"] for arm in ("pruned_finetune", "continue")
  )
  change = {
    "value": tuned["value"] - control["value"],
    "se": float(np.hypot(tuned["se"], control["se"])),
  }
  distance, original = (
    table[f"{arm}/frechet"]["value"] for arm in ("pruned_finetune", "original")
  )
  ratio = {"value": distance / original}
  return table | shared | {"memorised_change": change, "frechet_ratio": ratio}


def _check(config) -> None:
  if config.net.kind != "dit":
    raise ValueError(
      "config.net.kind must be 'dit', whose heads are pruned, got "
      f"{config.net.kind!r}."
    )
  if config.prune.criterion not in pruning.CRITERIA:
    raise ValueError(
      "config.prune.criterion must be one of "
      f"{', '.join(pruning.CRITERIA)}, got {config.prune.criterion!r}."
    )
  # As many are closed whatever the heads are worth.
  _gates(config, np.arange(_all(config).size).reshape(_all(config).shape))
