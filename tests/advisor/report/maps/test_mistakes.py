"""Explanations of misclassified images: maps, similar train images, time and size limits."""

import io
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advisor.report.maps import mistakes as module
from advisor.report.maps.mistakes import BUDGET_BYTES, explain_mistakes
from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.core.errors import BackboneError
from strategies.core.metrics import Labels, Mistake
from strategies.data.dataset import Dataset, load_dataset
from strategies.data.decoding import Pixels
from strategies.data.image import shown
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier, make_network
from strategies.models.explain.class_maps import ClassMaps, class_maps
from strategies.models.explain.nearest import classifier_rows, descriptors
from strategies.registry import get_strategy


@pytest.fixture(scope="module")
def fitted(
    backbone: Backbone, small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ImageClassifier, RunContext]:
    ctx = RunContext(cache=ArrayCache(tmp_path_factory.mktemp("cache")))
    return get_strategy("linear_probe")().fit(small_dataset, backbone, ctx), ctx


def mistakes_of(dataset: Dataset, n: int = 5) -> list[Mistake]:
    """Return test images, said to be predicted as the next class."""
    names = dataset.classes
    return [
        Mistake(shown(i.path), names[i.label], names[(i.label + 1) % len(names)], 0.9)
        for i in (dataset.test or ())[:n]
    ]


def test_a_mistake_has_a_map_and_the_nearest_train_images(
    fitted: tuple[ImageClassifier, RunContext], small_dataset: Dataset
) -> None:
    classifier, ctx = fitted
    mistakes = mistakes_of(small_dataset)
    found = explain_mistakes(classifier, mistakes, small_dataset.train, ctx)

    assert found.method == "CAM"
    assert found.notes == ()
    assert list(found.by_path) == [m.path for m in mistakes]
    rows = classifier_rows(classifier, ctx)
    test = (small_dataset.test or ())[: len(mistakes)]
    own, train = (
        descriptors(rows(s), classifier, "classifier") for s in (test, small_dataset.train)
    )
    for near, row in zip(found.by_path.values(), own @ train.T, strict=True):
        assert [n.similarity for n in near.nearest] == pytest.approx(
            np.sort(row)[::-1][:3], abs=0.01
        )
        labels = {shown(i.path): small_dataset.classes[i.label] for i in small_dataset.train}
        assert [labels[n.path] for n in near.nearest] == [n.label for n in near.nearest]
        assert all(n.path in found.thumbs for n in near.nearest)
        with Image.open(io.BytesIO(near.drawn)) as drawn:
            assert drawn.size == (48, 48)


