"""Charts of an advice, each with the same numbers as a table.

Their data are the numbers of the JSON, unrounded; only places of labels and colours are made here.
"""

import json
from collections.abc import Sequence

from advisor.report.charts.quadrant import quadrant_chart
from advisor.report.charts.vega import (
    PERCENT,
    Chart,
    Row,
    bars,
    depth_axis,
    depths,
    dots,
    ends,
    percent,
    with_ends,
    x_axis,
    y_axis,
)
from advisor.report.gallery import Gallery
from advisor.report.words import duration, title
from advisor.types.advice import Advice
from advisor.types.profile import ProbeResult, Profile

HUES, SHAPES = 8, ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
"""Classes are told apart by colour first, then by shape; beyond that both repeat."""

ZOOM = {"type": "interval", "zoom": "wheel![event.ctrlKey]"}
"""With the key, as on maps elsewhere: without it, the wheel is to scroll the page."""


def advice_charts(advice: Advice) -> tuple[Chart, ...]:
    """Return the charts of an advice; what was not measured has none."""
    made = (
        quadrant_chart(advice),
        similarity_chart(advice.profile),
        probe_chart(advice.profile),
        curve_chart(advice.profile),
        accuracy_chart(advice),
        cost_chart(advice),
    )
    return tuple(chart for chart in made if chart is not None)


def similarity_chart(profile: Profile) -> Chart | None:
    """Draw how far the activations are from ImageNet's by depth."""
    similarity = profile.similarity
    if similarity is None or not similarity.per_depth:
        return None
    values: list[Row] = [
        {"depth": name, "low": s.low, "mid": s.mid, "high": s.high}
        for name, s in zip(depths(profile), similarity.per_depth, strict=True)
        if s is not None
    ]
    rows = tuple((v["depth"], with_ends(v, "{:.3f}")) for v in values)
    return Chart(
        "similarity",
        "Distance from ImageNet by depth",
        "How far the activations at each depth are from those of ImageNet images, input to "
        "output. 0 nats: no difference.",
        {
            "height": 240,
            "data": {"values": values},
            "layer": dots(depth_axis(), y_axis("Shift (nats)", zero=True), ".3f"),
        },
        ("depth", "shift in nats"),
        rows,
    )


def probe_chart(profile: Profile) -> Chart:
    """Draw the accuracy of linear probes by depth, with pretrained and with random weights."""
    values = _probe_rows(profile, profile.probes, "pretrained")
    values += _probe_rows(profile, profile.random_probes, "random weights")
    known = {"data": {"values": [{"mid": profile.majority_share}]}}
    tip = [{"field": "mid", "title": "always the largest class", "format": PERCENT}]
    guess = {
        **known,
        "mark": {"type": "rule", "strokeDash": [3, 3], "color": "var(--soft)"},
        "encoding": {"y": {"field": "mid", "type": "quantitative"}, "tooltip": tip},
    }
    colour = {
        "field": "weights",
        "type": "nominal",
        "title": None,
        "scale": {"domain": ["pretrained", "random weights"], "range": ["var(--c0)", "var(--c1)"]},
        "legend": {"orient": "top"} if profile.random_probes else None,
    }
    y = y_axis("Accuracy", PERCENT)
    layers = [guess, *dots(depth_axis(), y, PERCENT, colour)]
    chance = f"always naming the largest class gives {100 * profile.majority_share:.1f}% (dashed)"
    absent = "" if profile.random_probes else " Random weights were not measured."
    return Chart(
        "probes",
        "What each depth knows about your classes",
        f"Cross-validated accuracy of a linear SVM on the frozen activations; {chance}.{absent}",
        {"height": 240, "data": {"values": values}, "layer": layers},
        ("depth", "weights", "accuracy"),
        tuple((v["depth"], v["weights"], percent(v)) for v in values),
    )


def _probe_rows(profile: Profile, probes: Sequence[ProbeResult], weights: str) -> list[Row]:
    names = depths(profile)
    return [
        {"depth": names[p.depth - 1], "weights": weights, **ends(p.accuracy)}
        for p in probes
        if p.loss == "squared_hinge" and p.depth > 0
    ]


def curve_chart(profile: Profile) -> Chart | None:
    """Draw what more images would bring."""
    curve = profile.curve
    if curve is None:
        return None
    values = [
        {"n": n, "kind": kind, **ends(accuracy)}
        for kind, points in (("measured", curve.measured), ("extrapolated", curve.extrapolated))
        for n, accuracy in points
    ]
    x = {
        "field": "n",
        "type": "quantitative",
        "title": "Images a class",
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
        "What more images would bring",
        "Cross-validated accuracy of the linear probe on fewer images, and how a power law "
        "goes on.",
        {
            "height": 240,
            "data": {"values": values},
            "layer": dots(x, y_axis("Accuracy", PERCENT), PERCENT, colour),
        },
        ("images per class", "kind", "accuracy"),
        tuple((f"{v['n']:,.0f}", v["kind"], percent(v)) for v in values),
    )


def accuracy_chart(advice: Advice) -> Chart:
    """Draw the expected accuracy of every strategy."""
    values = [{"strategy": title(r.strategy), **ends(r.accuracy)} for r in advice.recommendations]
    return Chart(
        "accuracy",
        "Expected accuracy",
        "Probes were measured by cross-validation; what training reaches is predicted.",
        {
            "height": 34 * len(values),
            "data": {"values": values},
            "layer": bars(x_axis("Accuracy", PERCENT), PERCENT),
        },
        ("strategy", "accuracy"),
        tuple((v["strategy"], percent(v)) for v in values),
    )


def cost_chart(advice: Advice) -> Chart:
    """Draw the predicted time of one fit of every strategy."""
    values = [{"strategy": title(r.strategy), **ends(r.seconds)} for r in advice.recommendations]
    scale = {"type": "log", "nice": False, "padding": 12}
    marks = {0.1: "0.1 s", 1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h"}
    marks |= {36000: "10 h", 360000: "100 h"}
    axis = {
        "values": list(marks),
        "labelExpr": f"({json.dumps({str(k): v for k, v in marks.items()})})[datum.value]",
    }
    x = {**x_axis("Time of one fit", ",.1f"), "scale": scale, "axis": axis}
    return Chart(
        "cost",
        "Expected time of one fit",
        "On this machine, features cached. The scale is logarithmic.",
        {"height": 34 * len(values), "data": {"values": values}, "layer": bars(x, ",.1f")},
        ("strategy", "time"),
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
    """Draw the images where like lies beside like."""
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
    depth = "all depths together" if gallery.depth == 0 else f"depth {gallery.depth}"
    sample = f"{len(values):,} of {gallery.n_images:,} images"
    params = [{"name": "view", "select": ZOOM, "bind": "calibrations"}]
    return Chart(
        "map",
        "A map of your images",
        f"{sample}, like beside like to the network at {depth} (t-SNE: neighbours mean "
        "something, distances between groups do not). Hollow: a linear probe that never saw the "
        "image names another class. Hover, or focus the map and use the arrow keys, to see a "
        "image; drag to move, Ctrl and wheel to zoom, double-click to go back.",
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
