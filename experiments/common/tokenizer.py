"""Tokenizers of LLaDA-class models: a file of the user's own, or plain bytes.

Nothing is downloaded: `load` reads the `tokenizer.json` that comes with a
model's weights, and `byte_level` makes a small one in code, which tests and
tiny networks use. Both are the package `tokenizers`, an extra, and both have
LLaDA's special tokens and its chat template.

Source:
  Nie et al., "Large Language Diffusion Models" (2025), released tokenizer.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from jdiff.core import checks

START = "<|startoftext|>"
EOS = "<|endoftext|>"
MASK = "<|mdm_mask|>"
HEADER, HEADER_END = "<|start_header_id|>", "<|end_header_id|>"
END_OF_TURN = "<|eot_id|>"

FILE = "tokenizer.json"
MAX_BYTES = 64 << 20
"""A larger file is not read; LLaDA's has some ten million."""


class Tokenizer(NamedTuple):
  """Text to token ids and back.

  Attributes:
    codec: The package's own tokenizer.
    vocab_size: Ids of the model, of which some may be no token's.
    mask_id: Stands for what is still hidden; inside the vocabulary.
    eos_id: Ends a text.
    end_id: Ends a turn of a chat.
    special: Names of the tokens that make up masks, ends and turns, the mask
      first.
  """

  codec: Any
  vocab_size: int
  mask_id: int
  eos_id: int
  end_id: int
  special: tuple[str, ...]

  @property
  def pad_id(self) -> int:
    """Fills what is left of a canvas: the end of text, as in LLaDA."""
    return self.eos_id

  def encode(self, text: str) -> np.ndarray:
    """`[L]` int32; special tokens in the text are read, and none are added."""
    ids = self.codec.encode(text, add_special_tokens=False).ids
    return np.array(ids, np.int32)

  def decode(self, ids: np.ndarray, *, whole: bool = False) -> str:
    """Text up to the first end, of text or of turn.

    Masks become `_`, and so do ids that are no token's; other special tokens
    are written by name. So a text that is not all there is not read as one that
    is. (The released rewards pass over special tokens and their like.)

    Args:
      ids: `[L]` integers.
      whole: Go on past ends, and write those by name too.
    """
    ids = np.asarray(ids)
    checks.check_shape("ids", ids, (None,))
    if not whole:
      ends = (ids == self.eos_id) | (ids == self.end_id)
      ids = ids[: np.argmax(ends)] if ends.any() else ids
    known = [i if self._is_token(i) else self.mask_id for i in ids.tolist()]
    text = self.codec.decode(known, skip_special_tokens=False)
    return text.replace(self.special[0], "_")

  def _is_token(self, index: int) -> bool:
    # The package skips what it does not know, and takes no negative number.
    return 0 <= index < self.vocab_size and bool(self.codec.id_to_token(index))

  def chat(self, user_text: str) -> str:
    """What the user says, stripped, in LLaDA's template, and whose turn it is.

    The template is that of Llama 3, which strips what is said.
    """
    return (
      f"{START}{HEADER}user{HEADER_END}\n\n{user_text.strip()}{END_OF_TURN}"
      f"{HEADER}assistant{HEADER_END}\n\n"
    )


def load(
  path: str | pathlib.Path,
  *,
  vocab_size: int,
  mask_id: int,
  eos_id: int,
  mask_token: str = MASK,
  eos_token: str = EOS,
) -> Tokenizer:
  """A tokenizer from a local file, checked against its model.

  Args:
    path: A `tokenizer.json`, or a directory that holds one.
    vocab_size: Rows of the model's embedding; 126464 in LLaDA.
    mask_id: The model's; 126336 in LLaDA.
    eos_id: The model's; 126081 in LLaDA.
    mask_token: Name of the mask in the file.
    eos_token: Name of the end of text in the file.

  Raises:
    FileNotFoundError: If there is no file; says what to pass.
    ValueError: If the file is too large or no tokenizer, has ids that the model
      has not, lacks a special token, or has it at another id than the model.
    ImportError: Without the package `tokenizers`.
  """
  tokenizers = _package()
  file = _file(path)
  if not file.is_file():
    raise FileNotFoundError(
      f"path is {str(path)!r}, which is neither a {FILE} nor a directory that "
      "holds one; pass the one that came with the model's weights, as nothing "
      "is downloaded."
    )
  if (size := file.stat().st_size) > MAX_BYTES:
    raise ValueError(
      f"{file} must hold at most {MAX_BYTES} bytes, to be a tokenizer, got "
      f"{size}."
    )
  try:
    codec = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
  # The package raises no narrower class, and where its Rust panics not even
  # this one.
  except BaseException as error:
    if not isinstance(error, Exception) and "Panic" not in type(error).__name__:
      raise
    raise ValueError(
      f"{file} must hold a tokenizer of the package tokenizers, got one that "
      f"it cannot read: {error}."
    ) from error
  # A file may ask for either, and canvases are filled and cut elsewhere.
  codec.no_padding()
  codec.no_truncation()
  return _checked(
    codec, str(file), vocab_size, mask_id, eos_id, mask_token, eos_token
  )


