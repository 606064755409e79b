"""What a generation comes to, and what all of them together do.

Entropies of different spaces, or of sets of different size, must not be
compared: metrics are named by their space (none for pixels), and every entropy
is that of `config.num_train` rows. `memorised` goes the wrong way inside the
loop: training sets of samples are full of near duplicates, so that the second
nearest row is as near as the first. Read `gs`.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.collapse import figures
from experiments.common import plots
from jdiff import selection

PIXELS, PCA, EMBEDDING = "pixels", "pca", "embedding"

History = Mapping[str, list[dict[str, dict[str, Any]]]]
"""By arm, for each generation: measurements by name."""


class Measures:
  """Measures generations in the same spaces, against the same held-out rows.

  Args:
    config: The study's.
    real: `[num, ...]`, the first training set.
    held_out: `[M, ...]`, real rows that no training set has.
    spaces: Feature maps by name, `PIXELS` among them.
  """

  def __init__(self, config, real, held_out, spaces):
    self.num, self.spaces = config.num_train, spaces
    self._held_out = {name: f(held_out) for name, f in spaces.items()}
    self._in_space = jax.jit(
      functools.partial(_in_space, num=config.num_train, k=config.measure.k)
    )
    self._whole = jax.jit(_whole)
    found = selection.nearest(real, real, 1, exclude_self=True)
    self.nearest = float(found.distance.mean())
    # What distances to held-out rows are without a model.
    self.reference = {"real/nearest": self.nearest} | {
      f"real/frechet{_suffix(name)}": selection.frechet(
        f(real), self._held_out[name]
      )
      for name, f in spaces.items()
    }

  def __call__(self, data, samples, share_of_real) -> dict[str, Any]:
    """Measures one generation.

    Args:
      data: `[M, ...]`, its training set `D_n`.
      samples: `[S, ...]`, what its model drew. The first `num` are measured,
        however many there are.
      share_of_real: Of `data`.

    Returns:
      Numbers, or `{"value", "se"}`. Of `data`: `entropy` (Kozachenko-
      Leonenko, nats), `duplicates`, `trace` of the covariance,
      `share_of_real`. Of samples: `gs`, the mean distance to the nearest row
      of `data`, `gs_relative` to that within the first training set, `frechet`
      to held-out rows, `memorised` by the 1/3 rule. `entropy`, `gs` and
      `frechet` once for each space.
    """
    data, samples = jnp.asarray(data), jnp.asarray(samples)[: self.num]
    table: dict[str, Any] = {}
    for name, function in self.spaces.items():
      entropy, gs, frechet = _numbers(
        self._in_space(function(data), function(samples), self._held_out[name])
      )
      end = _suffix(name)
      table[f"entropy{end}"], table[f"gs{end}"] = entropy.value, gs
      table[f"frechet{end}"] = frechet
      if name == PIXELS:
        table["gs_relative"] = {k: v / self.nearest for k, v in gs.items()}
        table["duplicates"] = entropy.num_zero
    table["trace"], table["memorised"] = _numbers(self._whole(data, samples))
    return table | {"share_of_real": float(share_of_real)}


def _in_space(data, samples, held_out, *, num, k):
  # Of as many rows, however large a training set has grown.
  rows = jax.random.permutation(jax.random.key(0), data.shape[0])[:num]
  score = selection.generalisation_score(samples, data)
  gs = {"value": score.mean(), "se": score.std() / score.size**0.5}
  entropy = selection.kl_entropy(data[rows], k=k)
  return entropy, gs, selection.frechet(samples, held_out)


def _whole(data, samples):
  copies = selection.memorised(samples, data).memorised
  return jnp.sum(jnp.var(data, axis=0, ddof=1)), copies.mean()


def _numbers(tree: Any) -> Any:
  return jax.tree.map(lambda x: np.asarray(x).item(), tree)


def _suffix(space: str) -> str:
  return "" if space == PIXELS else f"_{space}"


def flat(histories: History) -> dict[str, dict[str, Any]]:
  """`<arm>/<name>_<generation>` for every measurement."""
  return {
    f"{arm}/{name}_{generation}": value
    for arm, generations in histories.items()
    for generation, table in enumerate(generations, 1)
    for name, value in table.items()
  }


def series(histories: History, name: str) -> dict[str, np.ndarray]:
  """One measurement by generation, for each arm; NaN where unknown."""
  return {
    arm: np.array([table[name]["value"] for table in generations], float)
    for arm, generations in histories.items()
  }


def points(
  histories: History, name: str, score: str, *, first: bool
) -> tuple[np.ndarray, np.ndarray]:
  """A measurement and the log of a score, over generations of all arms.

  Args:
    histories: All of them.
    name: Of the measurement.
    score: Of the score.
    first: Whether to take generation 1, which all arms share, too.
  """
  chosen = [
    table
    for i, generations in enumerate(histories.values())
    for n, table in enumerate(generations)
    if n or (first and not i)
  ]
  x = np.array([table[score]["value"] for table in chosen], float)
  y = np.array([table[name]["value"] for table in chosen], float)
  return np.log(np.maximum(x, 1e-10)), y


def correlations(histories: History, spaces) -> dict[str, float | None]:
  """Of entropy with the log of the generalisation score, over all arms.

  `correlation` is over synthetic training sets, of generations 2 and later;
  `correlation_with_first` has the real one too. `correlation_trace` has the
  log of the covariance's trace in place of entropy.
  """
  table = {}
  for space in spaces:
    end = _suffix(space)
    names = f"entropy{end}", f"gs{end}"
    table[f"correlation{end}"] = _pearson(
      *points(histories, *names, first=False)
    )
    table[f"correlation{end}_with_first"] = _pearson(
      *points(histories, *names, first=True)
    )
  x, y = points(histories, "trace", "gs", first=False)
  table["correlation_trace"] = _pearson(x, np.log(np.maximum(y, 1e-10)))
  return table


def _pearson(x, y):
  good = np.isfinite(x) & np.isfinite(y)
  x, y = x[good], y[good]
  # Two points are always on a line.
  if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
    return None
  return float(np.corrcoef(x, y)[0, 1])


def text(config, dim: int, histories: History) -> str:
  """The main numbers at a glance, with what they depend on."""
  head = (
    f"{config.name}: N = {config.num_train}, d = {dim}, "
    f"k = {config.measure.k}, "
    f"{config.oversample} N samples where an arm selects (in "
    f"{config.select.space}), {max(config.eval_steps)} Euler steps, no "
    f"clipping, seed {config.seed}"
  )
  titles = {
    "entropy": "entropy of the training set, pixels (nats)",
    "entropy_pca": f"the same, {config.measure.num_components} components",
    "gs": "distance of samples to it",
    "frechet": "Frechet distance of samples to held-out rows, pixels",
    "share_of_real": "share of real rows",
  }
  width = max(map(len, histories))
  lines = [head]
  for name, title in titles.items():
    lines.append(f"{title}, by generation")
    for arm, values in series(histories, name).items():
      numbers = "".join(f"{value:9.3f}" for value in values)
      lines.append(f"  {arm:{width}}{numbers}")
  return "\n".join(lines)


def draw(
  directory: pathlib.Path,
  histories: History,
  pictures: Mapping[str, Mapping[str, np.ndarray]],
  spaces,
) -> None:
  """Measurements by generation, the law, and samples.

  Args:
    directory: Where PNG files go.
    histories: All measurements.
    pictures: By arm, rows by label: images `[n, H, W, C]` or `[n, 2]` points;
      others are not drawn.
    spaces: Names of the spaces.
  """
  for space in spaces:
    end = _suffix(space)
    titles = {
      f"entropy{end}": "entropy of the training set",
      f"gs{end}": "generalisation score",
      f"frechet{end}": "Frechet distance to held-out rows",
    }
    figures.lines(
      directory / f"generations{end}.png",
      {
        title: {arm: (y, None) for arm, y in series(histories, name).items()}
        for name, title in titles.items()
      },
    )
    figures.law(
      directory / f"law{end}.png",
      {
        arm: points({arm: generations}, f"entropy{end}", f"gs{end}", first=True)
        for arm, generations in histories.items()
      },
    )
  for arm, rows in pictures.items():
    shape = next(iter(rows.values())).shape[1:]
    if len(shape) == 3:
      plots.images(directory / f"samples_{arm}.png", rows)
    elif shape == (2,):
      plots.points(directory / f"samples_{arm}.png", rows)
