"""What the fields of configs may hold: one table by name, for all systems.

A name means the same in every config, so its kind and its range are said once,
here. What depends on other fields, or names a part, is checked where it is
built.
"""

import fnmatch
import math
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

from jdiff.core import checks

# Beyond these, arrays overflow, or building takes all memory and no end.
_MOST = 2**31 - 1
_MOST_PARTS = 2**20
# Tables of so many squared rows are made, and loops are unrolled.
_MOST_SIDE = 2**12
# Of float32: what is larger is infinite there.
_LARGEST = 3e38


class Law(NamedTuple):
  """What one field may hold.

  Attributes:
    kind: `bool`, `int`, `float` (which takes integers) or `str`.
    low: The least number.
    high: The largest.
    above: Whether `low` itself is refused.
    below: Whether `high` itself is.
    many: Whether it is a tuple of such.
    optional: Whether None stands for "unset".
    known: Of strings, all there are; empty where builders know them.
  """

  kind: type
  low: float = -math.inf
  high: float = math.inf
  above: bool = False
  below: bool = False
  many: bool = False
  optional: bool = False
  known: tuple[str, ...] = ()


FLAG = Law(bool)
NAME = Law(str)
DTYPE = Law(str, known=("float32", "bfloat16", "float16"))
NAMES = Law(str, many=True)
COUNT = Law(int, 1, _MOST)
PARTS = Law(int, 1, _MOST_PARTS)
SIDE = Law(int, 1, _MOST_SIDE)
SIZES = PARTS._replace(many=True)
NATURAL = Law(int, 0, _MOST)
NATURAL_PARTS = Law(int, 0, _MOST_PARTS)
REAL = Law(float, -_LARGEST, _LARGEST)
REALS = REAL._replace(many=True)
AT_LEAST_0 = Law(float, 0, _LARGEST)
POSITIVE = Law(float, 0, _LARGEST, above=True)
SHARE = Law(float, 0, 1)
BELOW_1 = SHARE._replace(below=True)

_FLAGS = """
  antithetic conditional confirm fit_spread flips fresh_masks keep keep_one
  langevin_start local_field normalise_std periodic remat shared_masks
  shift_targets skewed skip_tied symmetric truncate
"""
_NAMES = """
  admission backup baseline cache checkpoint column criterion
  directory disorder edges_file eval_path experiment format function game
  graph implementation kernel kind kl labels law loss mask_law memory.rank mlp
  name order path pick ratio ratio_norm remat_policy rule schedule scope
  score source space style data.tokenizer variant weighting workdir
"""
_COUNTS = """
  *_every *_steps batch_size capacity eval_chunk num_eval
  num_samples
"""
_PARTS = """
  *_per_point *_size horizon k max_length modulus num_* oversample
  reference.num_steps thinning tokens_per_step view width window
"""
_SIDES = """
  degree dim num_anchors num_atoms num_components num_modes num_nodes
  num_particles num_states num_wells patch_size size sweep.num_layers
"""
_NATURALS = """
  *seed eos_id head_chunk mask_id num_baseline num_probes
  num_sinkhorn num_terms num_tree_rounds sampler.num_steps warmup_steps
"""
_NATURAL_PARTS = """
  data.length lora.rank mlp_width num_blocks num_eq num_ineq num_kv_heads
  sampler.block_size
"""
_SHARES = """
  annealed_share burn_in coefficient context_noise
  decay final_rate fraction fresh_share label_dropout
  meanflow_ratio min_ess_fraction min_fraction min_remaining ramp_share
  ramp_start repeat test_share
"""
_POSITIVE = """
  alpha beta_max box clip degrees finetune.rate learning_rate max_force
  max_grad_norm net.length net.scale norm_eps power reference.scale
  reward_temperature rope_base step_size t_max t_min temperature variance
"""
_AT_LEAST_0 = """
  beta_min contrast distance epsilon exploration kappa kl_weight landing
  max_kl max_log_weight max_ratio oscillator sampler.temperature separation
  target.scale threshold weight_decay
"""
_REALS = """
  baseline_strength center delta field log_z min_gain target.beta
  target.coupling
"""

