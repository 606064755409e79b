"""What search, rollouts and their weights buy; fronts at equal rewards.

  python -m benchmarks.tr2d2 [pairs] [markov] [splice] [peptides] \
      [--seeds=0,1,2] [--runs=DIR] [--figures=DIR]

`pairs` and `markov`: KL from the tilted law to the policy and its expected
reward, exact, by round, of variants that differ in how rows are gathered and
weighed. `splice`: one pass against a law that is known. `peptides`: hypervolume
of one pass of samples against the best of N draws of the base and against tree
search with it, each for as many rewards as fine-tuning and that pass took. Runs
that are finished in DIR are read, not run again.
"""

import json
import pathlib
import sys
import tempfile

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from experiments.common import plots  # noqa: E402
from experiments.tr2d2 import enumerable, peptides, splice  # noqa: E402
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
  "peptides": (peptides, ("cpu",)),
}


def run(module, variant, label, seeds, directory):
  """`[(report's metrics, records)]`, one for each seed."""
  config = module.get_config(variant)
  workdir = directory / label
  training.run_seeds(training.build, config, workdir, seeds, progress=False)
  found = []
  for seed in seeds:
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


def fronts(results, figures):
  """Hypervolumes at equal rewards, by seed."""
  del figures
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
      module, variants = VARIANTS[name]
      results = {
        v: run(module, v, f"{name}_{v}", seeds, directory) for v in variants
      }
      if name == "splice":
        spliced(results, figures)
      elif name == "peptides":
        fronts(results, figures)
      else:
        enumerated(name, results, figures)


if __name__ == "__main__":
  main(sys.argv[1:])
