"""What held of the sources' claims is counted from the rows."""

from types import ModuleType
from typing import Any

import pytest


def row(name: str, strategy: str, grid: dict[str, Any], accuracy: float) -> dict[str, Any]:
    case = {"set": name, "n_per_class": 20, "seed": 0, "input_px": 96}
    return case | {"strategy": strategy, "grid": grid, "accuracy": accuracy}


def frozen(name: str, *accuracies: float) -> list[dict[str, Any]]:
    """Rows of a full fine-tune and of one, two, ... frozen stages."""
    full, *partly = accuracies
    by_stage = [
        row(name, "partial_fine_tune", {"frozen_stages": k}, a)
        for k, a in enumerate(partly, start=1)
    ]
    return [row(name, "full_fine_tune", {}, full), *by_stage]


def test_freezing_holds_where_two_or_three_stages_beat_none(
    scripts: dict[str, ModuleType],
) -> None:
    rows = [*frozen("near", 0.7, 0.6, 0.8, 0.75), *frozen("far", 0.9, 0.95, 0.8, 0.8)]
    verdict = scripts["claims"].freezing_when_few(rows)
    assert (verdict.held, verdict.cases) == (1, 2)
    assert "near +10.0 (best: 2 frozen)" in verdict.detail
    assert "far -10.0 (best: 1 frozen)" in verdict.detail


def test_a_set_without_all_stages_does_not_count(scripts: dict[str, ModuleType]) -> None:
    assert scripts["claims"].freezing(frozen("short", 0.7, 0.8)) == {}


def test_views_are_compared_set_by_set(scripts: dict[str, ModuleType]) -> None:
    rows = [
        row(name, "layer_svm", {"depth": -1, "views": views}, a)
        for name, views, a in (("a", 1, 0.5), ("a", 6, 0.6), ("b", 1, 0.5), ("b", 6, 0.5))
    ]
    verdict = scripts["claims"].augmented_is_better([*rows, row("c", "layer_svm", {}, 0.9)])
    assert (verdict.held, verdict.cases) == (1, 2)
    assert "a +10.0, b +0.0" in verdict.detail


@pytest.mark.parametrize("text", ["near", "stages frozen", "test accuracy"])
def test_the_plot_names_what_it_shows(scripts: dict[str, ModuleType], text: str) -> None:
    svg = scripts["claims"].plot(frozen("near", 0.7, 0.6, 0.8, 0.75))
    assert svg.startswith("<svg")
    assert text in svg
