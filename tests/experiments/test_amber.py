"""Alanine dipeptide: OpenMM's energies, and the target made of them."""

import copy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pdns import amber
from jdiff.targets import internal, molecules

KINDS = {
  "bonds": "HarmonicBondForce",
  "angles": "HarmonicAngleForce",
  "torsions": "PeriodicTorsionForce",
  "nonbonded": "NonbondedForce",
}


@pytest.fixture(scope="module")
def mm():
  openmm = pytest.importorskip("openmm")
  pytest.importorskip("openmm.app")
  return openmm


@pytest.fixture(scope="module")
def system(mm):
  return amber.system()


@pytest.fixture(scope="module")
def field(system):
  return amber.read(system)


@pytest.fixture(scope="module")
def minimum(field):
  return amber.minimum(field)


@pytest.fixture(scope="module")
def chart(minimum):
  return amber.chart(*minimum)


@pytest.fixture(scope="module")
def target(field, chart):
  return molecules.molecule(field, chart, torsions=amber.TORSIONS)


def reference(mm, system):
  """`positions -> {kind: kJ/mol}` by OpenMM's double-precision platform."""
  system = copy.deepcopy(system)
  kinds = list(KINDS.values())
  for force in system.getForces():
    force.setForceGroup(kinds.index(type(force).__name__))
  context = mm.Context(
    system,
    mm.VerletIntegrator(1e-3),
    mm.Platform.getPlatformByName("Reference"),
  )
  unit = mm.unit.kilojoule_per_mole

  def energies(positions):
    context.setPositions(positions)
    states = [context.getState(getEnergy=True, groups={g}) for g in range(4)]
    values = [s.getPotentialEnergy().value_in_unit(unit) for s in states]
    return dict(zip(KINDS, values, strict=True))

  return energies


def geometries(chart, num=20):
  """Three conformers, shaken by 0.01 nm."""
  rng = np.random.default_rng(0)
  x = np.zeros((3, 60))
  backbone = np.deg2rad([[-75.0, 60], [-150, 165], [60, -45]])
  x[:, 41:43] = backbone - chart.centre.torsions[None, :2]
  with jax.enable_x64(True):
    place = jax.jit(jax.vmap(lambda x: molecules.to_positions(chart, x)))
    positions = np.asarray(place(x))[np.arange(num) % 3]
  return positions + 0.01 * rng.standard_normal(positions.shape)


@pytest.mark.parametrize(
  "parameters", ["amber99sbildn.xml", "amber14/protein.ff14SB.xml"]
)
def test_energies_are_those_of_openmm(mm, chart, parameters):
  system = amber.system(parameters)
  energies = reference(mm, system)
  field = amber.read(system)
  # The same without the scaling of 1-4 neighbours.
  full = copy.deepcopy(system)
  (force,) = (f for f in full.getForces() if hasattr(f, "getNumExceptions"))
  for i in range(force.getNumExceptions()):
    a, b, charge, _, epsilon = force.getExceptionParameters(i)
    if charge._value or epsilon._value:
      p, q = force.getParticleParameters(a), force.getParticleParameters(b)
      force.setExceptionParameters(
        i, a, b, p[0] * q[0], (p[1] + q[1]) / 2, (p[2] * q[2]).sqrt()
      )
  unscaled = amber.read(full)
  with jax.enable_x64(True):
    terms_of = jax.jit(lambda x: molecules.energy_terms(field, x))
    for x in geometries(chart):
      expected, found = energies(x), terms_of(x)
      for name, value in expected.items():
        assert abs(float(found[name]) - value) < 1e-3, name
      total = float(sum(found.values()))
      assert abs(total - sum(expected.values())) < 1e-3
    wrong = molecules.energy_terms(unscaled, jnp.asarray(x))["nonbonded"]
    assert abs(float(wrong) - expected["nonbonded"]) > 1


def test_the_minimum_is_one_of_the_l_form(field, minimum):
  centre, scale = minimum
  with jax.enable_x64(True):
    x = jax.jit(lambda q: internal.to_cartesian(amber.TREE, q))(centre)
    force = jax.jit(jax.grad(lambda x: molecules.energy(field, x)))(x)
    # k_B T over the standard deviation of a bond is 800 kJ/mol/nm.
    assert np.abs(force).max() < 0.1
    n, ca, cb, c = np.asarray(x)[[6, 8, 10, 14]]
    assert np.cross(n - ca, c - ca) @ (cb - ca) > 0
  # Bonds deviate by their own stiffness, within what neighbours add.
  alone = np.sqrt(2.494 / field.bond_params[:, 1])
  assert (scale.bonds > 0.9 * alone.min()).all()
  assert (scale.bonds < 1.1 * alone.max()).all()
  assert (scale.angles > 0.01).all() and (scale.angles < 0.1).all()