_LAWS = {
  name: law
  for names, law in (
    (_COUNTS, COUNT),
    (_PARTS, PARTS),
    (_SIDES, SIDE),
    (_SHARES, SHARE),
    (_AT_LEAST_0, AT_LEAST_0),
    (_POSITIVE, POSITIVE),
    (_REALS, REAL),
    (_NATURALS, NATURAL),
    (_NATURAL_PARTS, NATURAL_PARTS),
    (_FLAGS, FLAG),
    (_NAMES, NAME),
  )
  for name in names.split()
} | {
  "net.num_layers": SIDE._replace(low=0),
  # One after another, not a loop of one program.
  "num_generations": SIDE._replace(high=2**10),
  "adam_b2": BELOW_1,
  "ema_decay": BELOW_1,
  "min_p": BELOW_1,
  "mesh.data": Law(int, -1, _MOST),
  "mesh.fsdp": COUNT,
  "mesh.tensor": COUNT,
  "compute_dtype": DTYPE,
  "dtype": DTYPE,
  "arms": NAMES,
  "objectives": NAMES,
  "lora.targets": NAMES,
  "blanks": SIZES,
  "pretraining_blanks": SIZES,
  "dims": SIDE._replace(many=True),
  "eval_steps": COUNT._replace(many=True),
  "grid": SIZES,
  "hidden": SIZES,
  "lengths": SIZES,
  "levels": SIZES,
  "sizes": SIZES,
  "widths": SIZES,
  "objective_ideal": REALS,
  "objective_weights": REALS,
  "prune.beta": AT_LEAST_0._replace(many=True),
  "task_weights": AT_LEAST_0._replace(many=True),
  "target.weights": AT_LEAST_0._replace(many=True),
  "tilt": REALS,
  "coupling.table": NAME._replace(optional=True),
}


_GROUPS = frozenset(
  """
  base buffer coupling data elbo env eval finetune lora measure memory mesh net
  problem prune reference rollouts sampler search select stages sweep target
  time tokenizer
  """.split()
)

_WORDS = {bool: "True or False", str: "a string"}


def law(name: str) -> Law | None:
  """The law of a dotted name: of its longest known ending, or a pattern."""
  parts = name.split(".")
  for start in range(len(parts)):
    ending = ".".join(parts[start:])
    if ending in _LAWS:
      return _LAWS[ending]
  for pattern, found in _LAWS.items():
    if "*" in pattern and fnmatch.fnmatchcase(parts[-1], pattern):
      return found
  return None


def check(config: Mapping[str, Any], prefix: str = "") -> None:
  """Raises unless every known field holds what its name allows.

  Fields that the table lacks need only be plain and finite.

  Raises:
    TypeError: If a value is of another kind.
    ValueError: If it is out of range.
  """
  for name, value in config.items():
    path = f"{prefix}{name}"
    rule = law(path)
    if isinstance(value, Mapping) or hasattr(value, "items"):
      if rule is not None:
        raise TypeError(
          f"config.{path} must be a value, got a group of fields."
        )
      check(value, f"{path}.")
    elif name in _GROUPS and rule is None:
      raise TypeError(
        f"config.{path} must be a group of fields, got {value!r}."
      )
    else:
      _check(f"config.{path}", value, rule)


def _check(field: str, value: Any, rule: Law | None) -> None:
  """Raises unless a value obeys its law; without one, if it is not finite."""
  if rule is None:
    _plain(field, value)
    return
  if value is None and rule.optional:
    return
  if not rule.many:
    _one(field, value, rule)
    return
  if not isinstance(value, tuple | list):
    raise TypeError(
      f"{field} must be a tuple, got {value!r} of type {type(value).__name__}."
    )
  for item in value:
    _one(f"every entry of {field}", item, rule)


def _one(field: str, value: Any, rule: Law) -> None:
  if rule.kind is int:
    checks.check_int(field, value, int(rule.low))
  elif rule.kind is float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
      raise TypeError(
        f"{field} must be a number, got {value!r} of type "
        f"{type(value).__name__}."
      )
    if isinstance(value, int) and abs(value) > _MOST:
      # JAX takes integers of 32 bits.
      raise ValueError(f"{field} must be a number of 32 bits, got {value!r}.")
    checks.check_finite(field, value, positive=rule.above)
  elif not isinstance(value, rule.kind):
    raise TypeError(
      f"{field} must be {_WORDS[rule.kind]}, got {value!r} of type "
      f"{type(value).__name__}."
    )
  if rule.known and value not in rule.known:
    raise ValueError(
      f"{field} must be one of {', '.join(rule.known)}, got {value!r}."
    )
  if rule.kind not in (int, float):
    return
  inside = value < rule.high if rule.below else value <= rule.high
  if not (inside and rule.low <= value):
    if rule.high == _LARGEST and value < rule.low:
      raise ValueError(f"{field} must be >= {rule.low:g}, got {value!r}.")
    end = ")" if rule.below else "]"
    raise ValueError(
      f"{field} must lie in [{rule.low:g}, {rule.high:g}{end}, got {value!r}."
    )


def _plain(field: str, value: Any) -> None:
  if isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f"{field} must be finite, got {value!r}.")
