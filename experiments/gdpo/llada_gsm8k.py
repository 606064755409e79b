r"""GDPO on GSM8K in text; variants: `experiments/masked_lm/llada.py`.

python -m experiments.main \
  --config=experiments/gdpo/llada_gsm8k.py:VARIANT --workdir=W
"""

from experiments.masked_lm import defaults, llada


def get_config(variant: str = "tiny"):
  """The config of one variant; see `llada`."""
  return llada.get_config("gsm8k", variant, defaults.gdpo)
