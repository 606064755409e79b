"""Alanine dipeptide with AMBER parameters, which OpenMM ships.

OpenMM lays out the molecule and assigns the parameters; the energy itself is
`jdiff.targets.molecules`. Atoms stand in the order of the residue templates,
which is that of the files in circulation (phi is 4, 6, 8, 14).
"""

import jax
import numpy as np
from scipy import optimize

from jdiff.core.types import Target
from jdiff.targets import molecules
from jdiff.targets.internal import Internal
from jdiff.targets.molecules import Chart, ForceField

RESIDUES = {
  "ACE": "H1 CH3 H2 H3 C O",
  "ALA": "N H CA HA CB HB1 HB2 HB3 C O",
  "NME": "N H C H1 H2 H3",
}
"""Atoms by their names in the Protein Data Bank."""

TORSIONS = {
  "phi": (4, 6, 8, 14),
  "psi": (6, 8, 14, 16),
  "gamma1": (0, 1, 4, 6),
  "gamma2": (11, 10, 8, 6),
  "gamma3": (19, 18, 16, 14),
}
"""The free torsions: of the backbone, and of the methyls of ACE, ALA, NME."""

# Atom, its bond, angle and torsion; the torsion's rough value in degrees, and
# the half-width that it is confined to. From alpha carbon, N and C outwards.
_FREE, _PLANAR, _TETRAHEDRAL = np.inf, 90, 60
_ROWS = (
  (8, -1, -1, -1),
  (6, 8, -1, -1),
  (14, 8, 6, -1),
  (4, 6, 8, 14, -80, _FREE),  # phi
  (16, 14, 8, 6, 70, _FREE),  # psi
  (10, 8, 6, 14, -120, _TETRAHEDRAL),  # this sign, and the next: the L form
  (9, 8, 6, 14, 120, _TETRAHEDRAL),
  (7, 6, 8, 4, 180, _PLANAR),
  (15, 14, 8, 16, 180, _PLANAR),
  (1, 4, 6, 8, 180, _PLANAR),  # omega of ACE, trans
  (18, 16, 14, 8, 180, _PLANAR),  # omega of ALA, trans
  (5, 4, 6, 1, 180, _PLANAR),
  (17, 16, 14, 18, 180, _PLANAR),
  (0, 1, 4, 6, 60, _FREE),  # gamma1
  (2, 1, 4, 0, 120, _TETRAHEDRAL),
  (3, 1, 4, 0, -120, _TETRAHEDRAL),
  (11, 10, 8, 6, 60, _FREE),  # gamma2
  (12, 10, 8, 11, 120, _TETRAHEDRAL),
  (13, 10, 8, 11, -120, _TETRAHEDRAL),
  (19, 18, 16, 14, 60, _FREE),  # gamma3
  (20, 18, 16, 19, 120, _TETRAHEDRAL),
  (21, 18, 16, 19, -120, _TETRAHEDRAL),
)
TREE = np.array([row[:4] for row in _ROWS])
"""`[22, 4]`, see `jdiff.targets.internal.check_tree`."""
_START = np.deg2rad([row[4] for row in _ROWS[3:]])
WINDOWS = np.deg2rad([row[5] for row in _ROWS[3:]])
"""`[19]`, radians; see `jdiff.targets.molecules.Chart`."""

# Half a turn from where phi and psi are least likely (by a scan of relaxed
# energies), and from a barrier of each methyl.
_CENTRES = np.deg2rad([-60.0, 60.0, 60.0, 60.0, 60.0])


def alanine_dipeptide(
  *, temperature: float = 300.0, parameters: str = "amber99sbildn.xml"
) -> Target:
  """ACE-ALA-NME in vacuum, on `R^60`: trans, L form, methyls labelled.

  Free are phi, psi and the three methyls' torsions, in radians about a centre;
  other coordinates are standardised by their minimum and Hessian. Mirror
  images, of which a simulation never sees more than one, are left out: of the
  alpha carbon and of the order of each methyl's hydrogens. So are cis peptides.

  Args:
    temperature: In kelvin.
    parameters: One of OpenMM's files of AMBER parameters without CMAP, such as
      "amber99sbildn.xml" or "amber14/protein.ff14SB.xml".

  Returns:
    A target with the observables `energy` (kJ/mol) and `phi`, `psi`, `gamma1`,
    `gamma2`, `gamma3`, in `(-pi, pi]`.

  Raises:
    ValueError: If OpenMM is not installed, or the file has other forces.
  """
  force_field = read(system(parameters))
  return molecules.molecule(
    force_field,
    chart(*minimum(force_field, temperature)),
    temperature=temperature,
    torsions=TORSIONS,
  )


def system(parameters: str = "amber99sbildn.xml"):
  """OpenMM's `System`: in vacuum, no cutoff, no constraints."""
  app = _openmm().app
  topology = app.Topology()
  chain = topology.addChain()
  for name, atoms in RESIDUES.items():
    residue = topology.addResidue(name, chain)
    for atom in atoms.split():
      topology.addAtom(atom, app.Element.getBySymbol(atom[0]), residue)
  topology.createStandardBonds()
  return app.ForceField(parameters).createSystem(
    topology,
    nonbondedMethod=app.NoCutoff,
    constraints=None,
    rigidWater=False,
    removeCMMotion=False,
  )


