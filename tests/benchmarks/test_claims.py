"""Tests of claims.py and frozen_stages.py on small sets of rows."""

from types import ModuleType
from typing import Any

import pytest

from tests.advisor.profiles import inputs_of


def row(name: str, strategy: str, grid: dict[str, Any], accuracy: float) -> dict[str, Any]:
    """Return a row of a dataset with 20 images per class."""
    case = {"set": name, "n_per_class": 20, "seed": 0, "input_px": 96}
    return case | {"strategy": strategy, "grid": grid, "accuracy": accuracy}


def frozen(name: str, *accuracies: float) -> list[dict[str, Any]]:
    """Return rows of a full fine-tune, and of fine-tunes with one, two, ... frozen stages."""
    full, *partial = accuracies
    by_stage = [
        row(name, "partial_fine_tune", {"frozen_stages": k}, a)
        for k, a in enumerate(partial, start=1)
    ]
    return [row(name, "full_fine_tune", {}, full), *by_stage]


def test_freezing_holds_where_two_and_three_stages_beat_none(
    scripts: dict[str, ModuleType],
) -> None:
    rows = [*frozen("near", 0.7, 0.6, 0.8, 0.76), *frozen("far", 0.9, 0.95, 0.8, 0.8)]
    result = scripts["frozen_stages"].freezing_when_few(rows)
    assert (result.held, result.cases) == (1, 2)
    assert "-1.0 ± 9.0 with 20 images per class" in result.detail


def test_the_table_of_frozen_stages_ends_with_the_head_alone(
    scripts: dict[str, ModuleType],
) -> None:
    rows = [
        *frozen("near", 0.7, 0.6, 0.8, 0.75),
        *frozen("far", 0.9, 0.95, 0.8, 0.8),
        row("near", "linear_probe", {}, 0.65),
        row("far", "linear_probe", {}, 0.45),
        row("near", "linear_probe", {"strength": 1.0}, 0.1),
    ]
    table = scripts["frozen_stages"].freezing_table(rows)
    assert table.splitlines() == [
        "| images per class (datasets), frozen stages: | 1 | 2 | 3 | 4 |",
        "|---|---|---|---|---|",
        "| 20 (2) | -2.5 ± 7.5 | +0.0 ± 10.0 | -2.5 ± 7.5 | -25.0 ± 20.0 |",
    ]


def test_freezing_is_compared_at_one_learning_rate_by_images_per_class(
    scripts: dict[str, ModuleType],
) -> None:
    plain = {"lr": 1e-3, "blend": 1.0}
    rows = [
        row("a", "full_fine_tune", plain, 0.7),
        row("a", "full_fine_tune", {**plain, "batch_norm": "trained"}, 0.1),
        row("a", "partial_fine_tune", plain, 0.75),
        row("a", "partial_fine_tune", {**plain, "frozen_stages": 2}, 0.73),
        row("b", "full_fine_tune", plain, 0.8),
        row("b", "partial_fine_tune", plain, 0.7),
    ]
    few = [
        row("a", "full_fine_tune", plain, 0.5) | {"n_per_class": 5},
        row("a", "partial_fine_tune", plain, 0.6) | {"n_per_class": 5},
    ]
    result = scripts["frozen_stages"].freezing_by_size(rows + few)
    assert (result.held, result.cases) == (2, 3)
    expected = "+10.0 with 5 images per class, -3.0 ± 7.0 with 20 images per class"
    assert expected in result.detail


def test_small_learning_rates_are_compared_with_large_ones(
    scripts: dict[str, ModuleType],
) -> None:
    rows, inputs = [], {}
    for name, similarity, small in (("near", 0.9, 0.8), ("far", 0.1, 0.6), ("odd", 0.2, 0.75)):
        case = scripts["rows"].Case(name, 20, 0, 96)
        inputs[case] = inputs_of(similarity=similarity)
        for lr, accuracy in ((3e-4, small), (1e-3, 0.7)):
            rows.append(row(name, "full_fine_tune", {"lr": lr, "blend": 1.0}, accuracy))
    result = scripts["claims"].small_learning_rate_when_near(rows, inputs)
    assert (result.held, result.cases) == (2, 3)
    assert "+10.0 points near, -2.5 ± 7.5 far" in result.detail


def test_interpolated_weights_are_grouped_by_errors_of_the_probe(
    scripts: dict[str, ModuleType],
) -> None:
    rows, inputs = [], {}
    for name, n_per_class, lr, blend, half in (
        ("few", 20, 3e-4, 0.5, 0.75),  # 160 train images, 32 of them classified wrongly
        ("some", 50, 3e-4, 0.7, 0.72),
        ("many", 500, 4e-4, 0.6, 0.6),
        ("many2", 500, 4e-4, 0.6, 0.5),
        ("large rate", 500, 1e-3, 0.9, 0.9),
        ("no blend", 500, 3e-4, 1.0, 0.9),
    ):
        inputs[scripts["rows"].Case(name, 20, 0, 96)] = inputs_of(
            n_per_class=n_per_class, linear=0.8
        )
        used = {"hyperparameters": {"lr": lr, "blend": blend}}
        rows.append(row(name, "full_fine_tune", {}, half) | used)
        rows.append(row(name, "full_fine_tune", {"lr": 3e-4, "blend": 1.0}, 0.7))
    result = scripts["claims"].interpolated_weights(rows, inputs)
    assert (result.held, result.cases) == (2, 4)
    details = ("+5.0 with fewer than 50", "+2.0 with 50 to 150", "-15.0 ± 5.0 with more than 150")
    for detail in details:
        assert detail in result.detail


def test_a_dataset_without_all_stages_is_left_out(scripts: dict[str, ModuleType]) -> None:
    assert scripts["frozen_stages"].accuracy_by_frozen_stages(frozen("short", 0.7, 0.8)) == {}


def test_views_are_compared_case_by_case(scripts: dict[str, ModuleType]) -> None:
    rows = [
        row(name, "layer_svm", {"depth": -1, "views": views}, a) | {"n_per_class": n}
        for name, n, views, a in (
            ("a", 20, 1, 0.5),
            ("a", 20, 6, 0.6),
            ("b", 20, 1, 0.5),
            ("b", 20, 6, 0.5),
            ("a", 5, 1, 0.4),
            ("a", 5, 6, 0.7),
        )
    ]
    result = scripts["claims"].augmented_is_better([*rows, row("c", "layer_svm", {}, 0.9)])
    assert (result.held, result.cases) == (2, 3)
    expected = "+30.0 with 5 images per class, +5.0 ± 5.0 with 20 images per class"
    assert expected in result.detail


@pytest.mark.parametrize("text", ["near", "stages frozen", "test accuracy", "images per class"])
def test_the_plot_has_titles_and_labels(scripts: dict[str, ModuleType], text: str) -> None:
    svg = scripts["frozen_stages"].plot(frozen("near", 0.7, 0.6, 0.8, 0.75))
    assert svg.startswith("<svg")
    assert text in svg
