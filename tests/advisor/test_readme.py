"""The serving example of the README runs."""

import re
from pathlib import Path

import pytest

from tests.advisor.searching import Runner

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_serving_example_of_the_readme_classifies(run: Runner) -> None:
    run(max_trials=1)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "def classify" in block]
    assert len(code.strip().splitlines()) <= 15
    names: dict[str, object] = {}
    exec(code.replace("runs/mine/classifier", str(run.folder.classifier())), names)
    classify = names["classify"]
    assert callable(classify)
    found = classify(str(run.dataset.val[0].path))
    assert set(found) == set(run.dataset.classes)
    assert sum(found.values()) == pytest.approx(1, abs=1e-4)
