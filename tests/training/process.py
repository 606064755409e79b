"""One of several processes that train and sample together; see the test."""

import pathlib
import sys

import jax


def main(port, index, num, workdir):
  jax.distributed.initialize(f"localhost:{port}", num, index)
  from experiments.mdns import ising
  from jdiff import training

  config = ising.get_config("smoke")
  config.num_steps = config.eval_every = config.checkpoint_every = 4
  config.batch_size = config.buffer.num_samples = 64
  config.num_eval, config.eval_chunk, config.num_reference = 256, 128, 32
  report = training.run(training.build(config), config, workdir, progress=False)
  samples = training.sample(workdir, 6)
  assert samples.shape == (6, 16), samples.shape
  value = report["metrics"]["log_z"]["value"]
  pathlib.Path(workdir, f"process_{index}").write_text(repr(value))


if __name__ == "__main__":
  # Run as a file: the repository's root is not on the path yet.
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
  main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
