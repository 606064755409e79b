"""Tuning a masked language model by reward: methods from one base, by seed.

  python -m benchmarks.masked_rl [arithmetic] [sudoku] [countdown] [parity] \
      [--seeds=0,1,2,3,4] [--rows=GDPO,DMPO] [--runs=DIR]

Every row starts from the same base policy of its seed. `arithmetic`: GDPO with
shared masks, with independent ones and with double Monte Carlo, the one-step
baseline diffu-GRPO at equal network evaluations (twice the inner steps, each of
half the evaluations), and DMPO. Accuracy is exact match at temperature 1; where
answers can be enumerated it is exact, and `target` is that of the tilted law
that DMPO aims at. Runs that are finished in DIR are read, not run again.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np

from experiments.masked_lm import defaults, systems
from jdiff import training

VARIANTS = {
  "GDPO": (defaults.gdpo, {}),
  "GDPO independent masks": (defaults.gdpo, {"elbo.shared_masks": False}),
  "GDPO double Monte Carlo": (defaults.gdpo, {"elbo.law": "count"}),
  "diffu-GRPO": (defaults.gdpo, {"loss": "diffu_grpo", "inner_steps": 8}),
  "DMPO": (defaults.dmpo, {}),
}

ROWS = {
  "arithmetic": VARIANTS,
  "sudoku": {n: VARIANTS[n] for n in ("GDPO", "diffu-GRPO", "DMPO")},
  "countdown": {n: VARIANTS[n] for n in ("GDPO", "diffu-GRPO", "DMPO")},
  "parity": {n: VARIANTS[n] for n in ("GDPO", "DMPO")},
}


def run(system, name, seed, directory):
  """The report and the records of one run."""
  make, changes = ROWS[system][name]
  config = systems.get_config(system, "cpu", make)
  config.update_from_flattened_dict(changes)
  config.seed = seed
  config.base.workdir = str(directory / system / f"base_{seed}")
  folder = name.lower().replace(" ", "_")
  workdir = directory / system / f"{folder}_{seed}"
  report = training.run(training.build(config), config, workdir, progress=False)
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return report, [json.loads(line) for line in lines]


def value(metrics, name):
  """The exact number if there is one, else the estimate."""
  entry = metrics[name]
  return entry["value"] if entry["exact"] is None else entry["exact"]


def table(system, seeds, rows, directory):
  """Mean, worst and seconds of every row."""
  print(f"\n{system}, seeds {', '.join(map(str, seeds))}")
  print(
    f"{'':26} {'base':>6} {'mean':>6} {'worst':>6} {'target':>6} "
    f"{'greedy':>6} {'half':>6} {'s/run':>6}  by seed"
  )
  for name in rows:
    found, half, seconds = [], [], []
    for seed in seeds:
      report, history = run(system, name, seed, directory)
      found.append(report["metrics"])
      seconds.append(report["wall_seconds"])
      # Rollouts' accuracy halfway, as a mean over a few records.
      rows = [r["accuracy"] for r in history if "accuracy" in r]
      middle = len(rows) // 2
      half.append(np.mean(rows[middle - 1 : middle + 1]))
    final = [value(m, "exact_match") for m in found]
    target = "-"
    if "exact_match_target" in found[0]:
      goals = [m["exact_match_target"]["value"] for m in found]
      target = f"{np.mean(goals):.3f}"
    base = np.mean([value(m, "exact_match_base") for m in found])
    greedy = np.mean([m["exact_match_greedy"]["value"] for m in found])
    print(
      f"{name:26} {base:6.3f} {np.mean(final):6.3f} {min(final):6.3f} "
      f"{target:>6} {greedy:6.3f} {np.mean(half):6.3f} "
      f"{np.mean(seconds):6.0f}  " + " ".join(f"{f:.3f}" for f in final),
      flush=True,
    )
    if "kl_target" in found[0]:
      before, after = (
        np.mean([m[name]["value"] for m in found])
        for name in ("kl_target_base", "kl_target")
      )
      print(f"{'':26} KL(p* || p): base {before:.3f}, now {after:.4f}")


def main(arguments):
  """Parses the few arguments."""
  options = dict(a[2:].split("=", 1) for a in arguments if a.startswith("--"))
  systems = [a for a in arguments if not a.startswith("--")] or list(ROWS)
  seeds = [int(s) for s in options.get("seeds", "0,1,2,3,4").split(",")]
  with tempfile.TemporaryDirectory() as nowhere:
    directory = pathlib.Path(options.get("runs", nowhere))
    for system in systems:
      rows = ROWS[system]
      if "rows" in options:
        wanted = options["rows"].split(",")
        if unknown := set(wanted) - set(rows):
          raise ValueError(f"{system} has rows {[*rows]}, not {unknown}.")
        rows = [name for name in rows if name in wanted]
      table(system, seeds, rows, directory)


if __name__ == "__main__":
  main(sys.argv[1:])
