"""How memorisation depends on width, on the number of rows and on dimension.

Ye et al., "Provable Separations between Memorization and Generalization in
Diffusion Models" (ICLR 2026, arXiv:2511.03202): the empirical score takes a
network that grows with the number of rows, the true one does not, so that what
is copied rises with the width and falls with the number of rows. Every network
is trained for as many steps. In a workdir `W`, `W/width_32_n_250/` is one run;
with several dimensions, `W/width_32_n_250_dim_8/`.
"""

import itertools
import math

import jax
import ml_collections

from experiments.common import fields as fields_lib
from experiments.memorization import experiment, figures, report
from jdiff import training


def build(config: ml_collections.ConfigDict) -> training.Study:
  """The study of a config of `mixture`.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others.
  """
  fields_lib.check(config)
  sweep = config.sweep
  for name in ("widths", "sizes", "dims"):
    values = sweep[name]
    if not values or len(set(values)) < len(values):
      raise ValueError(
        f"config.sweep.{name} must hold distinct integers, one at least, got "
        f"{tuple(values)}."
      )
  points = list(itertools.product(sweep.dims, sweep.widths, sweep.sizes))
  configs = {point: _part(config, *point) for point in points}
  built = {point: experiment.build(fields) for point, fields in configs.items()}

  def run(workdir, progress):
    found = {
      point: training.run(
        built[point],
        configs[point],
        workdir / _name(config, *point),
        progress=progress,
      )["metrics"]
      for point in points
    }
    if not jax.process_index():
      _draw(workdir / "figures" / "memorised.png", config, found)
    return _joined(config, found) | {"nfe": config.sampler.num_steps}

  return training.Study(run, built[max(points, key=math.prod)])


def _name(config, dim, width, size) -> str:
  several = len(config.sweep.dims) > 1
  return f"width_{width}_n_{size}" + (f"_dim_{dim}" if several else "")


def _part(config, dim, width, size) -> ml_collections.FrozenConfigDict:
  return experiment.part(
    config,
    _name(config, dim, width, size),
    num_train=size,
    data={**config.data.to_dict(), "dim": dim},
    net={**config.net.to_dict(), "hidden": (width,) * config.sweep.num_layers},
  )


def _joined(config, found):
  """Flat names, `<run>/<metric>`; of the rows, `n_<size>/<metric>`."""
  table = {}
  for (dim, width, size), metrics in found.items():
    name = _name(config, dim, width, size)
    rows = name.removeprefix(f"width_{width}_")
    for metric, value in metrics.items():
      where = rows if metric in report.OF_THE_ROWS else name
      table.setdefault(f"{where}/{metric}", value)
  return table


def _draw(path, config, found):
  sweep = config.sweep
  panels = {}
  for dim in sweep.dims:

    def line(name, width, dim=dim):
      each = [found[dim, width, size][name] for size in sweep.sizes]
      return [(x["value"], x["se"]) for x in each]

    any_width = sweep.widths[0]
    shares = {"held-out rows": line("memorised_floor", any_width)}
    gaps = {"true score": line("loss_gap_true", any_width)}
    for width in sweep.widths:
      shares[f"width {width}"] = line("memorised", width)
      gaps[f"width {width}"] = line("loss_gap", width)
    panels[f"d = {dim}"] = sweep.sizes, shares, gaps
  figures.sweep(path, panels)
