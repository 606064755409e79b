"""Networks: Flax Linen inside, `Network(init, apply)` outside.

`jdiff.nets.interop` is imported on its own, since it needs `flax.nnx`.
"""

from jdiff.nets import lora
from jdiff.nets.autoencoder import AutoEncoder, autoencoder
from jdiff.nets.axial import axial
from jdiff.nets.clips import clips
from jdiff.nets.dilated import dilated
from jdiff.nets.dit import compact, dit
from jdiff.nets.egnn import egnn
from jdiff.nets.frame_attention import frame_attention
from jdiff.nets.local import local
from jdiff.nets.mlp import mlp
from jdiff.nets.network import Network
from jdiff.nets.shifts import shifts
from jdiff.nets.transformer import transformer
from jdiff.nets.velocity import velocity_mlp

__all__ = [
  "AutoEncoder",
  "Network",
  "axial",
  "autoencoder",
  "clips",
  "compact",
  "dilated",
  "dit",
  "egnn",
  "frame_attention",
  "llada",
  "local",
  "lora",
  "mlp",
  "shifts",
  "transformer",
  "velocity_mlp",
]
