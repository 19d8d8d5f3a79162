import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax

from strategies.core.atomic_files import write_json
from strategies.core.context import RunContext
from strategies.core.errors import DataError, StorageError
from strategies.core.metrics import proportion
from strategies.data.dataset import Dataset
from strategies.data.decoding import UnreadableImage
from strategies.models.backbone import Backbone
from strategies.models.classifier import (
    FORMAT_VERSION,
    RECORD_FILE,
    WEIGHTS_FILE,
    ImageClassifier,
    evaluate,
    make_network,
    scale_scores,
    set_head,
)
from strategies.models.features import extract_features
from tests.conftest import stripes

CLASSES = ("ant", "bee", "ohm Ω")


def _classifier(backbone: Backbone, depths: tuple[int, ...] | None = None) -> ImageClassifier:
    depths = depths or (backbone.n_depths,)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = make_network(backbone, depths, 3).eval()
    return ImageClassifier(
        CLASSES, backbone, depths, network, "a_strategy", {"lr": 0.1, "k": None}
    )


@pytest.fixture
def tiny(load_random: Callable[..., Backbone]) -> Backbone:
    return load_random("test_resnet", input_px=64)


@pytest.fixture
def paths(small_dataset: Dataset) -> list[Path]:
    return [p.path for p in small_dataset.train[:5]]


@pytest.fixture
def saved(tiny: Backbone, tmp_path: Path) -> Path:
    _classifier(tiny).save(tmp_path / "saved")
    return tmp_path / "saved"


