"""Which functions are public, and which of them have no case, and why."""

import importlib
import inspect
import pkgutil

PACKAGES = (
  "core",
  "schedules",
  "targets",
  "ctmc",
  "elbo",
  "sde",
  "ot",
  "langevin",
  "search",
  "selection",
  "world",
  "methods",
  "nets",
)
# Their modules are used one by one; some are left out of `__all__`.
WHOLE = ("core", "methods", "world")


def name_of(function):
  """As cases are named: the module in the package, and the function."""
  function = inspect.unwrap(function)
  return f"{function.__module__.removeprefix('jdiff.')}.{function.__name__}"


def _own(module):
  """Public names of a module that does not list them: what it defines."""
  return [
    name
    for name, value in vars(module).items()
    if not name.startswith("_")
    and getattr(value, "__module__", None) == module.__name__
  ]


def walk(module):
  """Public functions of a package or module, and of modules that it names."""
  found = {}
  for name in getattr(module, "__all__", None) or _own(module):
    value = getattr(module, name, None)
    if value is None:
      value = importlib.import_module(f"{module.__name__}.{name}")
    if inspect.ismodule(value):
      found |= walk(value)
    elif inspect.isfunction(inspect.unwrap(value)):
      # Without an argument there is nothing to spoil.
      if inspect.signature(value).parameters:
        found[name_of(value)] = value
  return found


def functions():
  """All of them, by name."""
  found = {}
  for package in PACKAGES:
    module = importlib.import_module(f"jdiff.{package}")
    found |= walk(module)
    if package in WHOLE:
      for info in pkgutil.iter_modules(module.__path__):
        found |= walk(importlib.import_module(f"jdiff.{package}.{info.name}"))
  return found


_REASONS = {
  "the checks themselves: every case is a test of them": """
    core.checks.check_finite core.checks.check_flags core.checks.check_int
    core.checks.check_integers core.checks.check_key core.checks.check_logits
    core.checks.check_numbers core.checks.check_range core.checks.check_rows
    core.checks.check_shape core.checks.check_sizes core.checks.check_tokens
    core.checks.is_concrete""",
  "reads a file: tests/test_untrusted.py": """
    core.files.check_size core.files.load_arrays core.files.map_array
    core.files.read_json core.files.read_text nets.llada.read_config
    nets.llada.read_json""",
  "reads or writes a file: tests/ot/test_pairing.py": """
    ot.table.load ot.table.save""",
  "writes a file of sizes that are checked where it is read": """
    nets.llada.write_config nets.llada.write_json""",
  "sizes are those of a Config: tests/nets/test_llada.py": """
    nets.llada.network nets.llada.abstract""",
  "how arrays lie on a mesh, called by the library alone": """
    core.axes.batch_spec core.axes.constrain core.axes.spec
    core.carries.anchor ot.iteration.axis_size""",
  "a mesh and its axes: tests/ot/test_sharded.py": "ot.sharded.on_mesh",
  "callables alone, whose answers are checked where they are called": """
    langevin.baselines.slack langevin.constraints.conditioned
    methods.score_matching.as_score_fn targets.mixtures.score_fn
    methods.tr2d2.unique_top""",
  "a callable and a mask id, which may be any integer": """
    ctmc.logits.forbid_mask elbo.token_probs.from_logits""",
  "a target or other parts that were checked when they were made": """
    methods.mdns.reward_fn sde.references.check_tails targets.exact.best
    targets.exact.best_potts targets.exact.enumeration
    world.memory.switched world.plan.without_memory nets.lora.split""",
  "an inner step on what its caller has checked": """
    core.frames.shortest core.keys.fold core.replay.size core.replay.valid
    methods.flow_matching.label_of methods.flow_matching.mean_over_dims
    methods.flow_matching.means_by_part methods.flow_matching.put_every
    methods.flow_matching.squared_error methods.flow_matching.take_every
    methods.flow_matching.times methods.gdpo.surrogate
    methods.mdns.buffer_summary methods.mdns.refresh
    methods.pdns.log_weights methods.pdns.summary nets.lora.low_rank
    ot.iteration.advance ot.iteration.best_start ot.iteration.cells
    ot.iteration.extreme_value_start ot.iteration.gaussian_start
    ot.iteration.init ot.iteration.start_samples sde.references.widen
    search.rules.best search.rules.non_dominated targets.internal.log_det
    targets.lattice.is_bipartite world.memory.put""",
  "an argument of other functions, which check what they call it with": """
    methods.flow_matching.uniform methods.tr2d2.path methods.tr2d2.reward
    methods.tr2d2.summary methods.tr2d2.support methods.tr2d2.total
    methods.tr2d2.uniform ot.semidiscrete.standard_normal""",
  "masks are looked at by init: tests/methods/test_pruning.py": """
    methods.pruning.masked""",
  "clips, as losses check: tests/methods/test_world_model_inputs.py": """
    methods.world_model.clip_context methods.world_model.history
    methods.world_model.move_loss""",
}

EXEMPT = {
  name: reason for reason, names in _REASONS.items() for name in names.split()
}


def missing(cases, exempt):
  """`(without a case or a reason, exempt for nothing)`, sorted names."""
  public = functions()
  covered = {name_of(case.function) for case in cases}
  lost = set(public) - covered - set(exempt)
  idle = {name for name in exempt if name in covered or name not in public}
  return sorted(lost), sorted(idle)
