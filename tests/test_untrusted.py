"""What comes from a file is data: it is never run, and of bounded size."""

import ast
import io
import json
import pathlib
import zipfile

import numpy as np
import pytest

from jdiff import training
from jdiff.core import files
from jdiff.training import records
from jdiff.training import workdir as workdir_lib
from tests.training import toy

ROOT = pathlib.Path(__file__).parents[1]

# Modules that turn bytes into objects, or unpack them without a bound.
FORBIDDEN_IMPORTS = {
  "cloudpickle",
  "dill",
  "joblib",
  "marshal",
  "pickle",
  "shelve",
  "tarfile",
  "yaml",
  "zipfile",
}
# Calls by the last part of their name.
FORBIDDEN_CALLS = {
  "__import__",
  "compile_command",
  "eval",
  "exec",
  "exec_module",
  "fromfile",
  "fromregex",
  "genfromtxt",
  "import_module",
  "loadtxt",
  "memmap",
  "read_bytes",
  "read_pickle",
  "read_text",
  "spec_from_file_location",
  "to_pickle",
  "urlopen",
  "urlretrieve",
}
# `module.load` of these reads files.
LOADERS = {"np", "numpy", "json", "torch", "joblib", "jnp"}

ALLOWED = {
  ("jdiff/core/files.py", "zipfile"): "looks at sizes before it reads",
  ("jdiff/core/files.py", "load"): "without pickle",
  ("jdiff/core/files.py", "read_text"): "after the size is known",
  ("jdiff/targets/trees.py", "read_bytes"): "of `files.check_size`",
  ("experiments/common/tokenizer.py", "read_text"): "after the size is known",
  ("experiments/pdns/laws.py", "loadtxt"): "numbers, of `files.check_size`",
  ("jdiff/training/processes.py", "read_text"): "hosts, from a TPU's runtime",
  ("jdiff/training/saved.py", "import_module"): "`_build_stored` says what",
  ("jdiff/nets/llada_io.py", "import_module"): "a name in the code",
  ("experiments/tr2d2/oracles.py", "import_module"): "a name in the code",
  ("experiments/world/optional.py", "import_module"): "a name in the code",
  ("experiments/tr2d2/oracles.py", "spec_from_file_location"): (
    "a script of the installed RDKit"
  ),
  ("experiments/tr2d2/oracles.py", "exec_module"): "that script",
  ("experiments/common/sandbox.py", "read_text"): "the sandbox's own program",
  ("experiments/common/sandbox_child.py", "exec"): "in a confined process",
  ("experiments/common/sandbox_child.py", "load"): "of JSON, from its parent",
}


def findings(source):
  """`(name, line)` of what a module must not do."""
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names = [alias.name.split(".")[0] for alias in node.names]
      found += [(n, node.lineno) for n in names if n in FORBIDDEN_IMPORTS]
    elif isinstance(node, ast.ImportFrom):
      name = (node.module or "").split(".")[0]
      if name in FORBIDDEN_IMPORTS:
        found.append((name, node.lineno))
    elif isinstance(node, ast.Call):
      called = node.func
      name = getattr(called, "attr", getattr(called, "id", ""))
      owner = getattr(getattr(called, "value", None), "id", "")
      # `model.eval()` and `pool.exec` are other matters.
      builtin = name in ("eval", "exec")
      own = owner == "files" or (builtin and owner)
      if name in FORBIDDEN_CALLS and not own:
        found.append((name, node.lineno))
      if name == "load" and owner in LOADERS:
        found.append((name, node.lineno))
      if any(k.arg == "shell" for k in node.keywords):
        found.append(("shell", node.lineno))
      for keyword in node.keywords:
        unsafe = not isinstance(keyword.value, ast.Constant)
        if keyword.arg == "allow_pickle" and (unsafe or keyword.value.value):
          found.append(("allow_pickle", node.lineno))
  return found


def test_no_module_runs_what_it_reads():
  used, bad = set(), []
  for folder in ("jdiff", "experiments"):
    for path in sorted((ROOT / folder).rglob("*.py")):
      name = path.relative_to(ROOT).as_posix()
      for what, line in findings(path.read_text()):
        if (name, what) in ALLOWED:
          used.add((name, what))
        else:
          bad.append(f"{name}:{line}: {what}")
  assert not bad
  assert used == set(ALLOWED)


