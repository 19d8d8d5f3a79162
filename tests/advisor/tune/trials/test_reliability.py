"""Calibration of a run's classifier on images that it did not learn."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from advisor.deploy.predict import Asked, predict
from advisor.tune.trials import reliability
from advisor.tune.trials.reliability import (
    MAX_IMAGES,
    add_reliability,
    calibrate_head,
    calibrate_network,
)
from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime, TransferError
from strategies.core.progress import Reporter, ignore
from strategies.data.dataset import Dataset, labels_of
from strategies.linear_probe import LinearProbe
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier, make_network
from strategies.models.features import pooled_features
from tests.advisor.searching import Runner


@pytest.fixture
def notes(run: Runner) -> list[str]:
    """Return the notes of the searches."""
    found: list[str] = []
    run.ctx = replace(run.ctx, reporter=Reporter(ignore, found.append))
    return found


def test_the_best_head_is_saved_again_with_its_reliability(run: Runner, notes: list[str]) -> None:
    search = run.prepare(max_trials=1)
    search.run()
    before = ImageClassifier.load(run.folder.classifier())
    assert before.reliability is None

    add_reliability(search.executor, search.incumbent, time.monotonic() + 300)

    found = ImageClassifier.load(run.folder.classifier())
    assert search.incumbent.is_refitted
    assert found.reliability is not None
    assert found.reliability.held_out == "folds"
    assert found.reliability.n == len(run.dataset.fit_split)
    paths = [image.path for image in run.dataset.test]
    np.testing.assert_array_equal(found.predict_proba(paths), before.predict_proba(paths))
    assert search.result().classifier.reliability is not None
    assert search.incumbent.trial == search.result().best
    (event,) = (e for e in run.folder.events() if e["event"] == "reliability")
    assert event["n_held_out"] == found.reliability.n
    assert notes == []

    written = (run.folder.classifier() / "classifier.json").stat().st_mtime_ns
    add_reliability(search.executor, search.incumbent, time.monotonic() + 300)
    assert (run.folder.classifier() / "classifier.json").stat().st_mtime_ns == written


def test_without_time_the_classifier_is_left_as_it_is_with_a_note(
    run: Runner, notes: list[str]
) -> None:
    search = run.prepare(max_trials=1)
    search.run()
    add_reliability(search.executor, search.incumbent, time.monotonic() - 1)
    left = ImageClassifier.load(run.folder.classifier())
    assert left.reliability is None
    assert left.not_calibrated == notes[0].partition(": ")[2]
    assert len(notes) == 1
    assert notes[0].startswith("The classifier cannot tell unknown images, and has no prediction")
    assert "time budget was used up" in notes[0]


def test_a_lack_of_memory_does_not_end_the_run(
    run: Runner, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = run.prepare(max_trials=1)
    search.run()

    def fail(*given: object) -> None:
        raise MemoryError

    monkeypatch.setattr(reliability, "calibrate_reliability", fail)
    add_reliability(search.executor, search.incumbent, math.inf)
    assert ImageClassifier.load(run.folder.classifier()).reliability is None
    assert "out of memory" in notes[0]


def test_a_trained_network_with_few_validation_images_has_no_reliability(
    run: Runner, notes: list[str]
) -> None:
    search = run.prepare(max_trials=1, only="full_fine_tune")
    search.run()
    add_reliability(search.executor, search.incumbent, time.monotonic() + 300)
    classifier = ImageClassifier.load(run.folder.classifier())
    assert classifier.reliability is None
    n_val = len(run.dataset.val)
    (note,) = notes
    assert f"there were {n_val} validation images that it was not trained on" in note
    assert "20 are needed. Give more images, or a folder of validation images with --val" in note
    image = run.dataset.val[0].path
    (found,) = predict(run.folder.classifier(), [image])
    assert found.judgements is None
    assert found.not_calibrated is not None
    assert found.not_calibrated.endswith(note.partition(": ")[2])
    with pytest.raises(TransferError, match="20 are needed"):
        next(predict(run.folder.classifier(), [image], asked=Asked(coverage=0.9)))


@pytest.fixture
def many_val(small_dataset: Dataset) -> Dataset:
    """Return a dataset with more validation than train images."""
    images = small_dataset.fit_split
    return replace(small_dataset, train=images[::3], val=(*images[1::3], *images[2::3]))


@pytest.fixture
def network(backbone: Backbone, many_val: Dataset) -> ImageClassifier:
    torch.manual_seed(0)
    depths = (backbone.n_depths,)
    made = make_network(backbone, depths, many_val.n_classes).eval()
    return ImageClassifier(many_val.classes, backbone, depths, made, "full_fine_tune", {})


def test_a_network_is_calibrated_on_its_validation_images(
    network: ImageClassifier, many_val: Dataset, ctx: RunContext
) -> None:
    found = calibrate_network(network, many_val, ctx)
    assert not isinstance(found, str)
    assert found.held_out == "validation"
    judged = replace(network, reliability=found)
    outputs = judged.predict_outputs([image.path for image in many_val.val])
    np.testing.assert_allclose(np.sort(outputs.unknown), found.unknown, rtol=1e-2, atol=1e-2)
    wrong = 1 - outputs.probabilities[np.arange(len(many_val.val)), labels_of(many_val.val)]
    np.testing.assert_allclose(np.sort(wrong), found.nonconformity, atol=1e-4)


def test_no_more_images_pass_the_network_than_there_is_time_for(
    network: ImageClassifier, many_val: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[int] = []
    really = reliability._outputs

    def counted(*given: object) -> object:
        passed.append(len(given[1]))  # type: ignore[arg-type]
        return really(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(reliability, "_outputs", counted)
    n_val = len(many_val.val)
    calibrate_network(network, many_val, ctx, n_val + 7)
    assert passed[0] == n_val
    assert passed[1] <= 7
    with pytest.raises(OutOfTime, match="no time to pass"):
        calibrate_network(network, many_val, ctx, n_val + 5)
    assert 2 * many_val.n_classes <= MAX_IMAGES


def test_a_head_is_not_calibrated_on_images_as_it_learned_them(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    """With shuffled labels a head knows its own images by heart, and no other."""
    images = small_dataset.fit_split
    labels = np.random.default_rng(0).permutation(labels_of(images))
    shuffled = tuple(replace(p, label=int(c)) for p, c in zip(images, labels, strict=True))
    dataset = replace(small_dataset, train=shuffled, val=())
    head = LinearProbe(strength=1e-6, views=1).fit(dataset, backbone, ctx)
    learned = head.predict_proba([image.path for image in images])
    assert np.mean(learned.argmax(axis=1) == labels) > 0.9

    found = calibrate_head(head, dataset, ctx)

    assert not isinstance(found, str)
    assert found.n == len(images)
    assert np.mean(found.nonconformity > 0.5) > 0.4  # wrong, as on new images
    x = pooled_features(shuffled, backbone, ctx, found.depths.numbers)
    in_sample = found.module()(torch.from_numpy(x)).detach().numpy()
    assert np.mean(in_sample > found.threshold(0.2)) < 0.1  # held-out images look less known


def test_a_head_fitted_to_very_few_images_has_no_reliability(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    few = replace(small_dataset, train=small_dataset.train[:12], val=())
    head = LinearProbe(views=1).fit(few, backbone, ctx)
    assert calibrate_head(head, few, ctx) == (
        "there were 12 images, and 20 are needed. Give more images, or a folder of validation "
        "images with --val, and run again."
    )
