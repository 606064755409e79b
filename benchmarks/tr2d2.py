"""What search, rollouts and their weights buy; fronts at equal rewards.

  python -m benchmarks.tr2d2 [pairs] [markov] [splice] [dna] [peptides] \
      [--seeds=0,1,2] [--runs=DIR] [--figures=DIR]

`pairs` and `markov`: KL from the tilted law to the policy and its expected
reward, exact, by round, of variants that differ in how rows are gathered and
weighed. `splice`: one pass against a law that is known. `dna`: designs and what
another oracle says of them; the best found by rewards asked for, of search and
rollouts, of rollouts alone (i.i.d. WDCE), of draws of the base and of a search
with it. `peptides`: hypervolume of one pass of samples against the best of N
draws of the base and against tree search with it, each for as many rewards as
fine-tuning and that pass took. Variants of a seed start from one base. Runs
that are finished in DIR are read, not run again.
"""

import json
import pathlib
import sys
import tempfile

import matplotlib

matplotlib.use("Agg")

import jax  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from experiments.common import plots  # noqa: E402
from experiments.tr2d2 import (  # noqa: E402
  dna,
  enumerable,
  inference,
  peptides,
  problems,
  splice,
)
from jdiff import training  # noqa: E402

VARIANTS = {
  "pairs": (
    enumerable,
    ("pairs", "pairs_rollouts", "pairs_tree", "pairs_tree_path"),
  ),
  "markov": (
    enumerable,
    ("markov", "markov_rollouts", "markov_tree", "markov_top"),
  ),
  "splice": (splice, ("cpu", "rollouts", "search")),
  "dna": (dna, ("cpu", "rollouts", "search")),
  "peptides": (peptides, ("cpu",)),
}


def get_config(system, variant, seed, directory):
  """A variant's config, with the base that all of a system's share."""
  config = VARIANTS[system][0].get_config(variant)
  config.seed = seed
  config.base.workdir = str(directory / f"{system}_base_{seed}")
  return config


def run(system, variant, seeds, directory):
  """`[(report, records)]`, one for each seed."""
  workdir, found = directory / f"{system}_{variant}", []
  for seed in seeds:
    config = get_config(system, variant, seed, directory)
    training.run_seeds(training.build, config, workdir, [seed], progress=False)
    folder = workdir / f"seed_{seed}"
    report = json.loads((folder / "report.json").read_text())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found.append((report, [json.loads(line) for line in lines]))
  return found


def by_round(runs, name):
  """`[seeds, evaluations]` of a recorded metric."""
  return np.array(
    [
      [r[name] for r in records if r.get(name) is not None]
      for _, records in runs
    ]
  )


def enumerated(system, results, figures):
  """Exact KL and reward after one round and at the end, by variant."""
  base = results[system][0][0]["metrics"]["kl_target_base"]["value"]
  exact = results[system][0][0]["metrics"]["reward_exact"]["exact"]
  print(f"\n{system}: KL {base:.3f} at the start, expected reward {exact:.3f}")
  print(
    f"{'variant':18}{'reward, round 1':>22}{'KL, round 1':>22}"
    f"{'KL, end':>24}{'% of start':>12}{'seconds':>9}"
  )
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
  for name, runs in results.items():
    kl, reward = (
      by_round(runs, "eval/kl_target"),
      by_round(runs, "eval/reward_exact"),
    )
    seconds = np.mean([report["wall_seconds"] for report, _ in runs])
    cells = [
      ", ".join(f"{v:.3f}" for v in c)
      for c in (reward[:, 0], kl[:, 0], kl[:, -1])
    ]
    print(
      f"{name:18}{cells[0]:>22}{cells[1]:>22}{cells[2]:>24}"
      f"{100 * kl[:, -1].max() / base:11.1f}%{seconds:9.0f}"
    )
    rounds = 1 + np.arange(kl.shape[1])
    axes[0].semilogy(rounds, kl.mean(axis=0), ".-", label=name)
    axes[1].plot(rounds, reward.mean(axis=0), ".-", label=name)
  axes[0].axhline(base, color="k", ls=":", lw=0.8)
  axes[1].axhline(exact, color="k", ls="--", lw=0.8)
  axes[0].set(xlabel="round", title="KL from the tilted law")
  axes[1].set(xlabel="round", title="expected reward (dashed: the law's)")
  axes[1].legend(fontsize=7)
  if figures:
    plots.save(figure, figures / f"tr2d2_{system}.png")


