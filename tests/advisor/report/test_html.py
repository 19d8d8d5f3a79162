"""The HTML page: safe, self-contained, below 5 MB; every number of a chart is in the JSON."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from advisor.report.charts.advice import advice_charts
from advisor.report.charts.run import outcome_charts
from advisor.report.gallery import Gallery
from advisor.report.html import page
from advisor.report.importance import importance
from advisor.report.outcome_json import outcome_record
from advisor.report.to_json import advice_record
from advisor.types.advice import Advice
from tests.advisor.profiles import profile_of
from tests.advisor.report.made import (
    HOSTILE,
    HOSTILE_FILE,
    full_profile,
    hostile_advice,
    made_advice,
    made_gallery,
    made_outcome,
)

POSITIONS = {"x", "y", "x2", "y2", "xl", "xh", "yl", "yh", "place", "hue", "shape", "i", "good"}
"""Fields of charts that are positions or colours."""
DERIVED = {"dark", "a", "b", "zero"}
"""Ratios of counts that are in the JSON, and reference lines."""


class Elements(HTMLParser):
    """Parser that collects all start tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def hostile() -> Elements:
    advice = hostile_advice()
    outcome = made_outcome(advice)
    assert outcome.test is not None
    return Elements(page(advice, made_gallery(advice, mistakes=outcome.test.mistakes), outcome))


def test_hostile_names_are_escaped_and_shown(hostile: Elements) -> None:
    scripts = [a for t, a in hostile.tags if t == "script"]
    assert [a.get("type") for a in scripts] == ["application/json", None, None]
    for _, attributes in hostile.tags:
        assert not [name for name in attributes if name.startswith("on")]
    for tag, attributes in hostile.tags:
        if tag == "img":
            assert str(attributes["src"]).startswith("data:image/webp;base64,")
        assert tag not in ("b", "i", "iframe", "object", "link", "base", "form")
    text = "".join(hostile.words)
    for name in (*HOSTILE, HOSTILE_FILE.removeprefix("data/")):
        assert name in text


def test_the_content_security_policy_allows_only_hashed_scripts_and_no_request(
    hostile: Elements,
) -> None:
    (policy,) = [str(a["content"]) for t, a in hostile.tags if a.get("http-equiv")]
    parts = dict(p.strip().split(" ", 1) for p in policy.split(";"))
    assert parts["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/=]+' 'sha256-[\w+/=]+'", parts["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/=]+'", parts["style-src"])
    assert parts["img-src"] == "data:"
    for _, attributes in hostile.tags:
        assert "style" not in attributes
        for name in ("src", "href"):
            if attributes.get(name):
                assert str(attributes[name]).startswith(("data:", "#"))


def test_ids_are_unique_and_every_internal_link_has_a_target(hostile: Elements) -> None:
    ids = [a["id"] for _, a in hostile.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    targets = [str(a["href"])[1:] for t, a in hostile.tags if t == "a"]
    assert targets
    assert set(targets) <= set(ids)


def numbers(value: Any) -> Iterator[float]:
    """Yield all numbers in a JSON value."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def drawn(spec: Any) -> Iterator[tuple[str, float]]:
    """Yield all numbers in the data of a chart, with their fields."""
    if isinstance(spec, list):
        for inner in spec:
            yield from drawn(inner)
    elif isinstance(spec, dict):
        for row in spec.get("data", {}).get("values", ()):
            for field, value in row.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    yield field, value
        for key, inner in spec.items():
            if key == "layer":
                yield from drawn(inner)


def test_every_number_that_a_chart_draws_is_in_the_json() -> None:
    advice = made_advice(full_profile([f"class{i}" for i in range(4)]))
    outcome = made_outcome(advice)
    shares = importance(outcome.trials, outcome.advice.seed)
    assert shares
    known = set(numbers(json.loads(json.dumps([advice_record(advice), outcome_record(outcome)]))))
    seen = 0
    for chart in (*advice_charts(advice), *outcome_charts(outcome, shares)):
        for field, value in drawn(chart.spec):
            if field not in POSITIONS | DERIVED:
                assert value in known, (chart.name, field, value)
                seen += 1
    assert seen > 100
    quadrant = next(c for c in advice_charts(advice) if c.name == "quadrant")
    position = next(
        row for layer in quadrant.spec["layer"] for row in layer["data"]["values"] if "xl" in row
    )
    assert set(position.values()) <= known


def test_missing_measurements_have_no_chart() -> None:
    bare = made_advice(profile_of(backbone_statistics=None), frontier=None)
    assert {c.name for c in advice_charts(bare)} == {"quadrant", "probes", "accuracy", "cost"}
    text = page(bare, Gallery())
    assert 'id="images"' not in text
    full = made_advice(full_profile(["a", "b"]))
    assert {c.name for c in advice_charts(full)} >= {"similarity", "curve"}


def test_a_page_for_a_hundred_thousand_images_is_below_five_megabytes() -> None:
    advice = large_advice()
    gallery = made_gallery(advice, n_points=1000)
    assert len(page(advice, gallery).encode()) < 5_000_000


def large_advice() -> Advice:
    classes = [f"class {i}" for i in range(136)]
    return made_advice(full_profile(classes, n_per_class=735))


def test_template_script_and_style_are_part_of_the_package() -> None:
    folder = Path(__file__).parents[3] / "advisor" / "report" / "page"
    assert {p.name for p in folder.iterdir()} >= {"page.html", "page.css", "page.js"}


def test_mistakes_have_their_map_and_similar_train_images_with_labels(hostile: Elements) -> None:
    texts = [attrs.get("alt") or "" for tag, attrs in hostile.tags if tag == "img"]
    n_explained = 2 * 6 - 1
    assert sum(text.startswith("map of where it speaks for") for text in texts) == n_explained
    assert sum(text.startswith("a train image of") for text in texts) == 3 * n_explained
    assert any("rather than <script>alert(1)</script>" in text for text in texts)
    assert all(attrs.get("alt") for tag, attrs in hostile.tags if tag == "img")
    words = "".join(hostile.words)
    assert "where an image speaks for the predicted class rather than the true one" in words
    assert "cropped away" in words
    assert "exact (CAM)" in words
    assert "Maps of <b>all but one</b>." in words
    assert words.count("Most similar train images") == n_explained


def test_a_page_without_explanations_has_neither_legend_nor_maps() -> None:
    advice = made_advice(full_profile(["ants", "bees"]))
    text = page(advice, made_gallery(advice), made_outcome(advice))
    assert "Most frequent misclassifications" in text
    assert 'class="legend"' not in text
    assert "map of where" not in text