def test_the_target(target, chart):
  assert target.dim == 60
  x = np.random.default_rng(1).standard_normal((16, 60))
  run = jax.jit(jax.vmap(jax.value_and_grad(target.log_prob)))
  value, slope = run(jnp.asarray(x, jnp.float32))
  far = run(jnp.asarray(30 * x, jnp.float32))
  for answer in (value, slope, *far):
    assert np.isfinite(answer).all()
  with jax.enable_x64(True):
    wide = run(jnp.asarray(x))[0]
  # Twenty stiff bonds, 4e-3 nats an ulp each.
  np.testing.assert_allclose(value, wide, atol=0.05)
  seen = jax.jit(target.observables)(jnp.asarray(x[0], jnp.float32))
  assert set(seen) == {"energy", "phi", "psi", "gamma1", "gamma2", "gamma3"}
  free = np.isinf(chart.windows)
  turned = chart.centre.torsions[free] + x[0, 41:][free]
  order = ["phi", "psi", "gamma1", "gamma2", "gamma3"]
  difference = turned - np.array([float(seen[name]) for name in order])
  np.testing.assert_allclose(np.sin(difference / 2), 0, atol=1e-5)


def test_what_the_windows_admit(target, chart):
  find = jax.jit(lambda positions: molecules.from_positions(chart, positions))
  log_prob = jax.jit(target.log_prob)
  energy = jax.jit(lambda x: target.observables(x)["energy"])
  with jax.enable_x64(True):
    x = jnp.zeros(60)
    placed = jax.jit(lambda x: molecules.to_positions(chart, x))(x)
    at = float(log_prob(x))
    # Each methyl's hydrogens may turn, but not change their order.
    for a, b, c in ((0, 2, 3), (11, 12, 13), (19, 20, 21)):
      cycle, swap = np.arange(22), np.arange(22)
      cycle[[a, b, c]] = [b, c, a]
      swap[[b, c]] = [c, b]
      turned, swapped = find(placed[cycle]), find(placed[swap])
      offset = np.abs(np.asarray(turned)[41:] * chart.scale.torsions)
      assert (offset < chart.windows).all()
      np.testing.assert_allclose(energy(turned), energy(x), rtol=1e-6)
      assert log_prob(turned) > at - 5
      assert log_prob(swapped) < at - 50
    # The D form has the same energy, and no mass.
    mirrored = find(-placed)
    np.testing.assert_allclose(energy(mirrored), energy(x), rtol=1e-6)
    assert log_prob(mirrored) < at - 50


@pytest.mark.thorough
def test_the_law_is_that_of_molecular_dynamics(mm, system, chart, target):
  # 200 ps of OpenMM's Langevin dynamics, in Cartesian coordinates: the score of
  # a stiff coordinate must average to zero, and does not without the Jacobian.
  unit = mm.unit
  integrator = mm.LangevinMiddleIntegrator(
    300 * unit.kelvin, 5 / unit.picosecond, 0.5 * unit.femtosecond
  )
  integrator.setRandomNumberSeed(1)
  platform = mm.Platform.getPlatformByName("Reference")
  context = mm.Context(system, integrator, platform)
  context.setPositions(geometries(chart, 1)[0])
  context.setVelocitiesToTemperature(300 * unit.kelvin, 2)
  integrator.step(10000)
  frames = np.zeros((10000, 22, 3))
  for frame in frames:
    integrator.step(40)
    state = context.getState(getPositions=True)
    frame[:] = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)

  def scores(positions):
    x = molecules.from_positions(chart, positions)
    volume = jax.grad(
      lambda x: internal.log_det(
        internal.from_cartesian(amber.TREE, molecules.to_positions(chart, x))
      )
    )
    return jax.grad(target.log_prob)(x), volume(x)

  with jax.enable_x64(True):
    score, volume = (np.asarray(s) for s in jax.jit(jax.vmap(scores))(frames))
  stiff = np.append(np.full(41, True), ~np.isinf(chart.windows))
  for values, agrees in ((score, True), (score - volume, False)):
    blocks = values[:, stiff].reshape(40, 250, -1).mean(axis=1)
    error = blocks.std(axis=0, ddof=1) / 40**0.5
    z = np.abs(blocks.mean(axis=0) / error)
    # Student's t with 39 degrees of freedom, 55 coordinates.
    assert z.max() < 5 if agrees else z.max() > 10


def test_other_forces_are_refused(mm):
  with pytest.raises(ValueError, match="CMAPTorsionForce"):
    amber.read(amber.system("amber19/protein.ff19SB.xml"))


def test_openmm_missing_is_said_clearly(monkeypatch):
  monkeypatch.setitem(sys.modules, "openmm", None)
  with pytest.raises(ValueError, match=r"jdiff-research\[molecules\]"):
    amber.alanine_dipeptide()
