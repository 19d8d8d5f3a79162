"""Advice for a fit to more images than it was measured on."""

from dataclasses import replace
from pathlib import Path

import pytest

from advisor.decide.more_images import for_more_images
from advisor.decide.priors import load_priors
from advisor.types.advice import Advice
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.registry import get_strategy
from strategies.training.defaults import default_batch_size

N_TRAIN, N_VAL = 16_000, 4_000


@pytest.fixture(scope="module")
def whole(striped: Dataset) -> Dataset:
    """A dataset of the same images again and again; nothing reads them."""

    def repeated(split: tuple[object, ...], n: int) -> tuple[object, ...]:
        return (split * (n // len(split) + 1))[:n]

    return replace(
        striped, train=repeated(striped.train, N_TRAIN), val=repeated(striped.val, N_VAL)
    )


@pytest.fixture(scope="module")
def scaled(measured: tuple[Advice, Path], whole: Dataset, backbone: Backbone) -> Advice:
    return for_more_images(measured[0], whole, backbone, load_priors())


def test_what_was_measured_and_predicted_of_accuracies_stays(
    measured: tuple[Advice, Path], scaled: Advice
) -> None:
    advice = measured[0]
    before = [(r.strategy, r.input_px, r.accuracy, r.reasons) for r in advice.recommendations]
    assert before == [
        (r.strategy, r.input_px, r.accuracy, r.reasons) for r in scaled.recommendations
    ]
    sizes = {"n": N_TRAIN + N_VAL, "n_train": N_TRAIN, "n_val": N_VAL}
    assert scaled.profile == replace(advice.profile, **sizes)
    assert scaled.findings == advice.findings


def test_costs_and_hyperparameters_are_those_of_a_fit_to_all_images(
    measured: tuple[Advice, Path], scaled: Advice, whole: Dataset, backbone: Backbone
) -> None:
    assert measured[0].frontier is not None
    assert scaled.frontier is not None
    pairs = zip(measured[0].frontier.options, scaled.frontier.options, strict=True)
    for before, after in pairs:
        strategy = get_strategy(after.strategy).from_hyperparameters(after.hyperparameters)
        assert strategy == get_strategy(after.strategy).starting_point(
            scaled.profile
        ).with_input_px(after.input_px)
        assert after.image_passes == strategy.image_passes(whole, backbone)
        assert after.image_passes > before.image_passes
        assert after.seconds.mid > before.seconds.mid
        if "batch_size" in after.hyperparameters:
            seen = after.hyperparameters["steps"] * default_batch_size(N_TRAIN)
            assert seen >= 2 * N_TRAIN
