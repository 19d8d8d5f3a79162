"""Charts of an advice (Vega-Lite), each with the same numbers as a table.

The data are the unrounded numbers of the JSON; only label positions and colours are computed here.
"""

from collections.abc import Sequence

from advisor.report.charts.frontier import frontier_chart, time_axis
from advisor.report.charts.quadrant import quadrant_chart
from advisor.report.charts.vega import (
    HUES,
    PERCENT,
    SHAPES,
    Chart,
    Row,
    depth_axis,
    depths,
    interval_row,
    lines_with_intervals,
    percent_text,
    points_with_intervals,
    x_axis,
    y_axis,
)
from advisor.report.gallery import Gallery
from advisor.report.words import title
from advisor.types.advice import Advice
from advisor.types.durations import duration
from advisor.types.profile import ProbeResult, Profile

ZOOM = {"type": "interval", "zoom": "wheel![event.ctrlKey]"}
"""Zooming needs the Ctrl key, as on other maps: the wheel alone scrolls the page."""


def advice_charts(advice: Advice) -> tuple[Chart, ...]:
    """Return the charts of an advice, leaving out what was not measured."""
    made = (
        quadrant_chart(advice),
        similarity_chart(advice.profile),
        probe_chart(advice.profile),
        curve_chart(advice.profile),
        frontier_chart(advice),
        accuracy_chart(advice),
        cost_chart(advice),
    )
    return tuple(chart for chart in made if chart is not None)


def similarity_chart(profile: Profile) -> Chart | None:
    """Return the chart of the backbone's own BatchNorm shift by depth."""
    statistics = profile.backbone_statistics
    if statistics is None or not statistics.per_depth:
        return None
    pairs = zip(depths(profile), statistics.per_depth, strict=True)
    shifts = [(name, s) for name, s in pairs if s is not None]
    values = [{"depth": name, **interval_row(s)} for name, s in shifts]
    return Chart(
        "similarity",
        "BatchNorm shift by depth",
        f"Divergence of the backbone's BatchNorm inputs from {statistics.reference}, by depth "
        "from input to output. 0 nats: no shift.",
        {
            "height": 240,
            "data": {"values": values},
            "layer": lines_with_intervals(
                depth_axis(), y_axis("BatchNorm shift (nats)", zero=True), ".3f"
            ),
        },
        ("depth", "BatchNorm shift (nats)"),
        tuple((name, s.text()) for name, s in shifts),
    )


def probe_chart(profile: Profile) -> Chart:
    """Return the chart of linear-probe accuracy by depth, for pretrained and random weights."""
    values = _probe_rows(profile, profile.probes, "pretrained")
    values += _probe_rows(profile, profile.random_probes, "random weights")
    tooltip = [{"field": "mid", "title": "majority-class baseline", "format": PERCENT}]
    baseline = {
        "data": {"values": [{"mid": profile.majority_share}]},
        "mark": {"type": "rule", "strokeDash": [3, 3], "color": "var(--soft)"},
        "encoding": {"y": {"field": "mid", "type": "quantitative"}, "tooltip": tooltip},
    }
    colour = {
        "field": "weights",
        "type": "nominal",
        "title": None,
        "scale": {"domain": ["pretrained", "random weights"], "range": ["var(--c0)", "var(--c1)"]},
        "legend": {"orient": "top"} if profile.random_probes else None,
    }
    y = y_axis("Accuracy", PERCENT)
    layers = [baseline, *lines_with_intervals(depth_axis(), y, PERCENT, colour)]
    majority = f"{100 * profile.majority_share:.1f}%"
    absent = "" if profile.random_probes else " Random weights were not measured."
    return Chart(
        "probes",
        "Linear probe accuracy by depth",
        "Cross-validated accuracy of a linear SVM on the frozen features. Dashed: majority-class "
        f"baseline, {majority}.{absent}",
        {"height": 240, "data": {"values": values}, "layer": layers},
        ("depth", "weights", "accuracy"),
        tuple((v["depth"], v["weights"], percent_text(v)) for v in values),
    )


def _probe_rows(profile: Profile, probes: Sequence[ProbeResult], weights: str) -> list[Row]:
    names = depths(profile)
    return [
        {"depth": names[p.depth - 1], "weights": weights, **interval_row(p.accuracy)}
        for p in probes
        if p.loss == "squared_hinge" and p.depth > 0
    ]