def _modify_record(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((folder / RECORD_FILE).read_text())
    change(record)
    (folder / RECORD_FILE).write_text(json.dumps(record))


def test_probabilities_are_a_distribution_for_every_image(
    tiny: Backbone, paths: list[Path]
) -> None:
    found = _classifier(tiny).predict_proba(paths)

    assert found.shape == (5, 3)
    assert found.dtype == np.float32
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


def test_no_images_give_an_empty_array(tiny: Backbone) -> None:
    assert _classifier(tiny).predict_proba([]).shape == (0, 3)


def test_probabilities_follow_the_order_of_the_images(tiny: Backbone, paths: list[Path]) -> None:
    classifier = _classifier(tiny)

    forth, back = classifier.predict_proba(paths), classifier.predict_proba(paths[::-1])

    np.testing.assert_allclose(forth, back[::-1], rtol=1e-4)
    assert len(np.unique(forth, axis=0)) == 5


def test_a_file_that_is_not_an_image_is_refused(tiny: Backbone, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no image")

    with pytest.raises(UnreadableImage):
        _classifier(tiny).predict_proba([tmp_path / "x.png"])


def test_images_in_memory_are_preprocessed_like_their_files(
    tiny: Backbone, paths: list[Path], tmp_path: Path
) -> None:
    grey = tmp_path / "grey.png"
    Image.open(paths[0]).convert("L").save(grey)
    turned = tmp_path / "turned.png"
    Image.open(paths[1]).crop((0, 0, 40, 20)).save(turned, exif=_orientation(6))
    see_through = tmp_path / "see_through.png"
    Image.open(paths[2]).convert("RGBA").rotate(30).save(see_through)
    deep = tmp_path / "deep.tif"
    Image.fromarray(np.arange(48 * 48, dtype=np.uint16).reshape(48, 48)).save(deep)
    files = [*paths, grey, turned, see_through, deep]
    classifier = _classifier(tiny)
    expected = classifier.predict_proba(files)

    opened = classifier.predict_proba([Image.open(path) for path in files])
    arrays = classifier.predict_proba([np.asarray(Image.open(path)) for path in [*paths, grey]])
    stack = np.stack([np.asarray(Image.open(path)) for path in paths])

    np.testing.assert_array_equal(opened, expected)
    np.testing.assert_array_equal(arrays, expected[: len(paths) + 1])
    np.testing.assert_array_equal(classifier.predict_proba(stack), expected[: len(paths)])
    np.testing.assert_array_equal(classifier.predict_proba([str(p) for p in files]), expected)
    assert np.ptp(expected, axis=0).min() > 0  # the images differ


def test_an_image_in_memory_is_not_changed(tiny: Backbone, paths: list[Path]) -> None:
    image = Image.open(paths[0]).convert("RGBA")
    before = image.tobytes()
    _classifier(tiny).predict_proba([image])
    assert (image.mode, image.tobytes()) == ("RGBA", before)


def test_one_pil_image_given_many_times_is_loaded_once_at_a_time(
    tiny: Backbone, tmp_path: Path
) -> None:
    stripes(1, np.random.default_rng(0), px=700).save(tmp_path / "large.png")
    given = [Image.open(tmp_path / "large.png")] * 200  # not loaded yet
    found = _classifier(tiny).predict_proba(given, n_workers=8)
    np.testing.assert_allclose(found, found[:1].repeat(200, axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((8, 8, 3)), "float64"),
        (np.zeros((8, 8, 4), np.uint8), "(8, 8, 4)"),
        (np.zeros((3, 8, 8), np.uint8), "(3, 8, 8)"),
        (np.zeros((0, 8, 3), np.uint8), "(0, 8, 3)"),
        (None, "NoneType"),
    ],
)
def test_an_array_that_is_no_image_is_refused(tiny: Backbone, image: Any, found: str) -> None:
    with pytest.raises(DataError, match=re.escape(found)):
        _classifier(tiny).predict_proba([image])


def test_a_single_image_is_refused(tiny: Backbone, paths: list[Path]) -> None:
    one = Image.open(paths[0])
    for image in (paths[0], str(paths[0]), one, np.asarray(one), np.asarray(one.convert("L"))):
        with pytest.raises(DataError, match="Give a list"):
            _classifier(tiny).predict_proba(image)  # type: ignore[arg-type]


def test_a_pil_image_of_a_truncated_file_is_unreadable(
    tiny: Backbone, paths: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "cut.png").write_bytes(paths[0].read_bytes()[:2000])
    with (
        Image.open(tmp_path / "cut.png") as image,
        pytest.raises(UnreadableImage, match="damaged"),
    ):
        _classifier(tiny).predict_proba([image])


def _orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def test_prediction_does_not_depend_on_train_or_eval_mode_of_the_network(
    tiny: Backbone, paths: list[Path]
) -> None:
    classifier = _classifier(tiny)
    expected = classifier.predict_proba(paths)
    classifier.network.train()

    np.testing.assert_array_equal(classifier.predict_proba(paths), expected)


@pytest.mark.parametrize("depths", [(1,), (2, 4), (6,), (1, 6)])
def test_a_loaded_classifier_predicts_as_the_saved_one(
    backbone: Backbone, paths: list[Path], tmp_path: Path, depths: tuple[int, ...]
) -> None:
    classifier = _classifier(backbone, depths)
    classifier.save(tmp_path / "saved")

    loaded = ImageClassifier.load(tmp_path / "saved")

    np.testing.assert_allclose(
        loaded.predict_proba(paths), classifier.predict_proba(paths), rtol=1e-5, atol=1e-7
    )
    for name in ("classes", "backbone", "depths", "strategy", "hyperparameters"):
        assert getattr(loaded, name) == getattr(classifier, name)


def test_a_transformer_is_saved_and_loaded(
    load_random: Callable[..., Backbone], paths: list[Path], tmp_path: Path
) -> None:
    vit = load_random("test_vit")
    for depths in ((2,), (vit.n_depths,)):
        classifier = _classifier(vit, depths)
        classifier.save(tmp_path / "saved")

        loaded = ImageClassifier.load(tmp_path / "saved")

        np.testing.assert_allclose(
            loaded.predict_proba(paths), classifier.predict_proba(paths), rtol=1e-5, atol=1e-7
        )


def test_a_classifier_cut_early_has_a_small_file(backbone: Backbone, tmp_path: Path) -> None:
    _classifier(backbone, (1,)).save(tmp_path / "early")
    _classifier(backbone).save(tmp_path / "whole")

    early, whole = ((tmp_path / n / WEIGHTS_FILE).stat().st_size for n in ("early", "whole"))
    assert early < whole / 20


def test_a_channels_last_network_is_saved_and_loaded(
    tiny: Backbone, paths: list[Path], tmp_path: Path
) -> None:
    classifier = _classifier(tiny)
    classifier.network.to(memory_format=torch.channels_last)
    classifier.save(tmp_path)

    np.testing.assert_allclose(
        ImageClassifier.load(tmp_path).predict_proba(paths),
        classifier.predict_proba(paths),
        rtol=1e-4,
    )


def test_loading_does_not_change_the_global_generator(saved: Path) -> None:
    before = torch.random.get_rng_state()

    ImageClassifier.load(saved)

    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_saved_classifier_is_one_record_and_one_safetensors_file(saved: Path) -> None:
    assert {f.name for f in saved.iterdir()} == {RECORD_FILE, WEIGHTS_FILE}
    json.loads((saved / RECORD_FILE).read_text())
    weights = (saved / WEIGHTS_FILE).read_bytes()
    header = int.from_bytes(weights[:8], "little")
    assert json.loads(weights[8 : 8 + header])
    assert not weights.startswith((b"PK", b"\x80"))  # neither torch's archive nor a pickle


def test_saving_again_replaces_the_saved_classifier(
    tiny: Backbone, saved: Path, paths: list[Path]
) -> None:
    classifier = _classifier(tiny)
    scale_scores(classifier.network, 3.0)
    classifier.save(saved)

    np.testing.assert_allclose(
        ImageClassifier.load(saved).predict_proba(paths),
        classifier.predict_proba(paths),
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", [RECORD_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_a_storage_error(saved: Path, name: str) -> None:
    (saved / name).unlink()

    with pytest.raises(StorageError, match="contains no readable classifier"):
        ImageClassifier.load(saved)


def test_a_folder_that_does_not_exist_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        ImageClassifier.load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"text"', "{}", "null", "\x00"])
def test_an_invalid_record_is_a_storage_error(saved: Path, text: str) -> None:
    (saved / RECORD_FILE).write_text(text)

    with pytest.raises(StorageError):
        ImageClassifier.load(saved)


def test_a_record_that_is_not_text_is_a_storage_error(saved: Path) -> None:
    (saved / RECORD_FILE).write_bytes(b"\xff\xfe\x00\x80")

    with pytest.raises(StorageError):
        ImageClassifier.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("strategy"),
        lambda r: r.pop("classes"),
        lambda r: r.pop("backbone"),
        lambda r: r.pop("hyperparameters"),
        lambda r: r.pop("weights_sha256"),
        lambda r: r["classes"].append("one more"),
        lambda r: r.update(depths=[]),
        lambda r: r.update(depths=[99]),
        lambda r: r.update(depths=["1"]),
        lambda r: r.update(depths=[1]),
        lambda r: r.update(backbone="resnet18"),
        lambda r: r.update(classes=3),
        lambda r: r["backbone"]["architecture"].update(name="no_such_network"),
        lambda r: r["backbone"]["architecture"].update(name="test_vit"),
        lambda r: r["backbone"]["architecture"].update(arguments='{"checkpoint_path": "x.pth"}'),
        lambda r: r["backbone"]["architecture"].update(arguments="{"),
        lambda r: r["backbone"].update(crop_mode="round"),
        lambda r: r["backbone"]["capabilities"].pop("sizes"),
        lambda r: r["backbone"].update(depths=[{"name": "act1"}]),
        lambda r: r["backbone"].pop("mean"),
    ],
)
def test_a_modified_record_is_a_storage_error(
    saved: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    _modify_record(saved, change)

    with pytest.raises(StorageError):
        ImageClassifier.load(saved)


@pytest.mark.parametrize("change", ["cut", "flipped", "empty", "text"])
def test_damaged_weights_are_a_storage_error(saved: Path, change: str) -> None:
    file = saved / WEIGHTS_FILE
    data = file.read_bytes()
    damaged = {
        "cut": data[:-10],
        "flipped": data[:-10] + bytes([data[-10] ^ 1]) + data[-9:],
        "empty": b"",
        "text": b"not weights",
    }
    file.write_bytes(damaged[change])

    with pytest.raises(StorageError):
        ImageClassifier.load(saved)


def test_weights_of_another_classifier_of_the_same_shape_are_refused(
    tiny: Backbone, saved: Path, tmp_path: Path
) -> None:
    other = _classifier(tiny)
    scale_scores(other.network, 2.0)
    other.save(tmp_path / "other")
    (tmp_path / "other" / WEIGHTS_FILE).replace(saved / WEIGHTS_FILE)

    with pytest.raises(StorageError, match=r"SHA-256 of .* differs from"):
        ImageClassifier.load(saved)


def test_another_format_version_is_refused_with_an_explanation(saved: Path) -> None:
    _modify_record(saved, lambda r: r.update(format_version=FORMAT_VERSION + 1))

    with pytest.raises(StorageError, match=f"classifier format {FORMAT_VERSION + 1}.*reads"):
        ImageClassifier.load(saved)


def test_a_folder_that_cannot_be_written_is_a_storage_error(
    tiny: Backbone, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(StorageError, match="cannot be saved"):
        _classifier(tiny).save(tmp_path / "file" / "saved")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"old": "Ω"})

    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"new": object()})

    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"old": "Ω"}


