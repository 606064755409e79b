"""Every table of ratios, in one run, as one table.

  python -m benchmarks.run_all [word ...]

Words pick benchmarks by name. Each runs as it would alone, in a process of its
own, and prints as it goes; the ratios that it prints go to
`benchmarks/ratios.md`: the baseline's time (or error) over the row's, so that
more than one is better than the baseline. Run it on an otherwise idle machine.
What needs an extra that is not installed is left out, and said to be. Studies
(`few_step`, `losses`, `masked_rl`, `pdns`, `tr2d2`) print results and no
ratios: they are not run.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks import timing

ROOT = pathlib.Path(__file__).parents[1]
TABLE = ROOT / "benchmarks" / "ratios.md"
BENCHMARKS = {
  "ctmc": (),
  "decode": (),
  "elbo": (),
  "empirical": ("dense",),
  "laguerre": ("throughput",),
  "langevin": ("steps",),
  "llada": (),
  "search": (),
  "semidiscrete": ("digits",),
  "world": ("cache",),
}


def run(name, arguments):
  """`(rows, seconds, exit status)` of one benchmark."""
  with tempfile.TemporaryDirectory() as directory:
    kept = pathlib.Path(directory) / "ratios.jsonl"
    begun = time.monotonic()
    done = subprocess.run(
      [sys.executable, "-m", f"benchmarks.{name}", *arguments],
      cwd=ROOT,
      env=os.environ | {timing.KEEP: str(kept)},
    )
    text = kept.read_text() if kept.exists() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    return rows, time.monotonic() - begun, done.returncode


def write(lines, failed):
  """The table so far; a run that is cut off leaves what it has measured."""
  command = " ".join(["python -m benchmarks.run_all", *sys.argv[1:]])
  load = os.getloadavg()[2]
  head = [f"# Ratios, by `{command}`", ""]
  head += [f"{timing.where()}, {os.cpu_count()} cores, load {load:.1f}.", ""]
  head += ["`ratio`: the baseline's time or error over the row's."]
  head += ["", f"Not measured: {'; '.join(failed)}."] if failed else []
  TABLE.write_text("\n".join(head + lines) + "\n")


def main():
  chosen = sys.argv[1:] or list(BENCHMARKS)
  unknown = set(chosen) - set(BENCHMARKS)
  if unknown:
    raise SystemExit(f"no benchmark {unknown.pop()}; there are {[*BENCHMARKS]}")
  lines, failed = [], []
  for name in chosen:
    print(f"\n== {name}", flush=True)
    rows, seconds, status = run(name, BENCHMARKS[name])
    if status:
      failed.append(f"`{name}` ended with exit status {status}")
    else:
      lines += ["", f"## `{name}`, {seconds:.0f} s", ""]
      lines += ["| table | row | baseline | ratio |", "|---|---|---|---|"]
      lines += [
        f"| {title} | {row} | {baseline} | {ratio:.3g} |"
        for title, row, ratio, baseline in rows
        if row != baseline
      ]
    write(lines, failed)
  print(f"\n{TABLE.relative_to(ROOT)}: {len(lines)} lines")
  if failed:
    raise SystemExit(1)


if __name__ == "__main__":
  main()
