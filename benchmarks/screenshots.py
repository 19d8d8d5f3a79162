"""Take the README's screenshots of the report of a run on scikit-learn's handwritten digits.

Run:      tl-auto run --demo --input-px 64 --max-images 900 --time 4m --trials 12 --out runs/demo
          python benchmarks/screenshots.py --run runs/demo
          Needs ``pip install -e '.[browser]'`` and Chromium.
Cost:     4 minutes for the run, seconds for the screenshots.
Expected: report-light.png and map-dark.png in docs/images.
"""

import argparse
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDTH_PX, COLOURS = 1100, 96
Scheme = Literal["light", "dark"]


def main(argv: Sequence[str] | None = None) -> None:
    """Save the top of the report in the light theme and the map of images in the dark theme."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="run folder of the demo")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    page = (given.run / "report.html").resolve()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        save(shot(browser, page, "light", "#answer", 760), given.out / "report-light.png")
        save(shot(browser, page, "dark", "#images", 680, hover=True), given.out / "map-dark.png")
        browser.close()


def shot(
    browser: "Browser", page: Path, scheme: Scheme, start: str, height: int, *, hover: bool = False
) -> bytes:
    """Return a PNG of the top of the page; with `hover`, of an element with a tooltip of an image.

    Parameters
    ----------
    start
        CSS selector of the element to scroll to with `hover`.
    """
    tab = browser.new_page(color_scheme=scheme, viewport={"width": WIDTH_PX, "height": height})
    tab.goto(page.as_uri())
    tab.wait_for_selector("html[data-ready=yes]", state="attached")
    if hover:
        tab.evaluate("id => document.querySelector(id).scrollIntoView()", start)
        tab.wait_for_timeout(1500)  # the tooltip is hidden while the page scrolls
        marks = tab.locator('[data-chart="map"] .mark-symbol path')
        box = marks.nth(marks.count() // 3).bounding_box()
        assert box is not None
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        tab.wait_for_selector("#tip img")
    taken: bytes = tab.screenshot()
    tab.close()
    return taken


def save(png: bytes, path: Path) -> None:
    """Write a PNG with few colours, so that text stays sharp and the file small."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