@pytest.mark.parametrize("depths", [(6,), (2, 5)])
def test_a_head_fitted_to_cached_features_predicts_from_images(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext, depths: tuple[int, ...]
) -> None:
    images = small_dataset.train[:4]
    x = extract_features(images, backbone, ctx).at(depths)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, x.shape[1])).astype(np.float32) / x.shape[1]
    bias = np.array([0.1, 0.0, -0.3], dtype=np.float32)
    classifier = _classifier(backbone, depths)

    set_head(classifier.network, weight, bias)

    np.testing.assert_allclose(
        classifier.predict_proba([p.path for p in images]),
        softmax(x @ weight.T + bias, axis=1),
        rtol=1e-3,
    )


def test_scaling_scores_changes_the_confidence_and_not_the_order(
    tiny: Backbone, paths: list[Path]
) -> None:
    classifier = _classifier(tiny)
    before = classifier.predict_proba(paths)

    scale_scores(classifier.network, 2.0)

    after = classifier.predict_proba(paths)
    expected = before**2 / (before**2).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(after, expected, rtol=1e-3)


def test_an_evaluation_holds_all_metrics_and_mistakes(
    tiny: Backbone, small_dataset: Dataset
) -> None:
    classifier = _classifier(tiny)
    set_head(
        classifier.network,
        np.zeros((3, tiny.depths[-1].channels), dtype=np.float32),
        np.array([50.0, 0.0, 0.0], dtype=np.float32),
    )

    found = evaluate(classifier, small_dataset.val)

    share = np.mean([p.label == 0 for p in small_dataset.val])
    assert found.n == len(small_dataset.val)
    assert found.accuracy == proportion(float(share), found.n)
    assert found.mean_per_class == pytest.approx(1 / 3)
    assert found.calibration_error == pytest.approx(1 - share, abs=1e-4)
    assert found.top_5 is None
    assert found.classes == classifier.classes
    sizes = [sum(p.label == c for p in small_dataset.val) for c in range(3)]
    assert found.confusion == tuple((size, 0, 0) for size in sizes)
    assert found.per_class == tuple(proportion(float(c == 0), s) for c, s in enumerate(sizes))
    assert sum(b.n for b in found.calibration) == found.n
    assert {(m.label, m.predicted) for m in found.mistakes} == {
        ("bee", "ant"),
        ("ohm Ω", "ant"),
    }
    assert {m.path for m in found.mistakes} <= {str(p.path) for p in small_dataset.val if p.label}
    assert all(m.probability > 0.9 for m in found.mistakes)


