from dataclasses import replace

import numpy as np
import pytest

from strategies.core.context import RunContext
from strategies.core.folds import MAX_FOLDS
from strategies.data.dataset import Dataset, labels_of
from strategies.heads import linear_head
from strategies.heads.linear_head import LinearSettings, cross_validate_head, fit_on_features
from strategies.models.backbone import Backbone
from strategies.models.multi_view import features_at


def _subset_of_train(dataset: Dataset, n: tuple[int, ...]) -> Dataset:
    """Keep the first n[c] train images of class c."""
    by_class = [[p for p in dataset.train if p.label == c][:most] for c, most in enumerate(n)]
    return replace(dataset, train=tuple(p for images in by_class for p in images))


def test_with_one_image_per_class_the_prior_strength_gives_moderate_confidence(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    dataset = _subset_of_train(small_dataset, (1, 1, 1))

    network, used = fit_on_features(
        dataset, backbone, ctx, LinearSettings((backbone.n_depths,), "softmax")
    )

    assert used.strength == linear_head.PRIOR_STRENGTH
    x = features_at(dataset.train, backbone, ctx, (backbone.n_depths,), "mean", 1)[:, 0]
    scores = x @ network.head.weight.detach().numpy().T + network.head.bias.detach().numpy()
    assert (scores.argmax(1) == labels_of(dataset.train)).all()
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert probabilities.max() < 0.9


def test_a_class_with_one_image_is_left_out_of_cross_validated_choices(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = []
    temperature = linear_head.temperature

    def record(scores: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
        evaluated.append(labels)
        return temperature(scores, labels, weight)

    monkeypatch.setattr(linear_head, "temperature", record)
    dataset = _subset_of_train(small_dataset, (4, 4, 1))

    fit_on_features(dataset, backbone, ctx, LinearSettings((2,), "softmax", views=6))

    (labels,) = evaluated
    assert sorted(labels.tolist()) == [0] * 4 + [1] * 4


def test_of_many_rows_one_fold_alone_is_scored(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = LinearSettings((2,), "softmax")
    x = features_at(small_dataset.train, backbone, ctx, (2,), "mean", 1)
    every = cross_validate_head(x, small_dataset, settings, ctx)
    monkeypatch.setattr(linear_head, "MAX_CROSS_VALIDATED", len(x) - 1)

    some = cross_validate_head(x, small_dataset, settings, ctx)

    assert every is not None
    assert some is not None
    assert len(every[0].labels) == len(x)
    assert len(some[0].labels) == pytest.approx(len(x) / MAX_FOLDS, abs=3)
    network, _ = fit_on_features(small_dataset, backbone, ctx, settings)
    assert network.head.weight.shape == (small_dataset.n_classes, x.shape[2])


def test_several_views_change_the_head_and_not_its_shape(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    one, six = (
        fit_on_features(
            small_dataset, backbone, ctx, LinearSettings((2,), "softmax", 1e-3, views=views)
        )[0]
        for views in (1, 6)
    )

    assert one.head.weight.shape == six.head.weight.shape
    assert not np.allclose(one.head.weight.detach(), six.head.weight.detach(), rtol=1e-2)


def test_balanced_class_weights_raise_the_probability_of_a_rare_class(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    dataset = _subset_of_train(small_dataset, (10, 10, 3))
    x = features_at(small_dataset.val, backbone, ctx, (2,), "mean", 1)[:, 0]

    def probability_of_rare(class_weight: str) -> float:
        settings = LinearSettings((2,), "softmax", 1e-2, class_weight=class_weight)
        head = fit_on_features(dataset, backbone, ctx, settings)[0].head
        scores = x @ head.weight.detach().numpy().T + head.bias.detach().numpy()
        probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        return float(probabilities[:, 2].mean())

    assert probability_of_rare("balanced") > probability_of_rare("none") + 0.02


def test_the_number_of_views_is_chosen_by_cross_validation_if_none(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = LinearSettings((backbone.n_depths,), "softmax", views=None)
    features = linear_head.features_at

    def misleading(*args: object) -> np.ndarray:
        x = features(*args)
        x[:, 1:] = np.roll(x[:, 1:], len(x) // 3, axis=0)  # views of another class
        return x

    assert fit_on_features(small_dataset, backbone, ctx, settings)[1].views in (1, 6)
    monkeypatch.setattr(linear_head, "features_at", misleading)
    assert fit_on_features(small_dataset, backbone, ctx, settings)[1].views == 1
