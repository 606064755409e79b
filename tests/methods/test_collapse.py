"""The self-consuming loop: index laws, provenance, and a Gaussian oracle."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jdiff.methods import collapse

KEY = jax.random.key(0)
NUM, DIM = 12, 2


def next_dataset(sizes, paradigm, num=NUM, key=KEY, **options):
  return np.asarray(
    collapse.next_dataset(key, sizes, num=num, paradigm=paradigm, **options)
  )


def source(indices, sizes):
  """Which source each row belongs to."""
  return np.searchsorted(np.cumsum(sizes), indices, side="right")


def test_replace():
  np.testing.assert_array_equal(
    next_dataset((NUM, NUM, NUM), "replace"), np.arange(24, 36)
  )
  # Of an oversampled generation a random part, not its head.
  sizes = (NUM, 24, 24)
  first = next_dataset(sizes, "replace")
  other = next_dataset(sizes, "replace", key=jax.random.key(1))
  for indices in (first, other):
    assert indices.dtype == np.int32 and indices.shape == (NUM,)
    assert len(np.unique(indices)) == NUM
    assert np.all(source(indices, sizes) == 2)
  assert set(first) != set(other) and max(first) >= 36 + NUM
  np.testing.assert_array_equal(first, next_dataset(sizes, "replace"))


def test_accumulate():
  for generation in (1, 2, 5):
    sizes = (NUM,) * (generation + 1)
    indices = next_dataset(sizes, "accumulate")
    np.testing.assert_array_equal(indices, np.arange(NUM * (generation + 1)))


@pytest.mark.parametrize("oversample", [1, 2])
@pytest.mark.parametrize("generation", [1, 2, 4, 7, 20])
def test_accumulate_subsample(generation, oversample):
  sizes = (NUM,) + (oversample * NUM,) * generation
  indices = next_dataset(sizes, "accumulate_subsample")
  assert indices.shape == (NUM,) and len(np.unique(indices)) == NUM
  # floor(N / (n + 1)) + 1 of each, what is too much cut from the newest.
  each = NUM // (generation + 1) + 1
  want = np.diff(np.minimum(each * np.arange(generation + 2), NUM))
  counts = np.bincount(source(indices, sizes), minlength=generation + 1)
  np.testing.assert_array_equal(counts, want)
  assert want.sum() == NUM and want[-1] <= each


def test_accumulate_subsample_is_uniform_within_a_source():
  sizes = (NUM, NUM)
  draw = functools.partial(
    collapse.next_dataset,
    sizes=sizes,
    num=NUM,
    paradigm="accumulate_subsample",
  )
  drawn = np.asarray(
    jax.jit(jax.vmap(lambda k: draw(k)))(jax.random.split(KEY, 4000))
  )
  counts = np.bincount(drawn.ravel(), minlength=24) / 4000
  # 7 of the real rows and 5 of the others; 5 standard errors of a frequency.
  want = np.repeat([7 / 12, 5 / 12], NUM)
  assert np.abs(counts - want).max() < 5 * (0.25 / 4000) ** 0.5


def test_fresh():
  # 9 real rows a set of 12, of 40: sets of 12, then 9 and 9 fresh ones.
  options = dict(fresh_share=0.75)
  sizes = (40, 24)
  indices = next_dataset(sizes, "fresh", **options)
  np.testing.assert_array_equal(indices[:9], np.arange(12, 21))
  assert np.all(source(indices[9:], sizes) == 1) and indices.shape == (NUM,)
  sizes = (40, 24, 24)
  indices = next_dataset(sizes, "fresh", **options)
  np.testing.assert_array_equal(indices[:9], np.arange(21, 30))
  assert np.all(source(indices[9:], sizes) == 2)
  assert len(np.unique(indices)) == NUM
  next_dataset((39, 24, 24, 24), "fresh", **options)
  with pytest.raises(ValueError, match="real must have 48 rows for 9 fresh"):
    next_dataset((40, 24, 24, 24, 24), "fresh", **options)


def test_candidates():
  sizes = (NUM, 24, 24)

  def among(sizes, paradigm, **options):
    return collapse.candidates(sizes, num=NUM, paradigm=paradigm, **options)

  np.testing.assert_array_equal(among(sizes, "replace"), np.arange(36, 60))
  for paradigm in ("accumulate", "accumulate_subsample"):
    np.testing.assert_array_equal(among(sizes, paradigm), np.arange(60))
  np.testing.assert_array_equal(
    among((30, 24, 24), "fresh", fresh_share=0.5),
    np.r_[18:24, 54:78],
  )


def test_real_rows_beyond_the_first_set_are_for_fresh_alone():
  sizes = (NUM + 5, NUM)
  want = np.r_[:NUM, NUM + 5 : 2 * NUM + 5]
  np.testing.assert_array_equal(next_dataset(sizes, "accumulate"), want)
  for seed in range(3):
    indices = next_dataset(
      sizes, "accumulate_subsample", key=jax.random.key(seed)
    )
    assert set(indices) < set(want)


def test_shares():
  labels = jnp.array([0, 0, 1, 1, 2, 2])
  share = collapse.share_of_real(jnp.array([0, 2, 3, 5]), labels)
  assert share == 0.25 and share.dtype == jnp.float32


# A model of one Gaussian, by moments.


def fit_normal(key, data, correction=0):
  del key
  return data.mean(0), data.var(0, ddof=correction)


def sample_normal(params, key, num):
  mean, variance = params
  noise = jax.random.normal(key, (num, *mean.shape), mean.dtype)
  return mean[None] + jnp.sqrt(variance)[None] * noise


def loop(paradigm="replace", **options):
  return collapse.self_consuming(
    **{
      "fit": fit_normal,
      "sample": sample_normal,
      "paradigm": paradigm,
      **options,
    }
  )


def real(num=NUM, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=(num, DIM)), jnp.float32)


@pytest.mark.parametrize("correction", [0, 1])
def test_a_gaussian_loop_loses_its_variance(correction):
  size, generations, chains = 10, 5, 40_000
  kernel = loop(fit=functools.partial(fit_normal, correction=correction))

  def chain(key):
    key_real, key = jax.random.split(key)
    state = kernel.init(jax.random.normal(key_real, (size, 1)))
    for _ in range(generations):
      state, info = kernel.step(key, state)
    return info.params[1][0]

  keys = jax.random.split(KEY, chains)
  variance = np.asarray(jax.jit(jax.vmap(chain))(keys), np.float64)

  def z_score(values, mean):
    return abs(values.mean() - mean) / (values.std() / chains**0.5)

  mean = 0.9**5
  log_mean = generations * (special.digamma((size - 1) / 2) + np.log(2 / size))
  assert abs(mean - 0.59049) < 1e-6 and abs(log_mean + 1.10283) < 1e-5
  z = z_score(variance, mean), z_score(np.log(variance), log_mean)
  if correction:  # of N - 1: no loss on average
    assert min(z) > 20
    assert z_score(variance, 1.0) < 5
  else:
    assert max(z) < 5


# Every paradigm through the loop.


def first(key, features):
  """Selects the first rows in the first feature's order."""
  del key
  return jnp.argsort(features[:, 0])[:NUM]


