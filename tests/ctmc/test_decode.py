"""The block sampler against a plain loop and enumerated laws."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import ctmc
from jdiff.core import keys as keys_lib
from jdiff.ctmc import commit
from jdiff.targets import enumerate as enumerate_lib
from tests import helpers
from tests.ctmc.decoding import decode, jit, softmax, traced

KEY = jax.random.key(0)
# A table network: free logits for every partial sequence.
LENGTH, VOCAB = 6, 3
LOGITS = helpers.table_logits(LENGTH, VOCAB)
TABLE = helpers.random_table(0, LENGTH, VOCAB, scale=2.0)
PROMPTS = jnp.asarray(np.random.default_rng(1).integers(0, VOCAB, (16, 2)))


def table_decode(prompt=PROMPTS, key=KEY, **options):
  options = dict(
    logits_fn=LOGITS, length=LENGTH, mask_id=VOCAB, temperature=0.0
  ) | dict(options)
  return jax.device_get(decode(TABLE, key, prompt, **options))


def table_logits_of(tokens):
  radix = (VOCAB + 1) ** np.arange(LENGTH)[::-1]
  return np.asarray(TABLE, np.float64)[tokens @ radix]


def reference(prompt, block_size, num_steps, guidance=0.0, rule=None):
  """The published greedy loop for one row, in NumPy float64."""
  num_prompt = len(prompt)
  tokens = np.concatenate([prompt, np.full(LENGTH - num_prompt, VOCAB)])
  num_blocks = (LENGTH - num_prompt) // block_size
  when, sure, step = -np.ones(LENGTH, int), np.zeros(LENGTH), 0
  for block in range(num_blocks):
    first = num_prompt + block * block_size
    base, more = divmod(block_size, num_steps // num_blocks)
    for i in range(num_steps // num_blocks):
      if not (tokens[first : first + block_size] == VOCAB).any():
        break
      logits = table_logits_of(tokens)
      if guidance:
        blind = np.where(np.arange(LENGTH) < num_prompt, VOCAB, tokens)
        free = table_logits_of(blind)
        logits = free + (guidance + 1) * (logits - free)
      values = logits.argmax(axis=1)
      confidence = softmax(logits).max(axis=1)
      open_sites = [
        s for s in range(first, first + block_size) if tokens[s] == VOCAB
      ]
      ranked = sorted(open_sites, key=lambda s: (-confidence[s], s))
      count = base + (i < more)
      if rule:
        count = max(count, rule(confidence[ranked]))
      for site in ranked[:count]:
        tokens[site], when[site] = values[site], step
        sure[site] = confidence[site]
      step += 1
  return tokens, when[num_prompt:], sure[num_prompt:], step


def by_factor(confidence, factor=0.8):
  holds = [
    n
    for n in range(1, len(confidence) + 1)
    if confidence[n - 1] >= 1 - factor / (n + 1)
  ]
  return max(holds, default=0)


@pytest.mark.parametrize(
  "options, rule",
  [
    (dict(block_size=4, num_steps=3), None),
    (dict(block_size=2, num_steps=4, guidance=1.5), None),
    (dict(threshold=0.6), lambda c: (c > 0.6).sum()),
    (dict(block_size=2, factor=0.8), by_factor),
    (dict(num_steps=3, factor=0.8), by_factor),
  ],
)
def test_greedy_is_the_published_loop(options, rule):
  got = table_decode(**options)
  for row, prompt in enumerate(np.asarray(PROMPTS)):
    tokens, when, sure, steps = reference(
      prompt,
      options.get("block_size", 4),
      options.get("num_steps", 4),
      options.get("guidance", 0.0),
      rule,
    )
    np.testing.assert_array_equal(got.samples[row], tokens)
    np.testing.assert_array_equal(got.commit_step[row], when)
    # float32 against float64, guided logits of a few tens.
    np.testing.assert_allclose(got.confidence[row], sure, rtol=1e-4)
    assert got.nfe[row] == steps * (2 if "guidance" in options else 1)
  np.testing.assert_array_equal(got.num_token_forwards, LENGTH * got.nfe)
  assert (got.log_policy == 0).all()
  if rule:
    # Rows go their own way, and do so in parallel.
    assert len(np.unique(got.nfe)) > 1 and got.nfe.max() <= 4


def test_schedule_of_counts():
  np.testing.assert_array_equal(commit.schedule(7, 3), [3, 2, 2])
  np.testing.assert_array_equal(commit.schedule(4, 4), [1, 1, 1, 1])
  got = table_decode(prompt=None, num_samples=2, num_steps=4)
  assert [(got.commit_step[0] == k).sum() for k in range(4)] == [2, 2, 1, 1]


def test_ties_go_to_the_lowest_index():
  score = jnp.array([[0.5, 0.7, 0.5, 0.7, 0.5]])
  masked = jnp.array([[True, True, True, True, False]])
  now = commit.top(score, masked, jnp.array([3]))
  np.testing.assert_array_equal(now, [[True, True, False, True, False]])
  now = commit.top(jnp.zeros((1, 3)), jnp.ones((1, 3), bool), jnp.array([5]))
  assert now.all()


# Laws, on sequences that can be enumerated.
SMALL, NUM = 3, 40_000
SMALL_LOGITS = helpers.table_logits(SMALL, 2)
SMALL_TABLE = helpers.random_table(3, SMALL, 2, scale=1.5)
STATES = enumerate_lib.enumerate_states(SMALL, 2)


@functools.cache
def small_decode(order):
  options = dict(logits_fn=SMALL_LOGITS, length=SMALL, mask_id=2, order=order)
  return jax.device_get(
    decode(SMALL_TABLE, KEY, None, num_samples=NUM, **options)
  )


def total_variation(samples, probs):
  codes = samples @ (2 ** np.arange(samples.shape[1])[::-1])
  share = np.bincount(codes, minlength=len(probs)) / len(samples)
  return 0.5 * np.abs(share - probs).sum()


def ceiling(probs):
  # TV of n draws: each |share - p| has mean sqrt(2 p (1 - p) / (pi n)) and
  # their half-sum varies by at most sqrt(1 / (4 n)) (bounded differences), so
  # five of those deviations above the mean.
  floor = 0.5 * np.sqrt(2 * probs * (1 - probs) / (np.pi * NUM)).sum()
  return floor + 5 * (1 / (4 * NUM)) ** 0.5


def order_law(orders):
  """The mean over orders of the paths' probabilities; two tokens."""
  paths = [
    helpers.path_prob(SMALL_TABLE, STATES, [[s] for s in order], 2)
    for order in orders
  ]
  return np.mean(paths, axis=0)


