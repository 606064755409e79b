"""DMPO on GSM8K in text; see `experiments/masked_lm/llada.py`.

  python -m experiments.main \
      --config=experiments/dmpo/llada_gsm8k.py:VARIANT --workdir=W

| variant | what |
|---|---|
| smoke, tiny | a network of bytes with random weights: the parts, no result |
| cpu | such a network, trained first |
| paper | LLaDA-8B, near the released settings, 8 H100; compiled, not run |
| pod, v5e_64, v5p_16, h100_8 | LLaDA-8B, ours; compiled, not run |
"""

from experiments.masked_lm import defaults, llada


def get_config(variant: str = "tiny"):
  """The config of one variant; see the module's table."""
  return llada.get_config("gsm8k", variant, defaults.dmpo)
