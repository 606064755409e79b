"""The targets that configs name."""

import functools
from collections.abc import Callable

import jax
import ml_collections
import numpy as np

from experiments.mdns import parts
from jdiff import targets
from jdiff.core import files
from jdiff.core.types import Target


def discrete(config) -> Target:
  """A lattice model, or the cuts of a graph."""
  if config.kind == "max_cut":
    return targets.max_cut(graph(config), beta=config.beta)
  if config.kind == "ising" and config.disorder:
    return targets.ising(
      config.size,
      beta=config.beta,
      coupling=couplings(config),
      field=config.field,
      periodic=config.periodic,
    )
  return parts.target(config)


def graph(config) -> np.ndarray:
  """`[E, 2]`: the Petersen graph, a random regular one, or the user's own."""
  if config.edges_file:
    try:
      file = files.check_size(config.edges_file, files.MAX_JSON_BYTES)
      edges = np.loadtxt(file, dtype=np.int64, ndmin=2)
    except OSError as error:
      raise ValueError(
        f"config.target.edges_file={config.edges_file!r} cannot be read: "
        f"{error}."
      ) from error
    except ValueError as error:
      raise ValueError(
        f"config.target.edges_file={config.edges_file!r} must hold two node "
        f"numbers a line: {error}"
      ) from error
    if edges.shape[1] != 2:
      raise ValueError(
        f"config.target.edges_file={config.edges_file!r} must hold two node "
        f"numbers a line, got {edges.shape[1]}."
      )
    return edges
  if config.graph == "petersen":
    return targets.maxcut.petersen()
  if config.graph == "regular":
    return targets.maxcut.regular(
      config.num_nodes, config.degree, seed=config.graph_seed
    )
  raise ValueError(
    "config.target.graph must be 'petersen' or 'regular', got "
    f"{config.graph!r}; or pass target.edges_file."
  )


def couplings(config) -> np.ndarray:
  """`[L, 2]` couplings of a spin glass, by `config.disorder_seed` alone."""
  rng = np.random.default_rng(config.disorder_seed)
  shape = (config.size**2, 2)
  if config.disorder == "sign":
    return config.coupling * rng.choice([-1.0, 1.0], shape)
  if config.disorder == "normal":
    return config.coupling * rng.standard_normal(shape)
  raise ValueError(
    "config.target.disorder must be '', 'sign' or 'normal', got "
    f"{config.disorder!r}."
  )


def stage_normaliser(config) -> Callable[[float], float] | None:
  """`remaining -> log E[exp(stage weights)]` of a lattice, where it is known.

  Stages of a lattice model are the model at `1 - remaining` times its beta.
  """
  if config.kind not in ("ising", "potts"):
    return None
  target = discrete(config)
  # Larger Potts models take seconds for each value.
  if target.log_z is None:
    return None
  length, num_tokens = target.discrete()

  @functools.lru_cache(maxsize=256)
  def log_z(remaining: float) -> float:
    base = length * np.log(num_tokens)
    if remaining == 1:
      return 0.0
    beta = config.beta * (1 - remaining)
    model = discrete(ml_collections.ConfigDict({**config, "beta": beta}))
    assert model.log_z is not None
    return float(model.log_z) - remaining * base

  return log_z


def continuous(config) -> Target:
  """A density of vectors or of particles."""
  if config.kind not in _CONTINUOUS:
    raise ValueError(
      f"config.target.kind must be one of {sorted(_CONTINUOUS)}, got "
      f"{config.kind!r}."
    )
  return _CONTINUOUS[config.kind](config)


def _gmm(config) -> Target:
  """Unit Gaussians at `+-distance` along the first axes, in pairs."""
  weights = np.asarray(config.weights)
  if config.dim < (len(weights) + 1) // 2:
    raise ValueError(
      "config.target.dim must be at least half the number of weights, got "
      f"{config.dim} for {len(weights)}."
    )
  means = np.zeros((len(weights), config.dim))
  for k in range(len(weights)):
    means[k, k // 2] = config.distance * (-1) ** k
  law = targets.mixtures.mixture(weights, means, 1.0)
  return targets.gaussian_mixture(law, log_z=config.log_z)


def _gmm40(config) -> Target:
  return targets.gmm40(
    jax.random.key(config.target_seed), config.dim, box=config.box
  )


def _student(config) -> Target:
  rng = np.random.default_rng(config.target_seed)
  means = rng.uniform(-config.box, config.box, (config.num_modes, config.dim))
  return targets.student_mixture(
    np.ones(config.num_modes), means, degrees=config.degrees
  )


def _many_well(config) -> Target:
  return targets.many_well(
    config.dim, config.num_wells, delta=config.delta, beta=config.beta
  )


def _double_well_particles(config) -> Target:
  return targets.double_well_particles(
    config.num_particles, config.dim, beta=config.beta
  )


def _lennard_jones(config) -> Target:
  return targets.lennard_jones(
    config.num_particles,
    epsilon=config.epsilon,
    oscillator=config.oscillator,
    beta=config.beta,
  )


def _alanine(config) -> Target:
  # Needs a package that no other target does.
  from experiments.pdns import amber

  return amber.alanine_dipeptide(temperature=config.temperature)


_CONTINUOUS: dict[str, Callable[..., Target]] = {
  "alanine": _alanine,
  "double_well_particles": _double_well_particles,
  "funnel": lambda config: targets.funnel(config.dim, scale=config.scale),
  "gmm": _gmm,
  "gmm40": _gmm40,
  "lennard_jones": _lennard_jones,
  "many_well": _many_well,
  "many_well_pairs": lambda config: targets.many_well_pairs(config.dim),
  "student": _student,
}
