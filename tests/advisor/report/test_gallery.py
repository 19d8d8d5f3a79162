"""Thumbnails of the page (small, without metadata) and the t-SNE map of the images."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advisor.report import gallery
from advisor.report.gallery import (
    BUDGET_BYTES,
    MAX_ON_MAP,
    SIDES_PX,
    images_named,
    lay_out,
    make_thumbs,
    sample_rows,
)
from advisor.types.advice import Finding


def photo(path: Path, seed: int = 0, side: int = 300) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    Image.fromarray(pixels).save(path, "JPEG", exif=exif)
    return path


def test_a_thumbnail_has_no_metadata(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.jpg")
    assert b"secret" in path.read_bytes()
    data = make_thumbs({"a": path})["a"]
    assert b"secret" not in data
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "WEBP"
        assert max(image.size) <= SIDES_PX[0]
        assert not image.getexif()
        assert set(image.info) <= {"background", "loop", "duration", "timestamp"}


def test_a_missing_or_unreadable_image_has_no_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"torn")
    given = {"torn": tmp_path / "torn.png", "gone": tmp_path / "gone.png"}
    assert make_thumbs(given) == {}


def test_thumbnails_shrink_until_they_fit_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {f"{i}": photo(tmp_path / f"{i}.jpg", i) for i in range(6)}
    large = make_thumbs(paths)
    assert sum(map(len, large.values())) <= BUDGET_BYTES
    budget = sum(map(len, large.values())) // 2
    monkeypatch.setattr(gallery, "BUDGET_BYTES", budget)
    small = make_thumbs(paths)
    assert small.keys() == large.keys()
    assert sum(map(len, small.values())) <= budget
    monkeypatch.setattr(gallery, "BUDGET_BYTES", len(small["0"]))
    assert sum(map(len, make_thumbs(paths).values())) <= len(small["0"])


def test_the_longest_known_path_in_an_example_is_found() -> None:
    names = ["d/a.png", "d/a.png.png", "d/b b.png"]
    examples = ("d/a.png.png (x) = d/b b.png (y)", "d/a.png: x, rather y", "none", "other/a.png")
    found = images_named([Finding("TL003", "issue", "", "", "", examples)], names)
    assert found == {(0, 0): ("d/a.png.png", "d/b b.png"), (0, 1): ("d/a.png",)}


@pytest.mark.parametrize("n", [10, MAX_ON_MAP, 5 * MAX_ON_MAP])
def test_the_map_is_a_stratified_sample(n: int) -> None:
    labels = np.sort(np.random.default_rng(0).choice(4, n, p=[0.7, 0.2, 0.08, 0.02]))
    rows = sample_rows(labels, 0)
    assert len(rows) == min(n, MAX_ON_MAP)
    assert np.all(np.diff(rows) > 0)
    before, after = (np.bincount(x, minlength=4) / len(x) for x in (labels, labels[rows]))
    assert np.abs(before - after).max() < 0.01


def test_clusters_stay_together_on_the_map() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(3), 30)
    places = lay_out(rng.normal(0, 1, (90, 40)) + 10 * rng.normal(0, 1, (3, 40))[groups], 0)
    assert places.min() == 0
    assert places.max() == 1
    apart = np.linalg.norm(places[:, None] - places[None], axis=2) + 9 * np.eye(90)
    assert np.mean(groups[apart.argmin(axis=1)] == groups) > 0.95


@pytest.mark.parametrize("n", [3, 5, 12])
def test_a_few_identical_images_have_finite_map_coordinates(n: int) -> None:
    assert np.isfinite(lay_out(np.ones((n, 8)), 0)).all()
