"""Quadrant chart: dataset size against domain similarity, with the rules of thumb."""

from collections.abc import Sequence

from advisor.decide.quadrant import RULES, SIMILAR_FROM
from advisor.report.charts.vega import Chart, Row, Spec
from advisor.report.words import title
from advisor.similarity.calibration import calibration
from advisor.types.advice import Advice, Domain, Size


def landmarks() -> tuple[tuple[str, float], ...]:
    """Return names and similarities of the landmarks."""
    scale = calibration()
    return tuple((name, scale.score(distance)) for name, distance in scale.landmarks)


def quadrant_chart(advice: Advice) -> Chart:
    """Return the chart of the dataset's position by size and domain similarity."""
    size, similarity = advice.quadrant.size_decades, advice.quadrant.similarity
    reach = max(3.0, abs(size.low) + 0.3, abs(size.high) + 0.3)
    layers = [*_quadrant_layers(reach), *_landmark_layers(reach)]
    here = {"x": size.mid, "xl": size.low, "xh": size.high}
    here |= {"y": similarity.mid, "yl": similarity.low, "yh": similarity.high}
    layers += _position_layers(here, reach)
    rows = [("your dataset", size.text("+.2f"), similarity.text(".2f"))]
    rows += [(name, "", f"{s:.2f}") for name, s in landmarks()]
    return Chart(
        "quadrant",
        "Dataset size and domain similarity",
        "x: number of images relative to the threshold between few and many. y: domain similarity "
        "to ImageNet, measured with the embedded network. Each quadrant shows its rule of "
        "thumb. The vertical bar is a 90% interval. The ends of the horizontal bar are two "
        "measures of size (all images, images per class). On the right: landmark datasets with "
        "known similarity.",
        {"height": 330, "layer": layers},
        ("dataset", "size, powers of ten above the threshold", "similarity"),
        tuple(rows),
        wide=True,
    )


def _quadrant_layers(reach: float) -> list[Spec]:
    """Return layers for the four quadrants and their rules."""
    values = []
    places: Sequence[tuple[Size, float, float]] = (("small", -reach, 0), ("large", 0, reach))
    heights: Sequence[tuple[Domain, float, float]] = (
        ("different", 0, SIMILAR_FROM),
        ("similar", SIMILAR_FROM, 1),
    )
    for size, left, right in places:
        for domain, low, high in heights:
            rule = title(RULES[size, domain])
            values.append({"x": left, "x2": right, "y": low, "y2": high, "rule": rule})
    tick_label = (
        "datum.value == 0 ? 'threshold' "
        ": (datum.value < 0 ? '÷' : '×') + pow(10, abs(datum.value))"
    )
    x = {
        "field": "x",
        "type": "quantitative",
        "title": "Number of images relative to the threshold",
        "scale": {"domain": [-reach, reach * 2.25], "nice": False},
        "axis": {
            "values": list(range(-int(reach), int(reach) + 1)),
            "labelExpr": tick_label,
            "grid": False,
            "domain": False,
            "titleAnchor": "start",
        },
    }
    y = {
        "field": "y",
        "type": "quantitative",
        "title": "Domain similarity to ImageNet",
        "scale": {"domain": [0, 1]},
        "axis": {"grid": False},
    }
    ends = {"x2": {"field": "x2"}, "y2": {"field": "y2"}}
    data = {"values": values}
    corner = {"calculate": "datum.y2 - 0.03", "as": "top"}
    return [
        {
            "data": data,
            "mark": {"type": "rect", "fill": "var(--field)", "stroke": "var(--line)"},
            "encoding": {"x": x, "y": y, **ends},
        },
        {
            "data": data,
            "transform": [corner, {"calculate": "datum.x + 0.1", "as": "left"}],
            "mark": {"type": "text", "align": "left", "baseline": "top", "color": "var(--soft)"},
            "encoding": {
                "x": {"field": "left", "type": "quantitative"},
                "y": {"field": "top", "type": "quantitative"},
                "text": {"field": "rule"},
            },
        },
    ]


def _landmark_layers(reach: float) -> list[Spec]:
    """Return layers for the landmarks right of the quadrants, with labels that do not overlap."""
    values: list[Row] = []
    place = -1.0
    for name, score in sorted(landmarks(), key=lambda pair: pair[1]):
        place = max(score, place + 0.048)
        values.append({"name": name, "similarity": score, "place": place})
    overflow = place - 1.0
    for below, value in enumerate(reversed(values)):
        if overflow > 0:
            value["place"] = min(value["place"], 1.0 - 0.048 * below)
    data = {"values": values}
    name_at = {"field": "place", "type": "quantitative"}
    tooltip = [
        {"field": "name", "title": "dataset"},
        {"field": "similarity", "title": "similarity", "format": ".2f"},
    ]
    return [
        {
            "data": data,
            "mark": {"type": "rule", "color": "var(--soft)", "strokeWidth": 1},
            "encoding": {
                "x": {"datum": reach},
                "x2": {"datum": reach * 1.07},
                "y": {"field": "similarity", "type": "quantitative"},
                "y2": {"field": "place"},
            },
        },
        {
            "data": data,
            "mark": {
                "type": "text",
                "align": "left",
                "dx": 2,
                "fontSize": 9.5,
                "color": "var(--soft)",
            },
            "encoding": {
                "x": {"datum": reach * 1.08},
                "y": name_at,
                "text": {"field": "name"},
                "tooltip": tooltip,
            },
        },
    ]


def _position_layers(here: Row, reach: float) -> list[Spec]:
    """Return layers for the position of the dataset: a point with bars."""
    data = {"values": [here]}
    x = {"field": "x", "type": "quantitative"}
    x_interval = {"x": {"field": "xl", "type": "quantitative"}, "x2": {"field": "xh"}}
    bar = {"type": "rule", "color": "var(--accent)", "strokeWidth": 3, "opacity": 0.75}
    y = {"field": "y", "type": "quantitative"}
    y_interval = {"y": {"field": "yl", "type": "quantitative"}, "y2": {"field": "yh"}}
    tooltip = [
        {"field": "x", "title": "powers of ten above the threshold", "format": "+.2f"},
        {"field": "y", "title": "similarity", "format": ".2f"},
    ]
    offset: Row = (
        {"align": "right", "dx": -9} if here["x"] > reach / 2 else {"align": "left", "dx": 9}
    )
    offset["dy"] = 14 if here["y"] > 0.12 else -12
    label = {"type": "text", "fontWeight": 600, **offset}
    return [
        {"data": data, "mark": bar, "encoding": {"y": y, **x_interval}},
        {"data": data, "mark": bar, "encoding": {"x": x, **y_interval}},
        {
            "data": data,
            "mark": {
                "type": "point",
                "filled": True,
                "size": 110,
                "color": "var(--accent)",
                "opacity": 1,
                "stroke": "var(--paper)",
            },
            "encoding": {"x": x, "y": y, "tooltip": tooltip},
        },
        {
            "data": data,
            "mark": {**label, "color": "var(--accent)"},
            "encoding": {"x": x, "y": y, "text": {"value": "your dataset"}},
        },
    ]
