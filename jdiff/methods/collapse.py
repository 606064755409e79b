"""The self-consuming loop: generative models trained on their predecessors.

Generation `n = 1, 2, ...` is fitted from scratch on a training set `D_n`, with
`D_1` real, and sampled: `G_n`. The paradigm says what `D_{n+1}` is made of, and
a selector may choose among it. All samples stay in one flat pool, real ones
first, and every training set is a list of indices into it, so that provenance
can be audited and a loop resumes at any generation with the same bits.

  loop = self_consuming(fit=fit, sample=sample, paradigm="replace")
  state = loop.init(real)
  for _ in range(num_generations):
    state, info = loop.step(key, state)  # the same key; save the state here

Shi et al., "A Closer Look at Model Collapse: From a Generalization-to-
Memorization Perspective" (NeurIPS 2025, arXiv:2509.16499). How `"fresh"` mixes
real images is not given there, and is our choice. Left out: selectors and
metrics, which are functions of arrays, and warm starts.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.core.types import Kernel

PARADIGMS = ("replace", "accumulate", "accumulate_subsample", "fresh")

FitFn = Callable[[jax.Array, jax.Array], Any]
"""`(key, data [M, ...]) -> params` of a model trained from scratch."""

SampleFn = Callable[[Any, jax.Array, int], jax.Array]
"""`(params, key, num_samples) -> [num_samples, ...]`, of the data's dtype."""

Selector = Callable[[jax.Array, jax.Array], jax.Array]
"""`(key, features [S, f]) -> [N]` distinct integers in `[0, S)`."""

FeatureFn = Callable[[jax.Array], jax.Array]
"""`samples [S, ...] -> features [S, f]`, one map for all generations."""

TOLERANCE = 1e-3
"""Most that rounding on other hardware changes features, of the largest."""


class State(NamedTuple):
  """Everything that a loop has made; arrays alone, at generation `n`.

  Attributes:
    pool: `[S, ...]`, the real samples and then those of each generation.
    labels: `[S]` int32, the generation of each sample, 0 for real ones.
    indices: `n` arrays `[M]` int32: rows of the pool in each of the training
      sets `D_1, ..., D_n`, the last of which is still to be trained on.
    probe: `[P, f]`, features of the first rows: the fingerprint of the feature
      map. None without a selector.
  """

  pool: jax.Array
  labels: jax.Array
  indices: tuple[jax.Array, ...]
  probe: jax.Array | None


class Info(NamedTuple):
  """What one generation came to.

  Attributes:
    params: What `fit` answered on `D_n`.
    samples: `[oversample * N, ...]`, `G_n`.
    share_of_real: Scalar float32, of `D_{n+1}`.
  """

  params: Any
  samples: jax.Array
  share_of_real: jax.Array