def read(system) -> ForceField:
  """Copies the parameters of an OpenMM `System`, in float64.

  Raises:
    ValueError: If it has forces of other kinds, or a cutoff.
  """
  mm = _openmm()
  kinds = {type(force).__name__: force for force in system.getForces()}
  wanted = {
    "HarmonicBondForce",
    "HarmonicAngleForce",
    "PeriodicTorsionForce",
    "NonbondedForce",
  }
  if set(kinds) != wanted or system.getNumForces() != len(wanted):
    raise ValueError(
      f"system must have one force of each kind of {sorted(wanted)}, got "
      f"{[type(force).__name__ for force in system.getForces()]}."
    )
  if kinds["NonbondedForce"].getNonbondedMethod() != mm.NonbondedForce.NoCutoff:
    raise ValueError("system must have no cutoff.")

  def rows(kind, what, num_atoms):
    force = kinds[kind]
    num = getattr(force, f"getNum{what}s")()
    get = getattr(force, f"get{what}Parameters")
    table = [get(i) for i in range(num)]
    atoms = np.array([row[:num_atoms] for row in table], np.int32)
    return atoms, np.array(
      [[_value(q) for q in row[num_atoms:]] for row in table]
    )

  bonds, bond_params = rows("HarmonicBondForce", "Bond", 2)
  angles, angle_params = rows("HarmonicAngleForce", "Angle", 3)
  torsions, torsion_params = rows("PeriodicTorsionForce", "Torsion", 4)
  _, atom_params = rows("NonbondedForce", "Particle", 0)
  pairs, pair_params = molecules.pair_list(
    atom_params, *rows("NonbondedForce", "Exception", 2)
  )
  return ForceField(
    bonds=bonds,
    bond_params=bond_params,
    angles=angles,
    angle_params=angle_params,
    torsions=torsions,
    torsion_params=torsion_params,
    pairs=pairs,
    pair_params=pair_params,
  )


def chart(centre: Internal, scale: Internal) -> Chart:
  """Coordinates standardised by the answers of `minimum`.

  Free torsions are in radians, about centres whose opposites are unlikely.
  """
  free = np.isinf(WINDOWS)
  about = np.where(free, 0, centre.torsions)
  about[free] = _CENTRES
  return molecules.chart(
    TREE,
    centre=centre._replace(torsions=about),
    scale=scale._replace(torsions=np.where(free, 1, scale.torsions)),
    windows=WINDOWS,
  )


def minimum(
  force_field: ForceField, temperature: float = 300.0
) -> tuple[Internal, Internal]:
  """The minimum near phi = -80, psi = 70 degrees; NumPy, float64.

  Returns:
    `(centre, scale)`: the coordinates there, and the standard deviations of the
    Gaussian with that Hessian.
  """
  start = Internal(
    _rest(force_field.bonds, force_field.bond_params, TREE[1:, :2]),
    _rest(force_field.angles, force_field.angle_params, TREE[2:, :3]),
    _START,
  )
  sizes = [len(q) for q in start]
  scale = np.repeat([5e-3, 0.05, 0.2], sizes)
  rough = Internal(*np.split(scale, np.cumsum(sizes)[:-1]))
  about = molecules.chart(TREE, centre=start, scale=rough, windows=WINDOWS)

  def potential(x):
    positions = molecules.to_positions(about, x)
    energy = molecules.energy(force_field, positions)
    return energy / (molecules.GAS_CONSTANT * temperature)

  with jax.enable_x64(True):
    value_and_grad = jax.jit(jax.value_and_grad(potential))
    found = optimize.minimize(
      value_and_grad,
      np.zeros(len(scale)),
      jac=True,
      method="L-BFGS-B",
      options={"maxiter": 2000, "maxfun": 4000, "ftol": 0, "gtol": 1e-6},
    )
    # By differences: compiling second derivatives takes longer than all else.
    hessian = optimize.approx_fprime(
      found.x, lambda x: np.asarray(value_and_grad(x)[1]), 1e-6
    )
  deviation = np.sqrt(np.diag(np.linalg.inv(hessian)))
  at, spread = (
    np.split(q * scale, np.cumsum(sizes)[:-1]) for q in (found.x, deviation)
  )
  centre = [q + move for q, move in zip(start, at, strict=True)]
  return Internal(*centre), Internal(*spread)


def _rest(atoms, params, wanted):
  """Lengths or angles at rest, of rows of atoms in either direction."""
  rest = {
    tuple(row): value[0] for row, value in zip(atoms, params, strict=True)
  }
  rest |= {row[::-1]: value for row, value in rest.items()}
  return np.array([rest[tuple(row)] for row in wanted])


def _value(quantity):
  """A number in nm, kJ/mol, radians, elementary charges."""
  unit = _openmm().unit
  if not unit.is_quantity(quantity):
    return quantity
  return quantity.value_in_unit_system(unit.md_unit_system)


def _openmm():
  try:
    import openmm.app
  except ImportError as error:
    raise ValueError(
      "AMBER's parameters come with OpenMM, which is not installed: pip "
      "install 'jdiff-research[molecules]'."
    ) from error
  return openmm
