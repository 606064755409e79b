"""Laws that every loss on pairs obeys: examples, devices, calls, gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jdiff import nets, sde
from jdiff.core.types import Pairs
from jdiff.methods import consistency, meanflow, score_matching, shortcut
from jdiff.methods import flow_matching as fm


def network(params, x, t, s=None, label=None):
  """A little network that reads everything it is given."""
  s = t if s is None else s
  hidden = x @ params["in"] + jnp.outer(t, params["t"])
  hidden = hidden + jnp.outer(t - s, params["span"])
  if label is not None:
    hidden = hidden + params["label"][label]
  return jnp.tanh(hidden) @ params["out"]


def network_params(dim=3, width=5):
  rng = np.random.default_rng(5)
  shapes = dict(
    [("in", (dim, width)), ("t", (width,)), ("span", (width,))]
    + [("label", (4, width)), ("out", (width, dim))]
  )
  return {
    name: jnp.asarray(rng.normal(size=shape), jnp.float32)
    for name, shape in shapes.items()
  }


def batch_of(size):
  noise, data = np.random.default_rng(6).normal(size=(2, size, 3))
  label = jnp.asarray(np.arange(size) % 3, jnp.int32)
  pairs = Pairs(
    jnp.asarray(noise, jnp.float32), jnp.asarray(data, jnp.float32), label
  )
  return pairs, jax.random.split(jax.random.key(7), size)


LABELS = dict(null_label=3, label_dropout=0.3)
LOSSES = {
  "flow_matching": lambda field, *args, **options: fm.flow_matching(
    *args, velocity_fn=field, **options
  ),
  "score_matching": lambda field, *args, **options: (
    score_matching.score_matching(*args, noise_fn=field, **options)
  ),
  # Without the weight, which hides what changes in a large error.
  "meanflow": lambda field, *args, **options: meanflow.meanflow(
    *args, flow_map_fn=field, **({"power": 0.0} | options)
  ),
  "meanflow_guided": lambda field, *args, **options: meanflow.meanflow(
    *args,
    flow_map_fn=field,
    guidance=meanflow.Guidance(1.5, 0.25),
    **({"power": 0.0} | options),
  ),
  "shortcut": lambda field, *args, **options: shortcut.shortcut(
    *args, flow_map_fn=field, **options
  ),
  "consistency": lambda field, *args, **options: (
    consistency.consistency_training(*args, flow_map_fn=field, **options)
  ),
  "live_reflow": lambda field, *args, **options: consistency.live_reflow(
    *args, velocity_fn=field, **options
  ),
}
SPLIT = ("shortcut", "live_reflow")


@pytest.mark.parametrize("name", LOSSES)
def test_examples_are_independent_and_devices_do_not_matter(name):
  pairs, keys = batch_of(64)
  params = network_params()

  def run(params, keys, pairs):
    def objective(params):
      loss, _ = LOSSES[name](network, params, keys, pairs, **LABELS)
      return loss.mean(), loss

    (_, loss), grads = jax.value_and_grad(objective, has_aux=True)(params)
    return loss, grads

  alone = jax.jit(run)
  want, grads = jax.tree.map(np.asarray, alone(params, keys, pairs))
  assert want.shape == (64,) and np.isfinite(want).all()
  assert np.unique(want).size == 64
  # In another order: of groups, where a place in the group decides the part.
  groups = 8 if name in SPLIT else 64
  order = np.random.default_rng(8).permutation(groups)
  order = np.arange(64).reshape(groups, -1)[order].ravel()
  moved = jax.tree.map(lambda x: x[order], (keys, pairs))
  np.testing.assert_allclose(
    alone(params, *moved)[0], want[order], rtol=1e-5, atol=1e-6
  )
  # Other noise or another key at one place changes that place alone.
  fresh = jax.random.split(jax.random.key(9), 64)
  for place in (0, 7):
    here = np.arange(64) == place
    noise = np.where(here[:, None], pairs.noise + 1, pairs.noise)
    other = pairs._replace(noise=jnp.asarray(noise))
    for args in ((keys, other), (jnp.where(here, fresh, keys), pairs)):
      got = np.asarray(alone(params, *args)[0])
      np.testing.assert_allclose(got[~here], want[~here], rtol=1e-6)
      assert got[place] != want[place]

  if name in ("meanflow", "score_matching"):
    return  # guided MeanFlow and flow matching stand for them
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  placed = jax.device_put((keys, pairs), NamedSharding(mesh, P("x")))
  got = alone(params, *placed)
  chex.assert_trees_all_close(got, (want, grads), rtol=1e-4, atol=1e-5)
  assert len(got[0].sharding.device_set) == 8
  if name not in ("meanflow_guided", "live_reflow"):
    return

  # By hand; the gradient of replicated parameters is summed over devices.
  def local(params, keys, pairs):
    loss, grads = run(params, keys, pairs)
    return loss, jax.tree.map(lambda x: x / 8, grads)

  got = jax.jit(
    jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(P(), P("x"), P("x")),
      out_specs=(P("x"), P()),
    )
  )(params, keys, pairs)
  chex.assert_trees_all_close(got, (want, grads), rtol=1e-4, atol=1e-5)


def test_live_reflow_is_flow_matching_on_made_pairs():
  pairs, keys = batch_of(16)
  params = network_params()
  made = jax.jit(
    lambda p: (
      sde.sample_ode(
        p, pairs.noise, velocity_fn=network, num_steps=3, label=pairs.label
      ).samples
    )
  )(params)
  late = (np.arange(16) % 8 == 7)[:, None]
  by_hand = pairs._replace(data=jnp.where(late, made, pairs.data))

  @jax.jit
  def both(params):
    def reflow(params):
      loss, info = consistency.live_reflow(
        params, keys, pairs, velocity_fn=network, num_steps=3
      )
      return loss.mean(), (loss, info)

    def flow(params):
      loss, _ = fm.flow_matching(params, keys, by_hand, velocity_fn=network)
      return loss.mean(), loss

    return [jax.grad(f, has_aux=True)(params) for f in (reflow, flow)]

  (grads, (got, info)), (want_grads, want) = both(params)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(info["reflow_loss"], want[7::8].mean(), rtol=1e-5)
  # No gradient flows through the sampler.
  chex.assert_trees_all_close(grads, want_grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["shortcut", "consistency"])
def test_no_gradient_flows_through_targets(name):
  pairs, keys = batch_of(16)
  params = network_params()

  def objective(params, ema_params):
    return LOSSES[name](network, params, keys, pairs, ema_params=ema_params)[
      0
    ].mean()

  @jax.jit
  def gradients(params):
    return (
      jax.grad(lambda p: objective(p, None))(params),
      *jax.grad(objective, argnums=(0, 1))(params, params),
    )

  alone, student, teacher = gradients(params)
  chex.assert_trees_all_close(alone, student, rtol=1e-6)
  assert all(not np.any(x) for x in jax.tree.leaves(teacher))
  assert np.any(student["out"])


def test_no_gradient_flows_through_the_derivative():
  pairs, _ = batch_of(16)
  t, s = jnp.linspace(0.1, 1.0, 16), jnp.linspace(0.0, 0.5, 16)

  def sums(params, velocity):
    u, target = meanflow.average_and_target(
      params, pairs.noise, t, s, velocity, flow_map_fn=network
    )
    return u.sum(), target.sum()

  @jax.jit
  def gradients(params, velocity):
    return (
      jax.jacrev(sums, argnums=(0, 1))(params, velocity),
      jax.grad(lambda p: network(p, pairs.noise, t, s).sum())(params),
    )

  (u, target), want = gradients(network_params(), pairs.data)
  assert all(not np.any(x) for x in jax.tree.leaves((target, u[1])))
  chex.assert_trees_all_close(u[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("name", "rows"),
  [
    ("flow_matching", [64]),
    ("score_matching", [64]),
    ("meanflow", [64]),
    ("meanflow_guided", [64, 64, 64]),
    ("shortcut", [8, 8, 64]),
    ("consistency", [64, 64]),
    # The sampler's scan is traced once.
    ("live_reflow", [8, 64]),
  ],
)
def test_network_calls(name, rows):
  pairs, keys = batch_of(64)
  seen = []

  def counted(params, x, *times, **label):
    seen.append(x.shape[0])
    return network(params, x, *times, **label)

  jax.eval_shape(
    jax.value_and_grad(
      lambda p: LOSSES[name](counted, p, keys, pairs, **LABELS)[0].mean()
    ),
    network_params(),
  )
  assert seen == rows


@pytest.mark.parametrize("name", LOSSES)
def test_networks_of_the_library_fit(name):
  pairs, keys = batch_of(8)
  net = nets.velocity_mlp(3, hidden=(4,), num_classes=3, two_times=True)
  params = jax.eval_shape(net.init, keys[0])
  loss, grads = jax.eval_shape(
    jax.value_and_grad(
      lambda p: LOSSES[name](net.apply, p, keys, pairs, **LABELS)[0].mean()
    ),
    params,
  )
  assert loss.shape == () and loss.dtype == jnp.float32
  chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)


def test_bad_arguments():
  pairs, keys = batch_of(16)

  # Errors are raised while tracing.
  def run(name, pairs=pairs, **options):
    jax.eval_shape(
      lambda p: LOSSES[name](network, p, keys, pairs, **options),
      network_params(),
    )

  for name, option in zip(
    SPLIT, ("bootstrap_every", "reflow_every"), strict=True
  ):
    with pytest.raises(ValueError, match=f"{option} must divide the batch of"):
      run(name, **{option: 3})
    with pytest.raises(ValueError, match=f"{option} must be >= 2"):
      run(name, **{option: 1})
  with pytest.raises(ValueError, match="num_steps must be a power of two"):
    run("shortcut", num_steps=12)
  with pytest.raises(ValueError, match="num_steps must be >= 2"):
    run("shortcut", num_steps=1)
  with pytest.raises(ValueError, match="clip must be positive"):
    run("shortcut", clip=0.0)
  with pytest.raises(ValueError, match="ratio must lie in"):
    run("meanflow", ratio=1.5)
  with pytest.raises(ValueError, match="constant must be positive"):
    run("meanflow", constant=0.0)
  with pytest.raises(ValueError, match="guidance needs null_label, got None"):
    run("meanflow_guided")
  with pytest.raises(ValueError, match="guidance.omega must be finite"):
    run("meanflow", guidance=meanflow.Guidance(float("nan")), null_label=3)
  with pytest.raises(ValueError, match="guidance needs pairs.label, got None"):
    run("meanflow_guided", pairs._replace(label=None), null_label=3)
  with pytest.raises(ValueError, match="num_steps must be >= 1"):
    run("consistency", num_steps=0)
  with pytest.raises(ValueError, match="label_dropout=0.1 needs null_label"):
    run("shortcut", label_dropout=0.1)