def test_the_map_is_of_the_predicted_class_rather_than_the_true_one(
    fitted: tuple[ImageClassifier, RunContext],
    small_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classifier, ctx = fitted
    asked: list[tuple[str, str]] = []

    def watch(
        given: ImageClassifier, pixels: Pixels, classes: Labels, against: Labels
    ) -> ClassMaps:
        pairs = zip(classes, against, strict=True)
        asked.extend((given.classes[a], given.classes[b]) for a, b in pairs)
        return class_maps(given, pixels, classes, against)

    monkeypatch.setattr(module, "class_maps", watch)
    mistakes = mistakes_of(small_dataset)
    found = explain_mistakes(classifier, mistakes, small_dataset.train, ctx)
    assert asked == [(m.predicted, m.label) for m in mistakes]
    assert len(found.by_path) == len(mistakes)


def test_images_of_the_run_are_not_passed_again_where_their_features_are_cached(
    fitted: tuple[ImageClassifier, RunContext],
    small_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classifier, ctx = fitted

    def refuse(*_: object) -> None:
        raise AssertionError("a train image was passed through the network")

    monkeypatch.setattr("strategies.models.explain.nearest.outputs_of", refuse)
    monkeypatch.setattr("strategies.models.features._compute", refuse)
    found = explain_mistakes(classifier, mistakes_of(small_dataset), small_dataset.train, ctx)
    assert all(len(e.nearest) == 3 for e in found.by_path.values())


def test_of_many_train_images_a_sample_is_compared_and_the_page_says_so(
    fitted: tuple[ImageClassifier, RunContext],
    small_dataset: Dataset,
    ctx: RunContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_NEW", 10)  # nothing is cached in the context of this test
    found = explain_mistakes(fitted[0], mistakes_of(small_dataset), small_dataset.train, ctx)
    n = len(small_dataset.train)
    assert found.notes == (f"Similar images are those among 10 of the {n} train images.",)


def test_without_time_there_are_notes_instead(
    fitted: tuple[ImageClassifier, RunContext],
    small_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classifier, ctx = fitted
    mistakes, train = mistakes_of(small_dataset), small_dataset.train
    late = ctx.with_deadline(time.monotonic() - 1)
    found = explain_mistakes(classifier, mistakes, train, late)
    assert (found.by_path, found.method) == ({}, None)
    assert found.notes == (module.NO_TIME,)

    monkeypatch.setattr(module, "SEARCH_SHARE", 0.0)  # all the time is for the thumbnails
    found = explain_mistakes(classifier, mistakes, train, ctx.with_deadline(time.monotonic() + 60))
    assert len(found.by_path) == len(mistakes)
    assert all(e.nearest == () for e in found.by_path.values())
    (note,) = found.notes
    assert "no time to compare" in note


def test_a_mistake_that_cannot_be_read_any_more_is_left_out(
    fitted: tuple[ImageClassifier, RunContext], small_dataset: Dataset
) -> None:
    classifier, ctx = fitted
    first, *others = mistakes_of(small_dataset)
    gone = replace(first, path="/gone/image.png")
    found = explain_mistakes(classifier, [gone, *others], small_dataset.train, ctx)
    assert list(found.by_path) == [m.path for m in others]
    assert "Maps of 4 of 5 images" in found.notes[0]
    assert explain_mistakes(classifier, [gone], small_dataset.train, ctx).notes == (
        module.NO_TIME,
    )


def test_a_network_without_maps_and_missing_train_images_are_notes(
    fitted: tuple[ImageClassifier, RunContext],
    small_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classifier, ctx = fitted
    found = explain_mistakes(classifier, mistakes_of(small_dataset), (), ctx)
    assert len(found.by_path) == 5
    assert "train images of the run are not there" in found.notes[0]

    def refuse(*_: object) -> None:
        raise BackboneError("No positions.")

    monkeypatch.setattr(module, "class_maps", refuse)
    found = explain_mistakes(classifier, mistakes_of(small_dataset), small_dataset.train, ctx)
    assert found.notes == ("The mistakes are not explained. No positions.",)
    assert explain_mistakes(classifier, [], small_dataset.train, ctx).notes == ()


def test_a_trained_network_with_grid_pooling_is_explained_too(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    torch.manual_seed(0)
    network = make_network(backbone, (1, 2), 3, "grid").eval()
    names = small_dataset.classes
    classifier = ImageClassifier(names, backbone, (1, 2), network, "full_fine_tune", {}, "grid")
    found = explain_mistakes(classifier, mistakes_of(small_dataset), small_dataset.train, ctx)
    assert found.method == "CAM"
    assert all(len(e.nearest) == 3 for e in found.by_path.values())


def test_forty_eight_large_mistakes_fit_into_the_budget(
    fitted: tuple[ImageClassifier, RunContext], tmp_path: Path, ctx: RunContext
) -> None:
    rng = np.random.default_rng(0)
    for label in range(3):
        folder = tmp_path / "noise" / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(70):
            pixels = rng.integers(0, 256, (150, 200, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png", compress_level=1)
    dataset = load_dataset(tmp_path / "noise")
    mistakes = mistakes_of(replace(dataset, test=dataset.train[:48]), 48)
    found = explain_mistakes(fitted[0], mistakes, dataset.train, ctx)
    assert len(found.by_path) == 48
    sizes = [len(e.drawn) for e in found.by_path.values()]
    assert sum(sizes) + sum(map(len, found.thumbs.values())) <= BUDGET_BYTES
