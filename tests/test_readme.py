"""What the README and the pages of docs/ tell a stranger to run does run."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [
  *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
  *sorted((ROOT / "docs").glob("*.md")),
]
# One program in parts, each of which has been explained.
CONTINUED = ("docs/adding_a_method.md",)


def name_of(path):
  return str(path.relative_to(ROOT))


def blocks(path):
  """Programs of a page: its Python blocks, or all of them as one."""
  found = re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S)
  return ["\n".join(found)] if name_of(path) in CONTINUED else found


def links(path):
  """Relative targets of a page's links and pictures, without anchors."""
  found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
  return [target for target in found if ":" not in target]


def missing(path):
  """Files that a page names or links to and that do not exist."""
  named = re.findall(
    r"(?<![\w/.])((?:experiments|jdiff|notebooks|benchmarks|tests)/[\w/.]+)",
    # What a page tells its reader to write does not exist yet.
    re.sub(r".*marginals.*", "", path.read_text()),
  )
  wanted = [ROOT / one.rstrip(".") for one in named]
  wanted += [path.parent / target for target in links(path)]
  return sorted(str(one) for one in wanted if not one.exists())


PROGRAMS = [
  pytest.param(code, id=f"{name_of(path)}-{index}")
  for path in PAGES
  for index, code in enumerate(blocks(path))
]


def test_there_are_blocks():
  assert len(blocks(ROOT / "README.md")) >= 3
  assert len(PROGRAMS) >= 10


@pytest.mark.parametrize("code", PROGRAMS)
def test_block_runs(code, request):
  exec(compile(code, request.node.callspec.id, "exec"), {})


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_named_files_exist(path):
  assert missing(path) == []


def test_files_that_do_not_exist_are_seen(tmp_path):
  page = tmp_path / "page.md"
  page.write_text("`experiments/nowhere.py`, [here](page.md), [x](nothing.md)")
  found = {pathlib.Path(one).name for one in missing(page)}
  assert found == {"nothing.md", "nowhere.py"}


def test_every_page_of_the_site_is_linked_from_the_readme():
  linked = {(ROOT / one).resolve() for one in links(ROOT / "README.md")}
  index = (ROOT / "docs" / "index.md").resolve()
  assert set(PAGES) - {ROOT / "README.md", index} <= linked
