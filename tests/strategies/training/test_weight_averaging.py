"""Weight averaging: linear in the heads, with recomputed BatchNorm statistics."""

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
from strategies.training.weight_averaging import average_weights, can_be_averaged


@pytest.fixture
def make(backbone: Backbone, small_dataset: Dataset) -> Callable[[int], ImageClassifier]:
    """Create classifiers with the same body and a random head for each seed."""
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


def shift_statistics(classifier: ImageClassifier, shift: float) -> ImageClassifier:
    """Shift the running mean of the last BatchNorm layer."""
    moved = copy.deepcopy(classifier.network)
    norms = [m for m in moved.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms[-1].running_mean is not None
    norms[-1].running_mean += shift
    return replace(classifier, network=moved)


def test_with_the_same_body_the_scores_are_the_mean_of_the_members_scores(
    make: Callable[[int], ImageClassifier], small_dataset: Dataset, ctx: RunContext
) -> None:
    members = [make(seed) for seed in (1, 2, 3)]

    def scores(classifier: ImageClassifier) -> np.ndarray:
        return scores_of(classifier.network, small_dataset.val, classifier.backbone, ctx)

    expected = np.mean([scores(m) for m in members], axis=0)
    found = average_weights(members, small_dataset, ctx)
    np.testing.assert_allclose(scores(found), expected, atol=1e-4)
    assert found.hyperparameters == {"lr": 1}


def test_the_average_of_a_classifier_with_itself_is_the_same(
    make: Callable[[int], ImageClassifier], small_dataset: Dataset, ctx: RunContext
) -> None:
    one = make(1)
    found = average_weights([one, one], small_dataset, ctx).network.state_dict()
    for name, value in one.network.state_dict().items():
        torch.testing.assert_close(found[name], value)


def test_members_are_not_modified(
    make: Callable[[int], ImageClassifier], small_dataset: Dataset, ctx: RunContext
) -> None:
    members = [make(1), shift_statistics(make(2), 1.0)]
    before = [copy.deepcopy(m.network.state_dict()) for m in members]
    average_weights(members, small_dataset, ctx)
    for member, state in zip(members, before, strict=True):
        for name, value in member.network.state_dict().items():
            assert torch.equal(value, state[name])


def test_differing_statistics_are_recomputed_from_train_and_the_others_are_kept(
    make: Callable[[int], ImageClassifier], small_dataset: Dataset, ctx: RunContext
) -> None:
    one = make(1)
    found = [
        average_weights([one, shift_statistics(one, shift)], small_dataset, ctx)
        for shift in (1.0, 99.0)
    ]
    first, second = (f.network.state_dict() for f in found)
    own = one.network.state_dict()
    moved = [n for n, v in own.items() if v.is_floating_point() and not torch.equal(v, first[n])]
    assert {n.rsplit(".", 1)[1] for n in moved} == {"running_mean", "running_var"}
    assert len({n.rsplit(".", 1)[0] for n in moved}) == 1
    for name in moved:
        assert torch.equal(first[name], second[name])


def test_classifiers_of_different_input_sizes_cannot_be_averaged(
    make: Callable[[int], ImageClassifier],
) -> None:
    one = make(1)
    other = replace(make(2), backbone=resized(one.backbone, 96))
    assert can_be_averaged(one, make(2))
    assert not can_be_averaged(one, other)


def test_a_passed_deadline_raises_out_of_time(
    make: Callable[[int], ImageClassifier], small_dataset: Dataset, ctx: RunContext
) -> None:
    with pytest.raises(OutOfTime):
        average_weights([make(1)], small_dataset, ctx.with_deadline(0.0))
