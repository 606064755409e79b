"""What the README tells a stranger to run does run."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_there_are_blocks():
  assert len(BLOCKS) >= 2


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_block_runs(index):
  exec(compile(BLOCKS[index], f"README block {index}", "exec"), {})


def test_named_files_exist():
  text = README.read_text()
  for path in re.findall(
    r"`?((?:experiments|notebooks|benchmarks)/[\w/.]+)", text
  ):
    assert (README.parent / path.rstrip(".")).exists(), path
