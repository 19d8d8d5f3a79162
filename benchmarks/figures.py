"""Draw the figures of the explanations: from the suite's rows, and from the tables made of them.

The tables are those that write_tables.py wrote into docs/benchmarks; run it first.

Run:      python benchmarks/figures.py
Cost:     half a minute on one core; reads rows only.
Expected: gains.svg, similarity.svg, policies.svg, coverage.svg and within-a-time.svg in
          docs/images.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rows import EVIDENCE, RESULTS, Case, Row, read_inputs, read_rows
from strategy_table import Fits, default_fits
from vl_convert import vegalite_to_svg
from write_tables import BLOCK, PAGES

from advisor.decide.candidates import DecisionInputs
from strategies.models.catalogue import DEFAULT_BACKBONE

POLICIES = {
    "advisor, balanced": "the advice",
    "always full_fine_tune, evidence-based default": "always full fine-tuning",
    "always partial_fine_tune, evidence-based default": "always partial fine-tuning",
    "rule of four quadrants": "the rule of four quadrants",
    "linear head at the depth of best LogME": "depth of best LogME",
    "always linear_probe, default": "always a linear probe",
}
"""Policies of the table of regret that are drawn, without their input size."""
CONFIG = {"background": "white", "font": "sans-serif", "axis": {"labelFontSize": 12}}
_NUMBER = r"-?\d+(?:\.\d+)?"


def gains(fits: dict[Case, Fits], known: dict[Case, DecisionInputs]) -> Row:
    """Return the chart of what full fine-tuning gains over a linear probe, by similarity."""
    values = [
        {
            "similarity": known[case].profile.similarity.score.mid,
            "gain": 100 * (by["full_fine_tune"]["accuracy"] - by["linear_probe"]["accuracy"]),
            "images": case.n_per_class,
            "dataset": case.dataset,
        }
        for case, by in fits.items()
        if case.input_px == 96 and {"full_fine_tune", "linear_probe"} <= by.keys()
    ]
    x = axis("similarity", "domain similarity: 0 far from ImageNet, 1 ImageNet")
    y = axis("gain", "full fine-tuning minus linear probe, points")
    colour = {"field": "images", "type": "ordinal", "title": "images per class"}
    points = {"mark": {"type": "point", "filled": True, "size": 55, "opacity": 0.75}}
    points |= {"encoding": {"x": x, "y": y, "color": colour}}
    zero = {"mark": {"type": "rule", "color": "#777"}, "encoding": {"y": {"datum": 0}}}
    return {"width": 460, "height": 260, "data": {"values": values}, "layer": [zero, points]}


def similarities(known: dict[Case, DecisionInputs]) -> Row:
    """Return the chart of the similarity of every dataset."""
    by_set: dict[str, list[float]] = {}
    for case, inputs in known.items():
        by_set.setdefault(case.dataset, []).append(inputs.profile.similarity.score.mid)
    values = [
        {
            "dataset": name,
            "similarity": float(np.mean(found)),
            "low": min(found),
            "high": max(found),
        }
        for name, found in by_set.items()
    ]
    order = sorted(by_set, key=lambda name: -float(np.mean(by_set[name])))
    y = {"field": "dataset", "type": "nominal", "sort": order, "title": None}
    x = axis("similarity", "domain similarity: mean and range over draws", [0, 1])
    rule = {
        "mark": "rule",
        "encoding": {"y": y, "x": axis("low", x["title"]), "x2": {"field": "high"}},
    }
    point = {"mark": {"type": "point", "filled": True, "size": 60}, "encoding": {"y": y, "x": x}}
    return {"width": 420, "data": {"values": values}, "layer": [rule, point]}


def policies(by_px: dict[int, str]) -> Row:
    """Return the chart of the mean regret of policies, from the tables of regret.py."""
    values = []
    for px, table in by_px.items():
        for name, cells in lines(table):
            title = POLICIES.get(name.removesuffix(f", {px} px"))
            if title and len(cells) == 4 and "[" in cells[0]:
                mean, low, high = map(float, re.findall(_NUMBER, cells[0]))
                values.append(
                    {"policy": title, "px": f"{px} px", "mean": mean, "low": low, "high": high}
                )
    y = {"field": "policy", "type": "nominal", "sort": list(POLICIES.values()), "title": None}
    x = axis("mean", "regret in points, with 90% interval")
    bar = {"mark": {"type": "bar", "opacity": 0.7}, "encoding": {"y": y, "x": x}}
    rule = {
        "mark": "rule",
        "encoding": {"y": y, "x": axis("low", x["title"]), "x2": {"field": "high"}},
    }
    column = {"field": "px", "type": "nominal", "title": None, "sort": "descending"}
    return {
        "data": {"values": values},
        "facet": {"column": column},
        "spec": {"width": 220, "layer": [bar, rule]},
    }


def coverage(table: str) -> Row:
    """Return the chart of how often 90% intervals held, from a table of intervals.py."""
    (_, heads), *rows = lines(table)
    values = [
        {"strategy": name, "images": int(head.split()[0]), "held": float(cell.split("%")[0])}
        for name, cells in rows
        for head, cell in zip(heads[:-1], cells, strict=False)
        if "%" in cell
    ]
    x = {"field": "images", "type": "ordinal", "title": "images per class"}
    y = axis("held", "accuracies inside their 90% interval, %", [60, 100])
    colour = {"field": "strategy", "type": "nominal", "title": None}
    shown = {
        "mark": {"type": "line", "point": True},
        "encoding": {"x": x, "y": y, "color": colour},
    }
    goal = {
        "mark": {"type": "rule", "strokeDash": [4, 4]},
        "encoding": {"y": {"datum": 90, "scale": y["scale"]}},
    }
    return {"width": 420, "height": 240, "data": {"values": values}, "layer": [goal, shown]}


def within_a_time(by_px: dict[int, str]) -> Row:
    """Return the chart of regret by the time for a fit, from the tables of regret.py --budgets."""
    order: list[str] = []
    values = []
    for px, table in by_px.items():
        for time, cells in lines(table):
            if len(cells) == 4 and cells[0][:1].isdigit():
                order.append(time)
                for who, cell in (("the advice", cells[0]), ("best fixed pair", cells[2])):
                    value = float(cell.split()[0])
                    values.append({"time": time, "px": f"{px} px", "policy": who, "regret": value})
    x = {"field": "time", "type": "ordinal", "title": "time for the fit", "sort": order}
    colour = {"field": "policy", "type": "nominal", "title": None}
    shown = {"x": x, "y": axis("regret", "regret in points"), "color": colour}
    shown["xOffset"] = {"field": "policy", "sort": ["the advice", "best fixed pair"]}
    column = {"field": "px", "type": "nominal", "title": None, "sort": "descending"}
    return {
        "data": {"values": values},
        "facet": {"column": column},
        "spec": {"width": 260, "height": 200, "mark": "bar", "encoding": shown},
    }


def axis(field: str, title: str, domain: list[float] | None = None) -> dict[str, Any]:
    """Return a quantitative axis."""
    found: dict[str, Any] = {"field": field, "type": "quantitative", "title": title}
    return found | {"scale": {"domain": domain}} if domain else found


def lines(table: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the first cell and the others of every line of the Markdown tables in a text."""
    for line in table.splitlines():
        if line.startswith("| "):
            first, *rest = [cell.strip() for cell in line.strip("| ").split("|")]
            yield first, rest


def tables(script: str) -> dict[int, str]:
    """Return the tables of a script about the default backbone, by input size of the profiles."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted(PAGES.glob("*.md")))
    return {
        int(px): block[0]
        for block in BLOCK.finditer(text)
        for command, backbone, px in [block.group(2, 3, 4)]
        if (command, backbone) == (script, DEFAULT_BACKBONE)
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Draw all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    known = read_inputs(args.evidence)
    charts = {
        "gains": gains(default_fits(read_rows(args.results), known), known),
        "similarity": similarities(known),
        "policies": policies(tables("regret.py")),
        "coverage": coverage(tables("intervals.py")[96]),
        "within-a-time": within_a_time(tables("regret.py --budgets")),
    }
    for name, chart in charts.items():
        svg = vegalite_to_svg(
            {
                "config": CONFIG,
                "padding": {"left": 30, "right": 20, "top": 8, "bottom": 8},
                **chart,
            }
        )
        (args.out / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
