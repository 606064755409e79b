"""The wheel holds the library alone, and everything imported is declared."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = {"benchmarks", "experiments", "jdiff", "tests"}
# Where a distribution is not named like the module that it brings.
DISTRIBUTION = {
  "PIL": "pillow",
  "absl": "absl-py",
  "array_record": "array-record",
  "orbax": "orbax-checkpoint",
  "ott": "ott-jax",
  "sklearn": "scikit-learn",
  "tensorflow_datasets": "tensorflow-datasets",
}


def declared(requirements):
  return {re.match(r"[\w-]+", line)[0] for line in requirements}


def third_party(*folders):
  """`{distribution: file}` of top-level imports that are not ours."""
  found = {}
  for folder in folders:
    for path in sorted((ROOT / folder).rglob("*.py")):
      for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
          names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
          names = [node.module]
        for name in names:
          top = name.partition(".")[0]
          if top not in sys.stdlib_module_names | OURS:
            found[DISTRIBUTION.get(top, top)] = path.relative_to(ROOT)
  return found


def undeclared(folders, *extras):
  lines = list(PROJECT["dependencies"])
  for extra in extras:
    lines += EXTRAS[extra]
  known = declared(lines)
  return {
    name: str(path)
    for name, path in third_party(*folders).items()
    if name not in known
  }


def test_imports_are_declared():
  assert third_party("jdiff")["jax"]
  assert undeclared(["jdiff"]) == {}
  assert (
    undeclared(["experiments"], "data", "llada", "molecules", "worlds") == {}
  )
  extras = ("data", "llada", "molecules", "worlds", "torch", "dev")
  assert undeclared(["benchmarks", "tests"], *extras) == {}


def test_dependencies_are_bounded_above():
  extras = [line for extra in EXTRAS.values() for line in extra]
  for line in PROJECT["dependencies"] + extras:
    # An extra of a bounded dependency, or of this project, is bounded by it.
    assert re.search(r"<\d", line) or "[" in line, line


def test_the_plain_name_is_never_required():
  assert PROJECT["name"] == "jdiff-research"
  lines = [line for extra in EXTRAS.values() for line in extra]
  assert "jdiff" not in declared(PROJECT["dependencies"] + lines)


@pytest.mark.parametrize("name", ["py311", "py312"])
def test_constraints_are_exact_and_name_no_place(name):
  text = (ROOT / "constraints" / f"{name}.txt").read_text()
  pins = {}
  for line in text.splitlines():
    if not line.startswith("#"):
      assert re.fullmatch(r"[\w.-]+==[\w.]+", line), line
      distribution, _, version = line.partition("==")
      pins[distribution.lower().replace("_", "-")] = version
  for part in ("jaxlib", "jax-cuda13-plugin", "jax-cuda13-pjrt"):
    assert pins[part] == pins["jax"]
  lines = [EXTRAS[extra] for extra in ("data", "llada", "molecules", "dev")]
  wanted = declared(sum(lines, PROJECT["dependencies"])) - {"jdiff-research"}
  assert {name.replace("_", "-") for name in wanted} <= set(pins)


def test_wheel_holds_the_library_alone(tmp_path):
  pytest.importorskip("hatchling")
  subprocess.run(
    [
      *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
      *("--no-build-isolation", "--no-index", "--wheel-dir", tmp_path, ROOT),
    ],
    check=True,
  )
  (path,) = tmp_path.glob("*.whl")
  assert path.name.startswith("jdiff_research-")
  with zipfile.ZipFile(path) as wheel:
    names = wheel.namelist()
    metadata = next(n for n in names if n.endswith(".dist-info/METADATA"))
    text = wheel.read(metadata).decode()
  tops = {name.partition("/")[0] for name in names}
  assert tops == {"jdiff", metadata.partition("/")[0]}
  wanted = {str(p.relative_to(ROOT)) for p in (ROOT / "jdiff").rglob("*.py")}
  assert wanted <= set(names)
  assert "Requires-Python: >=3.11" in text
  assert "License-Expression: Apache-2.0" in text
