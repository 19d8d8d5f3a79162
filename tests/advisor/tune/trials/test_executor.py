"""Executor: validation images are read once for all trials, and predictions timed as if read."""

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from advisor.tune.trials.executor import reading_s
from strategies.models import features
from strategies.models.classifier import ImageClassifier, make_network
from strategies.models.features import INFERENCE_BATCH, eval_pixels
from tests.advisor.searching import Runner


def test_trials_read_the_validation_images_once_for_each_input_size(
    run: Runner, n_read: Counter[Path]
) -> None:
    search = run.prepare(max_trials=2, only="full_fine_tune")
    search.run()
    done = search.trials.snapshot().done
    assert len([t for t in done if t.val_accuracy]) == 2
    sizes = {t.hyperparameters["input_px"] for t in done}
    assert {n_read[image.path] for image in run.dataset.val} == {len(sizes)}


def test_the_time_of_a_prediction_includes_reading_crops_that_are_in_memory(
    run: Runner, monkeypatch: pytest.MonkeyPatch, n_read: Counter[Path]
) -> None:
    wait_s, backbone, executor = 0.05, run.backbone, run.prepare().executor
    network = make_network(backbone, (backbone.n_depths,), run.dataset.n_classes)
    classifier = ImageClassifier(
        run.dataset.classes, backbone, (backbone.n_depths,), network, "full_fine_tune", {}
    )

    def slow(path: Path, backbone: object) -> np.ndarray:
        time.sleep(wait_s)
        return eval_pixels(path, run.backbone)

    monkeypatch.setattr(features, "eval_pixels", slow)
    split = (*run.dataset.val, *run.dataset.train, *run.dataset.test)
    assert len(split) >= INFERENCE_BATCH
    s_per_image = executor.budget.by_px
    for _ in range(2):
        s_per_image[backbone.input_px] = 0.0
        executor._score_images(classifier, split)
        assert s_per_image[backbone.input_px] >= wait_s / run.ctx.n_workers
    assert set(n_read.values()) == {1}


@pytest.mark.parametrize(
    ("n", "n_workers", "expected_s"), [(320, 2, 4.0), (64, 16, 4.0), (9, 3, 8.0)]
)
def test_no_more_threads_read_than_there_are_batches(
    n: int, n_workers: int, expected_s: float
) -> None:
    assert reading_s(8.0, n, n_workers) == expected_s
