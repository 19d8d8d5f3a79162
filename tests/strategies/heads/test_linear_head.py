from dataclasses import replace

import numpy as np
import pytest

from strategies.core.context import RunContext
from strategies.data.dataset import Dataset, labels_of
from strategies.heads import linear_head as frozen
from strategies.heads.linear_head import LinearSettings, fit_on_features
from strategies.models.backbone import Backbone
from strategies.models.multi_view import features_at


def _first_of_each(dataset: Dataset, n: tuple[int, ...]) -> Dataset:
    """Keep the first n[c] train images of class c."""
    kept = [[p for p in dataset.train if p.label == c][:most] for c, most in enumerate(n)]
    return replace(dataset, train=tuple(p for some in kept for p in some))


def test_one_image_a_class_is_fitted_by_a_prior_and_is_not_certain(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    dataset = _first_of_each(small_dataset, (1, 1, 1))

    network, used = fit_on_features(
        dataset, backbone, ctx, LinearSettings((backbone.n_depths,), "softmax")
    )

    assert used.strength == frozen.PRIOR_STRENGTH
    x = features_at(dataset.train, backbone, ctx, (backbone.n_depths,), "mean", 1)[:, 0]
    scores = x @ network.head.weight.detach().numpy().T + network.head.bias.detach().numpy()
    assert (scores.argmax(1) == labels_of(dataset.train)).all()
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert shares.max() < 0.9


def test_a_class_of_one_image_has_no_say_in_what_is_chosen(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []
    temperature = frozen.temperature

    def note(scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
        judged.append(labels)
        return temperature(scores, labels, counts)

    monkeypatch.setattr(frozen, "temperature", note)
    dataset = _first_of_each(small_dataset, (4, 4, 1))

    fit_on_features(dataset, backbone, ctx, LinearSettings((2,), "softmax", views=6))

    (labels,) = judged
    assert sorted(labels.tolist()) == [0] * 4 + [1] * 4


def test_several_views_make_another_head_for_the_same_network(
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


def test_balanced_classes_give_a_rare_class_more_room(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    dataset = _first_of_each(small_dataset, (10, 10, 3))
    x = features_at(small_dataset.val, backbone, ctx, (2,), "mean", 1)[:, 0]

    def share_of_rare(class_weight: str) -> float:
        how = LinearSettings((2,), "softmax", 1e-2, class_weight=class_weight)
        head = fit_on_features(dataset, backbone, ctx, how)[0].head
        scores = x @ head.weight.detach().numpy().T + head.bias.detach().numpy()
        shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        return float(shares[:, 2].mean())

    assert share_of_rare("balanced") > share_of_rare("none") + 0.02


def test_views_that_are_left_open_are_chosen_by_cross_validation(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = LinearSettings((backbone.n_depths,), "softmax", views=None)
    features = frozen.features_at

    def misleading(*args: object) -> np.ndarray:
        x = features(*args)
        x[:, 1:] = np.roll(x[:, 1:], len(x) // 3, axis=0)  # the views of another class
        return x

    assert fit_on_features(small_dataset, backbone, ctx, how)[1].views in (1, 6)
    monkeypatch.setattr(frozen, "features_at", misleading)
    assert fit_on_features(small_dataset, backbone, ctx, how)[1].views == 1