def test_fields_that_this_release_does_not_know_are_ignored(tiny: Backbone, saved: Path) -> None:
    def of_release_0_2(record: dict[str, Any]) -> None:
        record["backbone"]["source"] = "timm"
        record["backbone"]["capabilities"].update(
            pooling="avg", prefix_tokens=0, class_token=False
        )

    _modify_record(saved, of_release_0_2)

    assert ImageClassifier.load(saved).backbone == tiny


def _as_format_1(record: dict[str, Any]) -> None:
    """Turn a record into one of format 1, which lacks architecture, capabilities and crop mode."""
    record["format_version"] = 1
    for name in ("architecture", "capabilities", "crop_mode"):
        del record["backbone"][name]
    for depth in record["backbone"]["depths"]:
        del depth["token_channels"]


@pytest.mark.parametrize("depths", [(2, 4), (6,)])
def test_a_record_of_format_1_is_read(
    backbone: Backbone, paths: list[Path], tmp_path: Path, depths: tuple[int, ...]
) -> None:
    classifier = _classifier(backbone, depths)
    classifier.save(tmp_path)
    _modify_record(tmp_path, _as_format_1)

    loaded = ImageClassifier.load(tmp_path)

    np.testing.assert_allclose(
        loaded.predict_proba(paths), classifier.predict_proba(paths), rtol=1e-5
    )
    assert loaded.backbone.crop_mode == "center"


def test_a_record_of_format_1_of_a_transformer_at_its_own_size_is_read(
    load_random: Callable[..., Backbone], paths: list[Path], tmp_path: Path
) -> None:
    classifier = _classifier(load_random("test_vit3", input_px=96))
    classifier.save(tmp_path)
    _modify_record(tmp_path, _as_format_1)

    np.testing.assert_allclose(
        ImageClassifier.load(tmp_path).predict_proba(paths),
        classifier.predict_proba(paths),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("name", "depths", "message"),
    [
        ("local-dir:/gone", (4,), "without its architecture"),
        ("hf-hub:someone/something", (4,), "without its architecture"),
        ("test_vit", (2,), "earlier depths of a transformer"),
    ],
)
def test_a_record_of_format_1_that_says_too_little_is_refused_with_the_reason(
    load_random: Callable[..., Backbone],
    tmp_path: Path,
    name: str,
    depths: tuple[int, ...],
    message: str,
) -> None:
    _classifier(load_random("test_vit"), depths).save(tmp_path)
    _modify_record(tmp_path, _as_format_1)
    _modify_record(tmp_path, lambda r: r["backbone"].update(name=name))

    with pytest.raises(StorageError, match=message):
        ImageClassifier.load(tmp_path)
