"""Every trainer, in a run of a few steps: what several processes must share."""

import json
import pathlib

import numpy as np

from experiments.alignflow import checkerboard
from experiments.alignflow import experiment as alignflow
from experiments.collapse import digits as collapse_digits
from experiments.collapse import experiment as collapse
from experiments.collapse import gaussian
from experiments.common import data as data_lib
from experiments.dmpo import arithmetic as dmpo_arithmetic
from experiments.gdpo import arithmetic as gdpo_arithmetic
from experiments.masked_lm import text
from experiments.mdns import ising
from experiments.memorization import arms
from experiments.olla import toys
from experiments.pdns import gmm
from experiments.tr2d2 import custom
from experiments.world import minatar_pixels, tiles
from jdiff import training
from tests.experiments import memorizing

BASE = {
  "net.width": 8,
  "net.num_layers": 1,
  "net.num_heads": 2,
  "net.mlp_width": 8,
  "batch_size": 16,
  "num_steps": 4,
  "warmup_steps": 1,
  "num_eval": 16,
  "num_samples": 2,
  "log_every": 2,
  "eval_every": 4,
  "checkpoint_every": 4,
}
"""A language model that others tune."""


TEXT, SEQUENCES = "own.jsonl", "own.fasta"


def prepare(folder: pathlib.Path) -> None:
  """Writes what some of them read; processes themselves write nothing."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / TEXT).write_text(json.dumps({"text": "ab" * 400}) + "\n")
  rows = np.random.default_rng(0).choice(list("ACGT"), (64, 6))
  lines = [f">{i}\n{''.join(row)}\n" for i, row in enumerate(rows)]
  (folder / SEQUENCES).write_text("".join(lines))


def loop(num_steps, every=None):
  """Fields of a run that logs each step and evaluates and saves half way."""
  every = every or num_steps // 2
  return {
    "num_steps": num_steps,
    "log_every": 1,
    "eval_every": every,
    "checkpoint_every": every,
    "mesh.data": -1,
  }


def changed(config, fields):
  config.update_from_flattened_dict(fields)
  return config


def blobs(num_rows, shape):
  rng = np.random.default_rng(1)
  rows = rng.normal(size=(num_rows, *shape)).astype(np.float32)
  image_shape = shape if len(shape) == 3 else None
  return data_lib.Dataset("blobs", rows, image_shape=image_shape)


def mdns(folder):
  fields = {
    "net.hidden": (16, 16),
    "batch_size": 64,
    "buffer.num_samples": 64,
    "num_eval": 128,
    "eval_chunk": 64,
    "num_reference": 32,
  }
  config = changed(ising.get_config("smoke"), fields | loop(4))
  return training.build(config), config


def mdns_split(folder):
  """Parameters are split over all devices, and so over processes."""
  fields = {"net.hidden": (256, 256), "mesh.data": 1, "mesh.fsdp": 8}
  _, config = mdns(folder)
  config = changed(config, fields)
  return training.build(config), config


def pdns(folder):
  fields = {
    "net.hidden": (16, 16),
    "batch_size": 64,
    "buffer.num_samples": 64,
    "reference.num_steps": 8,
    "stages.inner_steps": 2,
    "num_eval": 128,
    "eval_chunk": 64,
    "num_reference": 32,
  }
  config = changed(gmm.get_config("smoke"), fields | loop(4))
  return training.build(config), config


def olla(folder):
  fields = {"num_chains": 64, "thinning": 4} | loop(16)
  config = changed(toys.get_config("smoke"), fields)
  return training.build(config), config


def alignflow_minibatch(folder):
  """Its pairs are made on the host."""
  fields = {
    "net.hidden": (16,),
    "batch_size": 16,
    "warmup_steps": 1,
    "num_eval": 64,
    "eval_steps": (1, 2),
    "coupling.kind": "minibatch",
    "coupling.minibatch_size": 8,
  }
  config = changed(checkerboard.get_config("cpu"), fields | loop(4))
  return alignflow.build(config, blobs(32, (2,))), config


def alignflow_table(folder):
  """The first process solves for its pairs, and all read them."""
  fields = {
    "net.hidden": (16,),
    "batch_size": 16,
    "warmup_steps": 1,
    "num_eval": 64,
    "eval_steps": (1, 2),
    "coupling.kind": "sdot",
    "coupling.table": str(folder / "table"),
    "coupling.pairs_per_point": 2,
    "coupling.samples_per_point": 64,
  }
  config = changed(checkerboard.get_config("cpu"), fields | loop(4))
  return alignflow.build(config, blobs(32, (2,))), config


def masked_lm(folder):
  fields = {"data.path": str(folder / TEXT), "data.length": 8}
  config = changed(text.get_config("smoke"), BASE | fields | loop(4))
  return training.build(config), config


def _tuning(config, workdir):
  fields = {f"base.{name}": value for name, value in BASE.items()}
  fields |= {
    "base.workdir": workdir,
    "num_prompts": 8,
    "group_size": 4,
    "inner_steps": 2,
    "num_eval": 16,
  }
  config = changed(config, fields | loop(4))
  return training.build(config), config


def gdpo(folder):
  """Its base is trained anew, and not kept."""
  return _tuning(gdpo_arithmetic.get_config("smoke"), "")


def dmpo(folder):
  """Its base is trained in a folder, and kept."""
  return _tuning(dmpo_arithmetic.get_config("smoke"), str(folder / "base"))


def share_of_a(sequences):
  """A reward that any Python code may be."""
  return [sequence.count("A") / len(sequence) for sequence in sequences]


def tr2d2(folder):
  """Searches with a reward of the host's, from a base that it trains."""
  fields = {f"base.{name}": value for name, value in BASE.items()}
  fields |= {
    "base.data.path": str(folder / SEQUENCES),
    "base.data.length": 6,
    "base.workdir": str(folder / "base"),
    "problem.function": f"{__name__}:share_of_a",
    "search.num_roots": 2,
    "search.num_children": 8,
    "search.num_expansions": 2,
    "buffer.capacity": 16,
    "batch_size": 16,
    "num_masks": 1,
    "inner_steps": 2,
    "num_tree_rounds": 1,
    "num_eval": 32,
    "num_baseline": 16,
  }
  config = changed(custom.get_config("cpu"), fields | loop(4))
  return training.build(config), config


