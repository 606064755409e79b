"""One run: a denoiser of few rows, from scratch or from another run's weights.

A study (`arms`, `sweep`) makes the configs of its runs and runs them in its
order. What they learn can be used without it:

  apply, params, config = training.load("W/pruned")
  velocity = apply(params, x, t)

Of a DiT, `params` holds the network's and the gates of its heads, and
`nets.compact(params["network"], params["gates"])` cuts closed heads out.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from experiments.alignflow import couplings
from experiments.alignflow import experiment as flow_lib
from experiments.common import data as data_lib
from experiments.common import fields as fields_lib
from experiments.memorization import clock, report
from experiments.memorization import data as rows_lib
from jdiff import nets, sde, training
from jdiff.core import checks
from jdiff.core.types import VelocityFn
from jdiff.methods import score_matching
from jdiff.methods.flow_matching import DrawTime

LOSSES: dict[str, Callable[[jax.Array], jax.Array] | None] = {
  "noise": None,
  # Of the paper's clock, where the noise is that of a variance-preserving path.
  "score": lambda t: 1 + ((1 - t) / t) ** 2,
  "data": lambda t: (t / (1 - t)) ** 2,
  "velocity": lambda t: 1 / (1 - t) ** 2,
}
"""Weights of the noise's squared error under each name of `config.loss`."""


def build(
  config: ml_collections.ConfigDict,
  dataset: data_lib.Dataset | None = None,
  start: Any = None,
) -> training.Experiment:
  """Joins rows, network, loss and time law into one run.

  Args:
    config: The config of a run; see `part`.
    dataset: The set to take rows of; by default the one that it names.
    start: The network's parameters to start from, if `config.start` names a
      run. Without them such a run can be loaded, not trained.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others.
    FileNotFoundError: If the data must be prepared first.
  """
  fields_lib.check(config)
  _check(config)
  rows = rows_lib.load(config, dataset)
  # What the flows' parts read of a config.
  flow = ml_collections.ConfigDict(
    {
      "net": config.net.to_dict(),
      "loss": config.loss,
      "conditional": False,
      "coupling": {"kind": "independent"},
      "batch_size": config.batch_size,
      "seed": config.seed,
    }
  )
  network = flow_lib.make_network(flow, rows.dataset)
  coupling = couplings.make(flow, rows.dataset)
  optimizer = flow_lib.make_optimizer(config)
  gates = _gates(config)
  velocity_fn = gated(network) if gates is not None else network.apply
  time = config.time
  law = clock.draw_time(time.law, time.t_min, time.t_max)
  loss_fn = make_loss(config.loss, velocity_fn, law)

  def evaluated(params, gates):
    return params if gates is None else {"network": params, "gates": gates}

  def init(key):
    key_params, key_state = jax.random.split(key)
    params = network.init(key_params)
    if start is not None:
      # A copy: the loop donates the state.
      params = jax.tree.map(jnp.array, start)
    # In the state, so that runs with other gates share compiled programs.
    return training.create(key_state, params, optimizer, gates)

  def batches(step):
    if config.start and start is None:
      raise ValueError(
        f"config.start={config.start!r} names a run of a study, which this one "
        "continues: run the study, or pass start to build."
      )
    return coupling.batches(step)

  def step(state, batch):
    key_pairs, key_loss = (
      training.example_keys(key, config.batch_size)
      for key in jax.random.split(training.step_key(state))
    )
    pairs = training.shard_batch(coupling.draw(key_pairs, batch))

    def objective(params):
      params = evaluated(params, state.extra)
      return loss_fn(params, key_loss, pairs).mean()

    loss, grads = jax.value_and_grad(objective)(state.params)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    state = training.apply_gradients(
      state, grads, optimizer, ema_decay=config.ema_decay
    )
    return state, metrics

  reporter = report.Reporter(
    config, rows, velocity_fn, lambda fn: make_loss(config.loss, fn, law)
  )
  return training.Experiment(
    init=init,
    step=step,
    evaluate=reporter.evaluate,
    apply=velocity_fn,
    params=lambda state: evaluated(state.ema, state.extra),
    sample=reporter.sample,
    batches=batches,
    figures=reporter.figures,
  )


def part(config, name: str, **fields) -> ml_collections.FrozenConfigDict:
  """The config of a study's run.

  Args:
    config: The study's; its fields that are no run's are left out.
    name: Of the run, and of its folder.
    **fields: What differs, and `start` and `gates`: the run that it starts
      from, "" for none, and zeros and ones for the heads of each layer.
  """
  run = {
    field: value
    for field, value in config.to_dict().items()
    if field not in ("prune", "finetune", "sweep")
  }
  named = {"experiment": __name__, "name": f"{config.name} {name}"}
  run |= {"start": "", "gates": ()} | named | fields
  return ml_collections.FrozenConfigDict(run)


def gated(network: nets.Network) -> VelocityFn:
  """A DiT as a function of `{"network": params, "gates": [L, H]}`."""

  def velocity(params, x, t, **label):
    return network.apply(
      params["network"], x, t, gates=params["gates"], **label
    )

  return velocity


def make_loss(name: str, velocity_fn: VelocityFn, draw_time: DrawTime):
  """The denoising loss of any velocity field.

  Args:
    name: One of `LOSSES`.
    velocity_fn: A `VelocityFn` of the straight path.
    draw_time: The law of `t`.

  Returns:
    `loss(params, key, pairs) -> per_example [B]`, averaged over dimensions.

  Raises:
    ValueError: If there is no such loss.
  """
  if name not in LOSSES:
    raise ValueError(
      f"config.loss must be one of {', '.join(LOSSES)}, got {name!r}."
    )

  def noise_fn(params, x, t, **label):
    return sde.noise_from_velocity(velocity_fn(params, x, t, **label), x, t)

  def loss(params, key, pairs):
    per_example, _ = score_matching.score_matching(
      params,
      key,
      pairs,
      noise_fn=noise_fn,
      draw_time=draw_time,
      weighting=LOSSES[name],
    )
    return per_example

  return loss


def _gates(config) -> jax.Array | None:
  """`[L, H]` float32: the config's, by default ones; None without heads."""
  if config.net.kind != "dit":
    if config.gates:
      raise ValueError(
        f"config.gates needs net.kind='dit', got {config.net.kind!r}."
      )
    return None
  shape = config.net.num_layers, config.net.num_heads
  if not config.gates:
    return jnp.ones(shape)
  gates = jnp.asarray(config.gates, jnp.float32)
  checks.check_shape("config.gates", gates, shape)
  return gates


def _check(config) -> None:
  checks.check_int("config.sampler.num_steps", config.sampler.num_steps)
  # Precision and recall want a third neighbour.
  checks.check_int("config.num_eval", config.num_eval, 8)
  if config.warmup_steps >= config.num_steps:
    raise ValueError(
      "config.warmup_steps must be less than num_steps, got "
      f"{config.warmup_steps} and {config.num_steps}."
    )
