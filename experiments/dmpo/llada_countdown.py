r"""DMPO on countdown in text; variants: `experiments/masked_lm/llada.py`.

python -m experiments.main \
  --config=experiments/dmpo/llada_countdown.py:VARIANT --workdir=W
"""

from experiments.masked_lm import defaults, llada


def get_config(variant: str = "tiny"):
  """The config of one variant; see `llada`."""
  return llada.get_config("countdown", variant, defaults.dmpo)
