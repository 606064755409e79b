"""Head pruning on a loss linear in its gates, and masks under AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdiff.methods import pruning

LAYERS, HEADS, BATCHES, SIZE = 2, 3, 3, 4
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(LAYERS, HEADS))
INPUTS = RNG.normal(size=(BATCHES, SIZE, LAYERS, HEADS))
TARGETS = RNG.normal(size=(BATCHES, SIZE))
KEY = jax.random.key(0)


def linear_loss(gates, key, batch):
  """`(sum_lh m_lh w_lh x_blh - y_b)^2 + noise`, one an example."""
  x, y = batch
  heads = jnp.asarray(WEIGHTS)[None] * x
  # Noise that a head's part in the loss must not see.
  noise = 3 * jax.random.normal(key)
  return ((gates[None] * heads).sum((1, 2)) - y) ** 2 + noise


def exact_loss(gates, batch):
  heads = WEIGHTS * INPUTS[batch]
  return np.mean(((gates * heads).sum((1, 2)) - TARGETS[batch]) ** 2)


def exact_importance(gates, criterion):
  scores = []
  for batch in range(BATCHES):
    if criterion == "ablate":
      score = np.zeros((LAYERS, HEADS))
      for head in np.ndindex(LAYERS, HEADS):
        closed = gates.copy()
        closed[head] = 0
        score[head] = exact_loss(closed, batch) - exact_loss(gates, batch)
    else:
      heads = WEIGHTS * INPUTS[batch]
      error = (gates * heads).sum((1, 2)) - TARGETS[batch]
      slope = np.mean(2 * error[:, None, None] * heads, axis=0)
      score = {
        "signed": gates * slope,
        "taylor": np.abs(gates * slope),
        "taylor2": (gates * slope) ** 2,
      }[criterion]
    scores.append(score)
  return np.mean(scores, axis=0)


def importance(gates, criterion, key=KEY, loss_fn=linear_loss):
  return pruning.head_importance(
    gates, key, (INPUTS, TARGETS), loss_fn=loss_fn, criterion=criterion
  )


@pytest.mark.parametrize("criterion", ["taylor", "taylor2", "ablate"])
def test_importance_is_the_formula(criterion):
  ones = np.ones((LAYERS, HEADS))
  part = np.array([[1.0, 0.5, 0.0], [2.0, 1.0, -1.0]])
  with jax.enable_x64(True):
    run = jax.jit(lambda gates: importance(gates, criterion))
    whole, some = np.asarray(run(ones)), np.asarray(run(part))
  np.testing.assert_allclose(
    whole, exact_importance(ones, criterion), rtol=1e-10
  )
  np.testing.assert_allclose(some, exact_importance(part, criterion), atol=1e-9)
  assert some[0, 2] == 0
  # A mean of sizes, not the size of the mean gradient of all batches.
  other = np.abs(exact_importance(ones, "signed"))
  assert np.abs(whole - other).max() > 0.1


def test_importance_in_float32_and_each_batch_its_key():
  got = jax.jit(lambda: importance(jnp.ones((LAYERS, HEADS)), "ablate"))()
  assert got.dtype == jnp.float32
  want = exact_importance(np.ones((LAYERS, HEADS)), "ablate")
  # Noise of size 3 is in the losses and not in their differences.
  np.testing.assert_allclose(got, want, atol=1e-5)

  def by_key(gates, key, batch):
    del batch
    return gates.sum() * jax.random.normal(key)

  got = importance(jnp.ones((LAYERS, HEADS)), "taylor", loss_fn=by_key)
  keys = [jax.random.fold_in(KEY, i) for i in range(BATCHES)]
  want = np.mean([abs(jax.random.normal(key)) for key in keys])
  np.testing.assert_allclose(got, np.full((LAYERS, HEADS), want), rtol=1e-6)


@pytest.mark.parametrize("criterion", pruning.CRITERIA)
def test_keys_are_used_once(criterion):
  # Under a key of its own: the checker marks keys that are used up.
  with jax.debug_key_reuse(True):
    importance(jnp.ones((LAYERS, HEADS)), criterion, jax.random.key(7))


def test_random_importance():
  gates = jnp.ones((LAYERS, HEADS))
  one, same, other = (
    pruning.head_importance(gates, jax.random.key(k), None, criterion="random")
    for k in (0, 0, 1)
  )
  assert one.shape == gates.shape and len(np.unique(one)) == gates.size
  np.testing.assert_array_equal(one, same)
  assert np.all(one != other)


def test_importance_bad_input():
  gates = jnp.ones((LAYERS, HEADS))
  with pytest.raises(ValueError, match=r"criterion must be one of .*'norm'"):
    importance(gates, "norm")
  with pytest.raises(ValueError, match=r"gates must have shape \[\*, \*\]"):
    importance(gates[0], "taylor")
  with pytest.raises(ValueError, match="needs loss_fn"):
    importance(gates, "taylor", loss_fn=None)
  with pytest.raises(TypeError, match="key must be a typed PRNG key"):
    importance(gates, "taylor", key=jnp.zeros(2, jnp.uint32))
  for batches in ((INPUTS, TARGETS[:2]), (), np.zeros((0, 2)), 1.0):
    with pytest.raises(ValueError, match="one K >= 1"):
      pruning.head_importance(gates, KEY, batches, loss_fn=linear_loss)


def test_gates():
  scores = jnp.array([[5.0, 1, 1, 7], [0, 1, 9, 8], [3, 2, 4, 6]])
  cases = [
    # round(2.4) = 2: the zero, and the first of three equal ones.
    (0.2, "global", [[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]),
    (0.5, "global", [[1, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1]]),
    (0.5, "layer", [[1, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1]]),
    (0.25, "layer", [[1, 0, 1, 1], [0, 1, 1, 1], [1, 0, 1, 1]]),
    (0.0, "global", np.ones((3, 4))),
    # round(2.5) is 2.
    (5 / 24, "global", [[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]),
  ]
  for fraction, scope, want in cases:
    got = jax.jit(
      lambda s, f=fraction, c=scope: pruning.make_gates(s, f, scope=c)
    )(scores)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, want)


def test_gates_keep_one_head_a_layer():
  scores = jnp.array([[1.0, 2, 3], [4, 5, 6]])
  np.testing.assert_array_equal(
    pruning.make_gates(scores, 0.5), [[0, 0, 1], [0, 1, 1]]
  )
  free = pruning.make_gates(scores, 0.5, keep_one=False)
  np.testing.assert_array_equal(free, [[0, 0, 0], [1, 1, 1]])
  np.testing.assert_array_equal(
    pruning.make_gates(scores, 1.0, scope="layer", keep_one=False),
    np.zeros((2, 3)),
  )
  # Of equal heads, and of the worst, one is kept all the same.
  for value in (0.0, -np.inf, np.inf):
    for scope in ("global", "layer"):
      np.testing.assert_array_equal(
        pruning.make_gates(jnp.full((2, 3), value), 2 / 3, scope=scope),
        [[0, 0, 1], [0, 0, 1]],
      )


def test_gates_bad_input():
  scores = jnp.ones((2, 3))
  with pytest.raises(ValueError, match="closes 5 heads, .* leaves 4 to close"):
    pruning.make_gates(scores, 5 / 6)
  with pytest.raises(ValueError, match="closes 3 heads of every layer"):
    pruning.make_gates(scores, 0.9, scope="layer")
  with pytest.raises(ValueError, match=r"fraction must lie in \[0, 1\]"):
    pruning.make_gates(scores, 20)
  with pytest.raises(ValueError, match="scope must be 'global' or 'layer'"):
    pruning.make_gates(scores, 0.2, scope="head")
  with pytest.raises(ValueError, match="importance must not be NaN"):
    pruning.make_gates(scores.at[0, 0].set(jnp.nan), 0.2)
  with pytest.raises(ValueError, match="importance must have shape"):
    pruning.make_gates(jnp.ones(6), 0.2)


MASKS = {
  "kernel": np.arange(12).reshape(3, 4) % 3 != 0,
  "bias": None,
  "rest": None,
}


def parameters():
  rest = {"a": jnp.full(2, 0.5), "b": jnp.ones(3)}
  return {"kernel": jnp.full((3, 4), 0.5), "bias": jnp.ones(4), "rest": rest}


def train(optimizer, params, state, num_steps):
  """Pulls every parameter to two."""

  def loss(params):
    return sum(jnp.sum((p - 2) ** 2) for p in jax.tree.leaves(params))

  def body(carry, _):
    params, state = carry
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  return jax.lax.scan(body, (params, state), None, length=num_steps)[0]


def test_masked_weights_stay_exactly_zero():
  adamw = optax.adamw(1e-2, weight_decay=0.1)
  optimizer = pruning.masked(adamw, MASKS)
  closed = ~MASKS["kernel"]

  @jax.jit
  def run():
    params = parameters()
    # Momentum from before the pruning.
    params, stale = train(adamw, params, adamw.init(params), 5)
    params = pruning.apply_masks(MASKS, params)
    kept, _ = train(optimizer, params, stale, 50)
    # Masked gradients alone do not do: moments go on moving weights.
    only_gradients = optax.chain(
      optax.stateless(lambda g, p: pruning.apply_masks(MASKS, g)), adamw
    )
    leaky, _ = train(only_gradients, params, (optax.EmptyState(), stale), 50)
    return params, kept, leaky

  params, kept, leaky = run()
  assert np.all(kept["kernel"][closed] == 0)
  assert np.abs(leaky["kernel"][closed]).min() > 1e-2
  # The others train as if they were alone.
  moved = jax.tree.map(lambda a, b: np.abs(a - b), kept, params)
  assert np.all(moved["kernel"][~closed] > 0.1)
  for name in ("bias", "rest"):
    assert all(np.all(m > 0.1) for m in jax.tree.leaves(moved[name]))
    jax.tree.map(np.testing.assert_array_equal, kept[name], leaky[name])


def test_masks_hide_gradients_from_norms_and_keep_weights_that_are_not_zero():
  optimizer = pruning.masked(
    optax.clip_by_global_norm(1.0), {"w": np.array([0, 1])}
  )
  params = {"w": jnp.array([3.0, 3.0])}
  state = optimizer.init(params)
  for spoilt in (1e6, np.nan):
    grads = {"w": jnp.array([spoilt, 0.5])}
    updates, _ = optimizer.update(grads, state, params)
    np.testing.assert_array_equal(updates["w"], [0, 0.5])


def test_masks_of_another_shape():
  optimizer = pruning.masked(optax.sgd(0.1), {"w": np.ones((2, 1))})
  with pytest.raises(ValueError, match=r"masks\['w'\] must have shape \[2, 3"):
    optimizer.init({"w": jnp.ones((2, 3))})
  with pytest.raises(ValueError):
    optimizer.init({"other": jnp.ones((2, 1))})
