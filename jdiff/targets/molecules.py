"""A molecule in vacuum, by molecular mechanics, in internal coordinates.

The energy is AMBER's functional form (W. Cornell et al., JACS 117, 5179, 1995)
over parameter arrays: harmonic bonds and angles, periodic torsions, and
Lennard-Jones and Coulomb terms of a list of pairs, without a cutoff. No
solvent, constraints, periodic box, or CMAP. Units: nm, kJ/mol, elementary
charges, radians, kelvin.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special
from jax.typing import ArrayLike

from jdiff.core import checks
from jdiff.core.types import Target
from jdiff.targets import internal as internal_lib
from jdiff.targets.internal import Internal

COULOMB = 138.93545764438198
"""`1 / (4 pi epsilon_0)` in kJ nm / (mol e^2)."""

GAS_CONSTANT = 0.00831446261815324
"""Boltzmann's constant in kJ / (mol K)."""

CORE = 0.5
"""Pairs closer than this share of their sigma are softened."""
MIN_CORE = 0.05
"""Least distance, nm, below which a pair is softened, with any sigma."""
WALL = 1e3
"""Nats per squared radian, or per squared share of a bond, beyond a limit."""
MIN_BOND = 0.5
"""Least bond, as a share of its centre."""
MIN_ANGLE = 0.25
"""Least distance, in radians, of an angle from 0 and from pi."""


class ForceField(NamedTuple):
  """Parameters of a molecule's energy; a pytree.

  Attributes:
    bonds: `[b, 2]` atoms.
    bond_params: `[b, 2]`, `(r0, k)`: `k (r - r0)^2 / 2`, k in kJ/mol/nm^2.
    angles: `[a, 3]` atoms, the vertex in the middle.
    angle_params: `[a, 2]`, `(theta0, k)`: `k (theta - theta0)^2 / 2`, k in
      kJ/mol/rad^2.
    torsions: `[t, 4]` atoms, proper and improper alike.
    torsion_params: `[t, 3]`, `(m, phi0, k)`: `k (1 + cos(m phi - phi0))`.
    pairs: `[p, 2]` atoms that feel each other: excluded pairs are not listed.
    pair_params: `[p, 3]`, `(q_i q_j, sigma, epsilon)` with all scaling done.
      `pair_list` makes both.
  """

  bonds: ArrayLike
  bond_params: ArrayLike
  angles: ArrayLike
  angle_params: ArrayLike
  torsions: ArrayLike
  torsion_params: ArrayLike
  pairs: ArrayLike
  pair_params: ArrayLike


