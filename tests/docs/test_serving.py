"""The server of docs/serving.md, which many ask at once."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.conftest import Answer

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
PATIENCE_S = 300
N_REQUESTS = 200


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start the example as the page says, on a Unix socket; return its path."""
    pytest.importorskip("fastapi")
    pytest.importorskip("python_multipart")
    socket = tmp_path_factory.mktemp("server") / "socket"
    command = [sys.executable, "-m", "uvicorn", "fastapi_server:app", "--uds", str(socket)]
    command += ["--app-dir", str(EXAMPLES), "--log-level", "warning"]
    environment = {**os.environ, "CLASSIFIER": str(run)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        stop_at = time.monotonic() + PATIENCE_S
        while not socket.exists() and process.poll() is None and time.monotonic() < stop_at:
            time.sleep(0.1)
        yield socket
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert errors == b""


Upload = tuple[str, bytes]


def post(server: Path, uploads: list[Upload]) -> list[Any]:
    """Post files at the same time; return the responses in the order of the files."""
    httpx = pytest.importorskip("httpx2")
    transport = httpx.AsyncHTTPTransport(
        uds=str(server), limits=httpx.Limits(max_connections=len(uploads))
    )

    async def all_at_once() -> list[Any]:
        async with httpx.AsyncClient(
            transport=transport, base_url="http://server", timeout=PATIENCE_S
        ) as client:
            posts = [client.post("/predict", files={"image": upload}) for upload in uploads]
            return await asyncio.gather(*posts)

    return asyncio.run(all_at_once())


def test_the_server_answers_200_requests_at_once_as_predict_does(
    server: Path, images: list[Path], predicted: dict[str, Answer]
) -> None:
    uploads = [(path.name, path.read_bytes()) for path in images] * (N_REQUESTS // len(images))
    assert len(uploads) == N_REQUESTS

    responses = post(server, uploads)

    assert {response.status_code for response in responses} == {200}
    for (name, _), response in zip(uploads, responses, strict=True):
        label, probability = predicted[name]
        found = response.json()
        assert found.keys() == {"class", "probability"}
        assert found["class"] == label, name
        assert found["probability"] == pytest.approx(probability, abs=2e-3), name


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no image", "not an image in a format that Pillow knows"),
        (b"", "empty file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "not an image in a format that Pillow knows"),
    ],
)
def test_the_server_says_why_a_file_is_no_image(server: Path, content: bytes, reason: str) -> None:
    (response,) = post(server, [("notes.txt", content)])

    assert response.status_code == 422
    assert response.json() == {"detail": f"notes.txt is no readable image: {reason}"}
