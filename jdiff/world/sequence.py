"""Clips and their captions on one canvas: one vocabulary, masks anywhere.

Which sites are given is a matter of each call: `infill` answers either modality
from the other, or a part of both.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import ctmc
from jdiff.core import checks
from jdiff.core.types import LogitsFn, Params
from jdiff.world import layout


@dataclasses.dataclass(frozen=True)
class Canvas:
  """Where words and cells lie, and what each site may hold.

  A canvas is `[line 1 | ... | line S | frame 1 | ... | frame T]`, frames row by
  row, its vocabulary `[cells | words of slot 1 | ... | words of slot K]`.

  Attributes:
    shape: `(rows, cols)` of a frame.
    num_frames: Frames `T`.
    num_tokens: Kinds of cells.
    slots: Sizes of the vocabularies of a line's words, `K` of them.
    num_lines: Lines `S` of the caption.
  """

  shape: tuple[int, int]
  num_frames: int
  num_tokens: int
  slots: tuple[int, ...]
  num_lines: int

  def __post_init__(self):
    if len(self.shape) != 2:
      raise ValueError(f"shape must be (rows, cols), got {self.shape}.")
    for size in self.shape:
      checks.check_int("shape's sizes", size)
    for name in ("num_frames", "num_tokens", "num_lines"):
      checks.check_int(name, getattr(self, name))
    if not self.slots:
      raise ValueError("slots must hold the size of a word or more, got none.")
    for size in self.slots:
      checks.check_int("slots' sizes", size)

  @property
  def num_cells(self) -> int:
    """Cells `N` of a frame."""
    return math.prod(self.shape)

  @property
  def num_words(self) -> int:
    """Words of a caption, `S K`."""
    return self.num_lines * len(self.slots)

  @property
  def length(self) -> int:
    """Sites `L` of the canvas."""
    return self.num_words + self.num_frames * self.num_cells

  @property
  def starts(self) -> tuple[int, ...]:
    """First token of each slot's words, and the mask."""
    sizes = np.cumsum((self.num_tokens, *self.slots))
    return tuple(int(n) for n in sizes)

  @property
  def mask_id(self) -> int:
    """The mask, the last token: also the number `V` of the others."""
    return self.starts[-1]

  @property
  def word_sites(self) -> np.ndarray:
    """`[S, K]` int32."""
    sites = np.arange(self.num_words, dtype=np.int32)
    return sites.reshape(self.num_lines, len(self.slots))

  @property
  def frame_sites(self) -> np.ndarray:
    """`[T, N]` int32."""
    sites = np.arange(self.num_words, self.length, dtype=np.int32)
    return sites.reshape(self.num_frames, self.num_cells)

  def allowed(self) -> np.ndarray:
    """`[L, V]` bool: which tokens each site may hold."""
    table = np.zeros((self.length, self.mask_id), bool)
    table[self.frame_sites, : self.num_tokens] = True
    starts = self.starts
    for slot, (begin, end) in enumerate(
      zip(starts[:-1], starts[1:], strict=True)
    ):
      table[self.word_sites[:, slot], begin:end] = True
    return table

  def pack(self, words: jax.Array, frames: jax.Array) -> jax.Array:
    """Canvases `[..., L]` int32.

    Args:
      words: `[..., S, K]` int32, each within its own slot's vocabulary.
      frames: `[..., T, N]` int32 cells.
    """
    lead = words.shape[:-2]
    checks.check_shape("words", words, (*lead, self.num_lines, len(self.slots)))
    checks.check_shape(
      "frames", frames, (*lead, self.num_frames, self.num_cells)
    )
    layout.check_range("frames", frames, self.num_tokens)
    for slot, size in enumerate(self.slots):
      layout.check_range(f"words[..., {slot}]", words[..., slot], size)
    starts = np.asarray(self.starts[:-1], np.int32)
    words = words + jnp.broadcast_to(starts, words.shape)
    parts = [words.reshape(*lead, -1), frames.reshape(*lead, -1)]
    return jnp.concatenate(parts, axis=-1).astype(jnp.int32)

  def words(self, canvas: jax.Array) -> jax.Array:
    """The caption `[..., S, K]` of canvases, within the slots' vocabularies."""
    words = canvas[..., self.word_sites]
    starts = np.asarray(self.starts[:-1], np.int32)
    return words - jnp.broadcast_to(starts, words.shape)

  def frames(self, canvas: jax.Array) -> jax.Array:
    """The frames `[..., T, N]` of canvases."""
    return canvas[..., self.frame_sites]


def infill(
  params: Params,
  key: jax.Array,
  canvases: jax.Array,
  given: Sequence[int] | np.ndarray,
  *,
  logits_fn: LogitsFn,
  mask_id: int,
  num_steps: int | None = None,
  order: str = "confidence",
  temperature: float = 1.0,
  min_p: float = 0.0,
) -> ctmc.Decoded:
  """`ctmc.decode` with the given sites anywhere, not at the front alone.

  Args:
    params: Passed to `logits_fn`.
    key: One PRNG key, or `[N]` keys, one a row; consumed.
    canvases: `[N, L]` int32; tokens at sites not given are not looked at.
    given: The sites that are, known while tracing; the same in every row.
    logits_fn: Of whole canvases, as ever.
    mask_id: The mask token.
    num_steps: As in `ctmc.decode`, as are the next three.
    order: See there.
    temperature: See there.
    min_p: See there.

  Returns:
    A `Decoded` with `samples` in the canvas's own order; `commit_step` and
    `confidence` belong to the open sites, ascending.

  Raises:
    ValueError: If sites are out of range, named twice or all of them.
  """
  checks.check_tokens("canvases", canvases)
  num_rows, length = canvases.shape
  if np.size(given):
    checks.check_integers("given", given)
  given = np.asarray(given, np.int64).ravel()
  if given.size and not 0 <= given.min() <= given.max() < length:
    raise ValueError(
      f"given must lie in [0, {length}), got sites from {given.min()} to "
      f"{given.max()}."
    )
  if len(set(given.tolist())) != given.size:
    raise ValueError("given must name each site once, got some twice.")
  if given.size == length:
    raise ValueError(f"given must leave a site open, got all {length}.")
  # `decode` wants the prompt first, and the network the canvas as it is.
  at_site = np.concatenate([given, np.setdiff1d(np.arange(length), given)])
  place = np.argsort(at_site)

  def permuted(params, tokens, t, sites=None):
    if sites is None:
      sites = np.arange(length)
    # Concrete where they are, so that a network can specialise to them.
    table = at_site if isinstance(sites, np.ndarray) else jnp.asarray(at_site)
    return logits_fn(params, tokens[:, place], t, table[sites])

  decoded = ctmc.decode(
    params,
    key,
    canvases[:, given] if given.size else None,
    logits_fn=permuted,
    length=length,
    mask_id=mask_id,
    num_samples=num_rows,
    num_steps=num_steps,
    order=order,
    temperature=temperature,
    min_p=min_p,
  )
  return decoded._replace(samples=decoded.samples[:, place])
