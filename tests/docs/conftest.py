"""A finished run, images of many kinds, and what ``tl-auto predict`` says about them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from typer.testing import CliRunner

from advisor.cli.app import auto_app
from advisor.tune.run_dir.directory import RunDir
from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.linear_probe import LinearProbe
from strategies.models.backbone import Backbone
from tests.conftest import stripes

Answer = tuple[str, float]
"""The most probable class of an image, and its probability."""


@pytest.fixture(scope="session")
def run(
    small_dataset: Dataset, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of a finished run with a linear probe."""
    folder = RunDir(tmp_path_factory.mktemp("run"))
    folder.begin({})
    ctx = RunContext(cache=ArrayCache(tmp_path_factory.mktemp("cache")))
    LinearProbe().fit(small_dataset.hide_test(), backbone, ctx).save(folder.classifier())
    folder.set_phase("done", 0.0)
    return folder.path


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write images of many kinds: JPEG and PNG, grey, transparent, rotated, of odd sizes."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(7)
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    rotated = Image.Exif()
    rotated[0x0112] = 6  # Orientation: to be turned by 90 degrees
    see_through = stripes(0, rng, 81).convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize((81, 81)))
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "a photo.jpg": (stripes(0, rng, 160).resize((161, 97)), {"quality": 95}),
        "tall.jpg": (stripes(1, rng, 120).resize((45, 133)), {"quality": 95}),
        "rotated.jpg": (stripes(1, rng, 96).resize((96, 70)), {"quality": 95, "exif": rotated}),
        "square.png": (stripes(2, rng, 64), {}),
        "profile.png": (stripes(2, rng, 75), {"icc_profile": swapped}),
        "grey.png": (stripes(1, rng, 91).convert("L"), {}),
        "grey.jpg": (stripes(2, rng, 50).convert("L"), {"quality": 95}),
        "transparent.png": (see_through, {}),
        "palette.gif": (stripes(0, rng, 57).quantize(64), {}),
        "large.webp": (stripes(2, rng, 700).resize((811, 605)), {"lossless": True}),
    }
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    return [folder / name for name in made]


@pytest.fixture(scope="session")
def predicted(run: Path, images: list[Path]) -> dict[str, Answer]:
    """Return what ``tl-auto predict`` says, by file name."""
    found = CliRunner().invoke(auto_app, ["predict", str(run), *map(str, images), "--json"])
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)["predictions"]
    best = {Path(row["path"]).name: row["classes"][0] for row in rows}
    assert len({c["class"] for c in best.values()}) == 3
    assert len({c["probability"] for c in best.values()}) == len(images)
    return {name: (c["class"], c["probability"]) for name, c in best.items()}
