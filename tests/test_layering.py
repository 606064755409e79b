"""The import graph has the layers of the package's design, and no back edge."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Each folder sees those of lower rank, and itself. Folders of one rank do not
# see each other.
RANKS = {
  "core": 0,
  "schedules": 1,
  "targets": 1,
  "ctmc": 2,
  "langevin": 2,
  "ot": 2,
  "sde": 2,
  "selection": 2,
  "elbo": 3,
  "search": 3,
  "world": 3,
  "methods": 4,
}
# Aside: they see the core alone, and only experiments join them to the rest.
ASIDE = ("nets", "training")
HEAVY = {
  "array_record",
  "etils",
  "flax",
  "grain",
  "matplotlib",
  "ml_collections",
  "orbax",
  "tensorboardX",
  "tensorflow_datasets",
  "tqdm",
}
MAX_LINES = 500
SKIPPED = {"__pycache__", "build", "dist", "runs"}


def imports(path, root):
  """Dotted names that a file imports, absolute, wherever they stand in it."""
  names = set()
  package = path.relative_to(root).parts[:-1]
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = [node.module] if node.module else []
      if node.level:
        base = [*package[: len(package) - node.level + 1], *base]
      names.update(".".join([*base, alias.name]) for alias in node.names)
  return names


def violations(root):
  """Every import that the layers forbid, as a sentence."""
  found = []
  for path in sorted((root / "jdiff").rglob("*.py")):
    parts = path.relative_to(root / "jdiff").parts
    here = parts[0] if len(parts) > 1 else ""
    where = path.relative_to(root)
    if here and here not in RANKS and here not in ASIDE:
      found.append(f"{where}: folder {here} has no rank in this test")
      continue
    for name in sorted(imports(path, root)):
      top, _, rest = name.partition(".")
      there = rest.partition(".")[0]
      if top in ("benchmarks", "experiments", "tests"):
        found.append(f"{where} imports {name}")
      elif top in HEAVY and here not in ASIDE:
        found.append(f"{where} imports {name}")
      elif top == "jdiff" and there in (*RANKS, *ASIDE) and there != here:
        if not allowed(here, there):
          found.append(f"{where} imports {name}")
  return found


def allowed(here, there):
  if here in ASIDE or there in ASIDE:
    return there == "core"
  return bool(here) and RANKS[there] < RANKS[here]


def test_no_back_edge():
  assert violations(ROOT) == []


@pytest.mark.parametrize(
  ("file", "line"),
  [
    ("core/keys.py", "from jdiff import ctmc"),
    ("core/keys.py", "import jdiff.methods.mdns"),
    ("targets/ising.py", "from jdiff.schedules import masking"),
    ("ctmc/paths.py", "from ..elbo import denoising"),
    ("ctmc/paths.py", "from .. import nets"),
    ("methods/mdns.py", "def f():\n  from jdiff.nets import mlp"),
    ("methods/mdns.py", "from flax import linen"),
    ("methods/mdns.py", "import experiments.common"),
    ("nets/mlp.py", "from jdiff.targets import ising"),
    ("training/loop.py", "from jdiff import nets"),
    ("__init__.py", "from jdiff import core"),
    ("novel/x.py", "import jax"),
  ],
)
def test_a_planted_back_edge_is_caught(tmp_path, file, line):
  path = tmp_path / "jdiff" / file
  path.parent.mkdir(parents=True)
  path.write_text(f"{line}\n")
  assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize(
  ("file", "line"),
  [
    ("methods/mdns.py", "from jdiff import ctmc, elbo, targets\nimport optax"),
    ("ctmc/paths.py", "from jdiff.ctmc import reveal\nfrom jdiff import core"),
    ("nets/mlp.py", "from flax import linen\nfrom jdiff.core import checks"),
  ],
)
def test_a_forward_edge_is_not(tmp_path, file, line):
  path = tmp_path / "jdiff" / file
  path.parent.mkdir(parents=True)
  path.write_text(f"{line}\n")
  assert violations(tmp_path) == []


@pytest.mark.parametrize(
  ("module", "absent"),
  [
    ("jdiff", {"flax", "optax", "chex"} | HEAVY),
    ("jdiff.methods", HEAVY - {"etils"}),  # optax loads etils
  ],
)
def test_what_an_import_loads(module, absent):
  code = f"import sys, {module}; print(*sorted(sys.modules))"
  loaded = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  ).stdout.split()
  assert "jax" in loaded or module == "jdiff"
  assert not absent & {name.partition(".")[0] for name in loaded}


def python_files():
  for folder in ("jdiff", "experiments", "benchmarks", "tests"):
    yield from sorted((ROOT / folder).rglob("*.py"))


def test_files_stay_short():
  sizes = {
    str(path.relative_to(ROOT)): len(path.read_text().splitlines())
    for path in python_files()
  }
  assert {f: n for f, n in sizes.items() if n > MAX_LINES} == {}


def test_every_folder_with_code_is_a_package():
  for path in python_files():
    package = path.relative_to(ROOT).parts[0] in ("jdiff", "experiments")
    assert not package or (path.parent / "__init__.py").exists(), path


def test_nobody_is_told_to_install_the_plain_name():
  # An unrelated distribution holds it.
  plain = re.compile(r"""(pip install|uv add)( -\S+)* ["'`]?jdiff(?![\w-])""")
  assert plain.search("pip install" + " -U 'jdiff[data]'")
  suffixes = (".cfg", ".ipynb", ".md", ".py", ".sh", ".toml", ".txt", ".yml")
  told = []
  for folder, folders, files in os.walk(ROOT):
    folders[:] = [
      name
      for name in folders
      if name not in SKIPPED and not name.startswith((".git", ".venv"))
    ]
    for path in (pathlib.Path(folder, name) for name in files):
      if path.suffix in suffixes or path.name in ("Makefile", "run"):
        text = " ".join(path.read_text(errors="replace").split())
        told += [path] if plain.search(text) else []
  assert told == []
