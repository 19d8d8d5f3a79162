"""Blurred, dark and over-exposed images are found in files, and only where they are outliers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from advisor.findings.data import check_data
from advisor.measure.probe_evidence import ProbeEvidence
from advisor.types.advice import Finding
from strategies.data.dataset import load_dataset

Change = Callable[[Image.Image], Image.Image]


def brightened(factor: float, offset: float = 0) -> Change:
    return lambda image: image.point(lambda level: min(255, int(factor * level + offset)))


def blurred(radius: float) -> Change:
    return lambda image: image.filter(ImageFilter.GaussianBlur(radius))


PLANTED: dict[str, Change] = {
    "TL017": blurred(6),
    "TL018": brightened(0.2),
    "TL019": brightened(1.5, 110),
}


def textured(rng: np.random.Generator) -> Image.Image:
    """Return smooth waves in a random direction with noise, of grey levels around 130."""
    y, x = np.mgrid[0:160, 0:160] / 160
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 6)
    waves = 130 + 55 * np.sin(20 * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    noisy = waves[..., None] + rng.normal(0, 15, (160, 160, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def findings_of(root: Path, changed: int, change: Change) -> list[Finding]:
    """Write 2 x 15 images of which the first ones of a class are changed; return the findings."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for i in range(15):
            image = textured(rng)
            image = change(image) if i < changed else image
            image.save(root / label / f"{i}.png")
    dataset = load_dataset(root)
    return [f for f in check_data(dataset, ProbeEvidence(64)) if f.code in PLANTED]


@pytest.mark.parametrize("code", PLANTED)
def test_planted_images_are_found_and_no_others(code: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    (finding,) = findings_of(root, 2, PLANTED[code])
    assert finding.code == code
    assert finding.severity == "tip"
    assert {path.path.name for path in finding.affected} <= {"0.png", "1.png"}
    assert finding.n_affected >= 2


def test_a_blurred_drawing_is_blurred_and_not_over_exposed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(15):
            pixels = np.full((160, 160), 255, dtype=np.uint8)
            pixels[rng.integers(0, 160, 12)] = 0
            pixels[:, rng.integers(0, 160, 12)] = 0
            drawing = Image.fromarray(pixels)
            drawing = drawing if i else drawing.filter(ImageFilter.GaussianBlur(8))
            drawing.save(tmp_path / label / f"{i}.png")
    dataset = load_dataset(tmp_path)
    found = check_data(dataset, ProbeEvidence(64))
    (finding,) = [f for f in found if f.code in PLANTED]
    assert finding.code == "TL017"
    assert {image.path.name for image in finding.affected} == {"0.png"}


@pytest.mark.parametrize("code", PLANTED)
def test_a_dataset_that_is_like_this_throughout_has_no_finding(code: str, tmp_path: Path) -> None:
    assert findings_of(tmp_path / "data", 15, PLANTED[code]) == []


def test_ordinary_images_have_no_finding(tmp_path: Path) -> None:
    assert findings_of(tmp_path / "data", 0, PLANTED["TL017"]) == []


def test_slightly_changed_images_have_no_finding(tmp_path: Path) -> None:
    changes = (blurred(0.5), brightened(0.7), brightened(1.2))
    for i, change in enumerate(changes):
        assert findings_of(tmp_path / f"{i}", 2, change) == []


@pytest.mark.parametrize("name", ["mnist5k", "fsdd_spec", "pneumonia_cxr", "galaxy4"])
def test_digits_spectrograms_x_rays_and_galaxies_have_no_finding(shared: Path, name: str) -> None:
    dataset = load_dataset(shared / name, max_images=600)
    found = check_data(dataset, ProbeEvidence(64))
    assert not set(PLANTED) & {finding.code for finding in found}


def test_traffic_signs_at_night_are_dark(shared: Path) -> None:
    dataset = load_dataset(shared / "gtsrb", max_images=600)
    found = {f.code: f for f in check_data(dataset, ProbeEvidence(64))}
    assert found["TL018"].n_affected > 0.05 * len(dataset.fit_split)
