"""The notebooks of the docs, executed as a reader does."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
PATIENCE_S = 600


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own packages
def test_the_first_advice_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(DOCS.parent), *_python_path()]))
    (tmp_path / "work").mkdir()
    notebook = nbformat.read(DOCS / "notebooks" / "first_advice.ipynb", as_version=4)
    resources = {"metadata": {"path": str(tmp_path / "work")}}
    NotebookClient(notebook, timeout=PATIENCE_S, resources=resources).execute()

    # Optuna imports tqdm, which warns where there is no ipywidgets.
    advised, table, ran, trials, scored, loaded = [
        [output for output in cell.outputs if "TqdmWarning" not in output.get("text", "")]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ][1:]
    for outputs in (advised, ran):
        kinds = [output.output_type for output in outputs]
        assert kinds == ["display_data", "execute_result"], outputs
        assert "images 300/300" in outputs[0].data["text/plain"]
    assert "trial 0 linear_probe: validation accuracy" in ran[0].data["text/plain"]
    assert "<th>expected accuracy</th>" in advised[1].data["text/html"]
    assert advised[1].data["text/plain"].startswith("Advice for digits: ")
    assert "<th>validation accuracy</th>" in ran[1].data["text/html"]
    assert ran[1].data["text/plain"].startswith("Outcome for digits: ")
    assert "accuracy_low" in table[0].data["text/html"]
    assert "val_accuracy" in trials[0].data["text/html"]
    assert float(scored[0].data["text/plain"]) > 0.5  # chance: 0.1
    assert loaded[0].data["text/plain"].startswith("array([")


def _python_path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
