"""HTML page of an advice or a run: one self-contained file without network requests."""

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
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from advisor.report.charts.advice import advice_charts, map_chart
from advisor.report.charts.run import outcome_charts
from advisor.report.charts.vega import HUES, SHAPES, Chart
from advisor.report.facts import class_table, main_facts, measurements
from advisor.report.frontier import HEADING, pick_rows
from advisor.report.gallery import MAX_EXAMPLES_SHOWN, Gallery
from advisor.report.maps.mistakes import Explanations
from advisor.report.maps.words import MISTAKE_WORDS, map_words
from advisor.report.outcome_json import importance_record
from advisor.report.to_json import versions
from advisor.report.words import (
    baseline_words,
    final_fit_words,
    limit_words,
    needs_words,
    settings,
    size_line,
    soup_words,
    title,
    void_words,
    why,
    with_titles,
)
from advisor.types.advice import Advice, Finding
from advisor.types.durations import duration
from advisor.types.outcome import Outcome
from advisor.types.summary import result
from strategies.core.metrics import LEVEL, Evaluation, Mistake
from strategies.data.image import shown

STRATEGY_CHARTS = ("frontier", "accuracy", "cost")
"""Names of the charts about strategies; the others are about measurements."""
MARKS = "●■▲◆✚▼"
"""Text characters that stand for `SHAPES`."""
MOST_LISTED = 500
"""Maximum number of rows in a list of files; the JSON has all."""


@dataclass(frozen=True)
class IllustratedExample:
    """An example of a finding, with the images that it names."""

    line: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class ShownFinding:
    """A finding with its examples.

    Attributes
    ----------
    illustrated, lines
        Examples with and without images.
    more
        Number of examples that are not shown.
    """

    finding: Finding
    illustrated: tuple[IllustratedExample, ...]
    lines: tuple[str, ...]
    more: int


@dataclass(frozen=True)
class ConfusedPair:
    """Test images of class `label` that were predicted as class `predicted`."""

    label: str
    predicted: str
    n: int
    shown: tuple[Mistake, ...]


def page(advice: Advice, gallery: Gallery, outcome: Outcome | None = None) -> str:
    """Return the HTML page of an advice, and of the outcome of its run if there is one.

    All text from the user's data is escaped. A content-security policy allows only the two
    scripts whose hashes it names.
    """
    shares = {} if outcome is None else importance_record(outcome)
    charts = advice_charts(advice)
    run_charts = () if outcome is None else outcome_charts(outcome, shares)
    classes = tuple(advice.profile.n_by_class)
    image_map = map_chart(gallery, classes)
    drawn = [*run_charts, *charts, *([image_map] if image_map else [])]
    thumbs = {path: base64.b64encode(data).decode() for path, data in gallery.thumbs.items()}
    columns, rows = class_table(advice, outcome)
    return render(
        "page.html",
        _data(drawn, gallery, thumbs, _root(advice)),
        advice=advice,
        outcome=outcome,
        **_summary(advice, outcome),
        size_line=size_line(advice),
        facts=main_facts(advice, outcome),
        why=why(advice),
        measurements=measurements(advice),
        baseline=baseline_words(advice),
        picks=pick_rows(advice),
        picks_heading=HEADING,
        charts=charts,
        strategy_charts=STRATEGY_CHARTS,
        run_charts=run_charts,
        map=image_map,
        class_toggles=_class_toggles(gallery, classes),
        findings=_findings(advice, gallery),
        quarantine=[
            {"path": shown(s.path).removeprefix(_root(advice)), "reason": s.reason}
            for s in advice.quarantine[:MOST_LISTED]
        ],
        mistakes=confused_pairs(None if outcome is None else outcome.test),
        failed=[] if outcome is None else [t for t in outcome.trials if t.reason][:MOST_LISTED],
        **explanation_content(gallery.explained),
        class_columns=columns,
        class_rows=rows,
        thumbs=thumbs,
        root=_root(advice),
        name=title,
        duration=duration,
        settings=settings,
        with_titles=with_titles,
    )


def render(template: str, data: object, **content: Any) -> str:
    """Return a self-contained page of a template in ``page/``.

    Parameters
    ----------
    data
        What its script draws, see `chart_data`.
    content
        What the template shows. All text is escaped.
    """
    vega, js = _vega(), _read("page.js")
    return static_page(
        template,
        data=Markup(_script_json(data)),
        vega=Markup(vega),
        js=Markup(js),
        script_hashes=Markup(f"{_hash(vega)} {_hash(js)}"),
        vega_version=vl_convert.get_vega_version(),
        level=round(100 * LEVEL),
        **content,
    )


