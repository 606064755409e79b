"""Tensors of LLaDA checkpoints to parameters of `nets.llada`, and back.

Released checkpoints are folders of safetensors files with the names of a
PyTorch module, whose linear maps are `[out, in]`; here they are `[in, out]`
and the layers are stacked. Names and shapes of all tensors are checked before
any is read, and each device gets its own part alone, so that no host ever holds
a whole model. Needs the package `safetensors` (extra `llada`).
"""

import contextlib
import functools
import importlib
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike

from jdiff.core import checks
from jdiff.core.types import Params
from jdiff.nets import llada, lora

Slices = tuple[slice, ...]
Read = Callable[[str, Slices], np.ndarray]
"""`(name, slices) -> array`: a part of a tensor as it is stored."""


_ROOT = "model.transformer."
_LINEAR = {
  "q_proj": "query",
  "k_proj": "key",
  "v_proj": "value",
  "attn_out": "out",
  "ff_proj": "gate",  # the side of the silu
  "up_proj": "up",
  "ff_out": "down",
}
_NORMS = {"attn_norm": "attention_norm", "ff_norm": "mlp_norm"}
_ENDS = {
  "wte": (("embed", "embedding"), False),
  "ln_f": (("norm", "scale"), False),
  # The head shares its last name with the blocks' second linear map.
  "ff_out": (("head_kernel",), True),
}


class Place(NamedTuple):
  """Where a tensor goes.

  Attributes:
    path: Keys of the parameter.
    layer: Its place on the stacked axis, or None for what has no layers.
    transpose: Whether the tensor is `[out, in]` of a kernel.
  """

  path: tuple[str, ...]
  layer: int | None
  transpose: bool


def rename(name: str) -> Place:
  """Where the tensor of that name goes.

  Raises:
    ValueError: If LLaDA has no tensor of that name.
  """
  block = re.fullmatch(
    re.escape(_ROOT) + r"blocks\.(0|[1-9][0-9]{0,5})\.(\w+)\.weight", name
  )
  if block:
    layer, part = int(block[1]), block[2]
    if part in _LINEAR:
      return Place(("blocks", _LINEAR[part], "kernel"), layer, True)
    if part in _NORMS:
      return Place(("blocks", _NORMS[part], "scale"), layer, False)
  end = re.fullmatch(re.escape(_ROOT) + r"(\w+)\.weight", name)
  if end and end[1] in _ENDS:
    path, transpose = _ENDS[end[1]]
    return Place(path, None, transpose)
  raise ValueError(f"tensor {name!r} belongs to no LLaDA model.")


def tensor_shapes(config: llada.Config) -> dict[str, tuple[int, ...]]:
  """Shape of every tensor of a checkpoint, by its name; nothing is read."""
  d, keys = config.width, config.width // config.num_heads * config.num_kv_heads
  linear = {
    "q_proj": (d, d),
    "k_proj": (keys, d),
    "v_proj": (keys, d),
    "attn_out": (d, d),
    "ff_proj": (config.mlp_width, d),
    "up_proj": (config.mlp_width, d),
    "ff_out": (d, config.mlp_width),
  }
  block = {**linear, **dict.fromkeys(_NORMS, (d,))}
  table = (config.num_tokens, d)
  shapes = {"wte": table, "ln_f": (d,), "ff_out": table}
  for layer in range(config.num_layers):
    for part, shape in block.items():
      shapes[f"blocks.{layer}.{part}"] = shape
  return {f"{_ROOT}{name}.weight": shape for name, shape in shapes.items()}


def check_tensors(
  shapes: Mapping[str, tuple[int, ...]], config: llada.Config
) -> None:
  """Raises unless a checkpoint has exactly the tensors of these sizes.

  Args:
    shapes: Shape of each of its tensors.
    config: Sizes.

  Raises:
    ValueError: That names the first tensors that are missing, too many or of
      another shape.
  """
  if config.num_layers > len(shapes):  # sizes of files are not to be trusted
    raise ValueError(
      f"the checkpoint lacks tensors: {len(shapes)} are too few for "
      f"{config.num_layers} layers."
    )
  wanted = tensor_shapes(config)
  missing = sorted(wanted.keys() - shapes.keys())
  extra = sorted(shapes.keys() - wanted.keys())
  wrong = [n for n in wanted if n in shapes and shapes[n] != wanted[n]]
  if missing:
    raise ValueError(f"the checkpoint lacks {_some(missing)}.")
  if extra:
    raise ValueError(f"the checkpoint has {_some(extra)} too many.")
  if wrong:
    first = wrong[0]
    raise ValueError(
      f"tensor {first} must have shape {list(wanted[first])}, got "
      f"{list(shapes[first])}, and {len(wrong) - 1} others are wrong too."
    )