CASES = {
  "replace": dict(paradigm="replace"),
  "replace_more": dict(paradigm="replace", oversample=2),
  "accumulate": dict(paradigm="accumulate"),
  "subsample": dict(paradigm="accumulate_subsample", oversample=2),
  "fresh": dict(paradigm="fresh", num=NUM, fresh_share=0.25),
  "replace_selected": dict(paradigm="replace", oversample=2, selector=first),
  "accumulate_selected": dict(
    paradigm="accumulate", oversample=2, selector=first
  ),
}


def start(name):
  kernel = loop(**CASES[name])
  return kernel, kernel.init(real(30 if name == "fresh" else NUM))


def run(kernel, state, num, key=KEY):
  infos = []
  for _ in range(num):
    state, info = kernel.step(key, state)
    infos.append(info)
  return state, infos


def saved(state):
  """The state by way of bytes: arrays alone, and how many."""
  leaves, tree = jax.tree.flatten(state)
  file = io.BytesIO()
  np.savez(file, *leaves)
  file.seek(0)
  archive = np.load(file)
  return jax.tree.unflatten(
    tree, [jnp.asarray(archive[name]) for name in archive.files]
  )


@pytest.mark.parametrize("name", CASES)
def test_provenance_and_resume(name):
  kernel, state = start(name)
  size = NUM * CASES[name].get("oversample", 1)
  num_real = state.pool.shape[0]
  final, infos = run(kernel, state, 3)
  assert final.pool.shape == (num_real + 3 * size, DIM)
  np.testing.assert_array_equal(
    final.labels, np.repeat(np.arange(4), [num_real] + [size] * 3)
  )
  assert len(final.indices) == 4
  for generation, info in enumerate(infos, 1):
    # Each model is the fit to its set, and its samples are in the pool.
    data = final.pool[final.indices[generation - 1]]
    np.testing.assert_array_equal(data, collapse.dataset(final, generation))
    np.testing.assert_allclose(info.params[0], data.mean(0), atol=1e-6)
    np.testing.assert_array_equal(
      info.samples, final.pool[final.labels == generation]
    )
    labels = np.asarray(final.labels)[final.indices[generation]]
    np.testing.assert_allclose(info.share_of_real, np.mean(labels == 0))
    grows = name == "accumulate"
    assert len(labels) == (NUM * (generation + 1) if grows else NUM)
  # Cut after any generation and resumed, or run again: the same bits.
  for done in (0, 1, 2):
    half, _ = run(kernel, state, done)
    other, _ = start(name)
    again, _ = run(other, saved(half), 3 - done)
    jax.tree.map(np.testing.assert_array_equal, again, final)
  # Another key is another history.
  other, _ = run(kernel, state, 1, jax.random.key(1))
  assert np.any(other.pool[-size:] != infos[0].samples)