def memorization(folder):
  """Five runs, each from the first's weights."""
  config = memorizing.short(**loop(4))
  return arms.build(config, memorizing.blobs()), config


def memorization_sweep(folder):
  fields = {"sweep.widths": (8,)} | loop(3, 3)
  config = memorizing.short_sweep(**fields)
  return training.build(config), config


def collapse_digits_(folder):
  """Each generation is trained on what the one before has made."""
  fields = {
    "arms": ("replace", "accumulate+greedy"),
    "num_train": 12,
    "num_generations": 2,
    "net.hidden": (8,),
    "batch_size": 8,
    "warmup_steps": 1,
    "num_eval": 8,
    "eval_steps": (2,),
    "measure.num_components": 3,
    "select.threshold": 1.0,
  }
  config = changed(collapse_digits.get_config("cpu"), fields | loop(4))
  return collapse.build(config, blobs(40, (2, 2, 1))), config


def collapse_closed_form(folder):
  fields = {"num_chains": 64, "mesh.data": -1}
  config = changed(gaussian.get_config("smoke"), fields)
  return training.build(config), config


def world(folder):
  fields = {
    "env.size": 12,
    "env.view": 5,
    "net.width": 8,
    "net.num_heads": 1,
    "memory.capacity": 16,
    "data.num_episodes": 8,
    "data.num_test": 8,
    "sampler.num_steps": 1,
  }
  config = changed(tiles.get_config("smoke"), fields | loop(4))
  return training.build(config), config


def world_pixels(folder):
  """Two runs, of which the second sees through what the first has learnt."""
  fields = {
    "net.width": 8,
    "net.num_heads": 1,
    "data.num_episodes": 8,
    "data.num_test": 8,
    "sampler.num_steps": 1,
  }
  # It has the mesh of the whole.
  tokenizer = {name: n for name, n in loop(4).items() if name != "mesh.data"}
  tokenizer["warmup_steps"] = 1
  fields |= {f"tokenizer.{name}": n for name, n in tokenizer.items()}
  config = changed(minatar_pixels.get_config("smoke"), fields | loop(4))
  return training.build(config), config


SYSTEMS = {
  "mdns": mdns,
  "mdns_split": mdns_split,
  "pdns": pdns,
  "olla": olla,
  "alignflow_minibatch": alignflow_minibatch,
  "alignflow_table": alignflow_table,
  "masked_lm": masked_lm,
  "gdpo": gdpo,
  "dmpo": dmpo,
  "tr2d2": tr2d2,
  "memorization": memorization,
  "memorization_sweep": memorization_sweep,
  "collapse": collapse_digits_,
  "collapse_closed_form": collapse_closed_form,
  "world": world,
  "world_pixels": world_pixels,
}


def build(name: str, folder: pathlib.Path):
  """`(experiment, config)`; what it reads and keeps lies in the folder."""
  return SYSTEMS[name](folder)