ANY_ORDER = order_law(list(itertools.permutations(range(SMALL))))
LEFT_TO_RIGHT = order_law([range(SMALL)])


def confidence_law():
  """The law of confidence order, by enumerating every draw of every step."""
  table = np.asarray(SMALL_TABLE, np.float64)
  radix = 3 ** np.arange(SMALL)[::-1]
  law = {(2,) * SMALL: 1.0}
  for _ in range(SMALL):
    after = {}
    for state, mass in law.items():
      probs = softmax(table[np.array(state) @ radix])
      sites = [s for s in range(SMALL) if state[s] == 2]
      for values in itertools.product(range(2), repeat=len(sites)):
        sure = [probs[s, v] for s, v in zip(sites, values, strict=True)]
        best = int(np.argmax(sure))
        new = list(state)
        new[sites[best]] = values[best]
        new = tuple(new)
        after[new] = after.get(new, 0.0) + mass * np.prod(sure)
    law = after
  return np.array([law[tuple(s)] for s in STATES.tolist()])


def test_random_order_is_the_any_order_law():
  samples = small_decode("random").samples
  assert total_variation(samples, ANY_ORDER) < ceiling(ANY_ORDER)
  # The controls: left to right, and by confidence, are other laws.
  for other in (LEFT_TO_RIGHT, confidence_law()):
    assert total_variation(samples, other) > 2 * ceiling(other)


def test_random_order_has_the_paths_probability():
  got = small_decode("random")
  order = np.argsort(got.commit_step, axis=1)
  for path in itertools.permutations(range(SMALL)):
    rows = (order == path).all(axis=1)
    want = helpers.path_prob(
      SMALL_TABLE, got.samples[rows], [[s] for s in path], 2
    )
    np.testing.assert_allclose(got.log_policy[rows], np.log(want), atol=1e-5)
    # Five standard deviations of a share of one in six.
    np.testing.assert_allclose(rows.mean(), 1 / 6, atol=5 * 0.373 / NUM**0.5)