def spliced(results, figures):
  """Matches and their histogram against the law that is known."""
  print(
    f"\nsplice\n{'variant':10}{'matches (exact)':>30}{'TV':>24}"
    f"{'ESS / rows, end':>24}{'seconds':>9}"
  )
  figure, axis = plt.subplots(figsize=(5, 3.2))
  for name, runs in results.items():
    metrics = [report["metrics"] for report, _ in runs]
    matches = ", ".join(f"{m['matches']['value']:.3f}" for m in metrics)
    exact = metrics[0]["matches"]["exact"]
    tv = ", ".join(f"{m['matches_tv']['value']:.3f}" for m in metrics)
    share = [
      [r["ess"] / max(r["num_rows"], 1) for r in records if "ess" in r][-1]
      for _, records in runs
    ]
    seconds = np.mean([report["wall_seconds"] for report, _ in runs])
    cells = ", ".join(f"{s:.3f}" for s in share)
    print(
      f"{name:10}{matches + f' ({exact:.3f})':>30}{tv:>24}{cells:>24}"
      f"{seconds:9.0f}"
    )
    _, records = runs[0]
    rows = [r for r in records if "num_calls" in r]
    axis.plot(
      [r["num_calls"] for r in rows],
      [r["reward"] for r in rows],
      ".-",
      label=name,
    )
  axis.set(xlabel="rewards asked for", ylabel="mean reward of the rows")
  axis.legend()
  if figures:
    plots.save(figure, figures / "tr2d2_splice.png")


def designed(results, figures, directory, seed):
  """What one pass of designs is worth, and the best by rewards asked for."""
  names = ("binding", "held_out_log_odds", "word_correlation", "elbo_of_base")
  print(f"\n{'dna':12}" + "".join(f"{name:>26}" for name in names))
  rows = {
    name: [r["metrics"] for r, _ in runs] for name, runs in results.items()
  }
  first = next(iter(rows.values()))
  rows["base"] = [
    {name: m.get(f"{name}_base", {"value": None}) for name in names}
    for m in first
  ]
  for label, metrics in rows.items():
    cells = [[m[name]["value"] for m in metrics] for name in names]
    texts = [
      "-" if None in cell else ", ".join(f"{v:.2f}" for v in cell)
      for cell in cells
    ]
    print(f"{label:12}" + "".join(f"{text:>26}" for text in texts))
  figure, axis = plt.subplots(figsize=(5, 3.2))
  labels = {"cpu": "search, then rollouts", "rollouts": "i.i.d. WDCE"}
  for name, runs in results.items():
    records = [r for r in runs[0][1] if "best_binding" in r]
    axis.plot(
      [r["num_calls"] for r in records],
      [r["best_binding"] for r in records],
      ".-",
      label=labels.get(name, name),
    )
  config = get_config("dna", "cpu", seed, directory)
  problem = problems.make(config)
  for name, search in {
    "best of N": inference.best_of_n,
    "tree, base alone": inference.tree,
  }.items():
    key = jax.random.key(seed)
    params = problem.base_params()
    found = search(problem, params, key, config.num_baseline, config)
    best = np.maximum.accumulate(found.rewards[:, 0])
    print(f"{name}: best binding {best[-1]:.2f} of {len(best)}")
    axis.plot(1 + np.arange(len(best)), best, label=name)
  axis.set(xscale="log", xlabel="rewards asked for", ylabel="best binding")
  axis.legend(fontsize=7)
  if figures:
    plots.save(figure, figures / "tr2d2_dna.png")


def fronts(results):
  """Hypervolumes at equal rewards, by seed."""
  print(f"\n{'peptides, by seed':34}{'value'}")
  for name, runs in results.items():
    metrics = [report["metrics"] for report, _ in runs]
    for key in metrics[0]:
      values = [m[key]["value"] for m in metrics if key in m]
      if None not in values:
        cells = ", ".join(f"{value:.3f}" for value in values)
        print(f"{name} {key:30}{cells}")


def main(argv):
  options = dict(a[2:].split("=", 1) for a in argv if a.startswith("--"))
  names = [a for a in argv if not a.startswith("--")] or list(VARIANTS)
  unknown = set(options) - {"seeds", "runs", "figures"} | (
    set(names) - set(VARIANTS)
  )
  if unknown:
    raise SystemExit(f"unknown: {', '.join(sorted(unknown))}\n{__doc__}")
  seeds = [int(s) for s in options.get("seeds", "0,1,2").split(",")]
  figures = pathlib.Path(options["figures"]) if "figures" in options else None
  with tempfile.TemporaryDirectory() as nowhere:
    directory = pathlib.Path(options.get("runs", nowhere))
    for name in names:
      results = {v: run(name, v, seeds, directory) for v in VARIANTS[name][1]}
      if name == "splice":
        spliced(results, figures)
      elif name == "peptides":
        fronts(results)
      elif name == "dna":
        designed(results, figures, directory, seeds[0])
      else:
        enumerated(name, results, figures)


if __name__ == "__main__":
  main(sys.argv[1:])
