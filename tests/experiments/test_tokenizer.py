"""Tokenizers of LLaDA-class models: bytes, files, and what is no tokenizer."""

import json
import sys

import numpy as np
import pytest

from experiments.common import tokenizer as tokenizer_lib

pytest.importorskip("tokenizers", exc_type=ImportError)

SIZES = {"vocab_size": 262, "mask_id": 258, "eos_id": 257}
LLADA = {"vocab_size": 126464, "mask_id": 126336, "eos_id": 126081}
LLADA_IDS = {
  "<|startoftext|>": 126080,
  "<|endoftext|>": 126081,
  "<|mdm_mask|>": 126336,
  "<|start_header_id|>": 126346,
  "<|end_header_id|>": 126347,
  "<|eot_id|>": 126348,
}


@pytest.fixture(scope="module")
def made():
  return tokenizer_lib.byte_level()


def content(tokenizer):
  return json.loads(tokenizer.codec.to_str())


def write(path, content):
  path.write_text(json.dumps(content), encoding="utf-8")
  return path


def with_ids(tokenizer, ids, *, added=True):
  """The file's content, its special tokens at other ids."""
  whole = content(tokenizer)
  tokens = {token["content"]: token for token in whole["added_tokens"]}
  whole["model"]["vocab"] |= ids
  whole["added_tokens"] = [
    tokens[name] | {"id": i} for name, i in ids.items() if added
  ]
  return whole


@pytest.mark.parametrize(
  "text", ["", "a", " two  words\n\n", "naïve 数学 🙂", "\\boxed{\x00}", "Ġ Ċ"]
)
def test_bytes_make_the_round_trip(made, text):
  ids = made.encode(text)
  assert ids.dtype == np.int32
  assert ids.tolist() == list(text.encode())
  assert made.decode(ids) == text


def test_special_tokens_are_read_and_none_are_added(made):
  assert made[1:5] == (262, 258, 257, 261) and made.pad_id == 257
  assert made.special[0] == "<|mdm_mask|>" and set(made.special) == set(
    LLADA_IDS
  )
  assert made.encode("a<|mdm_mask|> <|eot_id|>").tolist() == [97, 258, 32, 261]
  # Nearly one is letters.
  assert len(made.encode("<|mdm_mask>")) == 11


def test_decoding_stops_at_an_end(made):
  tail = [104, 105]
  assert made.decode(np.array([97, 257, *tail])) == "a"
  assert made.decode(np.array([97, 261, *tail])) == "a"
  assert made.decode(np.array([257])) == made.decode(np.array([], int)) == ""
  whole = made.decode([97, 257, *tail], whole=True)
  assert whole == "a<|endoftext|>hi"
  # What is hidden, and what is no token, leaves a mark; other names are shown.
  assert made.decode([258, 97, 262, -1, 10**12, 256]) == "_a___<|startoftext|>"
  with pytest.raises(ValueError, match=r"ids must have shape \[\*\], got \[1"):
    made.decode(np.zeros((1, 2), int))


def test_chat(made):
  text = made.chat("\n What? \nNow.\n")
  assert text == (
    "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nWhat? \nNow."
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
  )
  ids = made.encode(text).tolist()
  assert [i for i in ids if i > 255] == [256, 259, 260, 261, 259, 260]
  assert made.decode(ids, whole=True) == text


def test_files_make_the_round_trip(made, tmp_path):
  text = made.chat("ü<|mdm_mask|>")
  tokenizer_lib.save(made, tmp_path)
  tokenizer_lib.save(made, str(tmp_path / "other.json"))
  for path in (tmp_path, tmp_path / "tokenizer.json", tmp_path / "other.json"):
    found = tokenizer_lib.load(path, **SIZES)
    assert found[1:] == made[1:]
    np.testing.assert_array_equal(found.encode(text), made.encode(text))
    assert found.decode(made.encode(text), whole=True) == made.decode(
      made.encode(text), whole=True
    )


def test_a_file_with_the_ids_of_llada(made, tmp_path):
  path = write(tmp_path / "a.json", with_ids(made, LLADA_IDS))
  found = tokenizer_lib.load(path, **LLADA)
  assert (found.vocab_size, found.mask_id, found.eos_id, found.pad_id) == (
    126464,
    126336,
    126081,
    126081,
  )
  assert found.encode(found.chat("x")).tolist()[-3:] == [126347, 10, 10]
  assert found.end_id == 126348
  # Rows of the embedding that are no token's.
  assert found.decode([97, 126463, 126336, 126348, 97]) == "a__"