def self_consuming(
  *,
  fit: FitFn,
  sample: SampleFn,
  paradigm: str = "replace",
  num: int | None = None,
  oversample: int = 1,
  fresh_share: float | None = None,
  selector: Selector | None = None,
  features: FeatureFn | None = None,
  num_probe: int = 16,
) -> Kernel:
  """The loop as `init(real) -> state` and `step(key, state) -> (state, info)`.

  A step trains on the last training set, samples, and makes the next one. It
  draws from `fold_in(key, n)` and nothing else: pass the key of the whole loop
  every time. It can be traced, with one program a generation, since the pool
  grows; in practice `fit` is a training run and jits inside.

  Args:
    fit: See `FitFn`.
    sample: See `SampleFn`.
    paradigm: See `next_dataset`.
    num: Rows `N` of a training set, by default all real ones. Only `"fresh"`
      can have more real rows than that.
    oversample: Samples a generation over `N`, an integer. Without a selector a
      set gets a random part of them, but all under `"accumulate"`.
    fresh_share: Share of real rows in each set of `"fresh"`, in `(0, 1)`.
    selector: Chooses `N` among `candidates`, in place of chance; see
      `Selector`.
    features: What the selector sees, flat samples as floats by default. It
      must not be fitted anew between generations.
    num_probe: Real rows by which a change of `features` is detected.

  Returns:
    A `Kernel` over `State` and `Info`.

  Raises:
    ValueError: If options do not fit; from `init`, if the real rows do not fit
      `num`; from `step`, if a state is of another loop, or (where values are
      known) `features` has changed by more than rounding, samples or features
      are not finite, or the selector's answer is not `N` distinct candidates.
    TypeError: If samples are not of the pool's dtype.
  """
  _check_paradigm(paradigm, fresh_share)
  if num is not None:
    checks.check_int("num", num)
  checks.check_int("oversample", oversample)
  checks.check_int("num_probe", num_probe)
  if features is not None and selector is None:
    raise ValueError("features are for a selector, got selector=None.")
  describe = features or _flatten

  def init(real: jax.Array) -> State:
    real = jnp.asarray(real)
    if real.ndim < 2 or not real.shape[0]:
      raise ValueError(
        f"real must have shape [N, ...], got {list(real.shape)}."
      )
    size = real.shape[0]
    rows = size if num is None else num
    if rows > size or (rows < size and paradigm != "fresh"):
      raise ValueError(
        f"num must be the number of real rows, {size} (at most that for "
        f"paradigm='fresh'), got {rows}."
      )
    _check_finite("real", real)
    probe = None
    if selector is not None:
      probe = _features(describe, real[:num_probe])
    first = jnp.arange(rows, dtype=jnp.int32)
    return State(real, jnp.zeros(size, jnp.int32), (first,), probe)

  def step(key: jax.Array, state: State) -> tuple[State, Info]:
    checks.check_key(key)
    generation, rows = len(state.indices), state.indices[0].shape[0]
    size = oversample * rows
    num_real = state.pool.shape[0] - (generation - 1) * size
    sizes = (num_real, *[size] * (generation - 1))
    _check_state(state, sizes, num, paradigm, selector is not None)
    if selector is not None:
      _check_fingerprint(describe, state)
    key_fit, key_sample, key_next = jax.random.split(
      jax.random.fold_in(key, generation), 3
    )
    params = fit(key_fit, dataset(state, generation))
    samples = jnp.asarray(sample(params, key_sample, size))
    checks.check_shape(
      "sample's answer", samples, (size, *state.pool.shape[1:])
    )
    if samples.dtype != state.pool.dtype:
      raise TypeError(
        "sample must answer in the dtype of the real rows, "
        f"{state.pool.dtype}, got {samples.dtype}."
      )
    _check_finite("sample's answer", samples)
    pool = jnp.concatenate([state.pool, samples])
    new = jnp.full(size, generation, jnp.int32)
    labels = jnp.concatenate([state.labels, new])
    sizes = (*sizes, size)
    if selector is None:
      chosen = next_dataset(
        key_next,
        sizes,
        num=rows,
        paradigm=paradigm,
        fresh_share=fresh_share,
      )
    else:
      among = jnp.asarray(
        candidates(sizes, num=rows, paradigm=paradigm, fresh_share=fresh_share)
      )
      answer = selector(key_next, _features(describe, pool[among]))
      _check_selection(answer, rows, among.shape[0])
      chosen = among[answer]
    state = State(pool, labels, (*state.indices, chosen), state.probe)
    return state, Info(params, samples, share_of_real(chosen, labels))

  return Kernel(init, step)


