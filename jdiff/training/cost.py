"""What a program costs, read from its jaxpr and its compiled text.

XLA's own count goes through the body of a loop once; here loops count as often
as they run.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)


class Products(NamedTuple):
  """Matrix products of a program, over all devices.

  Attributes:
    flops: Floating-point operations, two for each multiply and add.
    bytes: What they read and write, if each operand is read once a product.
    open_loops: Loops whose number of rounds is not known, counted once.
  """

  flops: float = 0.0
  bytes: float = 0.0
  open_loops: int = 0

  def times(self, number: int) -> "Products":
    """The same, repeated."""
    return Products(self.flops * number, self.bytes * number, self.open_loops)

  def plus(self, other: "Products") -> "Products":
    """One after the other."""
    return Products(
      self.flops + other.flops,
      self.bytes + other.bytes,
      self.open_loops + other.open_loops,
    )


class Collectives(NamedTuple):
  """Messages of one kind, in one run of a program.

  Attributes:
    number: How many, each as often as its loop goes round.
    sent: Bytes that each device sends, in a ring.
  """

  number: int
  sent: float


def products(jaxpr: Any) -> Products:
  """The matrix products of a jaxpr; of a branch, the dearer one's.

  Args:
    jaxpr: A `jax.core.ClosedJaxpr` or one without constants.
  """
  total = Products()
  for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
      total = total.plus(_dot(eqn))
    elif name == "conv_general_dilated":
      total = total.plus(_convolution(eqn))
    elif name == "scan":
      total = total.plus(products(params["jaxpr"]).times(params["length"]))
    elif name == "while":
      body = products(params["body_jaxpr"])
      unknown = int(body.flops > 0)
      total = total.plus(body._replace(open_loops=body.open_loops + unknown))
    elif name == "cond":
      total = total.plus(max(map(products, params["branches"])))
    elif name == "shard_map":
      # Inside, shapes are those of one device.
      total = total.plus(products(params["jaxpr"]).times(params["mesh"].size))
    else:
      for inner in _inner(params):
        total = total.plus(products(inner))
  return total


def collectives(text: str, num_devices: int) -> dict[str, Collectives]:
  """Messages of a compiled program, by kind.

  Args:
    text: HLO of one device, as `compiled.as_text()` answers it.
    num_devices: That run it.

  Returns:
    Only kinds that occur. A reduction that is scattered at once counts as the
    reduction it is compiled from.
  """
  computations = _computations(text)
  repeats = _repeats(computations)
  # An asynchronous message stands in several computations, on one channel.
  seen: dict[tuple[str, str], tuple[int, float]] = {}
  for name, lines in computations.items():
    number = repeats.get(name, 0)
    for i, line in enumerate(lines):
      found = _collective(line, num_devices)
      if found is None or not number:
        continue
      kind, size, group = found
      channel = re.search(r"channel_id=(\d+)", line)
      key = (kind, channel[1] if channel else f"{name}:{i}")
      sent = _sent(kind, size, group)
      before = seen.get(key, (0, 0.0))
      seen[key] = max(before, (number, sent * number))
  totals: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0.0])
  for (kind, _), (number, sent) in seen.items():
    totals[kind][0] += number
    totals[kind][1] += sent
  return {
    kind: Collectives(int(totals[kind][0]), totals[kind][1])
    for kind in KINDS
    if kind in totals
  }


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  """Jaxprs among an equation's parameters."""
  for value in params.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
        yield part


def _size(variable: Any) -> float:
  aval = variable.aval
  if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
    return 0.0
  return math.prod(aval.shape) * np.dtype(aval.dtype).itemsize


def _traffic(eqn: Any) -> float:
  return sum(map(_size, (*eqn.invars, *eqn.outvars)))


def _dot(eqn: Any) -> Products:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  left = eqn.invars[0].aval.shape
  depth = math.prod(left[axis] for axis in contracted)
  size = math.prod(eqn.outvars[0].aval.shape)
  return Products(2.0 * size * depth, _traffic(eqn))