def test_confidence_order_is_its_own_law():
  probs = confidence_law()
  np.testing.assert_allclose(probs.sum(), 1, rtol=1e-12)
  samples = small_decode("confidence").samples
  assert total_variation(samples, probs) < ceiling(probs)
  assert total_variation(samples, ANY_ORDER) > 2 * ceiling(probs)


@pytest.mark.parametrize(
  "temperature, guidance, min_p",
  [(0.5, 0.0, 0.0), (1.0, -0.5, 0.0), (2.0, 0.0, 0.6), (0.7, 0.8, 0.6)],
)
def test_law_of_one_step(temperature, guidance, min_p):
  # One step draws the product of the sites' laws: two sites behind a prompt.
  got = jax.device_get(
    traced(
      SMALL_TABLE,
      KEY,
      jnp.array([1]),
      logits_fn=SMALL_LOGITS,
      num_samples=NUM,
      length=SMALL,
      mask_id=2,
      num_steps=1,
      temperature=temperature,
      guidance=guidance,
      min_p=min_p,
    )
  )
  table = np.asarray(SMALL_TABLE, np.float64)
  logits, free = table[9 + 6 + 2, 1:], table[18 + 6 + 2, 1:]
  logits = free + (1 + guidance) * (logits - free)
  probs = softmax(logits / temperature)
  kept = probs >= min_p * probs.max(axis=1, keepdims=True)
  assert kept.all() != (min_p > 0)
  probs = np.where(kept, probs, 0)
  probs = probs / probs.sum(axis=1, keepdims=True)
  want = np.outer(probs[0], probs[1]).ravel()
  drawn = got.samples[:, 1:]
  assert total_variation(drawn, want) < ceiling(want)
  exact = probs[0, drawn[:, 0]] * probs[1, drawn[:, 1]]
  np.testing.assert_allclose(np.exp(got.log_policy), exact, rtol=1e-4)
  clean = softmax(logits)[np.arange(2)[None], drawn]
  np.testing.assert_allclose(got.confidence, clean, rtol=1e-4)


def test_infinite_logits_survive_guidance():
  given = jnp.array([[[0.0, -jnp.inf, 1.0]], [[0.5, -jnp.inf, -jnp.inf]]])
  guided = commit.guide(given, 2.0)
  np.testing.assert_array_equal(guided, [[[-1.0, -jnp.inf, 1.0]]])


# End of text; token 0 plays it.
EOS = dict(eos_id=0, block_size=2)


def test_end_of_text_can_be_forbidden_or_put_off():
  free, never, last = (
    table_decode(**EOS, **more)
    for more in ({}, dict(forbid_eos=True), dict(defer_eos=True))
  )
  assert (free.samples[:, 2:] == 0).any() and (never.samples[:, 2:] > 0).all()
  # Greedy, in a block of two: where the first commit is an end of text, so
  # was the other site's draw, and its confidence is reported as it was.
  table = table_logits_of(np.pad(PROMPTS, ((0, 0), (0, 4)), constant_values=3))
  probs = softmax(table[:, 2:4])
  values, sure = probs.argmax(axis=-1), probs.max(axis=-1)
  ranked = np.where(values == 0, 0, sure).argmax(axis=1)
  assert (ranked != sure.argmax(axis=1)).any()
  rows = np.arange(len(ranked))
  assert (last.commit_step[rows, ranked] == 0).all()
  np.testing.assert_allclose(
    last.confidence[rows, ranked], sure[rows, ranked], rtol=1e-4
  )


def test_stopping_changes_nothing_before_the_end():
  go, stop = table_decode(**EOS), table_decode(**EOS, stop_at_eos=True)
  filled = stop.commit_step < 0
  assert filled.any() and (stop.samples[:, 2:][filled] == 0).all()
  for name in ("samples", "commit_step", "confidence"):
    a, b = getattr(go, name)[:, -4:], getattr(stop, name)[:, -4:]
    np.testing.assert_array_equal(a[~filled], b[~filled])
  assert (stop.confidence[filled] == 0).all()
  for row in range(len(filled)):
    ends = np.flatnonzero(go.samples[row, 2:] == 0)
    # The first step after which an end of text has nothing open before it.
    done = [go.commit_step[row, : e + 1].max() for e in ends]
    last = min(done, default=3)
    np.testing.assert_array_equal(filled[row], go.commit_step[row] > last)
    assert stop.nfe[row] == last + 1