def test_keys_are_used_once():
  kernel, state = start("subsample")
  with jax.debug_key_reuse(True):
    run(kernel, state, 2, jax.random.key(7))


def test_each_paradigm_in_the_loop():
  shares = {}
  for name in CASES:
    _, infos = run(*start(name), 3)
    shares[name] = [float(info.share_of_real) for info in infos]
  assert shares["replace"] == shares["replace_selected"] == [0, 0, 0]
  np.testing.assert_allclose(shares["accumulate"], [1 / 2, 1 / 3, 1 / 4])
  # (12 // (n + 1) + 1) / 12.
  np.testing.assert_allclose(shares["subsample"], [7 / 12, 5 / 12, 4 / 12])
  np.testing.assert_allclose(shares["fresh"], [1 / 4] * 3)


def test_a_selector_sees_features_of_candidates_and_a_key():
  seen = []

  def selector(key, features):
    seen.append((jax.random.key_data(key), np.asarray(features)))
    return jnp.arange(NUM)[::-1] + 1

  def features(samples):
    return 2 * samples[:, :1]

  kernel = loop("accumulate", selector=selector, features=features, num_probe=3)
  state = kernel.init(real())
  np.testing.assert_array_equal(state.probe, 2 * state.pool[:3, :1])
  state, _ = run(kernel, state, 2)
  for generation, (_, given) in enumerate(seen, 1):
    np.testing.assert_array_equal(
      given, 2 * state.pool[: NUM * (generation + 1), :1]
    )
    np.testing.assert_array_equal(
      state.indices[generation], np.arange(NUM, 0, -1)
    )
  assert np.any(seen[0][0] != seen[1][0])


def test_a_feature_map_must_not_change():
  scale = {"now": 1.0}

  def features(samples):
    return scale["now"] * samples

  kernel = loop("accumulate", selector=first, features=features)
  state, _ = run(kernel, kernel.init(real()), 1)
  # Rounding passes, a map that was fitted again does not, nor another one.
  scale["now"] = 1 + 1e-6
  run(kernel, state, 1)
  scale["now"] = 1.01
  with pytest.raises(ValueError, match="features must be the same map"):
    kernel.step(KEY, state)
  other = loop(
    "accumulate", selector=first, features=lambda samples: samples[:, :1]
  )
  with pytest.raises(ValueError, match="features must be the same map"):
    other.step(KEY, state)


