r"""GDPO on 4x4 sudoku in text; variants: `experiments/masked_lm/llada.py`.

python -m experiments.main \
  --config=experiments/gdpo/llada_sudoku.py:VARIANT --workdir=W
"""

from experiments.masked_lm import defaults, llada


def get_config(variant: str = "tiny"):
  """The config of one variant; see `llada`."""
  return llada.get_config("sudoku", variant, defaults.gdpo)
