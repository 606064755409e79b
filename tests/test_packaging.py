"""What is distributed is whole, installs, and declares what it imports."""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = {"benchmarks", "experiments", "jdiff", "tests"}
SKIPPED = {"__pycache__", ".ipynb_checkpoints", "api"}
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
  extras = ("data", "docs", "llada", "molecules", "dev")
  lines = [EXTRAS[extra] for extra in extras]
  wanted = declared(sum(lines, PROJECT["dependencies"])) - {"jdiff-research"}
  assert {name.replace("_", "-") for name in wanted} <= set(pins)


def test_papers_that_name_a_version_name_this_one():
  source = (ROOT / "jdiff" / "__init__.py").read_text()
  version = re.search(r'__version__ = "([\d.]+)"', source)[1]
  assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
  assert f"\n## [{version}]\n" in (ROOT / "CHANGELOG.md").read_text()


def run(*command, **options):
  """Runs a command; what it says is shown where it fails."""
  done = subprocess.run(
    [str(part) for part in command], capture_output=True, text=True, **options
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """The source distribution, unpacked, and the wheel that is made from it."""
  pytest.importorskip("hatchling")
  folder = tmp_path_factory.mktemp("built")
  command = (sys.executable, "-m", "hatchling", "build", "-t", "sdist")
  run(*command, "-d", folder, cwd=ROOT)
  (archive,) = folder.glob("jdiff_research-*.tar.gz")
  with tarfile.open(archive) as sdist:
    sdist.extractall(folder, filter="data")
  source = folder / archive.name.removesuffix(".tar.gz")
  run(
    *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
    *("--no-build-isolation", "--no-index", "--wheel-dir", folder, source),
  )
  (wheel,) = folder.glob("jdiff_research-*.whl")
  return source, wheel


def held(root, *folders):
  """Names of the files that a checkout has in some folders, as it is now."""
  return {
    str(path.relative_to(root))
    for folder in folders
    for path in (root / folder).rglob("*")
    if path.is_file() and not SKIPPED & set(path.relative_to(root).parts)
  }


@pytest.mark.slow
def test_sdist_holds_what_its_tests_need(built):
  source, _ = built
  folders = ("constraints", "docs", "notebooks", *sorted(OURS))
  single = {
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile"),
    *("README.md", "pyproject.toml"),
  }
  wanted = held(ROOT, *folders) | single
  assert len(wanted) > 300
  # Beside them, what the build backend adds.
  assert held(source, ".") - wanted <= {"PKG-INFO", ".gitignore"}
  assert wanted <= held(source, ".")


@pytest.mark.slow
def test_wheel_holds_the_library_alone(built):
  _, path = built
  with zipfile.ZipFile(path) as wheel:
    names = wheel.namelist()
    metadata = next(n for n in names if n.endswith(".dist-info/METADATA"))
    text = wheel.read(metadata).decode()
  tops = {name.partition("/")[0] for name in names}
  assert tops == {"jdiff", metadata.partition("/")[0]}
  library = {name for name in names if name.startswith("jdiff/")}
  assert library == held(ROOT, "jdiff")
  assert "jdiff/py.typed" in library
  assert "Requires-Python: >=3.11" in text
  assert "License-Expression: Apache-2.0" in text


@pytest.mark.slow
def test_wheel_runs_where_nothing_else_of_ours_is(built, tmp_path):
  _, wheel = built
  clean = tmp_path / "clean"
  run(sys.executable, "-m", "venv", "--without-pip", clean)
  python = clean / "bin" / "python"
  run(
    *(sys.executable, "-m", "pip", "--quiet", "--python", python, "install"),
    *("--no-deps", "--no-index", "--disable-pip-version-check", wheel),
  )
  ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
  own = pathlib.Path(run(python, "-c", ask).strip())
  # Dependencies come from this environment: no network. Its own .pth files,
  # such as that of an editable install, are not read.
  here = sysconfig.get_path("purelib")
  (own / "dependencies.pth").write_text(here + "\n")
  environment = {
    name: value
    for name, value in os.environ.items()
    if name not in ("PYTHONPATH", "PYTHONHOME")
  }
  answer = json.loads(run(python, "-c", CHILD, cwd=tmp_path, env=environment))
  assert pathlib.Path(answer["file"]).is_relative_to(own)
  assert answer["typed"]
  assert answer["experiments"] is False
  assert wheel.name.startswith(f"jdiff_research-{answer['version']}-")
  assert answer["log_z"] == pytest.approx(0.0, abs=1e-6)


CHILD = """
import importlib.util, json, pathlib
import jax.numpy as jnp
import jdiff
from jdiff import ctmc, langevin, nets, training
from jdiff.core import weights
from jdiff.methods import mdns

print(json.dumps({
  "file": jdiff.__file__,
  "typed": (pathlib.Path(jdiff.__file__).parent / "py.typed").exists(),
  "experiments": importlib.util.find_spec("experiments") is not None,
  "version": jdiff.__version__,
  "log_z": float(weights.log_z(jnp.zeros(4))),
}))
"""
