"""Every notebook runs from the top, shortened, and is right at the end."""

import pathlib
import re

import nbclient
import nbformat
import pytest

from tests import helpers

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ESTIMATE = re.compile(r"([-+]?[\d.]+) \+- ([\d.]+), exact ([-+]?[\d.]+)")


def printed(notebook):
  """Everything that its code cells wrote to stdout, in order."""
  return "".join(
    output["text"]
    for cell in notebook.cells
    if cell.cell_type == "code"
    for output in cell.outputs
    if output.get("name") == "stdout"
  )


def check_estimates(notebook, bias):
  """Everything printed beside an exact value is near it."""
  found = ESTIMATE.findall(printed(notebook))
  assert found, "the notebook printed no estimate beside an exact value"
  for line in found:
    estimate, se, exact = map(float, line)
    assert abs(estimate - exact) < 5 * se + bias


def test_there_are_notebooks():
  assert NOTEBOOKS


# `make notebooks` runs them from the root; starting kernels is no part of the
# suite, whose tests run the same experiments.
@pytest.mark.thorough
@pytest.mark.parametrize("folder", [".", "notebooks"], ids=["root", "inside"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_ends_near_the_exact_answer(
  path, folder, tmp_path, monkeypatch
):
  # Exact values are beside estimates however little was learnt.
  monkeypatch.setenv("JDIFF_NOTEBOOK_STEPS", "20")
  # The kernel gets one device, as its reader has, not the suite's eight; and
  # only its own sys.path edits, not ours.
  monkeypatch.setenv("XLA_FLAGS", helpers.one_device_flags())
  monkeypatch.delenv("PYTHONPATH", raising=False)
  # Neither connection files nor history belong in anybody's home.
  monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
  monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
  notebook = nbformat.read(path, as_version=4)
  nbclient.NotebookClient(
    notebook,
    timeout=600,
    kernel_name="python3",
    resources={"metadata": {"path": str(ROOT / folder)}},
  ).execute()
  check_estimates(notebook, bias=0.1)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_stored_outputs_are_whole_small_and_name_no_place(path):
  assert path.stat().st_size < 300_000
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
  # Executed once, from the top.
  counts = [cell.execution_count for cell in cells]
  assert counts == list(range(1, len(cells) + 1))
  for cell in cells:
    for output in cell.outputs:
      assert output.output_type != "error"
      assert output.get("name") != "stderr"
  assert not re.search(r"/(home|root|tmp|work|Users)/", printed(notebook))
  check_estimates(notebook, bias=0.01)