@pytest.mark.parametrize(
  "source, what",
  [
    ("import pickle", "pickle"),
    ("from yaml import load", "yaml"),
    ("import numpy as np\nnp.load(path)", "load"),
    ("f(allow_pickle=True)", "allow_pickle"),
    ("f(allow_pickle=flag)", "allow_pickle"),
    ("eval(text)", "eval"),
    ("import json\njson.load(file)", "load"),
    ("pathlib.Path(p).read_text()", "read_text"),
    ("subprocess.run(text, shell=True)", "shell"),
    ("importlib.import_module(name)", "import_module"),
  ],
)
def test_the_walk_sees(source, what):
  assert [name for name, _ in findings(source)] == [what]
  assert not findings("x = model.eval()\njson.loads(text)\nf(pickle=1)")


def npz(path, **members):
  """An archive of raw bytes."""
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, data in members.items():
      archive.writestr(f"{name}.npy", data)
  return path


def npy(shape, dtype="<f4", data=b""):
  """Bytes of a `.npy` file whose header says what it likes."""
  stream = io.BytesIO()
  header = {"descr": dtype, "fortran_order": False, "shape": shape}
  np.lib.format.write_array_header_1_0(stream, header)
  return stream.getvalue() + data


def test_arrays_come_back(tmp_path):
  arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array("text")}
  np.savez(tmp_path / "x.npz", **arrays)
  np.save(tmp_path / "x.npy", arrays["a"])
  loaded = files.load_arrays(tmp_path / "x.npz")
  assert loaded.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(loaded[name], array)
  np.testing.assert_array_equal(
    files.map_array(tmp_path / "x.npy"), arrays["a"]
  )


@pytest.mark.parametrize(
  "data",
  [
    npy((10**12,)),
    npy((2,), data=b"1234"),
    npy((-1,), data=b"1234"),
    npy((1,), "|O", b"12345678"),
    npy((1,), "<f4", b"1234")[:8],
    b"no array",
    b"",
  ],
  ids=["huge", "short", "negative", "objects", "cut", "other", "empty"],
)
def test_arrays_that_lie_are_refused(data, tmp_path):
  with pytest.raises(ValueError, match="must be an .npz file"):
    files.load_arrays(npz(tmp_path / "x.npz", a=data))
  (tmp_path / "x.npy").write_bytes(data)
  with pytest.raises(ValueError, match="must be a whole .npy file"):
    files.map_array(tmp_path / "x.npy")


def test_pickled_arrays_are_refused(tmp_path):
  array = np.array([{}, None])
  np.savez(tmp_path / "x.npz", a=array)
  np.save(tmp_path / "x.npy", array)
  with pytest.raises(ValueError, match="must be an .npz file"):
    files.load_arrays(tmp_path / "x.npz")
  with pytest.raises(ValueError, match="must be a whole .npy file"):
    files.map_array(tmp_path / "x.npy")


def test_archives_are_measured_unpacked(tmp_path):
  path = npz(tmp_path / "x.npz", a=npy((10**5,), data=bytes(4 * 10**5)))
  assert path.stat().st_size < 2000
  assert files.load_arrays(path)["a"].shape == (10**5,)
  with pytest.raises(ValueError, match="at most 100000 bytes"):
    files.load_arrays(path, max_bytes=10**5)
  (tmp_path / "x.txt").write_text("no archive")
  with pytest.raises(ValueError, match="must be an .npz file"):
    files.load_arrays(tmp_path / "x.txt")


def test_archives_that_are_damaged_are_refused(tmp_path):
  path = npz(tmp_path / "x.npz", a=npy((10**4,), data=bytes(range(250)) * 160))
  data = bytearray(path.read_bytes())
  for place in range(60, 120):
    data[place] ^= 0xFF
  path.write_bytes(data)
  with pytest.raises(ValueError, match="must be an .npz file"):
    files.load_arrays(path)
  np.savez(tmp_path / "x.npz", a=np.ones(3))
  (tmp_path / "x.npz").rename(tmp_path / "x.npy")
  with pytest.raises(ValueError, match="must be a whole .npy file"):
    files.map_array(tmp_path / "x.npy")


