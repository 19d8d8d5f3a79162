"""The grammar of the page's charts: Vega-Lite without a theme, points always with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from advisor.types.profile import Profile
from strategies.core.metrics import Interval

Spec = dict[str, Any]
Row = dict[str, Any]

PERCENT = ".1%"


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes
    ----------
    name
        Its id in the page.
    heading, text
        What it shows, and how to read it.
    spec
        Vega-Lite without the theme.
    columns, rows
        The same as a table.
    wide
        Whether it takes the page's whole width.
    """

    name: str
    heading: str
    text: str
    spec: Spec
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    wide: bool = False


def depths(profile: Profile) -> list[str]:
    """Return the depths as the charts name them: ``"3 blocks.2"``."""
    return [f"{i} {name}" for i, name in enumerate(profile.depth_names, start=1)]


def depth_axis() -> Spec:
    """Return the axis of depths, from input to output."""
    return {
        "field": "depth",
        "type": "ordinal",
        "title": "Depth (input to output)",
        "sort": None,
        "axis": {"labelAngle": -35, "labelLimit": 110},
    }


def y_axis(name: str, form: str = "", *, zero: bool = False) -> Spec:
    """Return an upright axis."""
    axis = {"format": ".0%"} if form == PERCENT else {}
    return {
        "field": "mid",
        "type": "quantitative",
        "title": name,
        "axis": axis,
        "scale": {"zero": zero},
    }


def x_axis(name: str, form: str) -> Spec:
    """Return a lying axis."""
    axis = {"format": ".0%", "tickCount": 5} if form == PERCENT else {"tickCount": 5}
    return {
        "field": "mid",
        "type": "quantitative",
        "title": name,
        "axis": axis,
        "scale": {"zero": False},
    }


def dots(x: Spec, y: Spec, form: str, colour: Spec | None = None) -> list[Spec]:
    """Draw points joined by a line, with their intervals upright."""
    paint: Spec = {"color": colour} if colour else {"color": {"value": "var(--c0)"}}
    reach = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    return [
        {
            "mark": {"type": "line", "strokeWidth": 1.5, "opacity": 0.6},
            "encoding": {"x": x, "y": y, **paint},
        },
        {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {"x": x, **reach, **paint}},
        {
            "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1},
            "encoding": {"x": x, "y": y, **paint, "tooltip": tip(x, form, colour)},
        },
    ]


def bars(x: Spec, form: str, label: str = "strategy", limit: int = 130) -> list[Spec]:
    """Draw points with their intervals lying, one row a name."""
    y = {
        "field": label,
        "type": "nominal",
        "title": None,
        "sort": None,
        "axis": {"labelLimit": limit, "grid": False},
    }
    reach = {"x": {**x, "field": "low"}, "x2": {"field": "high"}}
    paint = {"color": {"value": "var(--c0)"}}
    read = tip({"field": label}, form)
    return [
        {
            "mark": {"type": "rule", "strokeWidth": 3, "opacity": 0.55},
            "encoding": {"y": y, **reach, **paint},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
            "encoding": {"y": y, "x": x, **paint, "tooltip": read},
        },
    ]


def tip(first: Spec, form: str, colour: Spec | None = None) -> list[Spec]:
    """Return what is read on pointing: the name, the estimate and its ends."""
    named = [{"field": first["field"], "title": first.get("title") or first["field"]}]
    if colour:
        named.append({"field": colour["field"], "title": "series"})
    told = (("mid", "estimate"), ("low", "at least"), ("high", "at most"))
    return named + [{"field": f, "title": t, "format": form} for f, t in told]


def ends(interval: Interval) -> Row:
    """Return an interval as fields."""
    return {"low": interval.low, "mid": interval.mid, "high": interval.high}


def with_ends(row: Mapping[str, float], form: str) -> str:
    """Format a row for the table: ``"0.12 [0.10, 0.15]"``."""
    low, mid, high = (form.format(row[k]) for k in ("low", "mid", "high"))
    return f"{mid} [{low}, {high}]"


def percent(row: Mapping[str, float]) -> str:
    """Format a row of fractions for the table."""
    return Interval(row["low"], row["mid"], row["high"]).percent()
