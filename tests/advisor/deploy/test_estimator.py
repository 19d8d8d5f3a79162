"""The scikit-learn estimator, used as scikit-learn's users do."""

import json
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

from advisor import TransferClassifier
from advisor.deploy.given_images import InputError, class_names
from advisor.types.options import Options
from strategies.core.errors import StorageError, TransferError
from strategies.models.classifier import ImageClassifier
from tests.conftest import stripes

PX = 40


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the features of all tests of this file in one cache, and out of the user's."""
    cache = tmp_path_factory.getbasetemp() / "estimator-cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def probe(**given: Any) -> TransferClassifier:
    """Return the cheapest estimator."""
    return TransferClassifier(
        **{"strategy": "linear_probe", "input_px": 32, "device": "cpu", "time_s": 300.0, **given}
    )


@pytest.fixture(scope="session")
def images() -> NDArray[np.uint8]:
    """Return 24 striped images of two classes, one after the other."""
    rng = np.random.default_rng(5)
    return np.stack([np.asarray(stripes(i % 2, rng, PX)) for i in range(24)])


@pytest.fixture(scope="session")
def labels() -> NDArray[np.str_]:
    return np.array(["left", "ripe fruit"] * 12)


@pytest.fixture(scope="session")
def fitted(images: NDArray[np.uint8], labels: NDArray[np.str_]) -> TransferClassifier:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as cache:
        patch.setenv("XDG_CACHE_HOME", cache)
        return probe().fit(images, labels)


def test_cross_val_score_learns_on_every_fold(
    images: NDArray[np.uint8], labels: NDArray[np.str_]
) -> None:
    scores = cross_val_score(probe(), images, labels, cv=2)
    assert scores.shape == (2,)
    assert scores.mean() > 0.8  # chance: 0.5


def test_grid_search_over_strategies_and_input_sizes_finds_the_best(
    images: NDArray[np.uint8], labels: NDArray[np.str_]
) -> None:
    grid = [{"strategy": ["linear_probe"], "input_px": [32]}, {"strategy": ["layer_svm"]}]
    search = GridSearchCV(probe(), grid, cv=2, error_score="raise")
    search.fit(list(images), labels)
    assert search.cv_results_["mean_test_score"].max() > 0.8
    assert search.best_estimator_.outcome_.best.strategy == search.best_params_["strategy"]
    assert set(search.predict(images)) <= {"left", "ripe fruit"}


def test_all_given_images_are_learnt_from_and_none_is_kept_from_the_fit(
    fitted: TransferClassifier, images: NDArray[np.uint8]
) -> None:
    outcome = fitted.outcome_
    assert outcome.test is None
    assert outcome.refitted
    profile = fitted.advice_.profile
    assert profile.n == len(images)
    assert (profile.n_train, profile.n_val) == (20, 4)
    assert fitted.advice_.n_test == 0
    assert not outcome.folder.exists()
    assert not outcome.folder.parent.exists()  # it held the images, too


