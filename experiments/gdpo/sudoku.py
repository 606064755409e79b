"""GDPO on sudoku; see `experiments/masked_lm/systems.py`.

  python -m experiments.main --config=experiments/gdpo/sudoku.py:VARIANT \
      --workdir=W

| variant | what |
|---|---|
| smoke | a short base and 20 iterations: the parts, no result |
| cpu | the whole run on two cores |
| pod | 24 layers of width 2048 with adapters; compiled only |
"""

from experiments.gdpo import variants


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return variants.get_config("sudoku", variant)
