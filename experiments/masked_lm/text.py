"""A language model of characters: English text, or the user's own.

  python -m experiments.main --config=experiments/masked_lm/text.py:VARIANT \
      --workdir=W [--config.data.path=FILE]

The default text is the reference manual that comes with Python. `data.path`
takes a UTF-8 file, or a `.jsonl` whose rows have a field `"text"`.

| variant | network | hardware, time |
|---|---|---|
| smoke | 2 layers of width 64, 64 characters, 100 steps | 2 cores |
| cpu | 4 layers of width 128, 128 characters, 1500 steps | 2 cores |
| paper | 12 layers of width 768, 256 characters | 1 GPU; not run |
| pod | 24 layers of width 1024, 1024 characters, bfloat16 | v5e:4x4, compiled only |
"""  # noqa: E501

from experiments.common import config as config_lib
from experiments.masked_lm import defaults


def get_config(variant: str = "cpu"):
  """The config of one variant; see the module's table."""
  return config_lib.parse_variant(variant, VARIANTS, base=_base)


def _base():
  config = defaults.pretraining(
    "text", {"kind": "text", "path": "", "length": 128}
  )
  config.net.width, config.net.num_layers, config.net.num_heads = 128, 4, 4
  config.batch_size = 32
  config.num_masks = 2
  config.num_eval = 256
  return config


_PAPER = {
  "data.length": 256,
  "net.width": 768,
  "net.num_layers": 12,
  "net.num_heads": 12,
  "net.compute_dtype": "bfloat16",
  "batch_size": 256,
  "num_steps": 100_000,
  "learning_rate": 3e-4,
  "ema_decay": 0.9999,
}

VARIANTS = {
  "smoke": {
    "data.length": 64,
    "net.width": 64,
    "net.num_layers": 2,
    "num_steps": 100,
    "num_eval": 64,
    "num_samples": 4,
  },
  "cpu": {},
  "paper": _PAPER,
  "pod": {
    **_PAPER,
    "data.length": 1024,
    "net.width": 1024,
    "net.num_layers": 24,
    "net.num_heads": 16,
    "net.remat": True,
    "net.head_chunk": 256,
    "batch_size": 256,
    "num_masks": 1,
  },
}
