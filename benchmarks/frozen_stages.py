"""Gain of freezing the first stages, by images per class: two claims, a table and a plot."""

from collections import defaultdict

import numpy as np
from claim_results import ClaimResult, fixed, is_default, pairs, with_error
from rows import Case, Row, case_of
from vl_convert import vegalite_to_svg


def freezing_when_few(rows: list[Row]) -> ClaimResult:
    """Check whether freezing the first two or three stages beats training all, at any size."""
    held, by_size = [], defaultdict(list)
    for case, by_stage in accuracy_by_frozen_stages(rows).items():
        gap = (by_stage[2] + by_stage[3]) / 2 - by_stage[0]
        held.append(gap > 0)
        by_size[case.n_per_class].append(gap)
    details = [
        f"{with_error(gaps)} with {n} images per class" for n, gaps in sorted(by_size.items())
    ]
    return ClaimResult(
        "with few images, freezing the first two or three stages beats training all stages",
        "Soekhoe 2016",
        sum(held),
        len(held),
        "datasets and sizes where it does; mean of 2 and 3 frozen minus none, default learning "
        "rates, points: " + ", ".join(details),
    )


def freezing_by_size(rows: list[Row]) -> ClaimResult:
    """Check at how many images per class two or three frozen stages beat none."""
    none, by_size = fixed("full_fine_tune"), defaultdict(list)
    for frozen in (fixed("partial_fine_tune", frozen_stages=2), fixed("partial_fine_tune")):
        for case, gap in pairs(rows, frozen, none):
            by_size[case.n_per_class].append((case.dataset, gap))
    held, details = [], []
    for n, gaps in sorted(by_size.items()):
        by_set: dict[str, list[float]] = defaultdict(list)
        for name, gap in gaps:
            by_set[name].append(gap)
        means = [float(np.mean(of_set)) for of_set in by_set.values()]
        held += means
        details.append(f"{with_error(means)} with {n} images per class")
    return ClaimResult(
        "the fewer images, the more freezing the first two or three stages gains",
        "Soekhoe 2016",
        sum(gap > 0 for gap in held),
        len(held),
        "datasets and sizes where it gained; mean of 2 and 3 frozen minus none, lr 1e-3, points: "
        + ", ".join(details),
    )


def accuracy_by_frozen_stages(rows: list[Row]) -> dict[Case, dict[int, float]]:
    """Return test accuracy by number of frozen stages, for cases with rows for 0, 2 and 3.

    Learning rates are the defaults. With all stages frozen only the head is trained.
    """
    found: dict[Case, dict[int, float]] = defaultdict(dict)
    heads = {case_of(row): row["accuracy"] for row in rows if is_default(row, "linear_probe")}
    for row in rows:
        if row["strategy"] == "partial_fine_tune" and set(row["grid"]) == {"frozen_stages"}:
            found[case_of(row)][row["grid"]["frozen_stages"]] = row["accuracy"]
        elif is_default(row, "full_fine_tune"):
            found[case_of(row)][0] = row["accuracy"]
    curves = {case: dict(sorted(by.items())) for case, by in found.items() if {0, 2, 3} <= set(by)}
    for case, by_stage in curves.items():
        if case in heads:
            by_stage[max(by_stage) + 1] = heads[case]
    return curves


def freezing_table(rows: list[Row]) -> str:
    """Return the gain of each number of frozen stages over none, by size, as Markdown."""
    gains: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case, by_stage in accuracy_by_frozen_stages(rows).items():
        for k, accuracy in by_stage.items():
            if k:
                gains[case.n_per_class][k].append(accuracy - by_stage[0])
    stages = sorted({k for gained in gains.values() for k in gained})
    lines = [
        "| images per class (datasets), frozen stages: | " + " | ".join(map(str, stages)) + " |",
        "|---|" + "---|" * len(stages),
    ]
    for n, gained in sorted(gains.items()):
        cells = " | ".join(with_error(gained[k]) for k in stages)
        lines.append(f"| {n} ({len(gained[stages[0]])}) | {cells} |")
    return "\n".join(lines)


def plot(rows: list[Row]) -> str:
    """Draw accuracy over frozen stages as SVG, one panel per size; best points are filled."""
    values = [
        {
            "set": case.dataset,
            "images": case.n_per_class,
            "frozen": k,
            "accuracy": 100 * accuracy,
            "best": accuracy == max(by.values()),
        }
        for case, by in accuracy_by_frozen_stages(rows).items()
        for k, accuracy in by.items()
    ]
    x: dict[str, object] = {"field": "frozen", "type": "quantitative", "title": "stages frozen"}
    x["axis"] = {"tickMinStep": 1}
    y: dict[str, object] = {"field": "accuracy", "type": "quantitative"}
    y |= {"title": "test accuracy, %", "scale": {"zero": False}}
    shown = {"x": x, "y": y, "color": {"field": "set", "type": "nominal", "title": None}}
    best = {"condition": {"test": "datum.best", "value": 1}, "value": 0}
    mark = {"type": "line", "point": {"filled": False, "fill": "white", "size": 40}}
    point = {"type": "point", "filled": True, "size": 60}
    layers = [
        {"mark": mark, "encoding": shown},
        {"mark": point, "encoding": {**shown, "opacity": best}},
    ]
    column = {"field": "images", "type": "ordinal", "title": "images per class"}
    spec = {
        "data": {"values": values},
        "padding": {"left": 5, "top": 5, "bottom": 5, "right": 30},  # fonts differ in width
        "facet": {"column": column},
        "spec": {"width": 200, "height": 240, "layer": layers},
        "resolve": {"scale": {"y": "independent"}},
    }
    return vegalite_to_svg(spec)
