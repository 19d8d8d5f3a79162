"""Preprocessing inside an exported graph: the pixels are those of Pillow."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from strategies.data.transforms import CropMode
from strategies.models.backbone import Backbone
from strategies.models.features import normalised
from strategies.models.formats.graph import example_images, quiet
from strategies.models.formats.preprocessing import Preprocessing
from tests.conftest import SHARED

PX = 32
SIZES = ((32, 32), (65, 50), (20, 45), (45, 80), (100, 30), (70, 50), (75, 50), (51, 33), (1, 5))
"""Heights and widths: smaller and larger, wide and tall; some are resized along the rows last."""


def noise(size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Return an image in which every pixel counts."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_crops_are_those_of_pillow(mode: CropMode, interpolation: str, backbone: Backbone) -> None:
    for crop_pct in (0.875, 1.0):
        used = replace(
            backbone,
            input_px=PX,
            crop_mode=mode,
            crop_pct=crop_pct,
            interpolation=interpolation,
        )
        preprocessing = Preprocessing(used)
        for seed, size in enumerate(SIZES):
            pixels = noise(size, seed)
            expected = used.evaluation_crop.pixels(Image.fromarray(pixels))
            found = preprocessing.crops(torch.from_numpy(pixels)[None])[0].permute(1, 2, 0)
            np.testing.assert_array_equal(found.numpy(), expected, str(size))


def test_real_photos_get_the_same_pixels_in_an_exported_graph(backbone: Backbone) -> None:
    preprocessing = Preprocessing(backbone).eval()
    images, sizes = example_images()
    with quiet():
        program = torch.export.export(preprocessing, (images,), dynamic_shapes=(sizes,))
    exported = program.module()
    for path in _photos():
        image = Image.open(path).convert("RGB")
        with torch.inference_mode():
            found = exported(torch.from_numpy(np.array(image))[None])
        crop = torch.from_numpy(backbone.evaluation_crop.pixels(image).copy())
        assert torch.equal(found, normalised(crop[None], backbone)), path


def _photos() -> list[Path]:
    """Return some images of datasets whose images have many sizes."""
    folders = [SHARED / name for name in ("flowers5", "weather4", "dtd10", "hymenoptera")]
    if not all(folder.is_dir() for folder in folders):
        pytest.skip("the shared datasets are not here")
    return [path for f in folders for path in sorted(f.rglob("*.jpg"))[::60]]


def test_images_of_a_batch_are_normalised_each(backbone: Backbone) -> None:
    used = replace(backbone, input_px=PX)
    batch = np.stack([noise((40, 60), 0), noise((40, 60), 1)])
    found = Preprocessing(used)(torch.from_numpy(batch))
    crops = Preprocessing(used).crops(torch.from_numpy(batch)).permute(0, 2, 3, 1)
    assert found.shape == (2, 3, PX, PX)
    assert torch.equal(found, normalised(crops.to(torch.uint8), used))
    assert not torch.equal(found[0], found[1])


def test_borders_have_the_mean_colour(backbone: Backbone) -> None:
    used = replace(backbone, input_px=PX, crop_mode="border", crop_pct=1.0)
    wide = torch.full((1, 20, 80, 3), 255, dtype=torch.uint8)
    crops = Preprocessing(used).crops(wide)[0].permute(1, 2, 0)
    colour = torch.tensor([round(255 * value) for value in used.mean]).float()
    torch.testing.assert_close(crops[0], colour.expand(PX, 3))
    torch.testing.assert_close(crops[PX // 2], torch.full((PX, 3), 255.0))
