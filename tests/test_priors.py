"""The priors are what the benchmarks' rows say."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def fit_priors() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fit_priors", ROOT / "benchmarks/fit_priors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_priors_are_rebuilt_from_the_rows_byte_for_byte(fit_priors: ModuleType) -> None:
    rows = [json.loads(x) for x in fit_priors.RESULTS.read_text().splitlines()]
    assert fit_priors.text_of(rows) == fit_priors.PRIORS.read_text()
