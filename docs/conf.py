"""Sphinx configuration; `make docs` builds the site into build/docs.

Pages of the API are written here, from what each package exports, so that a
new name appears without anybody listing it.
"""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sphinx.util import logging  # noqa: E402

import jdiff  # noqa: E402

LOGGER = logging.getLogger(__name__)

project = "jdiff"
author = "The jdiff authors"
project_copyright = author
version = release = jdiff.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "alabaster"
html_theme_options = {"description": "Diffusion, flow and neural sampling"}
html_copy_source = html_show_sourcelink = False
# Docstrings put code between single backticks.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Types of fields are in the class's signature.
napoleon_attr_annotations = False
napoleon_custom_sections = [("Source", "returns_style")]
myst_heading_anchors = 3


def _heading(text: str, rule: str) -> str:
  return f"{text}\n{rule * len(text)}\n\n"


def _exported(package) -> dict:
  """What `__all__` names; a module among it need not be loaded yet."""
  for name in package.__all__:
    if not hasattr(package, name):
      importlib.import_module(f"{package.__name__}.{name}")
  return {name: getattr(package, name) for name in package.__all__}


def _origins(package) -> dict[str, str]:
  """Which module the package has a name from."""
  tree = ast.parse(inspect.getsource(package))
  imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
  return {one.name: node.module for node in imports for one in node.names}


def _directive(package, name: str, value) -> str:
  full = f"{package.__name__}.{name}"
  if inspect.isclass(value):
    return f".. autoclass:: {full}\n   :members:\n\n"
  if inspect.isroutine(value):
    return f".. autofunction:: {full}\n\n"
  # Its docstring is a string behind it, which is where it is assigned alone.
  return f".. autodata:: {_origins(package)[name]}.{name}\n\n"


def api_page(package) -> str:
  """The page of a package: what it exports, then modules of their own.

  Those are the modules that it exports, and those of which it exports nothing:
  either way they are imported by name.
  """
  exported = _exported(package)
  values = {k: v for k, v in exported.items() if not inspect.ismodule(v)}
  page = _heading(package.__name__, "=")
  page += f".. automodule:: {package.__name__}\n   :no-members:\n\n"
  page += "".join(
    _directive(package, name, value) for name, value in values.items()
  )
  homes = {getattr(value, "__module__", None) for value in values.values()}
  for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
    module = importlib.import_module(found.name)
    if module in exported.values() or found.name not in homes:
      page += _heading(found.name, "-")
      page += f".. automodule:: {found.name}\n   :members:\n"
      if values:
        page += f"   :exclude-members: {', '.join(values)}\n"
      page += "\n"
  return page


def write_api(app) -> None:
  """Writes `api/<package>.rst` for each package of jdiff."""
  folder = pathlib.Path(app.srcdir) / "api"
  folder.mkdir(exist_ok=True)
  wanted = {}
  for found in pkgutil.iter_modules(jdiff.__path__, "jdiff."):
    if found.ispkg:
      package = importlib.import_module(found.name)
      wanted[folder / f"{found.name}.rst"] = api_page(package)
  for path in set(folder.glob("*.rst")) - set(wanted):
    path.unlink()
  for path, text in wanted.items():
    if not path.exists() or path.read_text() != text:
      path.write_text(text)


def mark_formulas(app, what, name, obj, options, lines) -> None:
  """Indented blocks of docstrings are formulas and code, to be kept as such.

  Sections (`Args:`) are indented too, but follow their title at once.
  """
  before, blank = "", False
  marked = []
  for line in lines:
    if blank and line.startswith(" ") and before and before[0] != " ":
      marked += ["::", ""]
    blank = not line.strip()
    before = before if blank else line
    marked.append(line)
  # Napoleon takes what is ahead of a first line's colon for a type.
  lines[:] = ["", *marked] if what in ("attribute", "data") else marked


def is_field(app, what, name, obj, skip, options) -> bool | None:
  """Leaves fields of records out: `Attributes:` of their class has them."""
  return True if type(obj).__name__ == "_tuplegetter" else None


def check_api(app, env) -> None:
  """Warns, which is an error, of what a package exports and no page has."""
  domain = env.get_domain("py")
  known = {*domain.objects, *domain.modules}
  for found in pkgutil.iter_modules(jdiff.__path__, "jdiff."):
    package = importlib.import_module(found.name)
    for name in package.__all__ if found.ispkg else ():
      home = _origins(package).get(name, package.__name__)
      if not {f"{package.__name__}.{name}", f"{home}.{name}"} & known:
        LOGGER.warning("%s.%s is on no page", package.__name__, name)


def setup(app) -> None:
  """Called by Sphinx."""
  # Ahead of napoleon, which knows where sections end.
  app.connect("autodoc-process-docstring", mark_formulas, priority=1)
  app.connect("autodoc-skip-member", is_field)
  app.connect("env-check-consistency", check_api)
  app.connect("builder-inited", write_api)
