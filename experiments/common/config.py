"""What config files share: a parser, and the fields of the loop."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
from absl import flags

Variant = Callable[[], Any] | Mapping[str, Any]


def parse_variant(
  arg: str | None,
  variants: Mapping[str, Variant],
  *,
  base: Callable[[], Any] | None = None,
) -> ml_collections.ConfigDict:
  """The config of a variant; `get_config(arg)` of a config file is this call.

  Args:
    arg: What follows the colon of `--config=<file>.py:<variant>`.
    variants: By name, a function that returns a config, or a dict: the whole
      config, or with `base` what differs from it (`{"mesh.data": 8}` reaches
      inside).
    base: Returns the config that dicts differ from.

  Returns:
    A locked config, with `variant` set to the name.

  Raises:
    ValueError: If there is no such variant, or if it sets a field that its
      base does not have.
    TypeError: If a field holds what a config may not (see `check`).
  """
  if arg not in variants:
    given = f"got {arg!r}" if arg else "got none"
    raise ValueError(
      f"--config=<file>.py:<variant> must name one of {', '.join(variants)}; "
      f"{given}."
    )
  variant = variants[arg]
  if callable(variant):
    config = ml_collections.ConfigDict(variant())
  elif base is None:
    config = ml_collections.ConfigDict(dict(variant))
  else:
    config = ml_collections.ConfigDict(base())
    fields, known = _flat(variant), _flat(config.to_dict())
    unknown = [name for name in fields if name not in known]
    if unknown:
      raise ValueError(
        f"variant {arg!r} sets {', '.join(unknown)}, which its base config "
        "does not have."
      )
    config.update_from_flattened_dict(fields)
  with config.unlocked():
    config.variant = arg
  check(config)
  return config.lock()


def parse_flags(values: flags.FlagValues, argv: list[str]) -> list[str]:
  """Parses the command line, with one kind of error.

  config_flags has many: unknown fields are KeyErrors from deep inside, files
  that cannot be read fail at first use, and messages hold whole tracebacks.

  Returns:
    The arguments that are no flags, after the program's name.

  Raises:
    ValueError: In one sentence, for whatever the user got wrong.
  """
  try:
    rest = values(argv)
    if values.config is not None:
      values.config.to_dict()
    return rest[1:]
  except (KeyError, AttributeError) as error:
    field = re.findall(r"\w+", str(error))[0]
    given = [arg for arg in argv if f".{field}" in arg.split("=")[0]]
    if not given:
      raise
    similar = re.findall(r'mean "(\w+)"', str(error))
    hint = f"; did you mean {similar[0]}?" if similar else "."
    raise ValueError(f"{given[0]} sets no field of the config{hint}") from error
  except Exception as error:
    text = (str(error).strip() or type(error).__name__).splitlines()[-1]
    raise ValueError(re.sub(r"^\w+Error: ", "", text)) from error


def check(config: Mapping[str, Any], prefix: str = "config") -> None:
  """Raises a TypeError unless all fields are plain: JSON, and tuples."""
  for name, value in config.items():
    field = f"{prefix}.{name}"
    if isinstance(value, Mapping | ml_collections.ConfigDict):
      check(value, field)
    elif isinstance(value, tuple):
      check(dict(enumerate(value)), field)
    elif isinstance(value, list):
      raise TypeError(f"{field} must be a tuple, not a list.")
    elif value is not None and not isinstance(value, str | bool | int | float):
      raise TypeError(
        f"{field} must be a number, a string, a boolean or a tuple, got "
        f"{type(value).__name__}."
      )


def add_loop(
  config: ml_collections.ConfigDict,
  *,
  log_every: int,
  eval_every: int,
  checkpoint_every: int | None = None,
) -> None:
  """Adds what the training loop reads, beside `num_steps`.

  Args:
    config: A config that is being made.
    log_every: Steps between records.
    eval_every: Steps between evaluations.
    checkpoint_every: Steps between checkpoints, by default `eval_every`.
  """
  config.log_every = log_every
  config.eval_every = eval_every
  config.checkpoint_every = checkpoint_every or eval_every
  config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for name, value in fields.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f"{prefix}{name}.")
    else:
      flat[f"{prefix}{name}"] = value
  return flat