def static_page(template: str, **content: Any) -> str:
    """Return a self-contained page without charts and scripts. All text is escaped."""
    css = _read("page.css")
    return (
        _templates()
        .get_template(template)
        .render(
            css=Markup(css),
            style_hash=Markup(_hash(css)),
            versions=", ".join(f"{name} {number}" for name, number in versions().items()),
            **content,
        )
    )


def _summary(advice: Advice, outcome: Outcome | None) -> dict[str, str]:
    best, void = advice.best, advice.void
    if outcome is None and void is not None:
        return {
            "answer_strategy": best.strategy,
            "answer": void.title[0].upper() + void.title[1:],
            "answer_text": with_titles(" ".join(void_words(void))),
            "run_text": "",
        }
    if outcome is None:
        return {
            "answer_strategy": best.strategy,
            "answer": f"{title(best.strategy)}: expected accuracy {best.accuracy.percent()}",
            "answer_text": f"{limit_words(advice) or ''} One fit takes about "
            f"{duration(best.seconds.mid)}{needs_words(advice)} on this machine. "
            f"{with_titles(best.reasons[-1])}".lstrip(),
            "run_text": "",
        }
    caution = "" if void is None else f"Caution: {void.title}. First: {void.action} "
    n_trials, final = Counter(t.strategy for t in outcome.trials), final_fit_words(outcome)
    counts = ", ".join(f"{title(name)} {n}" for name, n in n_trials.most_common())
    return {
        "answer_strategy": outcome.best.strategy,
        "answer": result(outcome).replace(outcome.best.strategy, title(outcome.best.strategy), 1),
        "answer_text": f"{caution}Search time {duration(outcome.seconds)}. The advice was "
        f"{title(best.strategy)}, expected accuracy {best.accuracy.percent()}.",
        "run_text": f"{len(outcome.trials)} trials: {counts}. {soup_words(outcome) or ''} "
        + ("" if final is None else f"The classifier was {final}."),
    }


def _findings(advice: Advice, gallery: Gallery) -> tuple[ShownFinding, ...]:
    root = _root(advice)
    return tuple(_shown_finding(i, f, gallery, root) for i, f in enumerate(advice.findings))


def _root(advice: Advice) -> str:
    """Return the common prefix of all paths, which the page leaves out."""
    return f"{shown(advice.data)}/"


def _shown_finding(number: int, finding: Finding, gallery: Gallery, root: str) -> ShownFinding:
    illustrated, lines = [], []
    for e, line in enumerate(finding.examples[:MAX_EXAMPLES_SHOWN]):
        paths = tuple(p for p in gallery.named.get((number, e), ()) if p in gallery.thumbs)
        if paths:
            illustrated.append(IllustratedExample(line.replace(root, ""), paths))
        else:
            lines.append(line.replace(root, ""))
    more = max(0, len(finding.examples) - MAX_EXAMPLES_SHOWN)
    return ShownFinding(finding, tuple(illustrated), tuple(lines), more)


def confused_pairs(test: Evaluation | None) -> tuple[ConfusedPair, ...]:
    """Group the mistakes that an evaluation names by pair of classes."""
    if test is None:
        return ()
    number = {name: i for i, name in enumerate(test.classes)}
    pairs = groupby(test.mistakes, key=lambda m: (m.label, m.predicted))
    return tuple(
        ConfusedPair(a, b, test.confusion[number[a]][number[b]], tuple(mistakes))
        for (a, b), mistakes in pairs
    )


def explanation_content(explained: Explanations) -> dict[str, Any]:
    """Return what the templates show of explanations of mistakes."""
    words = "" if explained.method is None else map_words(explained.method, MISTAKE_WORDS)
    return {"explained": explained, "drawn": explained.drawn, "map_words": words}


def _class_toggles(gallery: Gallery, classes: Sequence[str]) -> list[dict[str, Any]]:
    on_map = {p.label for p in gallery.points}
    return [
        {"label": name, "hue": i % HUES, "mark": MARKS[i // HUES % len(SHAPES)]}
        for i, name in enumerate(classes)
        if name in on_map
    ]


def _data(
    charts: Sequence[Chart], gallery: Gallery, thumbs: Mapping[str, str], root: str
) -> object:
    return {
        **chart_data(charts),
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


def chart_data(charts: Sequence[Chart]) -> dict[str, object]:
    """Return what the script of a page needs to draw charts."""
    return {
        "charts": [
            {"name": c.name, "heading": c.heading, "text": c.text, "spec": c.spec} for c in charts
        ]
    }


def _script_json(value: object) -> str:
    """Return JSON that cannot close the script element that contains it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def load_scripts() -> None:
    """Load the chart scripts ahead of the first page of a process; this takes some seconds."""
    _vega()


@cache
def _vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, from vl-convert."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


@cache
def _templates() -> Environment:
    return Environment(autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(_read))


def _read(name: str) -> str:
    return files("advisor.report").joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
