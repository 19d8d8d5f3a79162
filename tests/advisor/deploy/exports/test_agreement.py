"""Check of exports: agreement, largest difference, accuracy lost, and how images are read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advisor.deploy.exports.agreement import (
    Agreement,
    CheckImages,
    agreement,
    check,
    images_of_data,
    mixed,
    plain_pixels,
)
from advisor.deploy.labelled import LabelledFile
from strategies.core.errors import DataError
from strategies.data.decoding import Pixels
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier, make_network
from strategies.models.reliability.outputs import Outputs
from tests.conftest import write_folder


@pytest.fixture
def classifier(load_random: Callable[..., Backbone]) -> ImageClassifier:
    backbone = load_random("test_resnet", input_px=32)
    depths = (backbone.n_depths,)
    network = make_network(backbone, depths, 3).eval()
    classes = ("class0", "class1", "class2")
    return ImageClassifier(classes, backbone, depths, network, "some", {})


def made(found: list[list[float]], own: list[list[float]], labels: list[int]) -> Agreement:
    rows = [np.array(x, dtype=np.float32) for x in (found, own)]
    return agreement(*rows, np.array(labels), "images", np.array([1.0, 9.0, 2.0]))


def test_agreement_and_accuracy_follow_their_definitions() -> None:
    own = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]
    found = [[0.9, 0.1], [0.3, 0.7], [0.45, 0.55], [0.3, 0.7]]
    result = made(found, own, [0, 1, 0, -1])
    assert result.top_1 == 0.75
    assert result.largest_difference == pytest.approx(0.15)
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.own_accuracy == 1.0
    assert result.gain is not None
    assert result.gain.mid == pytest.approx(-1 / 3)
    assert result.gain.low < result.gain.mid < result.gain.high
    assert result.ms_per_image == 2.0
    assert not result.agrees
    assert result.loses


def test_an_export_that_predicts_the_same_has_no_warning() -> None:
    rows = [[0.9, 0.1], [0.2, 0.8]]
    result = made(rows, rows, [0, 0])
    assert (result.top_1, result.largest_difference) == (1.0, 0.0)
    assert result.agrees
    assert not result.loses
    assert result.warnings("float32") == result.warnings("int8") == []


def test_a_large_difference_is_a_warning_even_where_all_classes_agree() -> None:
    result = made([[0.9, 0.1]], [[0.87, 0.13]], [0])
    assert result.top_1 == 1.0
    assert any("DISAGREES" in line for line in result.warnings("float32"))
    assert any("int8 rounds more" in line for line in result.warnings("int8"))
    assert not any("loses" in line for line in result.warnings("int8"))


def test_a_loss_of_accuracy_of_more_than_a_point_is_stated() -> None:
    own = [[0.9, 0.1]] * 50
    result = made([[0.4, 0.6], *own[1:]], own, [0] * 50)
    assert "This export loses 2.0 points of accuracy, more than 1." in result.warnings("int8")


def test_without_labels_there_is_no_accuracy() -> None:
    result = made([[0.9, 0.1]], [[0.9, 0.1]], [-1])
    assert result.accuracy is result.own_accuracy is result.gain is None
    assert result.record()["accuracy_difference"] is None


def test_the_check_finds_a_wrong_pixel_order(classifier: ImageClassifier, tmp_path: Path) -> None:
    images = images_of_data(write_folder(tmp_path / "data", 5), classifier.classes)

    def right(image: Pixels) -> Outputs:
        return classifier.predict_outputs([image])

    def blue_first(image: Pixels) -> Outputs:
        return right(np.ascontiguousarray(image[..., ::-1]))

    good, bad = check(right, classifier, images), check(blue_first, classifier, images)
    assert (good.n, good.top_1, good.n_read_otherwise) == (15, 1.0, 0)
    assert good.largest_difference < 1e-4
    assert bad.largest_difference > 10 * max(good.largest_difference, 1e-6)


def test_images_that_pillow_reads_otherwise_are_counted(
    classifier: ImageClassifier, tmp_path: Path
) -> None:
    clear = Image.new("RGBA", (40, 30), (200, 10, 10, 40))
    clear.save(tmp_path / "clear.png")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    files = tuple(LabelledFile(tmp_path / f"{n}.png", "", "") for n in ("clear", "red"))

    result = check(
        lambda image: classifier.predict_outputs([image]),
        classifier,
        CheckImages("images", files, ()),
    )

    assert (result.n, result.n_read_otherwise) == (2, 1)


def test_unreadable_images_are_left_out_and_none_at_all_is_an_error(
    classifier: ImageClassifier, tmp_path: Path
) -> None:
    (tmp_path / "torn.png").write_bytes(b"no image")
    files = (LabelledFile(tmp_path / "torn.png", "", ""),)
    with pytest.raises(DataError, match="was not checked"):
        check(
            lambda image: Outputs(np.zeros((1, 3), np.float32), None),
            classifier,
            CheckImages("images", files, ()),
        )


def test_images_are_read_upright_as_rgb(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 30), 90).save(tmp_path / "turned.jpg", exif=exif)
    pixels = plain_pixels(tmp_path / "turned.jpg")
    assert pixels.shape == (40, 30, 3)
    assert pixels.dtype == np.uint8


def test_classes_take_turns_in_a_repeatable_order() -> None:
    files = [LabelledFile(Path(f"{c}{i}"), c, "") for c in "ab" for i in range(5)]
    found = mixed(files)
    assert found == mixed(reversed(files))
    assert sorted(f.path for f in found) == sorted(f.path for f in files)
    assert {f.label for f in found[:2]} == {"a", "b"}


def test_validation_images_of_split_data_are_checked_and_train_images_calibrate(
    tmp_path: Path,
) -> None:
    for split, n in (("train", 4), ("val", 2), ("test", 3)):
        write_folder(tmp_path / "data" / split, n)
    found = images_of_data(tmp_path / "data", ("class0", "class1", "class2"))
    assert {f.path.parts[-3] for f in found.files} == {"val"}
    assert {p.parts[-3] for p in found.calibration} == {"train"}
