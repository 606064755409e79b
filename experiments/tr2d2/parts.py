"""Searches, buffers and checks, from a config's fields."""

import numpy as np

from jdiff import search
from jdiff.core import reward as reward_lib
from jdiff.methods import tr2d2
from jdiff.search import rules

SCORES = {"uct": search.uct, "puct": search.puct, "tr2d2": search.tr2d2}
BACKUPS = {
  "mean": search.MEAN,
  "count": search.COUNT,
  "sum": search.SUM,
  "max": search.MAX,
}
PICKS = {
  "best": rules.best,
  "softmax": rules.softmax(),
  "non_dominated": rules.non_dominated,
}
WEIGHTINGS = {
  "path": tr2d2.path,
  "support": tr2d2.support,
  "reward": tr2d2.reward,
  "uniform": tr2d2.uniform,
}
ADMISSIONS = ("all", "unique_top", "pareto")


def make_search(
  config,
  problem,
  *,
  num_expansions: int | None = None,
  temperature: float | None = None,
) -> search.Search:
  """The search that a config's fields describe.

  Args:
    config: A config of this folder.
    problem: A `problems.Problem`.
    num_expansions: In place of the config's.
    temperature: In place of the config's.
  """
  fields = config.search
  pick = fields.pick
  if pick == "auto":
    several = problem.reward.num_objectives > 1
    pick = "non_dominated" if several else "best"
  return search.tree_search(
    problem.network.apply,
    length=problem.length,
    mask_id=problem.num_tokens,
    num_children=fields.num_children,
    num_expansions=num_expansions or fields.num_expansions,
    num_objectives=problem.reward.num_objectives,
    num_steps=config.sampler.num_steps or None,
    temperature=temperature or config.sampler.temperature,
    score=SCORES[fields.score](fields.exploration),
    pick=PICKS[pick],
    backup=BACKUPS[fields.backup],
  )


def score(reward: reward_lib.Reward, proposals: search.Proposal) -> np.ndarray:
  """`[R, M, K]` rewards on the host, of what is worth asking for alone."""
  valid = np.asarray(proposals.valid)
  shape = (*proposals.samples.shape[:-1], reward.num_objectives)
  rewards = np.full(shape, np.nan, np.float32)
  if valid.any():
    rewards[valid] = np.asarray(reward(proposals.samples[valid]))
  return rewards


def scalarise(config, names: tuple[str, ...]) -> tr2d2.Scalarise:
  """The one reward of the objectives of these names."""
  for field in ("objective_weights", "objective_ideal"):
    given = tuple(config[field])
    if given and len(given) != len(names):
      raise ValueError(
        f"config.{field} must name one number for each of {', '.join(names)}, "
        f"got {given}."
      )
  weights = tuple(config.objective_weights) or (1.0,) * len(names)
  if config.objective_ideal:
    return tr2d2.chebyshev(weights, tuple(config.objective_ideal))
  return tr2d2.weighted(weights)


def admission(config, scalarise: tr2d2.Scalarise) -> tr2d2.Admit:
  """Which rows the buffer keeps."""
  if config.buffer.admission == "pareto":
    return tr2d2.pareto_front
  return tr2d2.unique_top(scalarise)


def check(config) -> None:
  """Raises unless the fields that no other layer checks are in range."""
  for group, name, known in (
    ("search", "score", [*SCORES]),
    ("search", "backup", [*BACKUPS]),
    ("search", "pick", ["auto", *PICKS]),
    ("buffer", "weighting", [*WEIGHTINGS]),
    ("buffer", "admission", [*ADMISSIONS]),
  ):
    if config[group][name] not in known:
      raise ValueError(
        f"config.{group}.{name} must be one of {known}, got "
        f"{config[group][name]!r}."
      )
  if config.num_steps % config.search.num_expansions:
    raise ValueError(
      "config.num_steps must be whole rounds of config.search.num_expansions="
      f"{config.search.num_expansions} steps, got {config.num_steps}."
    )
  if config.buffer.admission == "all" and config.buffer.keep:
    raise ValueError(
      "config.buffer.keep needs a buffer of limited size: pass "
      "buffer.admission='unique_top' or 'pareto', or buffer.keep=False; got "
      "admission='all'."
    )
  if config.buffer.weighting == "support" and (
    config.buffer.admission == "all" or config.sampler.num_steps
  ):
    raise ValueError(
      "config.buffer.weighting='support' needs unique rows, and reveals of one "
      "site a step: pass buffer.admission='unique_top' or 'pareto' and "
      "sampler.num_steps=0, or another weighting; got "
      f"admission={config.buffer.admission!r} and "
      f"num_steps={config.sampler.num_steps}."
    )
  if not config.sampler.temperature:
    raise ValueError("config.sampler.temperature must be positive, got 0.")