def test_predictions_are_probabilities_in_the_order_of_the_classes(
    fitted: TransferClassifier, images: NDArray[np.uint8], labels: NDArray[np.str_]
) -> None:
    found = fitted.predict_proba(images)
    assert found.shape == (24, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert list(fitted.classes_) == ["left", "ripe fruit"]
    np.testing.assert_array_equal(fitted.predict(images), fitted.classes_[found.argmax(axis=1)])
    assert fitted.predict(images).dtype == labels.dtype
    assert fitted.score(images, labels) > 0.8
    assert is_classifier(fitted)


def test_images_unlike_the_training_images_are_unknown_and_sets_hold_the_predicted_class(
    fitted: TransferClassifier, images: NDArray[np.uint8]
) -> None:
    bright = np.full((1, PX, PX, 3), 255, np.uint8)
    assert fitted.is_unknown(bright).tolist() == [True]
    unknown = fitted.is_unknown(images)
    assert unknown.shape == (len(images),)
    assert unknown.dtype == bool
    assert unknown.mean() < 0.2
    assert fitted.is_unknown(images, false_alarms=0.8).sum() > unknown.sum()

    sets = fitted.predict_sets(images, coverage=0.7)
    assert sets.shape == (len(images), 2)
    best = fitted.predict_proba(images).argmax(axis=1)
    assert sets[np.arange(len(images)), best].all()
    assert fitted.predict_sets(images, coverage=0.99).all()  # too few images for so much


def test_unknown_images_and_sets_are_refused_as_scikit_learn_refuses(
    fitted: TransferClassifier, images: NDArray[np.uint8]
) -> None:
    with pytest.raises(NotFittedError):
        probe().is_unknown(images)
    with pytest.raises(NotFittedError):
        probe().predict_sets(images)
    with pytest.raises(ValueError, match="needs at least 999 held-out images"):
        fitted.is_unknown(images, false_alarms=0.001)
    with pytest.raises(ValueError, match="coverage must be above 0 and below 1, got 90"):
        fitted.predict_sets(images, coverage=90)
    old = clone(fitted)
    old.classes_, old._names = fitted.classes_, fitted._names
    old.classifier_ = replace(fitted.classifier_, reliability=None)
    for ask in (old.is_unknown, old.predict_sets):
        with pytest.raises(ValueError, match="cannot tell unknown images"):
            ask(images)


def test_files_pil_images_and_arrays_of_an_image_get_the_same_prediction(
    fitted: TransferClassifier, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    expected = fitted.predict_proba(images)
    for given in (paths, list(map(str, paths)), list(map(Image.open, paths)), list(images)):
        np.testing.assert_array_equal(fitted.predict_proba(given), expected)
    np.testing.assert_array_equal(fitted.predict_proba(np.array(paths)), expected)


@pytest.mark.parametrize(
    ("values", "kind"),
    [((10, 2), np.dtype(np.int64)), ((False, True), np.dtype(bool))],
)
def test_predicted_labels_have_the_type_of_the_given_ones_and_files_are_not_changed(
    values: tuple[Any, Any], kind: np.dtype[Any], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    paths = []
    for i, image in enumerate(images):
        paths.append(tmp_path / f'photo {i}, "copy".png')
        Image.fromarray(image).save(paths[-1])
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in paths]
    y = [values[i % 2] for i in range(24)]
    estimator = probe().fit(paths, y)
    predicted = estimator.predict(paths)
    assert predicted.dtype == kind
    assert np.mean(predicted == np.array(y)) > 0.8
    assert list(estimator.classes_) == sorted(values)
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in paths] == before
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_arrays_of_different_sizes_and_grey_ones_are_images_too(
    images: NDArray[np.uint8], labels: NDArray[np.str_]
) -> None:
    given: list[Any] = [image[: PX - i % 5, :, :] for i, image in enumerate(images)]
    given[3] = given[3].mean(axis=2).astype(np.uint8)
    given[4] = Image.fromarray(given[4]).convert("CMYK")
    estimator = probe().fit(given, labels)
    assert estimator.predict(given).shape == (24,)


def test_the_advised_strategy_alone_is_fitted_by_default(
    images: NDArray[np.uint8], labels: NDArray[np.str_]
) -> None:
    estimator = probe(strategy=None).fit(images, labels)
    assert [t.strategy for t in estimator.outcome_.trials] == [estimator.advice_.best.strategy]
    assert estimator.advice_.time_s is not None


def test_a_fit_with_the_same_seed_gives_the_same_classifier(
    fitted: TransferClassifier, images: NDArray[np.uint8], labels: NDArray[np.str_]
) -> None:
    again = clone(fitted).fit(images, labels)
    np.testing.assert_array_equal(again.predict_proba(images), fitted.predict_proba(images))


def test_a_saved_estimator_predicts_the_same_in_another_process(
    fitted: TransferClassifier, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    fitted.save(tmp_path / "saved")
    suffixes = {path.suffix for path in (tmp_path / "saved").iterdir()}
    assert suffixes <= {".json", ".safetensors"}
    np.save(tmp_path / "images.npy", images)
    code = (
        "import numpy as np; from advisor import TransferClassifier; "
        f"found = TransferClassifier.load({str(tmp_path / 'saved')!r}); "
        f"print(found.predict(np.load({str(tmp_path / 'images.npy')!r})).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(fitted.predict(images).tolist())


def test_a_loaded_estimator_has_the_parameters_and_labels_of_the_saved_one(
    fitted: TransferClassifier, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    fitted.save(tmp_path / "saved")
    found = TransferClassifier.load(tmp_path / "saved", device="cpu")
    assert found.get_params() == fitted.get_params()
    assert found.classes_.dtype == fitted.classes_.dtype
    assert found.advice_ == fitted.advice_
    np.testing.assert_array_equal(found.predict_proba(images), fitted.predict_proba(images))


@pytest.mark.parametrize(
    ("key", "value"),
    [("dtype", "datetime64[s]"), ("names", ["left"]), ("format_version", 9), ("labels", None)],
)
def test_a_damaged_estimator_is_refused(
    fitted: TransferClassifier, tmp_path: Path, key: str, value: Any
) -> None:
    folder = tmp_path / "saved"
    fitted.save(folder)
    record = json.loads((folder / "estimator.json").read_text())
    (folder / "estimator.json").write_text(json.dumps({**record, key: value}))
    with pytest.raises(StorageError, match="saved"):
        TransferClassifier.load(folder)


def test_a_folder_without_an_estimator_is_refused(
    fitted: TransferClassifier, tmp_path: Path
) -> None:
    fitted.classifier_.save(tmp_path / "bare")
    assert ImageClassifier.load(tmp_path / "bare").classes == ("left", "ripe fruit")
    with pytest.raises(StorageError, match="no readable estimator"):
        TransferClassifier.load(tmp_path / "bare")


def test_a_fitted_estimator_survives_pickling(
    fitted: TransferClassifier, images: NDArray[np.uint8]
) -> None:
    again = pickle.loads(pickle.dumps(fitted))  # as joblib does between processes
    np.testing.assert_array_equal(again.predict(images), fitted.predict(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x / 255, "float64 with shape (24, 40, 40, 3)"),
        (lambda x: x.reshape(24, -1), "with shape (24, 4800)"),
        (lambda x: x.astype(np.int64), "int64"),
        (lambda x: x[0], "with shape (40, 40, 3)"),
        (lambda x: x[:0], "has 0 images"),
        (lambda x: x[:5], "X has 5 images and y has 24 labels"),
        (lambda x: "photo.png", "single str"),
        (lambda x: [*x[:-1], x[-1] / 255], "Image 23 of X"),
        (lambda x: [*x[:-1], None], "Image 23 of X"),
        (lambda x: ["twice.png"] * 24, "image 0 and image 1"),
        (lambda x: [f"none{i}.png" for i in range(24)], "No such file"),
    ],
)
def test_images_that_cannot_be_used_are_refused_as_a_value_error(
    images: NDArray[np.uint8],
    labels: NDArray[np.str_],
    change: Callable[[NDArray[np.uint8]], Any],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as found:
        probe().fit(change(images), labels)
    assert isinstance(found.value, TransferError)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["one"] * 24, "one class, 'one'"),
        (None, "requires y to be passed"),
        ([0.5 * i for i in range(24)], "Unknown label type"),
        ([[i, 1] for i in range(24)], "1d array"),
        (np.array(["a", 1] * 12, dtype=object), "y cannot be used as labels"),
        ([0.0, np.nan] * 12, "NaN"),
        ([f"class{i // 2}" for i in range(24)], "no class with three images"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_as_a_value_error(
    images: NDArray[np.uint8], y: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        probe().fit(images, y)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strategy": "linear_prob"}, "Did you mean 'linear_probe'"),
        ({"backbone": "resnet1"}, "resnet"),
        ({"trials": 0}, "--trials must be at least 1"),
        ({"random_state": -1}, "--seed must be at least 0"),
    ],
)
def test_parameters_that_cannot_be_used_are_refused_by_fit_and_not_before(
    given: dict[str, Any], message: str, images: NDArray[np.uint8], labels: NDArray[np.str_]
) -> None:
    estimator = probe().set_params(**given)
    with pytest.raises(InputError, match=message):
        estimator.fit(images, labels)


def test_an_unreadable_image_is_refused_by_fit_and_predict(
    fitted: TransferClassifier, images: NDArray[np.uint8], labels: NDArray[np.str_], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"bad\.png: not an image"):
        probe().fit([*images[:-1], bad], labels)
    with pytest.raises(InputError, match="not an image"):
        fitted.predict([bad])


def test_an_estimator_that_is_not_fitted_predicts_nothing(images: NDArray[np.uint8]) -> None:
    for call in (probe().predict, probe().predict_proba, lambda x: probe().save(x)):
        with pytest.raises(NotFittedError):
            call(images)


def test_labels_that_look_alike_have_different_names() -> None:
    assert class_names(np.array(["a", "b"])) == ("a", "b")
    alike = class_names(np.array(["a", "a ", ""], dtype=object))
    assert alike == ("0: a", "1: a", "2: ")
    assert len(set(class_names(np.array(["x\n", "x\\n"])))) == 2


def test_every_parameter_of_the_estimator_but_its_own_is_an_option() -> None:
    own = {"time_s", "trials", "random_state", "verbose"}
    assert set(TransferClassifier().get_params()) - own <= set(vars(Options()))


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give this process a temporary folder of its own, in which no fit leaves anything."""
    usual, own = tempfile.tempdir, tmp_path_factory.mktemp("temporary")
    tempfile.tempdir = str(own)
    yield
    tempfile.tempdir = usual
    assert not list(own.glob("tl-advisor-*"))
