from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from advisor.similarity.bn_shift import SourceMoments
from advisor.similarity.reference import (
    FOLDER,
    MIN_IMAGES,
    Quantised,
    Reference,
    build_reference,
    list_images,
    make_reference,
    read_reference,
    shipped_reference,
    write_reference,
)
from strategies.core.context import RunContext
from strategies.core.errors import DataError, StorageError
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.catalogue import CATALOGUE
from strategies.models.features import Features, extract_features
from strategies.models.moments import Moments


@pytest.fixture
def features() -> Features:
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(60, 8)).astype(np.float32)
    moments = Moments(mean, mean**2 + 0.5, np.repeat([0, 1], 4), np.array([1, 2]))
    return Features((rng.normal(size=(60, 5)).astype(np.float32),), moments)


def test_a_reference_is_read_as_written(
    features: Features, backbone: Backbone, tmp_path: Path
) -> None:
    reference = make_reference("mine", backbone, features, {"made": "today"})
    write_reference(reference, tmp_path / "r.safetensors")
    found = read_reference(tmp_path / "r.safetensors")
    assert (found.name, found.digest) == ("mine", backbone.digest)
    assert found.provenance == {"images": "60", "made": "today"}
    px = backbone.input_px
    rows, expected = found.rows(px), reference.rows(px)
    assert rows is not None
    assert expected is not None
    assert np.array_equal(rows, expected)
    source, whole = found.source(px), reference.source(px)
    assert source is not None
    assert whole is not None
    assert source.mean == pytest.approx(whole.mean, abs=2e-3)
    assert source.variance == pytest.approx(whole.variance, abs=2e-3)


def test_quantising_to_256_levels_is_off_by_half_a_level_at_most() -> None:
    values = np.random.default_rng(1).normal(size=(200, 6)).astype(np.float32)
    values[:, 2] = 3.0
    stored = Quantised.of(values)
    assert stored.levels.dtype == np.uint8
    assert (np.abs(stored.values() - values) <= 0.501 * stored.step + 1e-6).all()


def test_moments_are_interpolated_between_two_input_sizes() -> None:
    def at(value: float) -> SourceMoments:
        return SourceMoments(np.array([value]), np.array([1 + value]))

    reference = Reference("", "", "", {100: at(0.0), 400: at(1.0)}, {}, {}, {})
    means = []
    for px in (50, 100, 200, 400, 800):
        source = reference.source(px)
        assert source is not None
        means.append(float(source.mean[0]))
    assert means == pytest.approx([0, 0, 0.5, 1, 1])


def test_features_are_available_at_their_own_input_size_only(
    features: Features, backbone: Backbone
) -> None:
    reference = make_reference("", backbone, features, {})
    assert reference.rows(backbone.input_px) is not None
    assert reference.rows(backbone.input_px + 32) is None


@pytest.mark.parametrize("damage", [b"", b"no safetensors", b"\xff" * 40])
def test_the_error_names_a_damaged_file(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    path.write_bytes(damage)
    with pytest.raises(StorageError, match=r"r\.safetensors"):
        read_reference(path)


def test_every_embedded_backbone_has_a_reference_at_its_own_size() -> None:
    for name, entry in CATALOGUE.items():
        reference = read_reference(FOLDER / f"{name}.safetensors")
        assert reference.backbone == name
        assert reference.rows(entry.input_px) is not None
        assert reference.source(entry.input_px) is not None
        if entry.has_head:
            assert reference.confident_share[entry.input_px] > 0.5


def test_the_default_backbone_has_its_shipped_reference_at_any_size(backbone: Backbone) -> None:
    reference = shipped_reference(backbone)
    assert reference is not None
    assert reference.digest == backbone.digest


def test_other_weights_have_no_shipped_reference(backbone: Backbone) -> None:
    assert shipped_reference(backbone.with_random_weights()) is None
    assert shipped_reference(replace(backbone, name="resnet18")) is None


def test_a_reference_of_too_few_images_is_refused(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    with pytest.raises(DataError, match=f"48 readable images.*at least {MIN_IMAGES}"):
        build_reference(small_dataset.root, backbone, ctx)


def test_unreadable_and_duplicate_files_are_left_out_of_a_reference(
    make_folder: Callable[..., Path],
) -> None:
    folder = make_folder("some", 4)
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    copied = next(folder.rglob("000.png")).read_bytes()
    (folder / "again.png").write_bytes(copied)
    assert len(list_images(folder, 2)) == 12


def test_a_reference_is_built_from_the_users_folder(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("advisor.similarity.reference.MIN_IMAGES", 40)
    reference = build_reference(small_dataset.root, backbone, ctx)
    features = extract_features(list_images(small_dataset.root, 2), backbone, ctx)
    source = reference.source(backbone.input_px)
    assert source is not None
    assert features.moments is not None
    assert source.mean == pytest.approx(features.moments.mean.mean(axis=0), abs=1e-5)
    assert reference.name.startswith("48 images")
