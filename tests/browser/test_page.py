"""The HTML page in headless Chromium: charts, map, tables, dark mode, security, accessibility."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from advisor.advise import prepare
from advisor.cli.finding_files import FindingFiles, advise_with_files
from advisor.deploy.explain import explain
from advisor.report.html import page
from advisor.tune.driver import auto
from advisor.types.options import Options, RunOptions
from strategies.core.context import make_context
from tests.advisor.report.made import (
    HOSTILE,
    full_profile,
    hostile_advice,
    made_advice,
    made_gallery,
    made_outcome,
)
from tests.conftest import write_folder

playwright_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
AXE = os.environ.get("AXE_JS", "")
"""Path of axe-core's axe.min.js (npm pack axe-core); it is not part of this repository."""
PHONE, DESK = {"width": 400, "height": 800}, {"width": 1200, "height": 900}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
    # Chromium closes its sockets shortly after the test ends.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright_api.sync_playwright() as p:
        # Chromium does not start as root (as in a container) without --no-sandbox.
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write pages of real advice, a real run, a hostile run, and a dataset of many classes."""
    folder = tmp_path_factory.mktemp("pages")
    data = write_folder(folder / "striped", 12)
    write_folder(data, 18, n_classes=1)
    (data / "class0" / "torn.png").write_bytes(b"no image")
    shutil.copy(data / "class0" / "001.png", data / "class1" / "copy.png")
    small = Options(input_px=32, cache_dir=folder / "cache")
    advise_with_files(prepare(data, small), None, folder / "advice.html", FindingFiles())
    auto(data, folder / "run", small, RunOptions(time_s=120, max_trials=2))
    hostile = hostile_advice()
    outcome = made_outcome(hostile)
    assert outcome.test is not None
    gallery = made_gallery(hostile, mistakes=outcome.test.mistakes)
    (folder / "hostile.html").write_text(page(hostile, gallery, outcome), encoding="utf-8")
    many = made_advice(full_profile([f"class {i}" for i in range(136)], n_per_class=735))
    text = page(many, made_gallery(many, n_points=1000), made_outcome(many))
    (folder / "many.html").write_text(text, encoding="utf-8")
    two = made_advice(full_profile(["ants", "bees"]))
    (folder / "two.html").write_text(page(two, made_gallery(two)), encoding="utf-8")
    given = sorted((data / "class1").glob("00*.png"))[:4]
    list(explain(folder / "run", given, folder / "why", make_context(cache_dir=folder / "cache")))
    names = ("advice", "hostile", "many", "two")
    others = {"run": folder / "run" / "report.html", "why": folder / "why" / "index.html"}
    return {n: folder / f"{n}.html" for n in names} | others


NAMES = ("advice", "run", "hostile", "many", "two")
Open = Callable[..., Any]


@pytest.fixture
def open_page(chromium: Any, pages: dict[str, Path]) -> Iterator[Open]:
    """Return a function that opens a page; fail on console output, errors or network requests."""
    problems: list[str] = []
    opened: list[Any] = []

    def open_one(name: str, **options: Any) -> Any:
        tab = chromium.new_page(**{"viewport": DESK, **options})
        tab.on("console", lambda m: problems.append(f"{m.type}: {m.text}"))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        allowed = ("file:", "data:")
        tab.on("request", lambda r: r.url.startswith(allowed) or problems.append(r.url))
        tab.goto(pages[name].as_uri())
        if name != "why":  # it has no script
            tab.wait_for_selector("html[data-ready=yes]", state="attached", timeout=30_000)
        opened.append(tab)
        return tab

    yield open_one
    for tab in opened:
        tab.close()
    assert not problems


@pytest.mark.parametrize("name", NAMES)
def test_the_page_opens_without_console_output_and_requests(name: str, open_page: Open) -> None:
    tab = open_page(name)
    charts = tab.locator("figure[data-chart]")
    assert charts.count() >= 5
    assert tab.locator("figure[data-chart] svg").count() == charts.count()


def test_the_page_of_a_hundred_thousand_images_opens_within_three_seconds(
    open_page: Open, pages: dict[str, Path]
) -> None:
    assert pages["many"].stat().st_size < 5_000_000
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        open_page("many")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 3  # the machine may be busy with something else


@pytest.mark.parametrize("name", [*NAMES, "why"])
def test_a_phone_has_no_horizontal_scroll(name: str, open_page: Open) -> None:
    tab = open_page(name, viewport=PHONE)
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("name", ["advice", "hostile"])
def test_hovering_a_point_of_the_map_shows_its_image(name: str, open_page: Open) -> None:
    tab = open_page(name)
    plot = tab.locator('[data-chart="map"] .plot')
    plot.scroll_into_view_if_needed()
    mark = plot.locator(".mark-symbol path").first
    assert tab.locator("#tip").is_hidden()
    mark.hover(force=True)
    tab.wait_for_selector("#tip img")
    assert tab.evaluate("document.querySelector('#tip img').naturalWidth") > 8
    if name == "hostile":
        seen = tab.locator("#tip").inner_text()
        assert any(class_name in seen for class_name in HOSTILE)
    tab.evaluate("document.dispatchEvent(new Event('scroll'))")  # late event of an earlier scroll
    assert tab.locator("#tip").is_visible()
    tab.evaluate("window.scrollBy(0, window.scrollY > 200 ? -100 : 100)")
    tab.wait_for_selector("#tip", state="hidden")


def test_arrow_keys_step_through_the_map(open_page: Open) -> None:
    tab = open_page("two")
    tab.locator('[data-chart="map"] .plot').focus()
    tab.keyboard.press("ArrowRight")
    first = tab.locator("#focused-image").inner_text()
    tab.keyboard.press("ArrowRight")
    assert ".png" in first
    assert tab.locator("#focused-image").inner_text() != first


def test_class_buttons_hide_and_show_points_of_the_map(open_page: Open) -> None:
    tab = open_page("hostile")
    marks = tab.locator('[data-chart="map"] .mark-symbol path')
    n = marks.count()
    button = tab.locator("[data-class]").first
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    tab.wait_for_function(
        "n => document.querySelectorAll('[data-chart=map] .mark-symbol path').length === n",
        arg=n - n // len(HOSTILE),
    )
    tab.locator("#none").click()
    tab.wait_for_function("!document.querySelector('[data-chart=map] .mark-symbol path')")
    tab.locator("#all").click()
    tab.wait_for_function(
        "n => document.querySelectorAll('[data-chart=map] .mark-symbol path').length === n", arg=n
    )


def test_tables_sort_by_number_and_by_name(open_page: Open) -> None:
    tab = open_page("run")
    table = tab.locator("#classes")

    def column(k: int) -> list[str]:
        return list(table.locator(f"tbody tr td:nth-child({k})").all_inner_texts())

    numbers = [int(n) for n in column(2)]
    assert len(set(numbers)) > 1
    images = table.get_by_role("button", name="Images")
    images.click()
    assert [int(n) for n in column(2)] == sorted(numbers)
    images.click()
    assert [int(n) for n in column(2)] == sorted(numbers, reverse=True)
    assert images.locator("..").get_attribute("aria-sort") == "descending"
    table.get_by_role("button", name="Class").click()
    assert column(1) == sorted(column(1))


def test_dark_mode_has_a_dark_background_and_light_chart_labels(open_page: Open) -> None:
    def brightness(tab: Any, selector: str, what: str) -> float:
        rgb = tab.evaluate(
            "([s, w]) => getComputedStyle(document.querySelector(s))[w]", [selector, what]
        )
        return float(sum(map(float, rgb[rgb.index("(") + 1 : -1].split(",")[:3])) / 3)

    label = '[data-chart="accuracy"] svg .role-axis-label text'
    light, dark = open_page("advice"), open_page("advice", color_scheme="dark")
    assert brightness(light, "body", "backgroundColor") > 200
    assert brightness(light, label, "fill") < 130
    assert brightness(dark, "body", "backgroundColor") < 50
    assert brightness(dark, label, "fill") > 130


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_mistakes_show_their_map_beside_the_image_and_similar_train_images(
    scheme: str, open_page: Open
) -> None:
    tab = open_page("hostile", color_scheme=scheme)
    twins = tab.locator(".explained .twins")
    assert twins.count() == 11
    for k in (0, 10):
        twins.nth(k).scroll_into_view_if_needed()
        boxes = [image.bounding_box() for image in twins.nth(k).locator("img").all()]
        assert len(boxes) == 2
        assert boxes[0]["width"] == pytest.approx(boxes[1]["width"], abs=1)
        assert boxes[0]["width"] > 90
        assert boxes[1]["x"] > boxes[0]["x"] + boxes[0]["width"]
    assert tab.locator(".explained .near li").count() == 33
    seen = tab.evaluate("[...document.images].map(i => [i.complete && i.naturalWidth > 8, i.alt])")
    assert all(is_drawn and alt for is_drawn, alt in seen)
    ramp = tab.locator(".legend .ramp")
    assert "gradient" in ramp.evaluate("e => getComputedStyle(e).backgroundImage")
    assert ramp.bounding_box()["width"] > 60
    assert ramp.get_attribute("aria-label")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_explanations_leads_to_its_files(scheme: str, open_page: Open) -> None:
    tab = open_page("why", color_scheme=scheme)
    assert tab.locator("article").count() == 4
    assert tab.evaluate("[...document.images].every(i => i.naturalWidth > 8 && i.alt)")
    assert tab.locator("article .near li").count() == 12
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(background[4:].split(",")[0]) > 200) == (scheme == "light")
    tab.locator("article a").first.click()
    tab.wait_for_url("**/00001-*.jpg")


def test_a_script_in_a_class_name_does_not_run(open_page: Open) -> None:
    tab = open_page("hostile")
    assert tab.locator("b, i").count() == 0
    assert "<script>alert(1)</script>" in tab.locator("h1, .eyebrow").all_inner_texts()[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", [*NAMES, "why"])
@pytest.mark.skipif(not AXE, reason="AXE_JS does not name a file: npm pack axe-core brings it")
def test_axe_finds_no_serious_violation(name: str, scheme: str, open_page: Open) -> None:
    tab = open_page(name, color_scheme=scheme)
    tab.evaluate(Path(AXE).read_text(encoding="utf-8"))
    found = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")
    serious = [
        (v["id"], v["nodes"][0]["html"][:200])
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]
    assert not serious
