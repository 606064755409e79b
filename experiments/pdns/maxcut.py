"""PDNS on the maximum cut of a graph: `exp(beta cut(x))`.

  python -m experiments.main --config=experiments/pdns/maxcut.py:VARIANT \
      --workdir=W [--config.target.edges_file=edges.txt]

| variant | target | hardware, time |
|---|---|---|
| smoke | the Petersen graph, beta 2 | 2 cores, 20 s |
| cpu | a random 3-regular graph of 20 nodes, beta 3 | 2 cores, 1 min |
| cpu_large | a random 3-regular graph of 60 nodes, beta 3 | 2 cores |
| paper | 3-regular, 256 nodes, transformer | 1 GPU |
| pod | 3-regular, 1024 nodes, transformer, bf16 | v5e:4x4 |

A file of edges has two node numbers a line, each pair once; nodes are 0 to the
largest of them.
"""

import functools

from experiments.common import config as config_lib
from experiments.pdns import defaults, ising


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS)


def _base(graph: str, num_nodes: int, beta: float):
  config = defaults.masked("max_cut")
  # A graph has neither a side nor edges that are joined.
  for field in ("size", "coupling", "periodic"):
    del config.target[field]
  config.target.graph = graph
  config.target.num_nodes = num_nodes
  config.target.degree = 3
  config.target.graph_seed = 0
  config.target.edges_file = ""
  config.target.beta = beta
  return config


def _smoke():
  config = _base("petersen", 10, 2.0)
  config.net.hidden = (64, 64)
  config.buffer.num_samples = config.batch_size = 256
  defaults.stages(config, num_stages=8, inner_steps=25)
  config.num_eval, config.eval_chunk = 4096, 2048
  return config


def _cpu():
  return _base("regular", 20, 3.0)


def _cpu_large():
  config = _base("regular", 60, 3.0)
  ising.site(config, num_steps=1500)
  return config


def _paper(num_nodes: int):
  config = _base("regular", num_nodes, 3.0)
  defaults.paper(config)
  return config


def _pod():
  config = _paper(1024)
  defaults.pod(config)
  return config


VARIANTS = {
  "smoke": _smoke,
  "cpu": _cpu,
  "cpu_large": _cpu_large,
  "paper": functools.partial(_paper, 256),
  "pod": _pod,
}
