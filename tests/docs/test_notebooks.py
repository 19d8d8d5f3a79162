"""The notebooks of the docs, executed as a reader does."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
PATIENCE_S = 600
Execute = Callable[[str], list[list[Any]]]
# Of Jupyter's own packages.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Execute:
    """Execute a notebook in an empty folder with an empty cache; return the cells' outputs."""
    path = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TUTORIALS.parents[1]), *path]))
    (tmp_path / "work").mkdir()

    def run(name: str) -> list[list[Any]]:
        notebook = nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)
        resources = {"metadata": {"path": str(tmp_path / "work")}}
        NotebookClient(notebook, timeout=PATIENCE_S, resources=resources).execute()
        # Optuna imports tqdm, which warns where there is no ipywidgets.
        return [
            [output for output in cell.outputs if "TqdmWarning" not in output.get("text", "")]
            for cell in notebook.cells
            if cell.cell_type == "code"
        ]

    return run


def printed(outputs: list[Any]) -> str:
    """Return what a cell printed to stdout."""
    return "".join(o.text for o in outputs if o.get("name") == "stdout")


def test_the_first_advice_can_be_followed(execute: Execute) -> None:
    advised, table, ran, trials, scored, loaded = execute("first-advice")[1:]
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


def test_a_folder_becomes_a_deployed_classifier(execute: Execute) -> None:
    ran, checked, classified, exported, compared = execute("deployed-classifier")[1:]
    assert ran[-1].data["text/plain"].startswith("Outcome for digits: ")
    assert "accuracy " in printed(checked)
    assert "classifier" in checked[-1].data["text/plain"]
    assert classified[-1].data["text/plain"].startswith("{'0': ")
    assert "classifier.onnx" in exported[-1].data["text/plain"]
    assert float(printed(compared).rsplit(" ", 1)[1]) < 0.05


def test_images_that_are_nothing_like_imagenet_are_told_apart(execute: Execute) -> None:
    advised, probes, harm, ran = execute("far-from-imagenet")[1:]
    assert float(printed(advised).split()[1]) < 0.6
    assert "random weights" in printed(probes)
    assert "chance of harm" in printed(harm)
    assert "test accuracy" in printed(ran)
