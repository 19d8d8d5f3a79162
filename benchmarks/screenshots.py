"""Take the pictures of the README and the docs: the report's page, and a terminal.

Run:      tl-auto run --demo --input-px 64 --max-images 900 --time 4m --trials 12 --out runs/demo
          python benchmarks/screenshots.py --run runs/demo
          python benchmarks/screenshots.py --terminal tl-advise hymenoptera
          The page needs ``pip install -e '.[browser]'`` and Chromium; the terminal needs Unix.
Cost:     4 minutes for the run, seconds for the pictures.
Expected: report-light.png, report-dark.png and map-dark.png; terminal-light.svg and
          terminal-dark.svg in docs/images.
"""

import argparse
import io
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, SVG_EXPORT_THEME
from rich.text import Text

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDTH_PX, COLOURS = 1100, 96
COLUMNS = 80
THEMES = {"light": DEFAULT_TERMINAL_THEME, "dark": SVG_EXPORT_THEME}
Scheme = Literal["light", "dark"]


def main(argv: Sequence[str] | None = None) -> None:
    """Save pictures of the page of a run, or of a terminal with what a command prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, help="run folder of the demo")
    what.add_argument("--terminal", nargs=argparse.REMAINDER, help="command with its arguments")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.terminal:
        terminal(given.terminal, given.out)
    else:
        pages(given.run, given.out)


def pages(run: Path, out: Path) -> None:
    """Save the top of the report in both themes, and the map of images in the dark theme."""
    from playwright.sync_api import sync_playwright

    page = (run / "report.html").resolve()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        save(shot(browser, page, "light", "#answer", 760), out / "report-light.png")
        save(shot(browser, page, "dark", "#answer", 760), out / "report-dark.png")
        save(shot(browser, page, "dark", "#images", 680, hover=True), out / "map-dark.png")
        browser.close()


def terminal(command: Sequence[str], out: Path) -> None:
    """Save what a command prints to a terminal of 80 columns, as SVG in both themes."""
    printed = f"$ {shlex.join(command)}\n{on_terminal(command)}"
    for theme, colours in THEMES.items():
        console = Console(record=True, width=COLUMNS, file=io.StringIO(), color_system="truecolor")
        console.print(Text.from_ansi(printed))
        svg = console.export_svg(title="", theme=colours, unique_id=f"terminal-{theme}")
        svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)  # fonts of a server
        path = out / f"terminal-{theme}.svg"
        path.write_text(svg, encoding="utf-8")
        print(f"{path}: {path.stat().st_size:,} bytes")


def on_terminal(command: Sequence[str]) -> str:
    """Return what a command prints to stdout where that is a terminal, with its colours."""
    ours, theirs = os.openpty()
    environment = os.environ | {"COLUMNS": str(COLUMNS), "LINES": "50", "TERM": "xterm-256color"}
    with subprocess.Popen(
        command, stdout=theirs, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(theirs)
        printed = b""
        while block := _read(ours):
            printed += block
    os.close(ours)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {process.returncode}.")
    return printed.decode().replace("\r\n", "\n")


def _read(descriptor: int) -> bytes:
    """Return what the process has printed; nothing when it has ended."""
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux reports the end of the other side as an error
        return b""


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
