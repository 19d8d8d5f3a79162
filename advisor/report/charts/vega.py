"""Building blocks of the Vega-Lite charts: axes, points with intervals, tooltips."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from advisor.types.profile import Profile
from strategies.core.metrics import Interval

Spec = dict[str, Any]
Row = dict[str, Any]

PERCENT = ".1%"
HUES, SHAPES = 8, ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
"""Names differ by colour first, then by shape; with many names both repeat."""


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes
    ----------
    name
        Identifier in the page.
    heading, text
        Title and caption.
    spec
        Vega-Lite specification without the theme.
    columns, rows
        The numbers of the chart as a table.
    wide
        Whether it takes the full width of the page.
    """

    name: str
    heading: str
    text: str
    spec: Spec
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    wide: bool = False


def depths(profile: Profile) -> list[str]:
    """Return the labels of the depths: ``"3 blocks.2"``."""
    return [f"{i} {name}" for i, name in enumerate(profile.depth_names, start=1)]


def depth_axis() -> Spec:
    """Return the x encoding of depths, from input to output."""
    return {
        "field": "depth",
        "type": "ordinal",
        "title": "Depth (input to output)",
        "sort": None,
        "axis": {"labelAngle": -35, "labelLimit": 110},
    }


def y_axis(name: str, form: str = "", *, zero: bool = False) -> Spec:
    """Return the y encoding of an estimate."""
    axis = {"format": ".0%"} if form == PERCENT else {}
    return {
        "field": "mid",
        "type": "quantitative",
        "title": name,
        "axis": axis,
        "scale": {"zero": zero},
    }


def x_axis(name: str, form: str) -> Spec:
    """Return the x encoding of an estimate."""
    axis = y_axis(name, form)
    return {**axis, "axis": {**axis["axis"], "tickCount": 5}}


def lines_with_intervals(x: Spec, y: Spec, form: str, colour: Spec | None = None) -> list[Spec]:
    """Return layers for points joined by a line, with vertical intervals."""
    paint: Spec = {"color": colour} if colour else {"color": {"value": "var(--c0)"}}
    interval = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    return [
        {
            "mark": {"type": "line", "strokeWidth": 1.5, "opacity": 0.6},
            "encoding": {"x": x, "y": y, **paint},
        },
        {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {"x": x, **interval, **paint}},
        {
            "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1},
            "encoding": {"x": x, "y": y, **paint, "tooltip": estimate_tooltip(x, form, colour)},
        },
    ]


def points_with_intervals(
    x: Spec, form: str, label: str = "strategy", limit: int = 130
) -> list[Spec]:
    """Return layers for one row per name: a point with its horizontal interval."""
    y = {
        "field": label,
        "type": "nominal",
        "title": None,
        "sort": None,
        "axis": {"labelLimit": limit, "grid": False},
    }
    interval = {"x": {**x, "field": "low"}, "x2": {"field": "high"}}
    paint = {"color": {"value": "var(--c0)"}}
    tooltip = estimate_tooltip({"field": label}, form)
    return [
        {
            "mark": {"type": "rule", "strokeWidth": 3, "opacity": 0.55},
            "encoding": {"y": y, **interval, **paint},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
            "encoding": {"y": y, "x": x, **paint, "tooltip": tooltip},
        },
    ]


def estimate_tooltip(first: Spec, form: str, colour: Spec | None = None) -> list[Spec]:
    """Return tooltip fields: the name, the estimate and the bounds of its interval."""
    named = [{"field": first["field"], "title": first.get("title") or first["field"]}]
    if colour:
        named.append({"field": colour["field"], "title": "series"})
    numbers = (("mid", "estimate"), ("low", "lower bound"), ("high", "upper bound"))
    return named + [{"field": f, "title": t, "format": form} for f, t in numbers]


def interval_row(interval: Interval) -> Row:
    """Return an interval as the fields of a data row."""
    return {"low": interval.low, "mid": interval.mid, "high": interval.high}


def percent_text(row: Mapping[str, float]) -> str:
    """Format a row of fractions for the table: ``"12.0% [10.0, 15.0]"``."""
    return Interval(row["low"], row["mid"], row["high"]).percent()