def from_tensors(
  tensors: Mapping[str, np.ndarray],
  config: llada.Config,
  *,
  dtype: DTypeLike | None = None,
) -> Params:
  """Parameters from tensors in memory, on one device.

  Args:
    tensors: By LLaDA's names, in PyTorch's layout.
    config: Sizes.
    dtype: As in `load`.

  Raises:
    ValueError: As `check_tensors`, or if a tensor is not floating.
  """
  check_tensors({name: np.shape(x) for name, x in tensors.items()}, config)
  kinds = {name: _dtype(name, x.dtype) for name, x in tensors.items()}
  return _assemble(
    lambda name, at: np.asarray(tensors[name])[at], kinds, config, None, dtype
  )


def to_tensors(params: Params, config: llada.Config) -> dict[str, np.ndarray]:
  """The inverse of `from_tensors`; adapters are merged first.

  Args:
    params: Of `llada.network(config)`, plain or `lora.Adapted`.
    config: Sizes.
  """
  flat = _flat(params, config)
  return {name: _tensor(flat, name) for name in tensor_shapes(config)}


def load(
  directory: str | os.PathLike,
  config: llada.Config | None = None,
  *,
  shardings: Any = None,
  dtype: DTypeLike | None = None,
) -> Params:
  """Reads a checkpoint's safetensors, one device's part at a time.

  Args:
    directory: Holds `*.safetensors`, all of which are read.
    config: Sizes; by default those of its `config.json`.
    shardings: A pytree of `NamedSharding` shaped like the parameters; None
      puts everything on the first device.
    dtype: Of the parameters; None keeps the tensors'.

  Returns:
    Parameters of `llada.network(config)`.

  Raises:
    FileNotFoundError: If there are no such files.
    ValueError: If a file is damaged or cut off, or tensors are missing, too
      many, twice there or wrongly shaped. Nothing has been put on a device
      then.
  """
  config = llada.read_config(directory) if config is None else config
  with contextlib.ExitStack() as stack:
    tensors = _open(pathlib.Path(directory), stack)
    shapes = {name: tuple(x.get_shape()) for name, x in tensors.items()}
    check_tensors(shapes, config)

    def read(name: str, at: Slices) -> np.ndarray:
      return cast(np.ndarray, tensors[name][at])

    kinds = {
      name: _dtype(name, tensor.get_dtype()) for name, tensor in tensors.items()
    }
    return _assemble(read, kinds, config, shardings, dtype)


def export(
  params: Params,
  directory: str | os.PathLike,
  config: llada.Config,
  *,
  max_file_bytes: int = 5 * 10**9,
) -> None:
  """Writes parameters as a checkpoint with LLaDA's names, and `config.json`.

  Adapters are merged, `W + (alpha / r) A B` in the base's dtype. Files get
  their names when all are complete.

  Args:
    params: Of `llada.network(config)`, plain or `lora.Adapted`, addressable by
      this process.
    directory: Made if need be; must hold no safetensors yet.
    config: Sizes.
    max_file_bytes: Files are cut before they grow beyond it.

  Raises:
    ValueError: If shapes do not fit or the directory holds a checkpoint.
  """
  save_file = _safetensors("safetensors.numpy").save_file
  checks.check_int("max_file_bytes", max_file_bytes)
  directory = pathlib.Path(directory)
  if any(directory.glob("*.safetensors")):
    raise ValueError(
      f"{directory} holds safetensors already; pass another directory."
    )
  flat = _flat(params, config)
  files: list[list[str]] = []
  room = 0
  for name, shape in tensor_shapes(config).items():
    size = math.prod(shape) * flat[rename(name).path].dtype.itemsize
    if not files or size > room:
      files.append([])
      room = max_file_bytes
    files[-1].append(name)
    room -= size
  directory.mkdir(parents=True, exist_ok=True)
  weight_map: dict[str, str] = {}
  for number, names in enumerate(files, 1):
    file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
    weight_map |= dict.fromkeys(names, file)
    part = {n: np.ascontiguousarray(_tensor(flat, n)) for n in names}
    save_file(part, directory / f"{file}.part", metadata={"format": "pt"})
  total = sum(flat[path].nbytes for path in flat)
  index = {"metadata": {"total_size": total}, "weight_map": weight_map}
  llada.write_json(directory / "model.safetensors.index.json", index)
  llada.write_config(directory, config)
  for file in dict.fromkeys(weight_map.values()):
    os.replace(directory / f"{file}.part", directory / file)


def _assemble(
  read: Read,
  kinds: Mapping[str, np.dtype],
  config: llada.Config,
  shardings: Any,
  dtype: DTypeLike | None,
) -> Params:
  shapes = traverse_util.flatten_dict(llada.abstract(config))
  names: dict[tuple[str, ...], list[str]] = {}
  for name in tensor_shapes(config):  # layers come in their order
    names.setdefault(rename(name).path, []).append(name)
  places = {} if shardings is None else traverse_util.flatten_dict(shardings)
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  params = {}
  for path, leaf in shapes.items():
    # Layers of several dtypes are stacked in one that holds all of them.
    held = {kinds[name] for name in names[path]} if dtype is None else {dtype}
    wanted = functools.reduce(jax.numpy.promote_types, held)

    def part(index, path=path, shape=leaf.shape, wanted=wanted):
      return _part(read, names[path], index, shape).astype(wanted)

    params[path] = jax.make_array_from_callback(
      leaf.shape, places.get(path, device), part
    )
  return traverse_util.unflatten_dict(params)


