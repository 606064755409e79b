"""Error of ELBO estimates at equal numbers of network evaluations.

  python -m benchmarks.elbo

The network is a closed form, so that the ELBO is known exactly: token `i` of a
completion with a share `u` masked has `log p = -a_i (0.05 + 1.5 u^2)`, `a_i = 1
+ 0.5 sin i`, whatever stands elsewhere. Every number is of that many actual
draws of the library's estimators, NFE evaluations each; the baseline is iid
double Monte Carlo over counts. Errors are in nats a sequence.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from jdiff import ctmc, elbo

DRAWS = 20_000
BATCH = 1_000
BLOCK = 20
BASELINE = "double MC, counts"


def coefficients(length):
  return 1 + 0.5 * np.sin(np.arange(length))


def logits_fn(params, tokens, t, sites=None):
  """Two tokens: the sequence's is 0, and the mask is 2."""
  assert sites is None
  log_prob = -params[None] * (0.05 + 1.5 * t[:, None] ** 2)
  logit = log_prob - jnp.log(-jnp.expm1(log_prob))
  return jnp.stack([logit, jnp.zeros_like(logit)], axis=-1)


def exact(length):
  """The mean over counts; a site is hypergeometric, so hit with share k/L."""
  share = np.arange(1, length + 1) / length
  return -coefficients(length).sum() * np.mean(0.05 + 1.5 * share**2)


def laws(nfe):
  return {
    BASELINE: elbo.double_monte_carlo(nfe),
    "double MC, Bernoulli": elbo.double_monte_carlo(nfe, "bernoulli"),
    "stratified counts": ctmc.count_masks(nfe),
    **{
      f"nodes, {law}": elbo.node_masks(nfe, law=law)
      for law in ("bernoulli", "floor", "round", "mid")
    },
  }


@functools.partial(jax.jit, static_argnums=(0, 1))
def draw(nfe, length, key):
  """`{law: (DRAWS estimates, the first weight of each)}`.

  One key for all laws: comparisons do not hang on it, and their random numbers
  are drawn, and compiled, once.
  """
  params = jnp.asarray(coefficients(length), jnp.float32)
  tokens = jnp.zeros((BATCH, length), jnp.int32)

  def estimate(key, law):
    masks = elbo.draw_masks(key, tokens, law=law)
    values = elbo.estimate(
      params, tokens, masks, logits_fn=logits_fn, mask_id=2
    )
    return values, masks.weight[:, 0]

  def batch(key):
    return {name: estimate(key, law) for name, law in laws(nfe).items()}

  out = jax.lax.map(batch, jax.random.split(key, DRAWS // BATCH))
  return jax.tree.map(jnp.ravel, out)


def errors(length):
  want = exact(length)
  print(
    f"\nL = {length}, ELBO {want:.6f}: RMSE (bias, standard deviation), "
    "ratio of the baseline's RMSE to it"
  )
  for nfe in range(1, 6):
    print(f"\n{f'NFE {nfe}':22}{'RMSE':>8}{'bias':>10}{'sd':>9}{'ratio':>9}")
    drawn = draw(nfe, length, jax.random.key(nfe))
    for name in laws(nfe):
      values = np.asarray(drawn[name][0], float)
      rmse = np.sqrt(np.mean((values - want) ** 2))
      if name == BASELINE:
        baseline = rmse
      timing.keep(
        f"RMSE, L {length}, NFE {nfe}", name, baseline / rmse, BASELINE
      )
      print(
        f"{name:22}{rmse:8.2f}{values.mean() - want:+10.3f}"
        f"{values.std():9.2f}{baseline / rmse:9.2f}",
        flush=True,
      )


def shares(length):
  """One evaluation's variance, split by draws that share their time.

  Draws are sorted by weight, and so by time, and cut into blocks: what varies
  inside blocks is due to masks, the rest to the time.
  """
  drawn = draw(1, length, jax.random.key(0))
  for name in (BASELINE, "double MC, Bernoulli"):
    values, weight = drawn[name]
    values = np.asarray(values, float)
    blocks = values[np.argsort(weight)].reshape(-1, BLOCK)
    total, masks = values.var(), blocks.var(axis=1, ddof=1).mean()
    print(
      f"{name:22}{length:6d}{total:12.1f}{1 - masks / total:10.4f}"
      f"{masks / total:10.4f}",
      flush=True,
    )


def main():
  print(f"{timing.where()}; float32, {DRAWS} draws an entry")
  for length in (32, 256):
    errors(length)
  print(
    f"\nvariance of one draw\n{'':22}{'L':>6}{'variance':>12}{'time':>10}"
    f"{'masks':>10}"
  )
  for length in (32, 64, 256):
    shares(length)


if __name__ == "__main__":
  main()
