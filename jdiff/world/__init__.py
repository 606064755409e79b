"""World models: frames of tokens, the loop that imagines them, its memory."""

from jdiff.world import memory, metrics, plan, sequence, tokenizers
from jdiff.world.geometry import View
from jdiff.world.layout import Clip, Layout
from jdiff.world.memory import Frames, Memory, Query, Recalled
from jdiff.world.rollout import Frame, World, WorldState, together, world

__all__ = [
  "Clip",
  "Frame",
  "Frames",
  "Layout",
  "Memory",
  "Query",
  "Recalled",
  "View",
  "World",
  "WorldState",
  "memory",
  "metrics",
  "plan",
  "sequence",
  "together",
  "tokenizers",
  "world",
]