def test_a_row_draws_from_its_own_key():
  keys = keys_lib.per_example(KEY, NUM)
  options = dict(logits_fn=SMALL_LOGITS, length=SMALL, mask_id=2)
  alone = decode(SMALL_TABLE, keys[5:6], None, num_samples=1, **options)
  whole = small_decode("confidence")
  np.testing.assert_array_equal(alone.samples[0], whole.samples[5])
  np.testing.assert_array_equal(alone.commit_step[0], whole.commit_step[5])
  np.testing.assert_allclose(alone.log_policy[0], whole.log_policy[5], 1e-5)


def test_time_keys_and_a_mask_inside_the_vocabulary():
  seen = []

  def spy(params, tokens, t, sites=None):
    jax.debug.callback(lambda m, s: seen.append((m, s)), tokens == 1, t)
    num = tokens.shape[1] if sites is None else len(sites)
    return jnp.zeros((tokens.shape[0], num, 3)) + params

  options = dict(logits_fn=spy, num_samples=99, mask_id=1, order="random")
  prompt = jnp.array([2, 0])
  with jax.debug_key_reuse(True):
    got = jit(lambda p: ctmc.decode(p, KEY, prompt, length=6, **options))(
      jnp.float32(0)
    )
  # Its logit cannot be looked at under a trace; it is never drawn all the same.
  assert sorted(np.unique(got.samples)) == [0, 2]
  np.testing.assert_allclose(got.log_policy, -4 * np.log(2), rtol=1e-6)
  with pytest.raises(ValueError, match="its logit is finite"):
    ctmc.decode(jnp.float32(0), KEY, prompt, length=6, **options)
  jax.effects_barrier()
  shares = [
    np.mean(masked[:, 2:], axis=1) for masked, _ in seen if len(masked) > 1
  ]
  times = [t for masked, t in seen if len(masked) > 1]
  np.testing.assert_allclose(times, shares, rtol=1e-6)
  np.testing.assert_allclose(np.mean(shares, axis=1), [1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(length=2), "the prompt fills the canvas of length 2"),
    (dict(length=1), "prompt must fit the canvas of length 1"),
    (dict(block_size=3), "block_size must divide the completion of 4"),
    (dict(block_size=1, num_steps=2), "num_steps must be a multiple of the 4"),
    (dict(block_size=2, num_steps=3), "num_steps must be a multiple of the 2"),
    (dict(num_steps=5), "at most the 4 sites"),
    (dict(prompt=jnp.full((16, 2), VOCAB)), "prompt must hold no mask id"),
    (dict(prompt=jnp.zeros(2, jnp.int32)), "num_samples must be given"),
    (dict(prompt=jnp.zeros((2, 2, 2))), r"prompt must have shape \[P\]"),
    (dict(num_samples=3), "prompt must have shape"),
    (dict(cache="dual"), "cache='dual' needs cached_fn"),
    (dict(cache="dual", cached_fn=LOGITS), "cache='dual' needs init_cache"),
    (dict(cache="both"), "cache must be None, 'prefix' or 'dual'"),
    (dict(threshold=0.5, factor=1.0), "exclude each other"),
    (dict(threshold=-0.5), "threshold must be >= 0"),
    (dict(threshold=0.5, order="random"), "threshold needs order='confidence'"),
    (dict(order="left"), "order must be 'confidence' or 'random'"),
    (dict(temperature=-1.0), "temperature must be >= 0"),
    (dict(min_p=1.0), r"min_p must lie in \[0, 1\)"),
    (dict(min_p=-0.1), r"min_p must lie in \[0, 1\)"),
    (dict(guidance=1.0, prompt=None, num_samples=2), "needs a prompt"),
    (dict(stop_at_eos=True), "stop_at_eos needs eos_id"),
    (dict(eos_id=VOCAB), "eos_id must differ from mask_id"),
    (dict(eos_id=0, forbid_eos=True, defer_eos=True), "excludes defer_eos"),
    (
      dict(logits_fn=lambda p, x, t, sites=None: LOGITS(p, x, t)),
      "the network's answer must have shape",
    ),
  ],
)
def test_bad_arguments(options, message):
  options = dict(logits_fn=LOGITS, length=LENGTH, mask_id=VOCAB) | options
  prompt = options.pop("prompt", PROMPTS)
  with pytest.raises(ValueError, match=message):
    ctmc.decode(TABLE, KEY, prompt, **options)
