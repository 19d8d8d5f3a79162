"""The page of docs/serving.md, which classifies images in the browser."""

import base64
import functools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from advisor.cli.app import auto_app
from advisor.deploy.predict import load_classifier
from tests.docs.conftest import Answer

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "browser"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ORT_WEB = os.environ.get("ORT_WEB", "")
"""Folder of the package onnxruntime-web (npm pack onnxruntime-web); not in this repository."""
PATIENCE_MS = 300_000
JS_DROP = """([name, data]) => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), files = new DataTransfer();
  files.items.add(new File([bytes], name));
  dispatchEvent(new DragEvent("drop", {dataTransfer: files, cancelable: true}));
}"""
JS_ANSWER = """name => {
  const [first] = document.querySelectorAll('#classes li');
  if (!document.getElementById('status').textContent.startsWith(name) || !first) return null;
  return [...first.children].map(part => part.textContent);
}"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
    pytest.mark.skipif(
        not ORT_WEB, reason="ORT_WEB does not name a folder: npm pack onnxruntime-web brings it"
    ),
    # Chromium closes its sockets shortly after the test ends.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Put a page together as docs/serving.md says, and serve it; return its address."""
    folder = tmp_path_factory.mktemp("page") / "page"
    shutil.copytree(EXAMPLE, folder)
    exported = ["export", str(run), "--out", str(folder / "classifier.onnx")]
    found = CliRunner().invoke(auto_app, exported)
    assert found.exit_code == 0, found.output
    package = folder / "node_modules" / "onnxruntime-web" / "dist"
    package.mkdir(parents=True)
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
        shutil.copy(Path(ORT_WEB) / "dist" / name, package)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def tab(page: str) -> Iterator[Any]:
    """Open the page in Chromium."""
    playwright_api = pytest.importorskip("playwright.sync_api")
    with playwright_api.sync_playwright() as p:
        # Chromium does not start as root (as in a container) without --no-sandbox.
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


@pytest.fixture
def opened(tab: Any, page: str) -> Iterator[Any]:
    """Load the page; fail on console output, errors and requests to other hosts."""
    problems: list[str] = []
    listeners: dict[str, Callable[..., Any]] = {
        "console": lambda m: problems.append(f"{m.type}: {m.text}"),
        "pageerror": lambda error: problems.append(str(error)),
        "request": lambda r: r.url.startswith((page, "blob:")) or problems.append(r.url),
    }
    for event, listener in listeners.items():
        tab.on(event, listener)
    tab.goto(page)
    tab.wait_for_selector("#file:enabled", timeout=PATIENCE_MS)
    yield tab
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    assert not problems


def answer(tab: Any, path: Path) -> Answer:
    """Give an image to the page, and return what it shows first."""
    tab.set_input_files("#file", path)
    shown = tab.wait_for_function(JS_ANSWER, arg=path.name, timeout=PATIENCE_MS).json_value()
    return shown[0], float(shown[1].removesuffix("%")) / 100


def test_the_page_names_images_as_predict_does(
    opened: Any, run: Path, images: list[Path], predicted: dict[str, Answer]
) -> None:
    # On a GPU, predict computes in bfloat16.
    exact = load_classifier(run, torch.device("cpu")).predict_proba(images).max(axis=1)
    for path, probability in zip(images, exact, strict=True):
        label, shown = answer(opened, path)
        assert label == predicted[path.name][0], path.name
        # Chromium's decoder of JPEG files is not Pillow's.
        assert shown == pytest.approx(probability, abs=0.02), path.name


def test_a_dropped_image_is_classified_and_shown_upright(
    opened: Any, images: list[Path], predicted: dict[str, Answer]
) -> None:
    (path,) = [path for path in images if path.name == "rotated.jpg"]
    data = base64.b64encode(path.read_bytes()).decode()
    opened.evaluate(JS_DROP, [path.name, data])
    shown = opened.wait_for_function(JS_ANSWER, arg=path.name, timeout=PATIENCE_MS).json_value()
    assert shown[0] == predicted[path.name][0]
    assert opened.evaluate("[image.width, image.height]") == [70, 96]


def test_a_file_that_is_no_image_is_refused_and_the_next_image_is_classified(
    opened: Any, images: list[Path], predicted: dict[str, Answer], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    opened.set_input_files("#file", tmp_path / "notes.txt")
    opened.wait_for_function("document.getElementById('status').textContent.includes('cannot')")
    assert opened.inner_text("#status").startswith("notes.txt cannot be classified: ")
    assert opened.inner_text("#classes") == ""
    assert opened.locator("canvas").is_hidden()
    assert answer(opened, images[0])[0] == predicted[images[0].name][0]


def test_a_missing_classifier_is_reported(tab: Any, page: str) -> None:
    tab.route("**/classifier.onnx", lambda route: route.fulfill(status=404))
    tab.goto(page)
    tab.wait_for_function("document.getElementById('status').textContent.includes('cannot')")
    tab.unroute("**/classifier.onnx")
    assert "Write it with tl-auto export" in tab.inner_text("#status")
    assert tab.locator("#file").is_disabled()


def test_a_phone_has_no_horizontal_scroll(opened: Any, images: list[Path]) -> None:
    opened.set_viewport_size({"width": 400, "height": 800})
    answer(opened, next(path for path in images if path.name == "large.webp"))
    assert opened.evaluate("document.documentElement.scrollWidth") <= 400
