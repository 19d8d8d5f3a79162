"""Strategies that train a network by gradient descent: shared behaviour."""

from dataclasses import replace

import numpy as np
import pytest

from strategies.base import Strategy
from strategies.core.context import RunContext
from strategies.core.errors import BackboneError
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset
from strategies.from_scratch import FromScratch
from strategies.full_fine_tune import FullFineTune
from strategies.models.backbone import Backbone
from strategies.partial_fine_tune import PartialFineTune
from strategies.training.recipe import RecipeDraft

TRAINED = (
    FullFineTune(RecipeDraft(steps=2)),
    PartialFineTune(RecipeDraft(steps=2)),
    FromScratch(steps=2),
)


def test_an_input_size_below_one_pixel_is_rejected(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    with pytest.raises(BackboneError, match="-5 px"):
        FullFineTune(RecipeDraft(steps=2), input_px=-5).fit(
            small_dataset.hide_test(), backbone, ctx
        )


@pytest.mark.parametrize("strategy", TRAINED[:2], ids=lambda s: s.name)
def test_the_recorded_hyperparameters_reproduce_the_classifier(
    strategy: Strategy, small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    dataset = small_dataset.hide_test()
    first = strategy.fit(dataset, backbone, ctx)
    assert None not in first.hyperparameters.values()

    again = type(strategy).from_hyperparameters(first.hyperparameters).fit(dataset, backbone, ctx)

    paths = [p.path for p in dataset.val]
    np.testing.assert_array_equal(first.predict_proba(paths), again.predict_proba(paths))


def test_training_without_validation_images_reports_no_accuracy(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    accuracies: list[float | None] = []
    recording = replace(
        ctx, reporter=Reporter(on_epoch=lambda _, accuracy: accuracies.append(accuracy))
    )

    FullFineTune(RecipeDraft(steps=2)).fit(
        replace(small_dataset.hide_test(), val=()), backbone, recording
    )

    assert set(accuracies) == {None}
