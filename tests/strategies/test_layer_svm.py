"""Layer SVM: choice of depths, pooling and share of features."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from strategies import layer_svm
from strategies.core.cache import Rows
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset, labels_of
from strategies.heads import linear_head
from strategies.layer_svm import LayerSVM, candidates, depth_set
from strategies.models.backbone import Backbone
from strategies.models.body import Pooling
from strategies.models.multi_view import Views


def test_depths_are_counted_from_both_ends(backbone: Backbone) -> None:
    n = backbone.n_depths
    assert depth_set(2, backbone) == (2,)
    assert depth_set(0, backbone) == tuple(range(1, n + 1))
    assert depth_set(-2, backbone) == (n - 1, n)


@pytest.mark.parametrize("wrong", [{"depth": 7}, {"depth": -7}, {"share": 0.0}, {"share": 1.5}])
def test_depths_and_shares_out_of_range_are_rejected(
    wrong: dict[str, float], small_dataset: Dataset, backbone: Backbone
) -> None:
    (value,) = wrong.values()
    reason = LayerSVM.from_hyperparameters(wrong).inapplicable(small_dataset, backbone)
    assert reason is not None
    assert str(value) in reason


def test_the_only_informative_depth_is_chosen_and_the_network_truncated_there(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = labels_of(small_dataset.train)
    at = Views.at

    def informative_at_depth_3(views: Views, depths: tuple[int, ...], pooling: Pooling) -> Rows:
        noise = np.random.default_rng(0).normal(size=at(views, depths, pooling).shape)
        x: Rows = noise.astype(np.float32)
        if depths == (3,):
            x[:, :, 0] += 10 * labels[:, None]
            x[:, :, 1] += 10 * (labels[:, None] == 1)
        return x

    monkeypatch.setattr(Views, "at", informative_at_depth_3)

    fitted = LayerSVM(views=1).fit(small_dataset.hide_test(), backbone, ctx)

    assert fitted.hyperparameters["depth"] == 3
    assert fitted.depths == (3,)


def test_the_cut_of_many_images_is_chosen_on_some_and_the_head_fitted_to_all(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    validate = layer_svm.cross_validate_head

    def record(x: Rows, *given: Any) -> Any:
        seen.append(len(x))
        return validate(x, *given)

    monkeypatch.setattr(layer_svm, "cross_validate_head", record)
    monkeypatch.setattr(layer_svm, "MAX_CUT_IMAGES", 12)
    monkeypatch.setattr(layer_svm, "MIN_PER_CLASS", 2)
    fitted_to: list[int] = []
    fit_head = linear_head.fit_head

    def record_fit(x: Rows, *given: Any, **named: Any) -> Any:
        fitted_to.append(len(x))
        return fit_head(x, *given, **named)

    monkeypatch.setattr(linear_head, "fit_head", record_fit)

    LayerSVM(views=1, share=1.0).fit(small_dataset.hide_test(), backbone, ctx)

    assert set(seen) == {12}
    assert fitted_to == [len(small_dataset.train)]


def test_the_first_candidate_is_the_default(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_svm, "one_standard_error_rule", lambda losses, costs: 0)
    fitted = LayerSVM(views=1).fit(small_dataset.hide_test(), backbone, ctx)

    first = candidates(backbone, len(small_dataset.train))[0]
    assert fitted.hyperparameters["depth"] == first.depth == -(backbone.n_depths // 2)
    assert fitted.depths == depth_set(first.depth, backbone)


def test_activations_outside_the_share_have_zero_weight(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    svm = LayerSVM(depth=0, pooling="mean", share=0.25, views=1, strength=1e-3)
    fitted = svm.fit(small_dataset.hide_test(), backbone, ctx)

    used = (fitted.network.head.weight.detach().abs().amax(dim=0) > 0).float().mean()
    assert float(used) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("svm", [LayerSVM(), LayerSVM(depth=0, pooling="grid", share=0.25)])
def test_the_recorded_hyperparameters_reproduce_the_classifier(
    svm: LayerSVM, small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    dataset = small_dataset.hide_test()
    first = svm.fit(dataset, backbone, ctx)
    assert None not in first.hyperparameters.values()

    again = LayerSVM.from_hyperparameters(first.hyperparameters).fit(dataset, backbone, ctx)

    paths = [p.path for p in dataset.val]
    # The temperature is fitted to out-of-fold scores, whose solver stops earlier.
    np.testing.assert_allclose(first.predict_proba(paths), again.predict_proba(paths), atol=0.01)


def test_with_one_image_per_class_the_first_candidate_is_used(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    labels = labels_of(small_dataset.train)
    rows = [int(np.flatnonzero(labels == c)[0]) for c in range(small_dataset.n_classes)]
    dataset = replace(small_dataset.hide_test(), train=tuple(small_dataset.train[r] for r in rows))

    fitted = LayerSVM(views=1).fit(dataset, backbone, ctx)

    assert fitted.hyperparameters["depth"] == candidates(backbone, 3)[0].depth
