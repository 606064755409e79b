"""Costs of programs against what can be counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jdiff.training import cost


def count(function, *shapes):
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return cost.products(jax.make_jaxpr(function)(*args))


def test_a_product_counts_two_a_multiply():
  found = count(lambda x, w: x @ w, (3, 5), (5, 7))
  assert found.flops == 2 * 3 * 5 * 7
  assert found.bytes == 4 * (3 * 5 + 5 * 7 + 3 * 7)
  batched = count(
    lambda x, w: jnp.einsum("bij,bjk->bik", x, w), (4, 3, 5), (4, 5, 7)
  )
  assert batched.flops == 4 * 2 * 3 * 5 * 7


def test_loops_count_as_often_as_they_run():
  def scanned(x, ws):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0]

  one = count(lambda x, w: x @ w, (3, 5), (5, 5))
  found = count(scanned, (3, 5), (11, 5, 5))
  assert found.flops == 11 * one.flops
  nested = count(
    lambda x, ws: jax.lax.fori_loop(0, 4, lambda i, x: scanned(x, ws), x),
    (3, 5),
    (11, 5, 5),
  )
  assert nested.flops == 4 * 11 * one.flops
  assert nested.open_loops == 0


def test_a_loop_of_unknown_length_is_told():
  def open_loop(x, w):
    return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)

  found = count(open_loop, (5, 5), (5, 5))
  assert found.open_loops == 1
  assert found.flops == 2 * 5**3


def test_gradients_and_recomputation_are_counted():
  def loss(w, x):
    return jnp.sum(jnp.tanh(x @ w) @ w)

  plain = count(jax.grad(loss), (5, 5), (3, 5)).flops
  again = count(jax.grad(jax.checkpoint(loss)), (5, 5), (3, 5)).flops
  product = 2 * 3 * 5 * 5
  # Forward: one product, as the last one's value is not needed; backward: two
  # for each use of w, less the input's. Recomputed, the first comes again.
  assert plain % product == 0
  assert again == plain + product


def test_of_branches_the_dearer_counts():
  def branch(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

  assert count(branch, (5, 5), (5, 5)).flops == 2 * 2 * 5**3


def test_convolutions():
  def convolve(x, k):
    return jax.lax.conv_general_dilated(
      x, k, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )

  # Border sites count as inner ones.
  assert count(convolve, (2, 10, 3), (5, 3, 7)).flops == 2 * 2 * 10 * 7 * 5 * 3


def test_one_devices_share_counts_for_all():
  mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
  split = jax.shard_map(
    lambda x, w: x @ w, mesh=mesh, in_specs=(P("x"), P()), out_specs=P("x")
  )
  assert count(split, (16, 5), (5, 7)).flops == 2 * 16 * 5 * 7


def test_messages_of_a_compiled_program():
  mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
  cols = NamedSharding(mesh, P())

  def loop(x, ws):
    def body(x, w):
      # The contracted axis is split, so each round sums over devices.
      y = jnp.einsum("ij,jk->ik", x, w)
      return jax.lax.with_sharding_constraint(jnp.tanh(y), cols), None

    return jax.lax.scan(body, x, ws)[0]

  x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=cols)
  ws = jax.ShapeDtypeStruct(
    (6, 64, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, "x", None))
  )
  text = jax.jit(loop, out_shardings=cols).lower(x, ws).compile().as_text()
  found = cost.collectives(text, 8)
  size = 16 * 64 * 4
  assert found["all-reduce"].number == 6
  assert found["all-reduce"].sent == pytest.approx(6 * 2 * size * 7 / 8)


_GATHER = (
  "all-gather(%q), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}"
)
_SCATTER = (
  "reduce-scatter-start(%x), channel_id=4, "
  "replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}"
)
_SUM = (
  "all-reduce(%z), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}, "
  "to_apply=%add"
)
HLO = f"""
HloModule jit_f

%cond (p: (s32[], bf16[8])) -> pred[] {{
  %n = s32[]{{:T(128)}} constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}}

%gather (q: bf16[4,8]) -> bf16[16,8] {{
  %ag.1 = bf16[16,8]{{1,0}} {_GATHER}
}}

%gather.done (q: bf16[4,8]) -> bf16[16,8] {{
  %ag.2 = bf16[16,8]{{1,0}} {_GATHER}
}}

%body (p: (s32[], bf16[8])) -> (s32[], bf16[8]) {{
  %start = bf16[16,8]{{1,0}} fusion(%a), kind=kCustom, calls=%gather
  %done = bf16[16,8]{{1,0}} fusion(%a), kind=kCustom, calls=%gather.done
  %rs = ((f32[64]), f32[16]) {_SCATTER}
}}

ENTRY %main (a: bf16[8]) -> bf16[8] {{
  %w = (s32[], bf16[8]) while(%t), condition=%cond, body=%body
  %ar = f32[10] {_SUM}
  %cp = bf16[32]{{0}} collective-permute(%y), channel_id=8
}}
"""


def test_messages_of_other_forms():
  found = cost.collectives(HLO, 8)
  assert found["all-gather"].number == 5  # one channel in two computations
  assert found["all-gather"].sent == 5 * 16 * 8 * 2 * 3 / 4
  assert found["reduce-scatter"].number == 5
  assert found["reduce-scatter"].sent == 5 * 16 * 4 * 3
  assert found["all-reduce"].sent == 2 * 10 * 4 * 3 / 4
  assert found["collective-permute"].sent == 32 * 2
  # A bound that XLA knows beats the one in the condition.
  known = HLO.replace(
    "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
  )
  assert cost.collectives(known, 8)["all-gather"].number == 7
  assert "all-to-all" not in found
  assert np.isfinite([c.sent for c in found.values()]).all()