def test_a_state_of_another_loop():
  kernel, state = start("replace_more")
  state, _ = run(kernel, state, 1)
  for other in (
    loop("replace"),
    loop("replace", oversample=3),
    loop("replace", oversample=2, selector=first),
    loop("replace", oversample=2, num=NUM + 1),
  ):
    with pytest.raises(ValueError, match="state must come from a loop with"):
      other.step(KEY, state)
  # What fits by its shapes does not by its labels.
  kernel, state = start("fresh")
  state, _ = run(kernel, state, 1)
  other = loop(**{**CASES["fresh"], "oversample": 2})
  with pytest.raises(ValueError, match="state must come from a loop with"):
    other.step(KEY, state)


@pytest.mark.parametrize(
  ("error", "answer", "message"),
  [
    (ValueError, np.arange(NUM + 1), r"must have shape \[12\]"),
    (TypeError, np.arange(NUM) / 2, "must answer with integers"),
    (ValueError, np.arange(NUM) + 13, r"must lie in \[0, 24\), got values"),
    (ValueError, np.arange(NUM) - 1, r"must lie in \[0, 24\), got values"),
    (ValueError, np.arange(NUM) // 2, "must be distinct"),
  ],
)
def test_bad_selectors(error, answer, message):
  kernel = loop(oversample=2, selector=lambda key, features: answer)
  with pytest.raises(error, match=message):
    kernel.step(KEY, kernel.init(real()))


def test_bad_models():
  for answer, error, message in (
    (np.zeros((NUM, 1), np.float32), ValueError, "sample's answer must have"),
    (np.zeros((NUM, DIM), np.int32), TypeError, "dtype of the real rows"),
    (np.full((NUM, DIM), np.nan, np.float32), ValueError, "got 24 NaN"),
  ):
    kernel = loop(sample=lambda params, key, num, a=answer: a)
    with pytest.raises(error, match=message):
      kernel.step(KEY, kernel.init(real()))
  kernel = loop(selector=first, features=lambda x: jnp.log(x - x))
  with pytest.raises(ValueError, match="features' answer must be finite"):
    kernel.init(real())
  kernel = loop(selector=first, features=lambda x: x[:, 0])
  with pytest.raises(ValueError, match="features' answer must have shape"):
    kernel.init(real())


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(paradigm="mixed"), "paradigm must be one of"),
    (dict(fresh_share=0.5), "fresh_share must be given for paradigm='fresh'"),
    (dict(paradigm="fresh"), "fresh_share must be given for paradigm='fresh'"),
    (dict(paradigm="fresh", fresh_share=1.5), r"fresh_share must lie in"),
    (dict(oversample=0), "oversample must be >= 1"),
    (dict(features=lambda x: x), "features are for a selector"),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(ValueError, match=message):
    loop(**options)


def test_bad_calls():
  with pytest.raises(ValueError, match="num must be the number of real rows"):
    loop(num=NUM - 1).init(real())
  with pytest.raises(ValueError, match="num must be the number of real rows"):
    loop("fresh", num=NUM + 1, fresh_share=0.5).init(real())
  with pytest.raises(ValueError, match=r"real must have shape \[N, ...\]"):
    loop().init(jnp.ones(3))
  with pytest.raises(ValueError, match="real must be finite, got 24 NaN"):
    loop().init(jnp.nan * real())
  kernel, state = start("replace")
  with pytest.raises(TypeError, match="key must be a typed PRNG key"):
    kernel.step(jnp.zeros(2, jnp.uint32), state)
  with pytest.raises(ValueError, match="generation must be at most 1"):
    collapse.dataset(state, 2)
  with pytest.raises(ValueError, match="sizes must be those of 12 real rows"):
    next_dataset((NUM,), "replace")
  with pytest.raises(ValueError, match="every source must have the 12 rows"):
    next_dataset((NUM, 5), "replace")
  with pytest.raises(ValueError, match="one row at least, and leave one"):
    next_dataset((40, NUM), "fresh", fresh_share=0.01)