def byte_level() -> Tokenizer:
  """One token a byte, its value the id, and then LLaDA's six special tokens."""
  tokenizers = _package()
  symbols = _byte_symbols()
  codec = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]
    )
  )
  codec.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  codec.decoder = tokenizers.decoders.ByteLevel()
  names = (START, EOS, MASK, HEADER, HEADER_END, END_OF_TURN)
  codec.add_special_tokens(
    [tokenizers.AddedToken(x, special=True, normalized=False) for x in names]
  )
  ids = {name: len(symbols) + i for i, name in enumerate(names)}
  size = len(symbols) + len(names)
  return _checked(codec, "byte_level", size, ids[MASK], ids[EOS], MASK, EOS)


def save(tokenizer: Tokenizer, path: str | pathlib.Path) -> None:
  """Writes what `load` reads: a file, or one in a directory that exists."""
  tokenizer.codec.save(str(_file(path)))


def _package() -> Any:
  try:
    import tokenizers
  except ImportError as error:
    raise ImportError(
      "text of LLaDA-class models needs the package tokenizers: "
      "pip install 'jdiff-research[llada]'."
    ) from error
  return tokenizers


def _file(path: str | pathlib.Path) -> pathlib.Path:
  path = pathlib.Path(path)
  return path / FILE if path.is_dir() else path


def _checked(
  codec: Any,
  place: str,
  vocab_size: int,
  mask_id: int,
  eos_id: int,
  mask_token: str,
  eos_token: str,
) -> Tokenizer:
  """The tokenizer, if it fits the model and has every special token."""
  largest = max(codec.get_vocab(with_added_tokens=True).values(), default=-1)
  if largest >= checks.check_int("vocab_size", vocab_size):
    raise ValueError(
      f"{place} must have ids below vocab_size = {vocab_size}, got {largest}."
    )

  def find(name):
    index = codec.token_to_id(name)
    if index is None:
      raise ValueError(f"{place} must have the special token {name!r}.")
    # A name may be in the vocabulary and yet be cut to pieces in a text.
    ids = codec.encode(name, add_special_tokens=False).ids
    if ids != [index]:
      raise ValueError(
        f"{place} must read the special token {name!r} as [{index}], got {ids}."
      )
    return index

  for argument, name, wanted in (
    ("mask_id", mask_token, mask_id),
    ("eos_id", eos_token, eos_id),
  ):
    if (found := find(name)) != wanted:
      raise ValueError(
        f"{place} has {name!r} at id {found}, and the model has "
        f"{argument} = {wanted}; they must be one."
      )
  for name in (START, HEADER, HEADER_END):
    find(name)
  special = (mask_token, eos_token, START, HEADER, HEADER_END, END_OF_TURN)
  return Tokenizer(
    codec, vocab_size, mask_id, eos_id, find(END_OF_TURN), special
  )


def _byte_symbols() -> list[str]:
  """The printable character that stands for each byte in byte-level files.

  Bytes that Latin-1 prints are themselves, and the others, in order, the
  characters from 256 on.
  """
  prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
  others = [byte for byte in range(256) if byte not in prints]
  return [
    chr(byte if byte in prints else 256 + others.index(byte))
    for byte in range(256)
  ]