def next_dataset(
  key: jax.Array,
  sizes: Sequence[int],
  *,
  num: int,
  paradigm: str = "replace",
  fresh_share: float | None = None,
) -> jax.Array:
  """Rows of the pool that make up `D_{n+1}`, without a selector.

  `"replace"`: `num` of `G_n`. `"accumulate"`: the whole union of `D_1` and of
  `G_1` to `G_n`, so the set grows. `"accumulate_subsample"`: of each of these
  `n + 1` sources `floor(num / (n + 1)) + 1`, oldest first, cut at `num`, so
  that the newest is short by the excess (what the released code does).
  `"fresh"`: `round(fresh_share num)` real rows that no set has had yet, in
  their order, and for the rest `G_n`.

  Args:
    key: PRNG key; consumed.
    sizes: Rows of the `n + 1` sources as they lie in the pool: real ones, then
      each generation. Python ints.
    num: Rows `N` of a training set.
    paradigm: One of `PARADIGMS`.
    fresh_share: In `(0, 1)`, for `"fresh"` alone.

  Returns:
    `[M]` int32, distinct; `M = num` but for `"accumulate"`. What is taken of a
    source is a random part of it, in random order, or all of it in its order.

  Raises:
    ValueError: If options do not fit or a source has too few rows.
  """
  checks.check_key(key)
  sizes, parts = _sources(sizes, num, paradigm, fresh_share)
  if paradigm == "accumulate":
    return jnp.asarray(np.concatenate(parts), jnp.int32)
  if paradigm == "replace":
    wanted = [num]
  elif paradigm == "fresh":
    wanted = [len(parts[0]), num - len(parts[0])]
  else:
    wanted = [num // len(parts) + 1] * len(parts)
  taken = [
    _subset(jax.random.fold_in(key, index), part, count)
    for index, (part, count) in enumerate(zip(parts, wanted, strict=True))
  ]
  return jnp.concatenate(taken)[:num]


def candidates(
  sizes: Sequence[int],
  *,
  num: int,
  paradigm: str = "replace",
  fresh_share: float | None = None,
) -> np.ndarray:
  """Rows of the pool that a selector chooses `D_{n+1}` from.

  All of `G_n` for `"replace"`; the union of `D_1` and all generations for both
  accumulating paradigms; the fresh rows and all of `G_n` for `"fresh"`, where
  the selector may leave fresh rows out.

  Args:
    sizes: As in `next_dataset`, like the others.
    num: Rows `N` of a training set.
    paradigm: One of `PARADIGMS`.
    fresh_share: In `(0, 1)`, for `"fresh"` alone.

  Returns:
    `[S]` int32, ascending.

  Raises:
    ValueError: As `next_dataset`.
  """
  _, parts = _sources(sizes, num, paradigm, fresh_share)
  return np.concatenate(parts).astype(np.int32)


def share_of_real(indices: jax.Array, labels: jax.Array) -> jax.Array:
  """Share of real rows in a training set, scalar float32.

  Args:
    indices: `[M]` rows of the pool.
    labels: `[S]`, as in `State`.
  """
  checks.check_integers("indices", indices)
  checks.check_integers("labels", labels)
  return jnp.mean(labels[indices] == 0, dtype=jnp.float32)


def dataset(state: State, generation: int) -> jax.Array:
  """The training set of a generation, `D_1` the first: `[M, ...]`."""
  checks.check_int("generation", generation)
  if generation > len(state.indices):
    raise ValueError(
      f"generation must be at most {len(state.indices)}, the last whose "
      f"training set is made, got {generation}."
    )
  return state.pool[state.indices[generation - 1]]


def _sources(sizes, num, paradigm, fresh_share):
  """`sizes` as ints, and the rows of each source that the paradigm uses."""
  _check_paradigm(paradigm, fresh_share)
  checks.check_int("num", num)
  sizes = checks.check_sizes("sizes", sizes)
  generation = len(sizes) - 1
  if generation < 1 or sizes[0] < num:
    raise ValueError(
      f"sizes must be those of {num} real rows or more and of a generation or "
      f"more, got {sizes}."
    )
  ends = np.cumsum(sizes)
  rows = [np.arange(e - s, e) for s, e in zip(sizes, ends, strict=True)]
  if paradigm == "replace":
    return sizes, rows[-1:]
  if paradigm == "fresh":
    count = round(fresh_share * num)
    if not 0 < count < num:
      raise ValueError(
        f"fresh_share={fresh_share} of num={num} must be one row at least, and "
        f"leave one, got {count}."
      )
    start = num + (generation - 1) * count
    if start + count > sizes[0]:
      raise ValueError(
        f"real must have {start + count} rows for {count} fresh ones after "
        f"generation {generation}, got {sizes[0]}."
      )
    return sizes, [np.arange(start, start + count), rows[-1]]
  return sizes, [np.arange(num), *rows[1:]]


def _subset(key, rows, count):
  if count > len(rows):
    raise ValueError(
      f"every source must have the {count} rows wanted of it, got {len(rows)}."
    )
  rows = jnp.asarray(rows, jnp.int32)
  if count == len(rows):
    return rows
  return jax.random.permutation(key, rows)[:count]


def _flatten(samples):
  dtype = jnp.promote_types(samples.dtype, jnp.float32)
  return samples.reshape(samples.shape[0], -1).astype(dtype)


def _features(features, samples):
  answer = jnp.asarray(features(samples))
  checks.check_shape("features' answer", answer, (samples.shape[0], None))
  _check_finite("features' answer", answer)
  return answer


def _check_paradigm(paradigm, fresh_share):
  if paradigm not in PARADIGMS:
    raise ValueError(f"paradigm must be one of {PARADIGMS}, got {paradigm!r}.")
  if (paradigm == "fresh") != (fresh_share is not None):
    raise ValueError(
      "fresh_share must be given for paradigm='fresh' alone, got "
      f"{fresh_share} with {paradigm!r}."
    )
  if fresh_share is not None and not 0 < fresh_share < 1:
    raise ValueError(f"fresh_share must lie in (0, 1), got {fresh_share}.")


def _check_state(state, sizes, num, paradigm, selects):
  """Raises where a state is seen to come from a loop with other options."""
  rows = state.indices[0].shape[0]
  fits = sizes[0] >= rows if paradigm == "fresh" else sizes[0] == rows
  fits &= num in (None, rows) and selects == (state.probe is not None)
  if fits and checks.is_concrete(state.labels):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    fits = np.array_equal(np.asarray(state.labels), labels)
  if not fits:
    raise ValueError(
      "state must come from a loop with the same num, oversample, paradigm and "
      "kind of selector; it does not fit these."
    )


def _check_fingerprint(features, state):
  then = cast(jax.Array, state.probe)
  now = _features(features, state.pool[: then.shape[0]])
  same = now.shape == then.shape
  if same and checks.is_concrete((now, then)):
    old, new = (np.asarray(a, np.float64) for a in (then, now))
    same = np.abs(new - old).max() <= TOLERANCE * np.abs(old).max()
  if not same:
    raise ValueError(
      "features must be the same map in every generation, and its answers on "
      "the first real rows have changed; fit it once, on real data."
    )


def _check_selection(answer, num, num_candidates):
  checks.check_shape("selector's answer", answer, (num,))
  if not jnp.issubdtype(jnp.result_type(answer), jnp.integer):
    raise TypeError(
      f"selector must answer with integers, got {jnp.result_type(answer)}."
    )
  if checks.is_concrete(answer):
    values = np.asarray(answer)
    if values.min() < 0 or values.max() >= num_candidates:
      raise ValueError(
        f"selector's answer must lie in [0, {num_candidates}), got values from "
        f"{values.min()} to {values.max()}."
      )
    if len(np.unique(values)) < num:
      raise ValueError("selector's answer must be distinct indices.")


def _check_finite(name, array):
  if checks.is_concrete(array):
    bad = np.count_nonzero(~np.isfinite(np.asarray(array)))
    if bad:
      raise ValueError(f"{name} must be finite, got {bad} NaN or infinite.")