@pytest.mark.parametrize(
  "text", ["{", "[" * 10**6, '{"a": NaN', b"\xff".decode("latin1")]
)
def test_json_that_is_none_is_refused(text, tmp_path):
  path = tmp_path / "x.json"
  path.write_bytes(text.encode("latin1"))
  with pytest.raises(ValueError, match="x.json"):
    files.read_json(path)
  path.write_text("[1, 2]")
  assert files.read_json(path) == [1, 2]
  with pytest.raises(ValueError, match="at most 5 bytes, got 6"):
    files.read_json(path, max_bytes=5)


def config_file(folder, **changes):
  (folder / workdir_lib.CONFIG).write_text(
    json.dumps(toy.config(num_steps=2, **changes))
  )
  return folder


@pytest.mark.parametrize(
  "text, message",
  [
    ("[]", "must be a JSON object"),
    ("{}", "config lacks experiment"),
    ("[" * 10**5, "not valid JSON"),
    ('{"a": ' * 5000 + "1" + "}" * 5000, "not valid JSON|nested"),
    ('"' + "a" * 2**20 + '"', "at most 1048576 bytes"),
  ],
)
def test_config_files_are_bounded(text, message, tmp_path):
  (tmp_path / workdir_lib.CONFIG).write_text(text)
  for use in (training.load, training.evaluate, workdir_lib.read_config):
    with pytest.raises(ValueError, match=message):
      use(tmp_path)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"width": float("nan")}, "config.width must be finite"),
    ({"sizes": [1, [float("inf")]]}, "config.sizes.1.0 must be finite"),
    ({"width": 10**400}, "config.width must be"),
    ({"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {}}}}}}}}}, "nested"),
  ],
)
def test_config_values_are_bounded(changes, message, tmp_path):
  config_file(tmp_path, **changes)
  with pytest.raises(ValueError, match=message):
    workdir_lib.read_config(tmp_path)
  with pytest.raises(ValueError, match=message):
    training.build(toy.config(**changes))


def test_a_file_does_not_choose_code(tmp_path, monkeypatch):
  (tmp_path / "planted.py").write_text("ran = True\ndef build(c): 1 / 0")
  monkeypatch.syspath_prepend(tmp_path)
  config_file(tmp_path, experiment="planted")
  message = "may name modules of experiments"
  for use in (training.load, training.evaluate):
    with pytest.raises(ValueError, match=message):
      use(tmp_path)
  with pytest.raises(ValueError, match=message):
    training.sample(tmp_path, 1)
  # The control: a config of the user's own does.
  with pytest.raises(ZeroDivisionError):
    training.build(toy.config(experiment="planted"))


@pytest.mark.parametrize("name", ["", ".", "..x", "a b", "a/b", "a.", "os;x"])
def test_module_names_are_names(name):
  with pytest.raises(ValueError, match="config.experiment must name a module"):
    training.build(toy.config(experiment=name))
  with pytest.raises(ValueError, match="config.experiment must name a module"):
    training.stand_in(toy.config(experiment=name))


def test_history_is_of_records(tmp_path):
  path = tmp_path / workdir_lib.METRICS
  whole = [{"step": step, "wall_seconds": 0.5} for step in (1, 2)]
  path.write_text("".join(json.dumps(one) + "\n" for one in whole) + '{"st')
  assert records.read_history(tmp_path, 9) == whole
  bad = (
    "[1]",
    '{"stop": 1}',
    '{"step": 1}',
    '{"step": "1", "wall_seconds": 1}',
  )
  for line in bad:
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match="must hold records with step"):
      records.read_history(tmp_path, 9)


@pytest.mark.parametrize("text", ["{}", "[]", '{"steps": 2}', "{", "1"])
def test_what_is_no_report_is_no_report(text, tmp_path):
  (tmp_path / workdir_lib.REPORT).write_text(text)
  assert workdir_lib.read_report(tmp_path) is None
