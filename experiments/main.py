r"""The entry point of every experiment.

python -m experiments.main --config=experiments/mdns/ising.py:smoke \
  --workdir=W [--mode=train|eval|sample] [--seeds=0,1,2] [--config.seed=3] \
  [--distributed=auto|on|off]

python -m experiments.main --config=experiments/mdns/ising.py:pod \
  --plan=v5e:4x4
"""

import sys

import jax
from absl import app, flags
from ml_collections import config_flags

from experiments.common import config as config_lib
from jdiff import training
from jdiff.training import plan

_MODES = ["train", "eval", "sample"]


class _Joining(flags.EnumParser):
  """The values of --distributed."""

  def __init__(self):
    super().__init__(["auto", "on", "off"])

  def parse(self, argument: str) -> str:
    """One of the three; absl says true and false for flags without a value."""
    return super().parse({"true": "on", "false": "off"}.get(argument, argument))


config_flags.DEFINE_config_file("config", None, "<file>.py:<variant>.")
flags.DEFINE_string("workdir", None, "Where the run lives.")
flags.DEFINE_string(
  "plan",
  None,
  "Compile for a topology, such as v5e:8x8 or h100:8; run nothing.",
)
flags.DEFINE_enum(
  "mode", "train", _MODES, "Train or resume; or use the result."
)
flags.DEFINE_list("seeds", None, "Run each of these in <workdir>/seed_<n>.")
flags.DEFINE_integer("num_samples", 64, "Draws, for --mode=sample.")
flags.DEFINE_flag(
  flags.Flag(
    _Joining(),
    flags.ArgumentSerializer(),
    "distributed",
    "auto",
    "Join the processes of a cluster: auto (if there are several), on, off.",
    boolean=True,  # --distributed and --nodistributed.
  )
)
flags.DEFINE_bool("debug", False, "Show tracebacks.")
FLAGS = flags.FLAGS

USER_ERRORS = (ValueError, TypeError, ImportError, FileNotFoundError)
RUN_ERRORS = (training.NonFiniteError, OSError, jax.errors.JaxRuntimeError)


def main(argv: list[str]) -> None:
  """Parses the command line and does what it says."""
  rest = config_lib.parse_flags(FLAGS, argv)
  if rest:
    raise ValueError(f"unexpected argument {rest[0]!r}; flags start with --.")
  config, workdir = FLAGS.config, FLAGS.workdir
  if FLAGS.plan is not None:
    _plan(config, argv)
    return
  if workdir is None:
    raise ValueError("--workdir=W is needed, where the run lives.")
  training.join(FLAGS.distributed)
  if FLAGS.mode != "train":
    if FLAGS.seeds is not None:
      raise ValueError("--seeds trains; name one <workdir>/seed_<n> instead.")
    build = None
    if config is not None:
      training.check_same_config(workdir, config)
      # The user has named its module, and not the file alone.
      build = training.build
    if FLAGS.mode == "eval":
      training.evaluate(workdir, build=build)
    else:
      samples = training.sample(workdir, FLAGS.num_samples, build=build)
      if not jax.process_index():
        print(f"{workdir}/samples.npy: {samples.dtype}{list(samples.shape)}")
  elif config is None:
    raise ValueError("--config=<file>.py:<variant> is needed to train.")
  elif FLAGS.seeds is not None:
    if not all(seed.isdecimal() for seed in FLAGS.seeds):
      raise ValueError(f"--seeds must be like 0,1,2, got {FLAGS.seeds}.")
    seeds = [int(seed) for seed in FLAGS.seeds]
    training.run_seeds(training.build, config, workdir, seeds)
  else:
    training.run(training.build(config), config, workdir)


def _plan(config, argv: list[str]) -> None:
  """Compiles for a topology, in a process that has its compiler."""
  if config is None:
    raise ValueError("--config=<file>.py:<variant> is needed to plan.")
  plan.parse(FLAGS.plan)
  if not plan.is_child():
    child = plan.command(argv, "experiments.main")
    raise SystemExit(plan.run_child(child, FLAGS.plan))
  compiled = plan.compile_for(
    training.stand_in(config), config, plan.devices(FLAGS.plan)
  )
  title = f"{config.name} ({config.variant})"
  print(plan.table(title, FLAGS.plan, config, compiled))
  chip = plan.parse(FLAGS.plan)[1]
  if not all(one.fits(chip) for one in compiled):
    raise SystemExit(3)


def guarded(argv: list[str]) -> None:
  """`main`, with errors as one sentence and an exit code."""
  try:
    main(argv)
  except (*USER_ERRORS, *RUN_ERRORS) as error:
    code = 2 if isinstance(error, USER_ERRORS) else 1
    training.leave(code)
    if "--debug" in argv:
      raise
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    raise SystemExit(code) from error
  except Exception:
    training.leave(1)
    raise


if __name__ == "__main__":
  app.define_help_flags()
  # Not app.run: it parses first, and its errors are not of one kind.
  guarded(sys.argv)
