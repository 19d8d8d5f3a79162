"""Advice and outcome as one HTML page: self-contained, safe, for reading, printing and mailing."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import Any

import vl_convert
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from advisor.report.charts.advice import HUES, SHAPES, advice_charts, map_chart
from advisor.report.charts.run import outcome_charts
from advisor.report.charts.vega import Chart
from advisor.report.facts import class_table, main_facts, measurements
from advisor.report.gallery import MAX_EXAMPLES_SHOWN, Gallery
from advisor.report.outcome_json import importance_record
from advisor.report.to_json import versions
from advisor.report.words import (
    duration,
    points,
    result,
    settings,
    size_line,
    soup_words,
    spoken,
    title,
    why,
)
from advisor.types.advice import Advice, Finding
from advisor.types.outcome import Outcome
from strategies.core.metrics import LEVEL, Evaluation, Mistake
from strategies.data.image import shown

MARKS = "●■▲◆✚▼"
"""The characters of `SHAPES`."""
MOST_LISTED = 500
"""Rows of a list of files that the page shows; the JSON has all."""


@dataclass(frozen=True)
class Shots:
    """An example of a finding with the images that it names."""

    line: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class ShownFinding:
    """A finding, its examples with and without images, and how many are not shown."""

    finding: Finding
    shots: tuple[Shots, ...]
    lines: tuple[str, ...]
    more: int


@dataclass(frozen=True)
class Confused:
    """Images of one class that were taken for another."""

    label: str
    predicted: str
    n: int
    shown: tuple[Mistake, ...]


def page(advice: Advice, gallery: Gallery, outcome: Outcome | None = None) -> str:
    """Return the page; after a run, with what it found.

    Everything that comes from the user's data is escaped, and a content-security policy lets
    nothing run but the two scripts that it names by their hashes.
    """
    shares = {} if outcome is None else importance_record(outcome)
    charts = advice_charts(advice)
    run_charts = () if outcome is None else outcome_charts(outcome, shares)
    classes = tuple(advice.profile.n_by_class)
    image_map = map_chart(gallery, classes)
    drawn = [*run_charts, *charts, *([image_map] if image_map else [])]
    thumbs = {path: base64.b64encode(data).decode() for path, data in gallery.thumbs.items()}
    vega, js, css = _vega(), _read("page.js"), _read("page.css")
    columns, rows = class_table(advice, outcome)
    text: str = _template().render(
        advice=advice,
        outcome=outcome,
        **_answer(advice, outcome),
        size_line=size_line(advice),
        facts=main_facts(advice, outcome),
        why=why(advice),
        measurements=measurements(advice),
        charts=charts,
        run_charts=run_charts,
        map=image_map,
        switches=_switches(gallery, classes),
        findings=_findings(advice, gallery),
        quarantine=[
            {"path": shown(s.path).removeprefix(_root(advice)), "reason": s.reason}
            for s in advice.quarantine[:MOST_LISTED]
        ],
        mistakes=_mistakes(None if outcome is None else outcome.test),
        failed=[] if outcome is None else [t for t in outcome.trials if t.reason][:MOST_LISTED],
        class_columns=columns,
        class_rows=rows,
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
        thumbs=thumbs,
        data=Markup(_script_json(_data(drawn, gallery, thumbs, _root(advice)))),
        vega=Markup(vega),
        js=Markup(js),
        css=Markup(css),
        script_hashes=Markup(f"{_hash(vega)} {_hash(js)}"),
        style_hash=Markup(_hash(css)),
        vega_version=vl_convert.get_vega_version(),
        level=round(100 * LEVEL),
        root=_root(advice),
        name=title,
        duration=duration,
        settings=settings,
        spoken=spoken,
        points=points,
    )
    return text


def _answer(advice: Advice, outcome: Outcome | None) -> dict[str, str]:
    best = advice.best
    if outcome is None:
        return {
            "answer_strategy": best.strategy,
            "answer": f"{title(best.strategy)}: expect {best.accuracy.percent()} accuracy",
            "answer_text": f"About {duration(best.seconds.mid)} to fit on this machine. "
            f"{spoken(best.reasons[-1])}",
            "run_text": "",
        }
    tried = Counter(t.strategy for t in outcome.trials)
    counts = ", ".join(f"{title(name)} {n}" for name, n in tried.most_common())
    return {
        "answer_strategy": outcome.best.strategy,
        "answer": result(outcome).replace(outcome.best.strategy, title(outcome.best.strategy), 1),
        "answer_text": f"Found in {duration(outcome.seconds)}; "
        f"advised was {title(best.strategy)}, {best.accuracy.percent()}.",
        "run_text": f"{len(outcome.trials)} trials: {counts}. {soup_words(outcome) or ''} "
        + ("The classifier was fitted once more on train and val." if outcome.refitted else ""),
    }


def _findings(advice: Advice, gallery: Gallery) -> tuple[ShownFinding, ...]:
    root = _root(advice)
    return tuple(_shown(i, finding, gallery, root) for i, finding in enumerate(advice.findings))


def _root(advice: Advice) -> str:
    """Return what all paths start with: it would only hide how they differ."""
    return f"{shown(advice.data)}/"


def _shown(number: int, finding: Finding, gallery: Gallery, root: str) -> ShownFinding:
    shots, lines = [], []
    for e, line in enumerate(finding.examples[:MAX_EXAMPLES_SHOWN]):
        paths = tuple(p for p in gallery.named.get((number, e), ()) if p in gallery.thumbs)
        if paths:
            shots.append(Shots(line.replace(root, ""), paths))
        else:
            lines.append(line.replace(root, ""))
    more = max(0, len(finding.examples) - MAX_EXAMPLES_SHOWN)
    return ShownFinding(finding, tuple(shots), tuple(lines), more)


def _mistakes(test: Evaluation | None) -> tuple[Confused, ...]:
    if test is None:
        return ()
    number = {name: i for i, name in enumerate(test.classes)}
    pairs = groupby(test.mistakes, key=lambda m: (m.label, m.predicted))
    return tuple(
        Confused(a, b, test.confusion[number[a]][number[b]], tuple(some)) for (a, b), some in pairs
    )


def _switches(gallery: Gallery, classes: Sequence[str]) -> list[dict[str, Any]]:
    there = {p.label for p in gallery.points}
    return [
        {"label": name, "hue": i % HUES, "mark": MARKS[i // HUES % len(SHAPES)]}
        for i, name in enumerate(classes)
        if name in there
    ]


def _data(
    charts: Sequence[Chart], gallery: Gallery, thumbs: Mapping[str, str], root: str
) -> object:
    return {
        "charts": [
            {"name": c.name, "heading": c.heading, "text": c.text, "spec": c.spec} for c in charts
        ],
        "points": [
            {
                "path": p.path.removeprefix(root),
                "label": p.label,
                "guess": p.guess,
                "x": p.x,
                "thumb": thumbs.get(p.path),
            }
            for p in gallery.points
        ],
    }


def _script_json(value: object) -> str:
    """Write JSON that cannot end the script element that it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def load_scripts() -> None:
    """Get ready what the first page of a process would have to wait for: some seconds."""
    _vega()


@cache
def _vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, from the package that ships them."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


@cache
def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(_read("page.html"))


def _read(name: str) -> str:
    return files("advisor.report").joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
