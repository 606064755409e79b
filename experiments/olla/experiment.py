"""Builds the constrained-sampling experiment: chains and their averages."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.common import fields as fields_lib
from experiments.olla import data, report
from jdiff import langevin, targets, training
from jdiff.core import checks
from jdiff.core import keys as keys_lib
from jdiff.core.types import ConstrainedTarget
from jdiff.targets import manifolds, planar

TARGETS = {
  "circle": manifolds.circle,
  "sphere": manifolds.sphere,
  "ellipse": manifolds.ellipse,
  "torus": manifolds.torus,
  "stiefel": manifolds.stiefel,
  "cap": manifolds.cap,
  "ball": manifolds.ball,
  "half_space": manifolds.half_space,
  "simplex": manifolds.simplex,
  "star": planar.star,
  "quadratic_poly": planar.quadratic_poly,
  "two_lobe": planar.two_lobe,
  "stress": targets.stress,
  "polymer": targets.polymer,
  "fair_bnn": data.fair_bnn,
}


class Chains(NamedTuple):
  """What the chains carry beside their positions.

  Attributes:
    states: Kernel states of `[C]` chains.
    count: Records averaged so far, scalar int32.
    sums: `{observable: [C]}` float32 sums of them.
    violation: `[C]` sum of `max |h|` and of positive `g`, over the same.
    trace: `{observable: [num_steps, T]}` records of the first `T` chains.
  """

  states: Any
  count: jax.Array
  sums: dict[str, jax.Array]
  violation: dict[str, jax.Array]
  trace: dict[str, jax.Array]


def build(config: ml_collections.ConfigDict) -> training.Experiment:
  """Joins a target, a sampler and the averages into one experiment.

  Raises:
    ValueError: If a field's value is unknown or out of range.
  """
  fields_lib.check(config)
  _check(config)
  target = make_target(config)
  kernel = make_kernel(config, target)
  num_burn_in = int(config.burn_in * config.num_steps)
  num_traced = min(config.num_traced, config.num_chains)
  names = list(
    jax.eval_shape(
      target.observables, jax.ShapeDtypeStruct((target.dim,), "f4")
    )
  )

  def zeros(*shape):
    return {name: jnp.zeros(shape, jnp.float32) for name in names}

  # Starts are made on the host: some targets reject and tabulate there.
  positions = np.asarray(
    target.init(jax.random.key(config.seed), config.num_chains), np.float32
  )

  def init(key):
    states = jax.vmap(kernel.init)(jnp.asarray(positions))
    chains = Chains(
      states,
      jnp.int32(0),
      zeros(config.num_chains),
      {name: jnp.zeros(config.num_chains) for name in ("eq", "ineq")},
      zeros(config.num_steps, num_traced),
    )
    return training.TrainState(
      jnp.int32(0), key, states.position, states.position, None, chains
    )

  def step(state, batch):
    del batch
    chains = state.extra
    keys = training.shard_batch(
      keys_lib.per_example(training.step_key(state), config.num_chains)
    )
    states = training.shard_batch(chains.states)

    def advance(states, index):
      return jax.vmap(kernel.step)(keys_lib.fold(keys, index), states)

    states, infos = jax.lax.scan(advance, states, jnp.arange(config.thinning))
    values = jax.vmap(target.observables)(states.position)
    violation = jax.vmap(violations)(states.position)
    counted = (state.step >= num_burn_in).astype(jnp.float32)
    chains = Chains(
      states,
      chains.count + counted.astype(jnp.int32),
      jax.tree.map(lambda s, v: s + counted * v, chains.sums, values),
      jax.tree.map(lambda s, v: s + counted * v, chains.violation, violation),
      jax.tree.map(
        lambda t, v: t.at[state.step].set(v[:num_traced].astype(t.dtype)),
        chains.trace,
        values,
      ),
    )
    status = jax.nn.one_hot(infos.status, len(langevin.Status)).mean((0, 1))
    metrics = {f"status_{s.name.lower()}": status[s] for s in langevin.Status}
    metrics |= {f"{n}_violation": v.mean() for n, v in violation.items()}
    metrics |= {name: value.mean() for name, value in values.items()}
    if config.kernel != "olla":
      metrics["accept_prob"] = infos.accept_prob.mean()
    position = states.position
    return (
      training.TrainState(
        state.step + 1, state.key, position, position, None, chains
      ),
      metrics,
    )

  def violations(x):
    zero = jnp.zeros((), x.dtype)
    eq = zero if target.eq_fn is None else jnp.max(jnp.abs(target.eq_fn(x)))
    ineq = zero if target.ineq_fn is None else jnp.max(target.ineq_fn(x))
    return {"eq": eq, "ineq": jnp.maximum(ineq, 0)}

  reporter = report.Reporter(config, target, num_burn_in)
  return training.Experiment(
    init=init,
    step=step,
    evaluate=reporter.evaluate,
    params=lambda state: (state.params, state.extra),
    sample=reporter.sample,
    figures=reporter.figures,
  )


def make_target(config: ml_collections.ConfigDict) -> ConstrainedTarget:
  """The target that `config.target` names, with its arguments."""
  fields = config.target.to_dict()
  kind = fields.pop("kind")
  if kind not in TARGETS:
    raise ValueError(
      f"config.target.kind must be one of {[*TARGETS]}, got {kind!r}."
    )
  try:
    return TARGETS[kind](**fields)
  except TypeError as error:
    raise ValueError(f"config.target does not fit {kind!r}: {error}.") from None


def make_kernel(config, target: ConstrainedTarget) -> langevin.Kernel:
  """The kernel that `config.kernel` names."""
  parts = target.potential_fn, target.eq_fn, target.ineq_fn
  if config.kernel == "olla":
    return langevin.olla(
      *parts,
      step_size=config.step_size,
      landing=config.landing,
      epsilon=config.epsilon or "auto",
      num_probes=config.num_probes or None,
    )
  if config.kernel == "hmc":
    return langevin.constrained_hmc(*parts, step_size=config.step_size)
  if config.kernel == "projected":
    if target.eq_fn is None:
      raise ValueError(
        "config.kernel='projected' needs equalities; pass 'olla' or 'hmc'."
      )
    # Float32 constraints do not reach the kernel's own tolerance.
    return langevin.projected_langevin(
      *parts, step_size=config.step_size, tolerance=1e-5
    )
  raise ValueError(
    "config.kernel must be 'olla', 'projected' or 'hmc', got "
    f"{config.kernel!r}."
  )


def _check(config) -> None:
  checks.check_range("config.burn_in", config.burn_in, 0, 0.99)
