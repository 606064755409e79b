"""Three carriers of a user's reward: answers, refusals, and what is kept."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.core import reward

TOKENS = np.array([[0, 1, 2], [3, 4, 5], [0, 1, 2], [6, 7, 8]])
TOTAL = TOKENS.sum(axis=1)


class Spy:
  """Sums of tokens, and what was asked."""

  def __init__(self, answer=lambda rows: rows.sum(axis=1)):
    self.answer, self.asked = answer, []

  def __call__(self, rows):
    self.asked.append(np.array(rows))
    return self.answer(np.asarray(rows))


def two(rows):
  return rows[:, :2] * 1.0


def carriers(fn, **options):
  host = reward.HostReward(fn, **options)
  return {
    "jax": reward.JaxReward(fn, **options),
    "host": host,
    "callback": reward.CallbackReward(host),
  }


@pytest.mark.parametrize("name", ["jax", "host", "callback"])
@pytest.mark.parametrize("lead", [(4,), (2, 2), (), (1, 2, 2), (0,)])
def test_shapes(name, lead):
  tokens = np.resize(TOKENS, (*lead, 3)).astype(np.int32)
  single = carriers(lambda rows: rows.sum(axis=1))[name]
  assert single.num_objectives == 1
  column = single(tokens)
  assert column.dtype == np.float32 and column.shape == (*lead, 1)
  np.testing.assert_array_equal(column[..., 0], tokens.sum(axis=-1))
  vector = carriers(two, num_objectives=2)[name]
  assert vector.num_objectives == 2
  np.testing.assert_array_equal(vector(tokens), tokens[..., :2])
  # A column is an answer too, where there is one objective.
  column = carriers(lambda rows: rows[:, :1])[name]
  np.testing.assert_array_equal(column(tokens), tokens[..., :1])


@pytest.mark.parametrize("name", ["jax", "host"])
@pytest.mark.parametrize(
  "fn, num_objectives, message",
  [
    (lambda rows: rows.sum(), 1, r"answer \[4\] or \[4, 1\] for 4 .* got \[\]"),
    (lambda rows: rows[:3, 0], 1, r"answer \[4\] or \[4, 1\] .* got \[3\]"),
    (lambda rows: rows[:, :2], 1, r"answer \[4\] or \[4, 1\] .* got \[4, 2\]"),
    (lambda rows: rows[:, 0], 2, r"answer \[4, 2\] for 4 .* got \[4\]"),
    (lambda rows: rows[:, :2].T, 2, r"answer \[4, 2\] .* got \[2, 4\]"),
    # Four objectives of four sequences: a vector is still no matrix.
    (lambda rows: rows[:, 0], 4, r"answer \[4, 4\] .* got \[4\]"),
  ],
)
def test_wrong_shapes(name, fn, num_objectives, message):
  tokens = np.unique(np.arange(12).reshape(4, 3), axis=0)
  carrier = carriers(fn, num_objectives=num_objectives)[name]
  with pytest.raises(ValueError, match=f"the reward must {message}"):
    carrier(tokens)


@pytest.mark.parametrize(
  "answer", [["a"] * 3, [{}] * 3, [object()] * 3, [[1], [1, 2], [1]]]
)
def test_answers_that_are_no_numbers(answer):
  host = reward.HostReward(lambda rows: answer)
  with pytest.raises(ValueError, match="the reward must answer one number, or"):
    host(TOKENS)


def test_none_is_nan():
  host = reward.HostReward(lambda rows: [1.0, None, 2.0])
  np.testing.assert_array_equal(host(TOKENS)[:, 0], [1, np.nan, 1, 2])


def test_each_sequence_is_asked_for_once():
  spy = Spy()
  host = reward.HostReward(spy)
  np.testing.assert_array_equal(host(TOKENS)[:, 0], TOTAL)
  assert host.num_calls == 3 and len(spy.asked) == 1
  # In the order in which they first came, as int32.
  np.testing.assert_array_equal(spy.asked[0], TOKENS[[0, 1, 3]])
  assert spy.asked[0].dtype == np.int32
  more = np.concatenate([TOKENS + 1, TOKENS])
  np.testing.assert_array_equal(host(more)[:, 0], more.sum(axis=1))
  assert host.num_calls == 6
  np.testing.assert_array_equal(spy.asked[1], TOKENS[[0, 1, 3]] + 1)
  host(more)
  assert host.num_calls == 6 and len(spy.asked) == 2
  # Other lengths are other sequences, though their bytes begin the same.
  assert host(TOKENS[:, :2])[0, 0] == 1 and host.num_calls == 9


def test_without_a_cache():
  spy = Spy()
  host = reward.HostReward(spy, cache=False)
  for turn in (1, 2):
    np.testing.assert_array_equal(host(TOKENS)[:, 0], TOTAL)
    # Copies within one call are still asked for once.
    assert host.num_calls == 3 * turn and len(spy.asked) == turn


def test_batches_and_progress():
  spy, seen = Spy(), []
  host = reward.HostReward(
    spy, batch_size=2, progress=lambda done, total: seen.append((done, total))
  )
  tokens = np.arange(15).reshape(5, 3)
  np.testing.assert_array_equal(host(tokens)[:, 0], tokens.sum(axis=1))
  assert [len(rows) for rows in spy.asked] == [2, 2, 1]
  np.testing.assert_array_equal(np.concatenate(spy.asked), tokens)
  assert seen == [(2, 5), (4, 5), (5, 5)]
  host(tokens)
  assert len(seen) == 3  # Nothing to do: nothing to report.


def test_decode():
  asked = []

  def fn(words):
    asked.extend(words)
    return [len(set(w)) for w in words]

  def decode(tokens):
    return ["".join("abcdefghi"[i] for i in row) for row in tokens]

  host = reward.HostReward(fn, decode=decode)
  np.testing.assert_array_equal(host(TOKENS)[:, 0], 3)
  assert asked == ["abc", "def", "ghi"]
  short = reward.HostReward(fn, decode=lambda tokens: ["a"])
  with pytest.raises(ValueError, match="decode must answer .* 3 rows, got 1"):
    short(TOKENS)


def test_nan_is_kept_and_infinity_refused():
  host = reward.HostReward(lambda rows: np.where(rows == 3, np.nan, rows)[:, 0])
  for _ in range(2):
    np.testing.assert_array_equal(host(TOKENS)[:, 0], [0, np.nan, 0, 6])
  assert host.num_calls == 3  # A NaN is an answer, and is not asked for again.
  for bad in (np.inf, -np.inf):
    host = reward.HostReward(lambda rows, bad=bad: [0.0, bad, 0.0])
    with pytest.raises(ValueError, match=r"finite, or NaN .*inf\].*3, 4, 5"):
      host(TOKENS)
    host.decode = lambda tokens: [f"word {row[0]}" for row in tokens]
    with pytest.raises(ValueError, match="'word 3'"):
      host(TOKENS)
  pair = reward.HostReward(
    lambda rows: [[0, np.nan], [np.nan, 1], [1, 1]], num_objectives=2
  )
  want = [[0, np.nan], [np.nan, 1], [0, np.nan], [1, 1]]
  np.testing.assert_array_equal(pair(TOKENS), want)


def stumble(rows):
  """Raises on the sequence that begins with 6."""
  rows = np.asarray(rows)
  if (rows[:, 0] == 6).any():
    raise KeyError("six")
  return rows.sum(axis=1)


def test_an_exception_names_its_sequence():
  host = reward.HostReward(stumble)
  with pytest.raises(
    reward.RewardError, match=r"raised KeyError on \[6, 7, 8\].*answer NaN"
  ) as caught:
    host(TOKENS)
  assert caught.value.sequence == [6, 7, 8]
  assert isinstance(caught.value.__cause__, KeyError)
  # What the rest is worth is kept: the others are not asked for again.
  spy = Spy()
  host.fn = spy
  np.testing.assert_array_equal(host(TOKENS)[:, 0], TOTAL)
  np.testing.assert_array_equal(spy.asked, [TOKENS[3:]])
  # The same where sequences are decoded: then it is the decoded one.
  words = reward.HostReward(
    lambda words: [{"a0": 0.0, "a3": 1.0}[w] for w in words],
    decode=lambda tokens: [f"a{row[0]}" for row in tokens],
  )
  with pytest.raises(reward.RewardError, match="KeyError on 'a6'") as caught:
    words(TOKENS)
  assert caught.value.sequence == "a6"


def test_what_other_batches_answered_is_kept_too():
  tokens = np.arange(18).reshape(6, 3)
  host = reward.HostReward(stumble, batch_size=1)
  with pytest.raises(reward.RewardError):
    host(tokens)
  before = host.num_calls
  spy = Spy()
  host.fn, host.batch_size = spy, 8
  np.testing.assert_array_equal(host(tokens)[:, 0], tokens.sum(axis=1))
  # The two before it were answered; each is asked for once in all.
  assert before >= 2 and host.num_calls == 6
  assert [6, 7, 8] in spy.asked[0].tolist()
  assert [0, 1, 2] not in spy.asked[0].tolist()


def test_an_exception_of_the_batch_alone():
  def fn(rows):
    if len(rows) > 1:
      raise MemoryError("too many")
    return rows.sum(axis=1)

  host = reward.HostReward(fn)
  with pytest.raises(
    reward.RewardError, match="batch of 3 .* none of them alone: too many"
  ) as caught:
    host(TOKENS)
  assert caught.value.sequence is None
  # Each alone was answered, and kept.
  np.testing.assert_array_equal(host(TOKENS)[:, 0], TOTAL)
  assert host.num_calls == 3


def test_a_trace_has_no_values():
  host = reward.HostReward(lambda rows: rows.sum(axis=1))
  for transform in (jax.jit, jax.vmap):
    with pytest.raises(TypeError, match="traced array; wrap .* CallbackReward"):
      transform(host)(jnp.asarray(TOKENS))


def test_callback_has_one_host_call_a_batch():
  spy = Spy()
  carrier = reward.CallbackReward(reward.HostReward(spy, cache=False))
  one = jax.jit(carrier)
  np.testing.assert_array_equal(one(TOKENS)[:, 0], TOTAL)
  assert len(spy.asked) == 1
  tokens = np.arange(24).reshape(2, 4, 3)
  for many in (
    jax.jit(jax.vmap(carrier)),
    jax.jit(jax.vmap(jax.vmap(carrier))),
  ):
    spy.asked.clear()
    got = np.asarray(many(tokens))
    assert got.shape == (2, 4, 1)
    np.testing.assert_array_equal(got[..., 0], tokens.sum(axis=-1))
    assert [rows.shape for rows in spy.asked] == [(8, 3)]
  # Inside a loop, once a turn.
  spy.asked.clear()
  turns = jax.lax.scan(lambda c, t: (c, carrier(t)), 0, jnp.asarray(tokens))[1]
  np.testing.assert_array_equal(turns[..., 0], tokens.sum(axis=-1))
  assert len(spy.asked) == 2


def test_callback_errors_carry_the_rewards_text():
  carrier = jax.jit(reward.CallbackReward(reward.HostReward(stumble)))
  with pytest.raises(Exception, match=r"KeyError on \[6, 7, 8\]"):
    jax.block_until_ready(carrier(TOKENS))


def test_callback_keeps_its_hosts_cache():
  host = reward.HostReward(lambda rows: rows.sum(axis=1))
  carrier = jax.jit(reward.CallbackReward(host))
  for _ in range(2):
    jax.block_until_ready(carrier(TOKENS))
  assert host.num_calls == 3


def test_jax_reward_is_traced_once():
  carrier = reward.JaxReward(
    chex.assert_max_traces(lambda rows: rows.sum(axis=1) / 2, n=1)
  )
  jitted = jax.jit(carrier)
  for _ in range(2):
    np.testing.assert_array_equal(jitted(TOKENS)[:, 0], TOTAL / 2)
  invalid = reward.JaxReward(
    lambda rows: jnp.where(rows == 3, jnp.nan, 1)[:, 0]
  )
  np.testing.assert_array_equal(invalid(TOKENS)[:, 0], [1, np.nan, 1, 1])


@pytest.mark.parametrize(
  "call, error, message",
  [
    (lambda: reward.JaxReward(two, num_objectives=0), ValueError, "objectives"),
    (
      lambda: reward.HostReward(two, num_objectives=1.5),
      TypeError,
      "num_objectives must be an integer",
    ),
    (
      lambda: reward.HostReward(two, batch_size=0),
      ValueError,
      "batch_size must be >= 1",
    ),
    (
      lambda: reward.CallbackReward(two),
      TypeError,
      "host must be a HostReward, got function",
    ),
  ],
)
def test_bad_arguments(call, error, message):
  with pytest.raises(error, match=message):
    call()