def pair_list(
  atom_params: ArrayLike, exceptions: ArrayLike, exception_params: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
  """`(pairs, pair_params)` of a `ForceField`, by Lorentz-Berthelot.

  Args:
    atom_params: `[n, 3]`, `(charge, sigma, epsilon)`.
    exceptions: `[e, 2]` pairs with parameters of their own: those of 1-4
      neighbours, scaled, and zeros for 1-2 and 1-3 neighbours.
    exception_params: `[e, 3]`, `(q_i q_j, sigma, epsilon)`. A pair without
      charge and epsilon is left out.

  Raises:
    ValueError: If shapes do not fit, or an exception is no pair or listed
      twice.
  """
  checks.check_numbers("atom_params", atom_params)
  if np.size(exceptions):
    checks.check_integers("exceptions", exceptions)
  checks.check_numbers("exception_params", exception_params)
  atoms = np.asarray(atom_params, np.float64)
  checks.check_shape("atom_params", atoms, (None, 3))
  special_pairs = np.asarray(exceptions, np.int64).reshape(-1, 2)
  values = np.asarray(exception_params, np.float64).reshape(-1, 3)
  checks.check_shape("exception_params", values, (len(special_pairs), 3))
  first, second = np.triu_indices(len(atoms), 1)
  charge, sigma, epsilon = atoms.T
  table = {
    (int(i), int(j)): (
      charge[i] * charge[j],
      (sigma[i] + sigma[j]) / 2,
      np.sqrt(epsilon[i] * epsilon[j]),
    )
    for i, j in zip(first, second, strict=True)
  }
  keys = [(int(min(p)), int(max(p))) for p in special_pairs]
  for key, value in zip(keys, values, strict=True):
    if key not in table or keys.count(key) > 1:
      raise ValueError(
        "exceptions must be different pairs of different atoms below "
        f"{len(atoms)}, got {key}."
      )
    table[key] = tuple(value)
  kept = {k: v for k, v in table.items() if v[0] != 0 or v[2] != 0}
  return (
    np.array(list(kept), np.int32).reshape(-1, 2),
    np.array(list(kept.values())).reshape(-1, 3),
  )


def energy(force_field: ForceField, positions: jax.Array) -> jax.Array:
  """Potential energy in kJ/mol of positions `[n, 3]` in nm; the terms' sum."""
  return sum(
    energy_terms(force_field, positions).values(),
    start=jnp.zeros((), positions.dtype),
  )


def energy_terms(
  force_field: ForceField, positions: jax.Array
) -> dict[str, jax.Array]:
  """Energy in kJ/mol by kind: `bonds`, `angles`, `torsions`, `nonbonded`.

  Exact where each pair is further apart than `max(CORE sigma, MIN_CORE)`, as
  it is in any state that matters: half a sigma costs 16000 epsilon. Closer
  pairs are taken to be at a distance of 5/6 of that bound or more, with a
  continuous slope, so energy and force are finite in float32 even if atoms
  coincide.

  Args:
    force_field: The parameters; may be traced, and differentiated.
    positions: `[n, 3]`; batch with `jax.vmap`.
  """
  checks.check_shape("positions", positions, (None, 3), "Batch with jax.vmap.")
  dtype = positions.dtype
  length, stiffness = _columns(force_field.bond_params, dtype)
  stretch = internal_lib.distance(positions, force_field.bonds) - length
  bonds = 0.5 * jnp.sum(stiffness * stretch**2)
  rest, stiffness = _columns(force_field.angle_params, dtype)
  bend = internal_lib.angle(positions, force_field.angles) - rest
  angles = 0.5 * jnp.sum(stiffness * bend**2)
  order, phase, height = _columns(force_field.torsion_params, dtype)
  phi = internal_lib.dihedral(positions, force_field.torsions)
  torsions = jnp.sum(height * (1 + jnp.cos(order * phi - phase)))
  charge, sigma, epsilon = _columns(force_field.pair_params, dtype)
  apart = internal_lib.distance(positions, force_field.pairs)
  core = jnp.maximum(CORE * jnp.where(epsilon > 0, sigma, 0), MIN_CORE)
  apart = _at_least(apart, core, 0.2 * core)
  sixth = (sigma / apart) ** 6
  nonbonded = 4 * epsilon * (sixth**2 - sixth) + COULOMB * charge / apart
  return {
    "bonds": bonds,
    "angles": angles,
    "torsions": torsions,
    "nonbonded": jnp.sum(nonbonded),
  }


class Chart(NamedTuple):
  """Standardised internal coordinates `x` `[3 n - 6]`: `q = centre + scale x`.

  Static: NumPy arrays. `x` holds bonds, angles, torsions, in the tree's order.

  Attributes:
    tree: `[n, 4]`, see `internal.check_tree`.
    centre: `Internal`, the coordinates at `x = 0`.
    scale: `Internal`, positive: what one unit of `x` means.
    windows: `[n - 3]`, half-widths around the centre, in `(0, pi]`, that
      torsions are confined to; infinite where a torsion is free to turn.
    smoothing: In radians: how gently a free torsion's density ends, one turn
      wide, see `molecule`.
  """

  tree: np.ndarray
  centre: Internal
  scale: Internal
  windows: np.ndarray
  smoothing: float = 0.5


def chart(
  tree: ArrayLike,
  *,
  centre: Internal,
  scale: Internal,
  windows: ArrayLike,
  smoothing: float = 0.5,
) -> Chart:
  """A checked `Chart`; see its attributes.

  Raises:
    ValueError: If shapes do not fit, or numbers are out of range.
  """
  rows = internal_lib.check_tree(tree)
  num = len(rows)
  centre, scale = (
    Internal(*(np.asarray(q, np.float64) for q in law))
    for law in (centre, scale)
  )
  checks.check_numbers("windows", windows)
  windows = np.asarray(windows, np.float64)
  for name, law in (("centre", centre), ("scale", scale)):
    for i, (field, q) in enumerate(zip(law._fields, law, strict=True)):
      checks.check_shape(f"{name}.{field}", q, (num - 1 - i,))
      if not np.isfinite(q).all():
        raise ValueError(f"{name}.{field} must be finite, got {q.tolist()}.")
  if not all((q > 0).all() for q in scale):
    raise ValueError(f"scale must be positive, got {scale}.")
  if not (centre.bonds > 0).all():
    raise ValueError(f"centre.bonds must be positive, got {centre.bonds}.")
  low, high = MIN_ANGLE, np.pi - MIN_ANGLE
  if not ((centre.angles > low) & (centre.angles < high)).all():
    raise ValueError(
      f"centre.angles must lie between {low} and {high:.4f}, got "
      f"{centre.angles.tolist()}; refer nearly straight angles to other atoms."
    )
  checks.check_shape("windows", windows, (num - 3,))
  bounded = windows[~np.isinf(windows)]
  if not ((bounded > 0) & (bounded <= np.pi)).all() or (windows < 0).any():
    raise ValueError(
      f"windows must lie in (0, pi] or be infinite, got {windows.tolist()}."
    )
  smoothing = checks.check_finite("smoothing", smoothing, positive=True)
  return Chart(rows, centre, scale, windows, smoothing)


def to_positions(chart: Chart, x: jax.Array) -> jax.Array:
  """Positions `[n, 3]` of coordinates `x` `[3 n - 6]`; see `molecule`."""
  return internal_lib.to_cartesian(chart.tree, _limited(chart, x)[0])


def from_positions(chart: Chart, positions: jax.Array) -> jax.Array:
  """Coordinates `x` `[3 n - 6]`, torsions within half a turn of their centre.

  The inverse of `to_positions` there. For free torsions it is the law on the
  circle, which `molecule` spreads over the line: see `unwrap`.
  """
  found = internal_lib.from_cartesian(chart.tree, positions)
  bonds, angles, torsions = (
    q - jnp.asarray(c, q.dtype)
    for q, c in zip(found, chart.centre, strict=True)
  )
  torsions = torsions - 2 * jnp.pi * jnp.round(torsions / (2 * jnp.pi))
  offset = jnp.concatenate([bonds, angles, torsions])
  return offset / jnp.asarray(np.concatenate(chart.scale), offset.dtype)


def unwrap(chart: Chart, key: jax.Array, x: jax.Array) -> jax.Array:
  """Adds whole turns to the free torsions of `x` `[3 n - 6]`, at random.

  If `x`, from `from_positions`, follows the law on the circle, the answer
  follows that of `molecule`.
  """
  checks.check_key(key)
  checks.check_shape("x", x, (3 * len(chart.tree) - 6,), "Batch with jax.vmap.")
  free = np.isinf(chart.windows)
  scale = jnp.asarray(chart.scale.torsions, x.dtype)
  torsions = x[-len(free) :] * scale
  # All turns within eight standard deviations of the box.
  reach = 1 + int(np.ceil(4 * chart.smoothing / np.pi))
  turns = 2 * jnp.pi * jnp.arange(-reach, reach + 1, dtype=x.dtype)
  share = _log_share(torsions[:, None] + turns[None], chart.smoothing)
  drawn = turns[jax.random.categorical(key, share)]
  return x.at[-len(free) :].add(jnp.where(free, drawn, 0) / scale)


def molecule(
  force_field: ForceField,
  chart: Chart,
  *,
  temperature: float = 300.0,
  torsions: Mapping[str, tuple[int, int, int, int]] | None = None,
) -> Target:
  """The Boltzmann law of a molecule's shape, on `R^(3 n - 6)`.

  `log_prob = -E / (k_B T) + log b^2 sin a + log scale + log h - walls`, so
  `exp(log_z)` is the integral of `exp(-E / k_B T)` over positions in nm, per
  unit of volume and of `8 pi^2`, and depends on neither centre nor scale.

  Free torsions live on a circle and are spread over the line by a partition of
  unity, the unit box of one turn convolved with a Gaussian: `h(w) =
  Phi((w + pi) / s) - Phi((w - pi) / s)` for `w = q - centre`, with `sum_k
  h(w + 2 pi k) = 1`. The law modulo a turn is thereby exact, and `log_z`
  unchanged, at temperature `T`; powers of the density (`temper`) do not have
  that property. A centre half a turn from the torsion's least likely value
  splits fewest modes.

  Other torsions are confined to their windows, by a wall of `WALL` nats per
  squared radian outside. Windows of relative torsions (of an atom and a sibling
  bonded to the same one) select one mirror image of each centre, where the full
  law has them all; put them where the density vanishes. Bonds and angles beyond
  `MIN_BOND` and `MIN_ANGLE` meet the same wall, and the shape then changes less
  and less, never reaching a singular one. All of it is once differentiable,
  and finite in float32.

  Args:
    force_field: Parameters for the chart's `n` atoms.
    chart: Coordinates.
    temperature: In kelvin; may be traced.
    torsions: `{name: four atoms}`, dihedrals to observe.

  Returns:
    A target with the observables `energy`, in kJ/mol, and the dihedrals, in
    `(-pi, pi]`.
  """
  num = len(chart.tree)
  for name, width in (("bond", 2), ("angle", 3), ("torsion", 4), ("pair", 2)):
    atoms = getattr(force_field, f"{name}s")
    columns = {"bond": 2, "angle": 2}.get(name, 3)
    checks.check_shape(f"force_field.{name}s", atoms, (None, width))
    shape = (np.shape(atoms)[0], columns)
    values = getattr(force_field, f"{name}_params")
    checks.check_shape(f"force_field.{name}_params", values, shape)
    if checks.is_concrete(atoms):
      _check_atoms(f"force_field.{name}s", np.asarray(atoms), num)
  temperature = checks.check_finite("temperature", temperature, positive=True)
  names = dict(torsions or {})
  for name, quadruple in names.items():
    checks.check_shape(f"torsions[{name!r}]", quadruple, (4,))
    _check_atoms(f"torsions[{name!r}]", np.asarray(quadruple), num)
  log_scale = float(np.log(np.concatenate(chart.scale)).sum())

  def log_prob(x):
    shape, walls = _limited(chart, x)
    positions = internal_lib.to_cartesian(chart.tree, shape)
    log_boltzmann = -energy(force_field, positions) / (
      GAS_CONSTANT * temperature
    )
    return log_boltzmann + internal_lib.log_det(shape) + log_scale - walls

  def observables(x):
    positions = to_positions(chart, x)
    values = {"energy": energy(force_field, positions)}
    if names:
      phi = internal_lib.dihedral(positions, np.array(list(names.values())))
      values |= dict(zip(names, phi, strict=True))
    return values

  return Target(log_prob=log_prob, dim=3 * num - 6, observables=observables)


def _limited(chart, x):
  """Valid internal coordinates of `x`, and `walls - log h` in nats."""
  num = len(chart.tree)
  checks.check_shape("x", x, (3 * num - 6,), "Batch with jax.vmap.")
  cast = lambda q: jnp.asarray(q, x.dtype)  # noqa: E731
  offset = x * cast(np.concatenate(chart.scale))
  bonds, angles, turned = jnp.split(offset, [num - 1, 2 * num - 3])
  centre = Internal(*(cast(q) for q in chart.centre))
  bonds, angles = bonds + centre.bonds, angles + centre.angles
  least = MIN_BOND * centre.bonds
  high = jnp.pi - MIN_ANGLE
  windows = cast(np.minimum(chart.windows, np.pi))
  free = np.isinf(chart.windows)
  beyond = jnp.concatenate(
    [
      1 - bonds / least,
      MIN_ANGLE - angles,
      angles - high,
      jnp.where(free, -1, jnp.abs(turned) - windows),
    ]
  )
  walls = WALL * jnp.sum(jnp.maximum(beyond, 0) ** 2)
  share = _log_share(jnp.where(free, turned, 0), chart.smoothing)
  walls = walls - jnp.sum(jnp.where(free, share, 0))
  # Angles stay within 0.1 of 0 and pi, bonds above a quarter of their centre.
  room = MIN_ANGLE - 0.1
  angles = _at_least(angles, MIN_ANGLE, room)
  angles = jnp.pi - _at_least(jnp.pi - angles, MIN_ANGLE, room)
  bonds = _at_least(bonds, least, 0.5 * least)
  return Internal(bonds, angles, turned + centre.torsions), walls


def _log_share(w, smoothing):
  """`log h(w)`, even in `w`: stable where the difference would underflow."""
  w = jnp.abs(w)
  near = special.log_ndtr((jnp.pi - w) / smoothing)
  far = special.log_ndtr(-(jnp.pi + w) / smoothing)
  return near + jnp.log1p(-jnp.exp(far - near))


def _at_least(value, start, room):
  """`value` above `start`; below, it tends to `start - room`, slope kept."""
  excess = jnp.maximum(start - value, 0)
  return jnp.maximum(value, start) - excess / (1 + excess / room)


def _columns(params, dtype):
  return jnp.asarray(params, dtype).T


def _check_atoms(name, atoms, num):
  if not np.issubdtype(atoms.dtype, np.integer):
    raise TypeError(f"{name} must hold integers, got dtype {atoms.dtype}.")
  if atoms.size and (atoms.min() < 0 or atoms.max() >= num):
    raise ValueError(
      f"{name} must hold atoms from 0 to {num - 1}, got "
      f"{atoms.min()} to {atoms.max()}."
    )
