"""An equivariant network for particles: messages along all pairs.

EGNN (Satorras et al., arXiv:2102.09844), written out for a fixed number of
like particles because the libraries of graph networks bring batches of unequal
graphs or tensor products, which nothing here needs. Pairs are dense, `[B, n,
n, ...]`, and particles move along `x_ij / (|x_ij| + 1)`, as in EDM
(arXiv:2203.17003). Differs: the answer is summed over the layers, apart from
the coordinates, so that it has no bound where their motion has one; a pair is
told apart by the logarithm of its distance and Gaussians of that, for forces
that change by powers of it. Left out: features, charges and bonds of particles.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jdiff.core import checks
from jdiff.core.types import Params
from jdiff.nets import embed
from jdiff.nets.network import Network

SOFTENING = 1e-2
"""Added to distances in quadrature, in units of length: they stay smooth."""

CENTRES = np.geomspace(0.25, 8.0, 16)
"""Distances, in units of length, on which pairs' Gaussians are centred."""


def egnn(
  num_particles: int,
  dim: int,
  *,
  width: int = 64,
  num_layers: int = 4,
  length: float = 1.0,
  max_frequency: float = embed.SMOOTH_FREQUENCY,
  zero_init_head: bool = True,
  remat: bool = True,
  compute_dtype: DTypeLike = jnp.float32,
) -> Network:
  """Builds a vector field on `n` like particles in `R^d`.

  It turns and mirrors with the particles, permutes with them, does not change
  when all are moved alike, and has no mean over them.

  Args:
    num_particles: Particles `n`, at least two.
    dim: Dimension `d` of space.
    width: Features of a particle and of a pair.
    num_layers: Rounds of messages.
    length: A distance that is typical of neighbours, in units of `x`. Pairs are
      told apart best from a quarter of it to eight of it.
    max_frequency: Fastest angle of the time embedding over the unit of time.
    zero_init_head: Starts from the zero field instead of a random one.
    remat: Recomputes each round's activations in the backward pass. Else some
      eight `[B, n, n, width]` are kept a round, of 400 MB each for 512 times 55
      particles. On a CPU keeping them is slower too: a gradient of four rounds
      on 256 times 13 particles took 0.62 s instead of 0.39 s.
    compute_dtype: Dtype of the messages. Parameters, distances, coordinates,
      sums over pairs' vectors and the answer are float32 whatever it is.

  Returns:
    A `Network`; `apply(params, x [B, n, d], t [B])` answers `[B, n, d]`, a
    number of order one where `x` is of the order of `length`.

  Raises:
    ValueError: If a size or a length is not positive, or there is one particle.
    TypeError: If a size is no integer or `compute_dtype` no float dtype.
  """
  checks.check_int("num_particles", num_particles, minimum=2)
  checks.check_int("dim", dim)
  checks.check_int("width", width)
  checks.check_int("num_layers", num_layers)
  checks.check_finite("length", length, positive=True)
  checks.check_finite("max_frequency", max_frequency, positive=True)
  module = _EGNN(
    width=width,
    num_layers=num_layers,
    length=length,
    max_frequency=max_frequency,
    zero_init_head=zero_init_head,
    remat=remat,
    dtype=embed.float_dtype(compute_dtype),
  )
  init, call = embed.as_velocity(module, (num_particles, dim), 0, False)

  def apply(params: Params, x: jax.Array, t: jax.Array) -> jax.Array:
    return call(params, x, t)

  return Network(init, apply)


def _centred(x):
  """`x` without its mean over particles."""
  return x - x.mean(axis=1, keepdims=True)


def _distances(x):
  """Softened distances `[B, n, n]` of `x [B, n, d]`, smooth where it is 0."""
  # By differences: close pairs matter most, and a product would round them.
  difference = x[:, :, None] - x[:, None]
  return jnp.sqrt(jnp.sum(difference**2, axis=-1) + SOFTENING**2)


def _features(distance):
  """Scalars `[B, n, n, F]` of pairs."""
  log = jnp.log(distance)[..., None]
  centres = jnp.asarray(np.log(CENTRES), log.dtype)[None, None, None]
  spacing = math.log(CENTRES[1] / CENTRES[0])
  gaussians = jnp.exp(-0.5 * ((log - centres) / spacing) ** 2)
  return jnp.concatenate([log, gaussians], axis=-1)


