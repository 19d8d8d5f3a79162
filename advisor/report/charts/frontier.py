"""Chart of the expected accuracy over the time of a fit."""

import json

from advisor.report.charts.vega import (
    HUES,
    PERCENT,
    SHAPES,
    Chart,
    Row,
    Spec,
    interval_row,
    percent_text,
    y_axis,
)
from advisor.report.words import title
from advisor.types.advice import Advice, Frontier
from advisor.types.durations import duration

TIMES = {0.1: "0.1 s", 1: "1 s", 3: "3 s", 10: "10 s", 30: "30 s", 60: "1 min", 120: "2 min"}
TIMES |= {300: "5 min", 600: "10 min", 1800: "30 min", 3600: "1 h", 10800: "3 h", 36000: "10 h"}
TIMES |= {360000: "100 h"}
"""Marks of a logarithmic axis of seconds."""


def time_axis() -> Spec:
    """Return the axis of a logarithmic scale of seconds."""
    labels = json.dumps({str(s): text for s, text in TIMES.items()})
    return {
        "values": list(TIMES),
        "labelExpr": f"({labels})[datum.value]",
        "labelOverlap": "greedy",
    }


def frontier_chart(advice: Advice) -> Chart | None:
    """Return the chart of accuracy over time; None in advice without it."""
    frontier = advice.frontier
    if frontier is None or not frontier.picks:
        return None
    rank = {r.strategy: i for i, r in enumerate(advice.recommendations)}
    options = sorted(
        frontier.options, key=lambda o: (rank.get(o.strategy, len(rank)), o.strategy, o.input_px)
    )
    values: list[Row] = [
        {
            "strategy": title(o.strategy),
            "px": o.input_px,
            "seconds": o.seconds.mid,
            **interval_row(o.accuracy),
        }
        for o in options
    ]
    return Chart(
        "frontier",
        "Accuracy over time",
        "Every strategy at every input size: expected accuracy over the predicted time of one fit "
        "on this machine. Lines join the sizes of a strategy. Dashed steps: what to expect if the "
        "fit must end within a time. The time axis is logarithmic.",
        {
            "height": 340,
            "layer": [
                *_option_layers(values),
                _steps(frontier),
            ],
        },
        ("strategy", "input", "expected accuracy", "predicted time of one fit"),
        tuple(
            (v["strategy"], f"{v['px']} px", percent_text(v), duration(v["seconds"]))
            for v in values
        ),
        wide=True,
    )


def _option_layers(values: list[Row]) -> list[Spec]:
    """Return the points of the options, joined per strategy, with their intervals."""
    names = list(dict.fromkeys(v["strategy"] for v in values))
    colour = {
        "field": "strategy",
        "type": "nominal",
        "title": None,
        "scale": {"domain": names, "range": [f"var(--c{i % HUES})" for i in range(len(names))]},
        "legend": {"orient": "top", "columns": 2},
    }
    forms = [SHAPES[i % len(SHAPES)] for i in range(len(names))]
    shape = {**colour, "scale": {"domain": names, "range": forms}}
    x, y = _x(), y_axis("Expected accuracy", PERCENT)
    interval = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    tooltip = [
        {"field": "strategy", "title": "strategy"},
        {"field": "px", "title": "input (px)"},
        {"field": "mid", "title": "expected accuracy", "format": PERCENT},
        {"field": "low", "title": "lower bound", "format": PERCENT},
        {"field": "high", "title": "upper bound", "format": PERCENT},
        {"field": "seconds", "title": "seconds of one fit", "format": ",.1f"},
    ]
    data = {"values": values}
    return [
        {
            "data": data,
            "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.3},
            "encoding": {"x": x, **interval, "color": colour},
        },
        {
            "data": data,
            "mark": {"type": "line", "strokeWidth": 1.5, "opacity": 0.6},
            "encoding": {"x": x, "y": y, "color": colour},
        },
        {
            "data": data,
            "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": tooltip},
        },
    ]


def _steps(frontier: Frontier) -> Spec:
    """Return the step line of the picks.

    The pick without a limit begins at its own time, or at the longest limit if that is longer. The
    line ends at the slowest option.
    """
    picks, rows = frontier.picks, []
    longest = max((p.time_s for p in picks if p.time_s is not None), default=0.0)
    for pick in picks:
        start = max(longest, pick.seconds.mid) if pick.time_s is None else pick.time_s
        rows.append({"seconds": start, "mid": pick.accuracy.mid})
    slowest = max(o.seconds.mid for o in frontier.options)
    if slowest > rows[-1]["seconds"]:
        rows.append({"seconds": slowest, "mid": picks[-1].accuracy.mid})
    return {
        "data": {"values": rows},
        "mark": {
            "type": "line",
            "interpolate": "step-after",
            "strokeWidth": 2.5,
            "strokeDash": [6, 3],
            "color": "var(--ink)",
        },
        "encoding": {"x": _x(), "y": y_axis("Expected accuracy", PERCENT)},
    }


def _x() -> Spec:
    return {
        "field": "seconds",
        "type": "quantitative",
        "title": "Predicted time of one fit",
        "scale": {"type": "log", "nice": False, "padding": 12},
        "axis": time_axis(),
    }
