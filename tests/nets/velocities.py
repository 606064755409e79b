"""Small velocity networks, and the DiT's formula in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import nets
from jdiff.nets import embed

SHAPE, PATCH, LAYERS, HEADS, CLASSES, BATCH = (4, 6, 2), 2, 2, 2, 3, 8
# Compiling is what these tests cost.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
ALL = pytest.mark.parametrize("name", ["dit", "mlp"])


@functools.cache
def make(name, **options):
  """A small network with every part, parameters that move it, `apply`."""
  options = {"num_classes": CLASSES, "two_times": True, **options}
  if name == "mlp":
    network = nets.velocity_mlp(5, hidden=(16, 12), **options)
  else:
    network = nets.dit(
      SHAPE,
      patch_size=PATCH,
      width=16,
      num_layers=LAYERS,
      num_heads=HEADS,
      **options,
    )
  if options.keys() & {"remat", "compute_dtype"}:
    return network, make(name)[1], compiled(network)
  # Nothing is zero, and no `init`, slow to compile, is run.
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda a: np.asarray(0.3 * rng.standard_normal(a.shape), a.dtype),
    jax.eval_shape(network.init, jax.random.key(0)),
  )
  return network, params, compiled(network)


def compiled(network):
  """`apply`, with NumPy answers: looking at them compiles nothing."""
  apply = jit(network.apply)
  return lambda *args, **options: np.asarray(apply(*args, **options))


@functools.cache
def start(name, seed=0):
  """Untrained parameters."""
  return jit(make(name)[0].init)(jax.random.key(seed))


@functools.cache
def inputs(name):
  shape = (BATCH, *((5,) if name == "mlp" else SHAPE))
  x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
  t = np.linspace(0.1, 1.0, BATCH, dtype=np.float32)
  # Known to JAX but not traced: a check that looks at it must not trace it.
  return x, t, np.float32(0.3) * t, jnp.arange(BATCH) % (CLASSES + 1)


def reference(params, x, t, s, label, gates):
  """The network in NumPy, float64, one example at a time."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  x, t, s = (np.asarray(a, np.float64) for a in (x, t, s))

  def silu(a):
    return a / (1 + np.exp(-a))

  def dense(p, a):
    return a @ p["kernel"] + p["bias"]

  def embed_time(p, t):
    angle = t * np.geomspace(1, embed.SMOOTH_FREQUENCY, 32)
    a = np.concatenate([np.sin(angle), np.cos(angle)])
    return dense(p["Dense_1"], silu(dense(p["Dense_0"], a)))

  def norm(a, shift, scale):
    a = a - a.mean(-1, keepdims=True)
    a = a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6)
    return a * (1 + scale) + shift

  def gelu(a):
    return 0.5 * a * (1 + np.tanh((2 / np.pi) ** 0.5 * (a + 0.044715 * a**3)))

  (rows, cols), width = (SHAPE[0] // PATCH, SHAPE[1] // PATCH), 16
  places = [(i, j) for i in range(rows) for j in range(cols)]
  frequency = 100.0 ** (-np.arange(width // 4) / (width // 4))
  position = []
  for i, j in places:
    angle = np.concatenate([i * frequency, j * frequency])
    position.append(np.concatenate([np.sin(angle), np.cos(angle)]))
  condition = p["condition"]
  answers = np.zeros(x.shape)
  for b in range(len(x)):
    c = embed_time(condition["time"], t[b])
    c = c + embed_time(condition["span"], t[b] - s[b])
    c = silu(c + condition["label"]["embedding"][label[b]])

    def cut(i, j):
      i, j = i * PATCH, j * PATCH
      return slice(i, i + PATCH), slice(j, j + PATCH)

    h = np.stack([np.ravel(x[b][cut(*place)]) for place in places])
    h = dense(p["embed"], h) + np.stack(position)
    for layer in range(LAYERS):
      q = jax.tree.map(lambda a, i=layer: a[i], p["blocks"])
      parts = np.split(dense(q["modulation"], c), 6)
      shift1, scale1, gate1, shift2, scale2, gate2 = parts
      y, out = norm(h, shift1, scale1), 0
      for head in range(HEADS):
        query, key, value = (
          y @ q[part]["kernel"][:, head] for part in ("query", "key", "value")
        )
        weight = np.exp(query @ key.T / query.shape[-1] ** 0.5)
        weight /= weight.sum(-1, keepdims=True)
        z = gates[layer, head] * weight @ value
        out = out + z @ q["out"]["kernel"][head]
      h = h + gate1 * out
      y = gelu(norm(h, shift2, scale2) @ q["up"]["kernel"])
      h = h + gate2 * (y @ q["down"]["kernel"])
    h = norm(h, *np.split(dense(p["modulation"], c), 2))
    h = h @ p["head_kernel"] + p["head_bias"]
    for place, patch in zip(places, h, strict=True):
      answers[b][cut(*place)] = patch.reshape(PATCH, PATCH, -1)
  return answers