def test_masks_of_another_name(made, tmp_path):
  text = json.dumps(content(made)).replace("<|mdm_mask|>", "<MASK>")
  path = tmp_path / "a.json"
  path.write_text(text)
  found = tokenizer_lib.load(path, **SIZES, mask_token="<MASK>")
  assert found.special[0] == "<MASK>" and found.decode([97, 258]) == "a_"
  with pytest.raises(ValueError, match=r"must have .*'<\|mdm_mask\|>'"):
    tokenizer_lib.load(path, **SIZES)


def test_filling_and_cutting_of_the_file_are_undone(made, tmp_path):
  tokenizer_lib.save(made, tmp_path)
  other = tokenizer_lib.load(tmp_path, **SIZES)
  other.codec.enable_padding(length=50)
  other.codec.enable_truncation(3)
  tokenizer_lib.save(other, tmp_path)
  assert content(other)["padding"] and content(other)["truncation"]
  found = tokenizer_lib.load(tmp_path, **SIZES)
  assert found.encode("four!").tolist() == list(b"four!")


@pytest.mark.parametrize(
  "change, message",
  [
    ({"vocab_size": 261}, "have ids below vocab_size = 261, got 261"),
    (
      {"mask_id": 126336},
      r"has '<\|mdm_mask\|>' at id 258, and the model has mask_id = 126336",
    ),
    (
      {"eos_id": 256},
      r"has '<\|endoftext\|>' at id 257, and the model has eos_id = 256",
    ),
    ({"eos_token": "<eos>"}, "must have the special token '<eos>'"),
    ({"vocab_size": 0}, "vocab_size must be >= 1, got 0"),
  ],
)
def test_files_of_another_model(made, tmp_path, change, message):
  tokenizer_lib.save(made, tmp_path)
  with pytest.raises(ValueError, match=message):
    tokenizer_lib.load(tmp_path, **{**SIZES, **change})


@pytest.mark.parametrize("name", LLADA_IDS)
def test_a_special_token_that_is_missing(made, tmp_path, name):
  whole = json.dumps(content(made)).replace(name, "<|other|>")
  (tmp_path / "a.json").write_text(whole)
  with pytest.raises(ValueError, match="must have the special token '<") as e:
    tokenizer_lib.load(tmp_path / "a.json", **SIZES)
  assert repr(name) in str(e.value)


def test_a_special_token_that_is_cut_to_pieces(made, tmp_path):
  # In the vocabulary, but no word of its own.
  whole = with_ids(made, LLADA_IDS, added=False)
  path = write(tmp_path / "a.json", whole)
  with pytest.raises(
    ValueError, match=r"read the special .*\[126336\], got \["
  ):
    tokenizer_lib.load(path, **LLADA)


PANICS = {
  "version": "1.0",
  "added_tokens": [],
  "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
  "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
}


@pytest.mark.parametrize(
  "data",
  [b"", b"{}", b"[1]", b"\xff\xfe", b"[" * 10**5, json.dumps(PANICS).encode()],
  ids=["empty", "object", "list", "bytes", "deep", "panics"],
)
def test_files_that_are_no_tokenizer(tmp_path, data):
  (tmp_path / "tokenizer.json").write_bytes(data)
  with pytest.raises(ValueError, match="must hold a tokenizer of the package"):
    tokenizer_lib.load(tmp_path, **SIZES)


def test_large_files_are_not_read(made, tmp_path, monkeypatch):
  tokenizer_lib.save(made, tmp_path)
  size = (tmp_path / "tokenizer.json").stat().st_size
  monkeypatch.setattr(tokenizer_lib, "MAX_BYTES", size)
  tokenizer_lib.load(tmp_path, **SIZES)
  monkeypatch.setattr(tokenizer_lib, "MAX_BYTES", size - 1)
  with pytest.raises(ValueError, match=f"at most {size - 1} bytes.*got {size}"):
    tokenizer_lib.load(tmp_path, **SIZES)


@pytest.mark.parametrize("name", ["", "none.json"])
def test_absent_files_say_what_to_pass(tmp_path, name):
  with pytest.raises(FileNotFoundError, match="pass the one that came with"):
    tokenizer_lib.load(tmp_path / name, **SIZES)


def test_without_the_package(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  for call in (
    tokenizer_lib.byte_level,
    lambda: tokenizer_lib.load(tmp_path, **SIZES),
  ):
    with pytest.raises(ImportError, match=r"'jdiff-research\[llada\]'"):
      call()