def _part(
  read: Read, names: list[str], index: Slices, shape: tuple[int, ...]
) -> np.ndarray:
  """`parameter[index]`, from the tensors of its layers."""
  place = rename(names[0])
  index = tuple(slice(*i.indices(n)) for i, n in zip(index, shape, strict=True))
  if place.layer is None:
    return _read(read, names[0], index, shape, place)
  layers = [
    _read(read, names[i], index[1:], shape[1:], place)
    for i in range(*index[0].indices(shape[0]))
  ]
  return np.stack(layers)


def _read(read, name, index, shape, place) -> np.ndarray:
  if not place.transpose:
    return read(name, index)
  # Heads and their features are one axis of the tensor, rows of it or columns.
  cut = 2 if place.path[-2:-1] == ("out",) else 1
  ins = _joined(index[:cut], shape[:cut])
  outs = _joined(index[cut:], shape[cut:])
  tensor = read(name, (outs, ins)).T
  return tensor.reshape([i.stop - i.start for i in index])


def _joined(index: Slices, shape: tuple[int, ...]) -> slice:
  """The slice of the flattened axes; all but the first axis are whole."""
  inner = math.prod(shape[1:])
  if any(
    i != slice(0, n, 1) for i, n in zip(index[1:], shape[1:], strict=True)
  ):
    raise ValueError("shardings must not split the features of a head.")
  return slice(index[0].start * inner, index[0].stop * inner)


def _tensor(flat: Mapping[tuple[str, ...], Any], name: str) -> np.ndarray:
  """One tensor in PyTorch's layout."""
  place = rename(name)
  leaf = flat[place.path]
  array = np.asarray(leaf if place.layer is None else leaf[place.layer])
  if not place.transpose:
    return array
  rows = array.shape[0] if place.path[-2:-1] != ("out",) else -1
  matrix = array.reshape(rows, array.shape[-1] if rows == -1 else -1)
  return matrix.T


def _flat(params: Params, config: llada.Config) -> dict[tuple[str, ...], Any]:
  if isinstance(params, lora.Adapted):
    params = lora.merge(params)
  flat = traverse_util.flatten_dict(params)
  wanted = traverse_util.flatten_dict(llada.abstract(config))
  for path in sorted(flat.keys() | wanted.keys()):
    name = f"params/{'/'.join(path)}"
    if path not in flat or path not in wanted:
      state = "lack" if path not in flat else "have"
      raise ValueError(
        f"params of other sizes than config's: they {state} {name}."
      )
    checks.check_shape(name, flat[path], wanted[path].shape, "It is config's.")
  return flat


def _open(
  directory: pathlib.Path, stack: contextlib.ExitStack
) -> dict[str, Any]:
  """Lazy tensors of all files, by name."""
  safetensors = _safetensors("safetensors")
  files = sorted(directory.glob("*.safetensors"))
  if not files:
    raise FileNotFoundError(
      f"{directory} holds no .safetensors files; pass the folder of a "
      "checkpoint."
    )
  index = directory / "model.safetensors.index.json"
  if index.is_file():
    named = llada.read_json(index).get("weight_map")
    if not isinstance(named, dict):
      raise ValueError(f"{index} must hold a weight_map.")
    lost = sorted({str(f) for f in named.values()} - {f.name for f in files})
    if lost:
      raise ValueError(
        f"{directory} lacks {_some(lost)}, which {index.name} names."
      )
  tensors: dict[str, Any] = {}
  for file in files:
    try:
      opened = stack.enter_context(
        safetensors.safe_open(file, framework="numpy")
      )
    except safetensors.SafetensorError as error:
      raise ValueError(
        f"{file} is no whole safetensors file ({error}); fetch it again."
      ) from error
    for name in opened.keys():  # noqa: SIM118 - it is no mapping
      if name in tensors:
        raise ValueError(f"tensor {name} is in two files, one of them {file}.")
      tensors[name] = opened.get_slice(name)
  return tensors


def _dtype(name: str, kind: Any) -> np.dtype:
  names = {f"F{bits}": f"float{bits}" for bits in (16, 32, 64)}
  names["BF16"] = "bfloat16"
  stored = names.get(str(kind), str(kind))  # as files and arrays call it
  if stored not in names.values():
    raise ValueError(f"tensor {name} must be floating, got {kind}.")
  return jax.numpy.dtype(stored)


def _safetensors(module: str) -> Any:
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ImportError(
      "LLaDA checkpoints need the package safetensors; pip install "
      '"jdiff-research[llada]".'
    ) from error


def _some(names: list[str]) -> str:
  """A few names, and how many more."""
  shown = ", ".join(names[:3])
  return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