def _convolution(eqn: Any) -> Products:
  numbers = eqn.params["dimension_numbers"]
  kernel = eqn.invars[1].aval.shape
  # All of the kernel but its output features goes into each output.
  depth = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
  # Of an input that is spread out, an output meets a part of the kernel.
  depth /= math.prod(eqn.params["lhs_dilation"])
  size = math.prod(eqn.outvars[0].aval.shape)
  return Products(2.0 * size * depth, _traffic(eqn))


_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "f8": 1}
_SHAPE = re.compile(r"\b(pred|[suf]\d+|bf16|c64|f8\w+)\[([\d,]*)\]")


def _shape_bytes(text: str) -> list[float]:
  """Bytes of every array type in the text."""
  sizes = []
  for kind, dims in _SHAPE.findall(text):
    bits = re.search(r"\d+", kind)
    width = _BYTES.get(kind[:2] if kind.startswith("f8") else kind)
    if width is None:
      width = int(bits[0]) / 8 if bits else 4
    number = math.prod(int(d) for d in dims.split(",") if d)
    sizes.append(number * width)
  return sizes


def _computations(text: str) -> dict[str, list[str]]:
  """Lines of every computation, the entry's under the name ENTRY."""
  found: dict[str, list[str]] = {}
  lines: list[str] = []
  for line in text.splitlines():
    head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
    if head and not line.startswith(" "):
      lines = found["ENTRY" if head[1] else head[2]] = []
    elif line.startswith(" "):
      lines.append(line)
  return found


def _repeats(computations: dict[str, list[str]]) -> dict[str, int]:
  """How often each computation runs in one run of the entry."""
  calls: dict[str, list[tuple[str, int]]] = {}
  for name, lines in computations.items():
    calls[name] = []
    for line in lines:
      loop = re.search(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", line)
      if loop:
        rounds = _rounds(line, computations.get(loop[1], []))
        calls[name].append((loop[2], rounds))
        continue
      for group in re.findall(
        r"(?:calls|to_apply|called_computations|branch_computations)="
        r"(\{[^}]*\}|%?[\w.\-]+)",
        line,
      ):
        for callee in re.findall(r"[\w.\-]+", group):
          calls[name].append((callee, 1))
  repeats: dict[str, int] = collections.defaultdict(int)

  def visit(name: str, number: int) -> None:
    repeats[name] += number
    for callee, rounds in calls.get(name, ()):
      visit(callee, number * rounds)

  visit("ENTRY", 1)
  return repeats


def _rounds(line: str, condition: list[str]) -> int:
  """Rounds of a loop: known to XLA, or the bound in its condition."""
  known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
  if known:
    return int(known[1])
  bounds = [
    int(n)
    for text in condition
    for n in re.findall(r"= s32\[\]\S* constant\((\d+)\)", text)
  ]
  return max(bounds, default=1)


def _collective(line: str, num_devices: int) -> tuple[str, float, int] | None:
  """`(kind, bytes of the result, devices in a group)` of a message."""
  found = re.search(
    rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line.split(", metadata=")[0]
  )
  if not found:
    return None
  sizes = _shape_bytes(found[1])
  if not sizes:
    return None
  # A start answers its operands too; what is gathered is the larger part.
  if found[3] and found[2] == "reduce-scatter":
    size = min(sizes)
  else:
    size = max(sizes) if found[3] else sum(sizes)
  return found[2], size, _group(line, num_devices)


def _group(line: str, num_devices: int) -> int:
  tiled = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
  if tiled:
    return int(tiled[1])
  listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
  if listed:
    return listed[1].count(",") + 1
  meshed = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line)
  if meshed:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", meshed[1]))
    named = re.findall(r"'(\w+)'", meshed[2])
    return math.prod(int(sizes[axis]) for axis in named)
  return num_devices


def _sent(kind: str, size: float, group: int) -> float:
  """Bytes that a device sends, of a result of that size."""
  share = (group - 1) / group
  return {
    "all-gather": size * share,
    "all-reduce": 2 * size * share,
    "reduce-scatter": size * (group - 1),
    "all-to-all": size * share,
    "collective-permute": size,
  }[kind]