def _along_pairs(weights, distance, x):
  """`sum_j w_ij x_ij / (|x_ij| + 1)`, `[B, n, d]`, `x_ij = x_i - x_j`."""
  weights = weights / (distance + 1)
  # Without the vectors of pairs in memory; weights are bounded by `w_ij`, so
  # that little is lost in the difference.
  pulled = jnp.einsum(
    "bij,bjd->bid", weights, x, precision=jax.lax.Precision.HIGHEST
  )
  return weights.sum(axis=-1, keepdims=True) * x - pulled


class _Layer(nn.Module):
  """A round of messages, called as a scan calls.

  `((h [B, n, D], x [B, n, d], answer [B, n, d]), None)` answers the same.
  """

  zero_init_head: bool
  dtype: Any

  @nn.compact
  def __call__(
    self, carry: tuple[jax.Array, jax.Array, jax.Array], _: None
  ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
    h, x, answer = carry
    width, others = h.shape[-1], x.shape[1] - 1

    def dense(name, y, use_bias=True):
      return nn.Dense(
        width,
        use_bias=use_bias,
        dtype=self.dtype,
        dot_general=embed.dot_general,
        name=name,
      )(y)

    y = nn.RMSNorm(dtype=self.dtype, name="norm")(h)
    distance = _distances(x)
    # The first linear map of `(h_i, h_j, features)`, in three parts.
    pair = (
      dense("pair", _features(distance).astype(self.dtype))
      + dense("receiver", y, use_bias=False)[:, :, None]
      + dense("sender", y, use_bias=False)[:, None]
    )
    message = nn.silu(dense("message", nn.silu(pair)))

    def initializer(*args):
      kernel = nn.initializers.lecun_normal()(*args)
      return kernel.at[:, 1].set(0) if self.zero_init_head else kernel

    kernel = self.param("vectors", initializer, (width, 2))
    move, push = jnp.moveaxis(
      embed.matmul(
        message, kernel.astype(self.dtype), preferred_element_type=x.dtype
      ),
      -1,
      0,
    )
    # Pushes cancel as random directions do; motions are bounded by one.
    answer = answer + _along_pairs(push, distance, x) / others**0.5
    x = x + _along_pairs(jnp.tanh(move), distance, x) / others
    not_self = (1 - jnp.eye(others + 1, dtype=self.dtype))[None, :, :, None]
    received = jnp.sum(message * not_self, axis=2) / others
    y = jnp.concatenate([y, received], axis=-1)
    h = h + dense("down", nn.silu(dense("up", y)))
    return (h, x, answer), None


class _EGNN(nn.Module):
  width: int
  num_layers: int
  length: float
  max_frequency: float
  zero_init_head: bool
  remat: bool
  dtype: Any

  @nn.compact
  def __call__(
    self, x: jax.Array, t: jax.Array, s: None = None, label: None = None
  ) -> jax.Array:
    wide = jnp.promote_types(self.dtype, jnp.float32)
    x = _centred(x.astype(wide)) / self.length
    others = x.shape[1] - 1
    time = embed.TimeEmbedding(
      self.width, wide, max_frequency=self.max_frequency, name="time"
    )(t)
    h = jnp.broadcast_to(
      time.astype(self.dtype)[:, None], (*x.shape[:2], self.width)
    )
    layer = _Layer
    if self.remat:
      # Inside a scan there is no common subexpression to guard against.
      layer = nn.remat(_Layer, prevent_cse=False)
    layers = nn.scan(
      layer,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=self.num_layers,
    )(self.zero_init_head, self.dtype, name="layers")
    (h, moved, answer), _ = layers((h, x, jnp.zeros_like(x)), None)

    head = (
      nn.initializers.zeros
      if self.zero_init_head
      else nn.initializers.lecun_normal()
    )
    # What a layer would have to find out: forces of pairs, and a harmonic one.
    distance = _distances(x)
    features = _features(distance)
    force = nn.Dense(
      features.shape[-1], dtype=wide, kernel_init=head, name="force"
    )(nn.silu(time))
    force = jnp.einsum(
      "bijf,bf->bij", features, force, precision=jax.lax.Precision.HIGHEST
    )
    answer = answer + _along_pairs(force, distance, x) / others**0.5
    kernel = self.param("head_kernel", head, (self.width, 2))
    pull, follow = jnp.moveaxis(
      embed.matmul(
        nn.RMSNorm(dtype=self.dtype, name="head_norm")(h),
        kernel.astype(self.dtype),
        preferred_element_type=wide,
      )[..., None],
      -2,
      0,
    )
    return _centred(answer + pull * x + follow * (moved - x))
