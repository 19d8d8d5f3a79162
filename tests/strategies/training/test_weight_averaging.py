"""Averages of weights: linear where they can be, and with statistics of their own."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone, resized
from strategies.models.classifier import ImageClassifier, make_network
from strategies.models.network import scores_of
from strategies.training.weight_averaging import averaged, can_be_averaged


@pytest.fixture
def make(backbone: Backbone, small_dataset: Dataset) -> Callable[[int], ImageClassifier]:
    """Classifiers with one body, each with a head of its own."""
    network = make_network(backbone, (backbone.n_depths,), small_dataset.n_classes).eval()

    def with_head(seed: int) -> ImageClassifier:
        own = copy.deepcopy(network)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            own.head.reset_parameters()
        return ImageClassifier(
            small_dataset.classes,
            backbone,
            (backbone.n_depths,),
            own,
            "full_fine_tune",
            {"lr": seed},
        )

    return with_head


def move_statistics(classifier: ImageClassifier, shift: float) -> ImageClassifier:
    """Spoil what the last BatchNorm layer takes for the mean."""
    moved = copy.deepcopy(classifier.network)
    norms = [m for m in moved.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms[-1].running_mean is not None
    norms[-1].running_mean += shift
    return replace(classifier, network=moved)


def test_with_one_body_the_scores_are_the_mean_of_the_scores(
    make: Callable[[int], ImageClassifier], small_dataset: Dataset, ctx: RunContext
) -> None:
    members = [make(seed) for seed in (1, 2, 3)]

    def scores(classifier: ImageClassifier) -> np.ndarray:
        return scores_of(classifier.network, small_dataset.val, classifier.backbone, ctx)

    expected = np.mean([scores(m) for m in members], axis=0)
    found = averaged(members, small_dataset, ctx)
    np.testing.assert_allclose(scores(found), expected, atol=1e-4)
    assert found.hyperparameters == {"lr": 1}


def test_the_average_of_one_with_itself_is_the_same(
    make: Callable[[int], ImageClassifier], small_dataset: Dataset, ctx: RunContext
) -> None:
    one = make(1)
    found = averaged([one, one], small_dataset, ctx).network.state_dict()
    for name, value in one.network.state_dict().items():
        torch.testing.assert_close(found[name], value)


def test_members_are_left_as_they_were(
    make: Callable[[int], ImageClassifier], small_dataset: Dataset, ctx: RunContext
) -> None:
    members = [make(1), move_statistics(make(2), 1.0)]
    before = [copy.deepcopy(m.network.state_dict()) for m in members]
    averaged(members, small_dataset, ctx)
    for member, state in zip(members, before, strict=True):
        for name, value in member.network.state_dict().items():
            assert torch.equal(value, state[name])


def test_statistics_that_differ_are_taken_from_the_train_images_and_the_rest_stay(
    make: Callable[[int], ImageClassifier], small_dataset: Dataset, ctx: RunContext
) -> None:
    one = make(1)
    found = [averaged([one, move_statistics(one, by)], small_dataset, ctx) for by in (1.0, 99.0)]
    first, second = (f.network.state_dict() for f in found)
    own = one.network.state_dict()
    moved = [n for n, v in own.items() if v.is_floating_point() and not torch.equal(v, first[n])]
    assert {n.rsplit(".", 1)[1] for n in moved} == {"running_mean", "running_var"}
    assert len({n.rsplit(".", 1)[0] for n in moved}) == 1
    for name in moved:
        assert torch.equal(first[name], second[name])


def test_other_sizes_of_the_input_do_not_mix(
    make: Callable[[int], ImageClassifier], small_dataset: Dataset, ctx: RunContext
) -> None:
    one = make(1)
    other = replace(make(2), backbone=resized(one.backbone, 96))
    assert can_be_averaged(one, make(2))
    assert not can_be_averaged(one, other)
    with pytest.raises(ValueError, match="one architecture"):
        averaged([one, other], small_dataset, ctx)


def test_after_the_deadline_nothing_is_averaged(
    make: Callable[[int], ImageClassifier], small_dataset: Dataset, ctx: RunContext
) -> None:
    with pytest.raises(OutOfTime):
        averaged([make(1)], small_dataset, replace(ctx, deadline_s=0.0))