def curve_chart(profile: Profile) -> Chart | None:
    """Return the learning curve: accuracy over images per class; None if not measured."""
    curve = profile.curve
    if curve is None:
        return None
    values = [
        {"n": n, "kind": kind, **interval_row(accuracy)}
        for kind, points in (("measured", curve.measured), ("extrapolated", curve.extrapolated))
        for n, accuracy in points
    ]
    x = {
        "field": "n",
        "type": "quantitative",
        "title": "Images per class",
        "scale": {"type": "log", "nice": False, "padding": 14},
        "axis": {"values": [v["n"] for v in values], "format": ",.0f", "labelOverlap": True},
    }
    colour = {
        "field": "kind",
        "type": "nominal",
        "title": None,
        "scale": {"domain": ["measured", "extrapolated"], "range": ["var(--c0)", "var(--c1)"]},
        "legend": {"orient": "top"},
    }
    return Chart(
        "curve",
        "Learning curve",
        "Cross-validated accuracy of the linear probe on subsets of the images, extrapolated by "
        "a power law. The x axis is logarithmic.",
        {
            "height": 240,
            "data": {"values": values},
            "layer": lines_with_intervals(x, y_axis("Accuracy", PERCENT), PERCENT, colour),
        },
        ("images per class", "kind", "accuracy"),
        tuple((f"{v['n']:,.0f}", v["kind"], percent_text(v)) for v in values),
    )


def accuracy_chart(advice: Advice) -> Chart:
    """Return the chart of the expected accuracy of every strategy."""
    values = [
        {"strategy": title(r.strategy), **interval_row(r.accuracy)} for r in advice.recommendations
    ]
    return Chart(
        "accuracy",
        "Expected accuracy",
        f"Probes at {advice.profile.input_px} px: cross-validated on your images. All else: "
        "predicted.",
        {
            "height": 34 * len(values),
            "data": {"values": values},
            "layer": points_with_intervals(x_axis("Expected accuracy", PERCENT), PERCENT),
        },
        ("strategy", "expected accuracy"),
        tuple((v["strategy"], percent_text(v)) for v in values),
    )


def cost_chart(advice: Advice) -> Chart:
    """Return the chart of the predicted time of one fit of every strategy."""
    values = [
        {"strategy": title(r.strategy), **interval_row(r.seconds)} for r in advice.recommendations
    ]
    scale = {"type": "log", "nice": False, "padding": 12}
    axis = x_axis("Predicted time of one fit", ",.1f")
    x = {**axis, "scale": scale, "axis": time_axis()}
    return Chart(
        "cost",
        "Predicted time of one fit",
        "On this machine, with an empty cache. The scale is logarithmic.",
        {
            "height": 34 * len(values),
            "data": {"values": values},
            "layer": points_with_intervals(x, ",.1f"),
        },
        ("strategy", "predicted time of one fit"),
        tuple(
            (
                title(r.strategy),
                f"{duration(r.seconds.mid)} "
                f"[{duration(r.seconds.low)}, {duration(r.seconds.high)}]",
            )
            for r in advice.recommendations
        ),
    )


def map_chart(gallery: Gallery, classes: Sequence[str]) -> Chart | None:
    """Return the t-SNE map of the images, or None if there are no points."""
    if not gallery.points:
        return None
    values = _map_rows(gallery, classes)
    place = {"type": "quantitative", "axis": None, "scale": {"domain": [-0.03, 1.03]}}
    hue = {
        "field": "hue",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": list(range(HUES)), "range": [f"var(--c{h})" for h in range(HUES)]},
    }
    encoding = {
        "x": {"field": "x", **place},
        "y": {"field": "y", **place},
        "fill": hue,
        "stroke": hue,
        "shape": {
            "field": "shape",
            "type": "nominal",
            "legend": None,
            "scale": {"domain": list(range(len(SHAPES))), "range": list(SHAPES)},
        },
        "fillOpacity": {"condition": {"test": "datum.agrees", "value": 0.55}, "value": 0},
        "size": {"condition": {"test": "datum.i == focused", "value": 500}, "value": 55},
        "tooltip": [{"field": "i", "title": "image"}],
    }
    depth = "all depths" if gallery.depth == 0 else f"depth {gallery.depth}"
    sample = f"{len(values):,} of {gallery.n_images:,} images"
    params = [{"name": "view", "select": ZOOM, "bind": "scales"}]
    return Chart(
        "map",
        "Image map (t-SNE)",
        f"{sample}, by their features at {depth}. Neighbours are similar to the network; "
        "distances between clusters have no meaning. Hollow: misclassified by a linear probe that "
        "was fitted without the image. Hover, or focus the map and use the arrow keys, to see an "
        "image; drag to pan, Ctrl and wheel to zoom, double-click to reset.",
        {
            "height": 460,
            "data": {"values": values},
            "params": [{"name": "focused", "value": -1}, {"name": "hidden", "value": []}],
            "transform": [{"filter": "indexof(hidden, datum.label) < 0"}],
            "layer": [
                {
                    "mark": {"type": "point", "strokeWidth": 1.3, "aria": False, "opacity": 1},
                    "params": params,
                    "encoding": encoding,
                }
            ],
        },
        (),
        (),
        wide=True,
    )


def _map_rows(gallery: Gallery, classes: Sequence[str]) -> list[Row]:
    number = {name: i for i, name in enumerate(classes)}
    return [
        {
            "i": i,
            "label": p.label,
            "x": p.x,
            "y": p.y,
            "hue": number[p.label] % HUES,
            "shape": number[p.label] // HUES % len(SHAPES),
            "agrees": p.guess == p.label,
        }
        for i, p in enumerate(gallery.points)
    ]
