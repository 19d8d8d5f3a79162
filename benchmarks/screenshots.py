"""Screenshots of a real page for the README: scikit-learn's digits, no one else's images.

Command: ``python benchmarks/screenshots.py --run runs/demo`` after
``tl-auto run --demo --input-px 64 --max-images 900 --time 4m --trials 12 --out runs/demo``.
Needs ``pip install -e '.[browser]'`` and a chromium. Seconds, once the run is there.
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
    """Take the top of the page in light and the map of the images in dark."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
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
    """Return a PNG of the page: from its top, or from an element with an image pointed at."""
    tab = browser.new_page(color_scheme=scheme, viewport={"width": WIDTH_PX, "height": height})
    tab.goto(page.as_uri())
    tab.wait_for_selector("html[data-ready=yes]", state="attached")
    if hover:
        tab.evaluate("id => document.querySelector(id).scrollIntoView()", start)
        tab.wait_for_timeout(1500)  # a tip hides while the page scrolls
        marks = tab.locator('[data-chart="map"] .mark-symbol path')
        box = marks.nth(marks.count() // 3).bounding_box()
        assert box is not None
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        tab.wait_for_selector("#tip img")
    taken: bytes = tab.screenshot()
    tab.close()
    return taken


def save(png: bytes, path: Path) -> None:
    """Write a PNG with few colours: text stays sharp, the file small."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
