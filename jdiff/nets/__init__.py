"""Networks: Flax Linen inside, `Network(init, apply)` outside.

`jdiff.nets.interop` is imported on its own, since it needs `flax.nnx`.
"""

from jdiff.nets.local import local
from jdiff.nets.mlp import mlp
from jdiff.nets.network import Network
from jdiff.nets.transformer import transformer

__all__ = ["Network", "local", "mlp", "transformer"]
