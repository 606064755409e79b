"""Few-step samples by coupling and loss, over seeds; and what pairing costs.

  python -m benchmarks.few_step [checkerboard] [digits] [mnist] [overhead]

Every run of a set has the same network, batch, steps and seeds; a coupling
changes which noise goes with which data, and nothing else.
"""

import sys
import tempfile

import jax
import numpy as np

from benchmarks import timing
from experiments.alignflow import (
  checkerboard,
  couplings,
  digits,
  experiment,
  mnist,
)
from experiments.common import data as data_lib
from jdiff import training

SEEDS = (0, 1, 2)
MODULES = {"checkerboard": checkerboard, "digits": digits, "mnist": mnist}
STEPS = {"checkerboard": 1500, "digits": 400, "mnist": 400}
SMALL = {"net.width": 32, "net.num_layers": 3}
"""Of the images' DiT: thirteen runs must fit in a coffee break."""
FLOW = [
  ("flow_matching", kind) for kind in ("independent", "minibatch", "sdot")
]
FEW = [
  (loss, kind)
  for loss in ("meanflow", "shortcut")
  for kind in ("independent", "sdot")
]
CASES = {
  "checkerboard": FLOW + FEW,
  "digits": [FLOW[0], FLOW[2], *FEW],
  "mnist": [FLOW[0], FLOW[2]],
}


def make_config(name, loss, kind, seed):
  config = MODULES[name].get_config("cpu")
  config.update_from_flattened_dict(
    {
      "loss": loss,
      "coupling.kind": kind,
      "coupling.minibatch_size": min(128, config.batch_size),
      "seed": seed,
      "num_steps": STEPS[name],
      "eval_every": STEPS[name],
      "checkpoint_every": STEPS[name],
      "log_every": 100,
      **(SMALL if name != "checkerboard" else {}),
    }
  )
  return config


def quality(name, cases):
  """Prints a line a run, then a table of means and deviations over seeds."""
  solve = couplings.solve
  table = {}
  for seed in SEEDS:
    for loss, kind in cases:
      if loss != "flow_matching" and name != "checkerboard" and seed:
        continue  # the few-step losses of images: one seed
      config = make_config(name, loss, kind, seed)
      # The dual does not depend on the seed.
      couplings.solve = _once(solve)
      built = experiment.build(config)._replace(figures=None)
      with tempfile.TemporaryDirectory() as workdir:
        report = training.run(built, config, workdir, progress=False)
      values = {k: v["value"] for k, v in report["metrics"].items()}
      table.setdefault((loss, kind), []).append(values)
      shown = {k: f"{v:.4g}" for k, v in values.items()}
      print(name, loss, kind, seed, shown, flush=True)
      print(f"  {report['wall_seconds']:.0f} s", flush=True)
  couplings.solve = solve
  print(f"\n{name}: mean and standard deviation over seeds")
  for case, runs in table.items():
    cells = []
    for key in runs[0]:
      if "_nfe" in key or key in ("straightness", "curvature"):
        column = np.array([run[key] for run in runs])
        spread = f" ({column.std(ddof=1):.2g})" if len(column) > 1 else ""
        cells.append(f"{key.split('_')[-1]} {column.mean():.3g}{spread}")
    print(f"{case[0]:14s} {case[1]:12s} " + ", ".join(cells), flush=True)
  first = next(iter(table.values()))[0]
  floor = next(v for k, v in first.items() if k.endswith("_floor"))
  print(f"floor {floor:.3g}", flush=True)


_SOLVED = {}


def _once(solve):
  def cached(config, points, labels):
    key = points.shape
    if key not in _SOLVED:
      _SOLVED[key] = solve(config, points, labels)
    return _SOLVED[key]

  return cached


def overhead():
  """Time of drawing a batch of pairs against a training step."""
  for name in MODULES:
    config = make_config(name, "flow_matching", "sdot", 0)
    options = config.data.to_dict()
    dataset = data_lib.load(options.pop("name"), **options)
    couplings_of = {}
    for kind in ("independent", "sdot"):
      config.coupling.kind = kind
      couplings_of[kind] = couplings.make(config, dataset)
    built = experiment.build(config, dataset)
    state = jax.jit(built.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), config.batch_size)
    batch = couplings_of["independent"].batches(0)
    free = jax.jit(couplings_of["independent"].draw)
    paired = jax.jit(couplings_of["sdot"].draw)
    step = jax.jit(built.step)
    times = timing.measure(
      {
        "independent": lambda f=free, k=keys, b=batch: f(k, b),
        "sdot": lambda f=paired, k=keys: f(k, None),
        "step": lambda f=step, s=state: f(s, None),
      }
    )
    free_ms, sdot_ms, step_ms = (
      1e3 * times[k][0] for k in ("independent", "sdot", "step")
    )
    share = (sdot_ms - free_ms) / step_ms
    print(
      f"{name}, batch {config.batch_size}: a step {step_ms:.2f} ms, SDOT pairs "
      f"{sdot_ms:.2f} ms, independent pairs {free_ms:.2f} ms: pairing adds "
      f"{100 * share:.2f}% of a step",
      flush=True,
    )
  # A stored table scores a noise vector against its own class alone: 1300
  # latents of 4096 numbers, doubled by mirroring. A DiT-B/2 takes 23 GFLOP a
  # forward pass, and three times that a training example.
  pair = 2 * 2600 * 4096
  train = 3 * 23e9
  print(
    f"ImageNet, DiT-B/2: {pair / 1e6:.0f} MFLOP a stored pair against "
    f"{train / 1e9:.0f} GFLOP a training example: {100 * pair / train:.3f}%"
  )


def main(names):
  print(timing.where())
  for name in names or (*MODULES, "overhead"):
    if name == "overhead":
      overhead()
    else:
      quality(name, CASES[name])


if __name__ == "__main__":
  main(sys.argv[1:])
